/** The demo page in Chromium, against the Worker in `wrangler dev`. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Server, token } from './server.mjs';
import { launch, User } from './user.mjs';

let server;
let browser;
let rooms = 0;

const TRANSPORTS = ['Native', 'Socket.IO'];

before(async () => {
  [server, browser] = await Promise.all([Server.start(), launch()]);
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

/** Joins users to a new room and returns the room and the users. Each argument is a
 * name, or a name and the label of a transport. */
async function joinNewRoom(...names) {
  const room = `room-${++rooms}`;
  const users = [];
  for (const [name, transport] of names.map((name) => [name].flat())) {
    users.push(await User.join(browser, server.url, room, name, { transport }));
  }
  return [room, ...users];
}

/** Defines a test for each transport. */
function testEachTransport(title, run) {
  for (const transport of TRANSPORTS) test(`${title} (${transport})`, () => run(transport));
}

const closeAll = (...users) => Promise.all(users.map((user) => user.close()));

async function testConversation(transportA, transportB) {
  const [, alice, bob] = await joinNewRoom(['alice', transportA], ['bob', transportB]);
  await alice.waitForMember('bob', 'online');
  await bob.waitForMember('alice', 'online');

  await alice.type('hel');
  await bob.waitForTyping('alice is typing');
  await alice.waitForTyping('');
  // The indicator ends after a pause.
  await bob.waitForTyping('');

  await alice.write('hello');
  await bob.waitForMessage('hello');
  await alice.waitForMark('hello', 'read');

  await bob.setVisibility('hidden');
  await alice.write('are you looking?');
  await bob.waitForMessage('are you looking?');
  await alice.waitForMark('are you looking?', 'delivered');
  await bob.page.waitForFunction(() => document.title.startsWith('(1) '));
  await bob.setVisibility('visible');
  await alice.waitForMark('are you looking?', 'read');

  await bob.write('I am now');
  await alice.waitForTexts(['hello', 'are you looking?', 'I am now']);
  await bob.waitForTexts(['hello', 'are you looking?', 'I am now']);

  for (const status of ['busy', 'away', 'offline', 'online']) {
    await bob.page.getByLabel('Your status').selectOption(status);
    await alice.waitForMember('bob', status);
    await bob.waitForMember('bob', status);
  }
  await closeAll(alice, bob);
}

for (const [a, b] of [['Native', 'Native'], ['Native', 'Socket.IO'], ['Socket.IO', 'Native']]) {
  test(`two users exchange messages, receipts, typing and presence (${a}, ${b})`, () => testConversation(a, b));
}

testEachTransport('after going online again, a user receives missed events in order and sends queued messages', async (transport) => {
  const [room, alice, bob] = await joinNewRoom(['alice', transport], 'bob');
  await alice.write('one');
  await bob.waitForTexts(['one']);
  await alice.waitForMark('one', 'read');

  await alice.click('Go offline');
  await alice.waitForConnection('offline');
  await bob.write('two');
  const published = await server.publish(room, 'newMessage', { content: 'three' });
  assert.equal(published.online, 1);
  assert.equal(published.queued, 1);
  await server.publish(room, 'orderShipped', { order: 4 });
  await bob.write('five');
  await bob.waitForMark('two', 'sent');
  await alice.write('six');
  await alice.write('seven');
  await alice.waitForMark('seven', 'waiting');
  await bob.waitForMember('alice', 'offline');
  assert.deepEqual(await alice.texts(), ['one', 'six', 'seven']);

  await alice.click('Go online');
  const all = ['one', 'two', 'three', 'five', 'six', 'seven'];
  await alice.waitForTexts(all);
  await bob.waitForTexts(all);
  await alice.waitForMark('seven', 'read');
  await bob.waitForMark('five', 'read');
  await bob.waitForMember('alice', 'online');
  assert.deepEqual(await server.log(room), all);
  const notice = alice.page.locator('.message:has-text("three") + .notice');
  assert.equal(await notice.innerText(), 'orderShipped {"order":4}');
  await alice.page.getByText('While you were away').waitFor();
  await closeAll(alice, bob);
});

testEachTransport('after a network loss the page reconnects, receives missed messages and sends queued ones', async (transport) => {
  const [room, alice, bob] = await joinNewRoom(['alice', transport], 'bob');
  await alice.write('hello');
  await bob.waitForMessage('hello');
  await alice.waitForMark('hello', 'read');
  const before = alice.sent.length;
  await alice.context.setOffline(true);
  await bob.write('do you hear me?');
  await alice.waitForConnection('waiting');
  await alice.write('no');
  await alice.waitForMark('no', 'waiting');
  await bob.write('hello?');
  await bob.waitForMark('hello?', 'sent');
  await alice.context.setOffline(false);
  await alice.waitForConnection('live');
  await alice.waitForTexts(['hello', 'do you hear me?', 'hello?', 'no']);
  await bob.waitForTexts(['hello', 'do you hear me?', 'hello?', 'no']);
  assert.deepEqual(await server.log(room), ['hello', 'do you hear me?', 'hello?', 'no']);
  await bob.waitForMark('hello?', 'read');
  await bob.waitForMember('alice', 'online');
  await alice.page.getByText('While you were away').waitFor();
  if (transport === 'Socket.IO') {
    // Connection state recovery delivered the events, not a join with `since`.
    const sent = alice.sent.slice(before).filter((frame) => /^4[0-4]/.test(frame));
    assert.match(sent.find((frame) => frame.startsWith('40')), /"pid":".*"offset":"/);
    assert.deepEqual(sent.filter((frame) => frame.includes('"since"')), []);
  }
  await closeAll(alice, bob);
});

testEachTransport('a dead connection is detected when the page becomes visible', async (transport) => {
  const [, bob] = await joinNewRoom('bob');
  const alice = await User.join(browser, server.url, `room-${rooms}`, 'alice', { transport, intercept: true });
  await bob.write('one');
  await alice.waitForTexts(['one']);
  alice.dropFrames();
  await bob.write('two');
  await bob.waitForMark('two', 'sent');
  await alice.setVisibility('hidden');
  await alice.setVisibility('visible');
  await alice.waitForTexts(['one', 'two']);
  await bob.waitForMark('two', 'read');
  await closeAll(alice, bob);
});

testEachTransport('after kill -9 of the server the pages reconnect and each message arrives once', async (transport) => {
  const [room, alice, bob] = await joinNewRoom(['alice', transport], ['bob', transport]);
  const all = Array.from({ length: 30 }, (_, index) => `message ${index + 1}`);
  for (const text of all.slice(0, 10)) await alice.write(text);
  await bob.waitForTexts(all.slice(0, 10));
  // Some of these messages are not acknowledged yet.
  for (const text of all.slice(10, 20)) await alice.write(text);
  server.kill();
  await Promise.all([alice.waitForConnection('waiting'), bob.waitForConnection('waiting')]);
  for (const text of all.slice(20)) await alice.write(text);
  await alice.waitForMark('message 30', 'waiting');

  await server.start();
  const time = { timeout: 60_000 };
  await Promise.all([alice.waitForConnection('live', time), bob.waitForConnection('live', time)]);
  await alice.waitForTexts(all);
  await bob.waitForTexts(all);
  await alice.waitForMark('message 30', 'read');
  assert.deepEqual(await server.log(room), all);
  await closeAll(alice, bob);
});

testEachTransport('a reload keeps name, room, transport and queued messages, and shows the history', async (transport) => {
  const [, alice, bob] = await joinNewRoom(['alice', transport], 'bob');
  await alice.write('before');
  await bob.waitForTexts(['before']);
  await alice.click('Go offline');
  await alice.write('not yet');
  await alice.page.reload();
  await alice.waitForConnection('live');
  await alice.waitForTexts(['before', 'not yet']);
  await bob.waitForTexts(['before', 'not yet']);
  await closeAll(alice, bob);
});

test('a new user sees the latest messages and can load earlier ones', async () => {
  const [room, alice] = await joinNewRoom('alice');
  const messages = Array.from({ length: 120 }, (_, index) => ({
    room, event: 'newMessage', data: { content: `no. ${index + 1}` },
  }));
  await server.call('POST', '/publish', { messages: messages.slice(0, 100) });
  await server.call('POST', '/publish', { messages: messages.slice(100) });
  await alice.waitForMessage('no. 120');
  const bob = await User.join(browser, server.url, room, 'bob');
  const texts = messages.map(({ data }) => data.content);
  await bob.waitForTexts(texts.slice(70));
  await bob.click('Show earlier messages');
  await bob.waitForTexts(texts.slice(20));
  await bob.click('Show earlier messages');
  await bob.waitForTexts(texts);
  await bob.page.getByRole('button', { name: 'Show earlier messages' }).waitFor({ state: 'hidden' });
  // A new message does not scroll the list but shows a button.
  await bob.page.locator('#scroller').evaluate((scroller) => scroller.scrollTo(0, 0));
  await alice.write('down here');
  await bob.click('1 new');
  await alice.waitForMark('down here', 'read');
  await closeAll(alice, bob);
});

test('messages are never interpreted as HTML, and long words do not overflow', async () => {
  const [room, alice] = await joinNewRoom('alice');
  const bob = await User.join(browser, server.url, room, 'bob', {
    viewport: { width: 320, height: 568 }, isMobile: true, hasTouch: true,
  });
  const html = '<img src=x onerror="document.title=\'hacked\'"><b>bold</b>';
  await alice.write(html);
  await bob.waitForMessage(html);
  await server.publish(room, 'news', { html });
  await server.publish(room, 'newMessage', { content: { not: 'a string' } });
  await bob.waitForMessage('{"not":"a string"}');
  assert.equal(await bob.page.locator('#log img, .text b, .notice b b').count(), 0);
  await bob.write('Donaudampfschifffahrtsgesellschaft'.repeat(12));
  await alice.page.locator('.message.other:has-text("Donau")').waitFor();
  assert.equal(await bob.overflow(), 0);
  assert.equal(await alice.overflow(), 0);
  assert.doesNotMatch(await bob.page.title(), /hacked/);
  await closeAll(alice, bob);
});

test('the page fits a phone without horizontal scrolling, and a button opens the member list', async () => {
  const [room, alice] = await joinNewRoom('alice');
  for (const [width, height] of [[320, 568], [390, 844]]) {
    const options = { viewport: { width, height }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
    const form = await User.open(browser, server.url, options);
    await form.page.goto(server.url);
    assert.equal(await form.overflow(), 0);
    const bob = await User.join(browser, server.url, room, `bob.with.a.rather.long.name-${width}`, options);
    await bob.write('from the train');
    await alice.page.locator('.message.other', { hasText: 'from the train' }).last().waitFor();
    assert.equal(await bob.overflow(), 0);
    const people = bob.page.getByRole('complementary', { name: 'People' });
    assert.equal(await people.isVisible(), false);
    await bob.page.getByRole('button', { name: 'People, online' }).tap();
    await people.getByText('alice').waitFor();
    assert.equal(await bob.overflow(), 0);
    await bob.page.keyboard.press('Escape');
    assert.equal(await people.isVisible(), false);
    // Touch targets are at least 40 px wide and high.
    for (const button of await bob.page.locator('.top button:visible, #send').all()) {
      const box = await button.boundingBox();
      assert.ok(box.width >= 40 && box.height >= 40, `${box.width} x ${box.height}`);
    }
    await closeAll(form, bob);
  }
  await alice.close();
});

testEachTransport('a token is refreshed before it expires, on the same socket', async (transport) => {
  const alice = await User.open(browser, server.url);
  let tokens = 0;
  await alice.page.route('**/dev/token', (route) => {
    tokens += 1;
    return route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), ttl: 4 }) });
  });
  let sockets = 0;
  alice.page.on('websocket', (socket) => {
    sockets += 1;
    assert.doesNotMatch(socket.url(), /token|eyJ/);
  });
  const which = transport === 'Native' ? 'native' : 'socketio';
  await alice.page.goto(`${server.url}/?room=renewed-${which}&name=alice&transport=${which}`);
  await alice.waitForConnection('live');
  // Each token is valid for 4 s and refreshed after 2 s.
  await alice.until(() => tokens, () => tokens >= 5, 'at least 5 tokens');
  await alice.write('still here');
  await alice.waitForMark('still here', 'sent');
  assert.equal(sockets, 1);
  await alice.close();
});

testEachTransport('without development tokens the user can paste a token', async (transport) => {
  const alice = await User.open(browser, server.url);
  await alice.page.route('**/dev/token', (route) => route.fulfill({
    status: 404,
    contentType: 'application/problem+json',
    body: JSON.stringify({ type: 'about:blank', title: 'Not Found', status: 404, code: 'notFound' }),
  }));
  await alice.page.goto(server.url);
  await alice.page.getByLabel('Your name').fill('carol');
  await alice.page.getByLabel('Room').fill('pasted');
  await alice.page.getByLabel(transport).check();
  await alice.click('Join the room');
  const field = alice.page.getByLabel('Token');
  await field.fill('no token');
  await alice.click('Join the room');
  await alice.page.getByText('This is not a token').waitFor();
  await field.fill(await token({ sub: 'alice', rooms: ['elsewhere'] }));
  await alice.click('Join the room');
  // The page shows why the token was refused.
  await alice.waitForConnection('stopped');
  await alice.page.locator('#banner', { hasText: 'does not allow access to this room' }).waitFor();

  await alice.page.reload();
  await alice.waitForConnection('stopped', { state: 'detached' });
  await alice.page.getByLabel('Token').fill(await token({ sub: 'alice', rooms: ['pasted'] }));
  await alice.click('Join the room');
  await alice.waitForConnection('live');
  await alice.waitForMember('alice', 'online');
  // Chromium logs the expected 404 and 403 responses as errors.
  alice.errors = alice.errors.filter((text) => !/status of 40[34]/.test(text));
  await alice.close();
});

test('an invalid name is explained beside its field', async () => {
  const alice = await User.open(browser, server.url);
  await alice.page.goto(server.url);
  const name = alice.page.getByLabel('Your name');
  await alice.click('Join the room');
  await alice.page.getByText('Enter a name').waitFor();
  await name.fill('Zoe\u202e');
  await alice.page.keyboard.press('Enter');
  await alice.page.getByText('at most 255 visible characters').waitFor();
  assert.equal(await name.getAttribute('aria-invalid'), 'true');
  assert.equal(await name.evaluate((field) => field === document.activeElement), true);
  await name.fill('Zoë B');
  await alice.page.keyboard.press('Enter');
  await alice.waitForConnection('live');
  assert.equal(new URL(alice.page.url()).searchParams.get('room'), 'lobby');
  await alice.close();
});

testEachTransport('a kicked user sees the reason and stays disconnected; a deleted room starts empty', async (transport) => {
  const [room, alice, bob] = await joinNewRoom(['alice', transport], ['bob', transport]);
  await alice.write('old');
  await bob.waitForTexts(['old']);
  await server.call('DELETE', `/rooms/${room}/connections?userId=alice`);
  await alice.waitForConnection('stopped');
  await alice.page.locator('#banner', { hasText: 'kicked' }).waitFor();
  await alice.click('Join again');
  await alice.waitForConnection('live');

  await server.call('DELETE', `/rooms/${room}`);
  for (const user of [alice, bob]) await user.page.getByText('The room was deleted and is empty again.').waitFor();
  await Promise.all([alice.waitForConnection('live'), bob.waitForConnection('live')]);
  await alice.write('new');
  await bob.waitForTexts(['new']);
  await alice.waitForMark('new', 'read');

  await bob.click('Leave the room');
  await bob.page.getByLabel('Your name').waitFor();
  await alice.page.locator('.member[data-user=bob]').waitFor({ state: 'detached' });
  const members = await server.call('GET', `/rooms/${room}/members`);
  assert.deepEqual(members.map(({ userId }) => userId), ['alice']);
  await closeAll(alice, bob);
});

test('the transport can be selected in the form or the URL, is stored and is shown', async () => {
  const alice = await User.open(browser, server.url);
  const requests = [];
  alice.page.on('request', (request) => requests.push(new URL(request.url())));
  const vendored = () => requests.filter(({ pathname }) => pathname.startsWith('/vendor/')).length;
  const isSelected = (label) => alice.page.getByRole('radio', { name: label, checked: true }).waitFor();

  await alice.page.goto(`${server.url}/?room=chosen&transport=nonsense`);
  await isSelected('Native');
  await alice.page.goto(`${server.url}/?room=chosen&transport=socketio`);
  await isSelected('Socket.IO');
  await alice.page.getByLabel('Your name').fill('alice');
  await alice.page.getByLabel('Native').check();
  await alice.click('Join the room');
  await alice.waitForConnection('live');
  await alice.page.getByRole('status').getByText('native').waitFor();
  assert.equal(new URL(alice.page.url()).searchParams.get('transport'), 'native');
  assert.equal(vendored(), 0, 'the native transport must not load socket.io-client');

  await alice.page.goto(`${server.url}/?room=chosen&transport=socketio`);
  await alice.waitForConnection('live');
  await alice.page.getByRole('status').getByText('Socket.IO').waitFor();
  assert.equal(vendored(), 1);
  await alice.page.goto(`${server.url}/?room=chosen`);
  await alice.waitForConnection('live');
  await alice.page.getByRole('status').getByText('Socket.IO').waitFor();
  assert.deepEqual(requests.filter(({ origin }) => origin !== server.url), [], 'the page must not load anything from other origins');
  await alice.close();
});
