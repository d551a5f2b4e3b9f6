/** The demo page in Chromium, against the Worker in `wrangler dev`. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Server, token } from './server.mjs';
import { launch, Visitor } from './visitor.mjs';

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

/** A room that no other test uses, and people who come in: a name each, or a
 * name and what stands on their switch. */
async function gathering(...names) {
  const room = `room-${++rooms}`;
  const people = [];
  for (const [name, transport] of names.map((name) => [name].flat())) {
    people.push(await Visitor.join(browser, server.url, room, name, { transport }));
  }
  return [room, ...people];
}

/** The same over one transport and the other. */
function overEach(what, run) {
  for (const transport of TRANSPORTS) test(`${what} (${transport})`, () => run(transport));
}

const goodbye = (...people) => Promise.all(people.map((visitor) => visitor.leave()));

async function talk(here, there) {
  const [, alice, bob] = await gathering(['alice', here], ['bob', there]);
  await alice.member('bob', 'online');
  await bob.member('alice', 'online');

  await alice.type('hel');
  await bob.typing('alice is typing');
  await alice.typing('');
  // A pause ends it.
  await bob.typing('');

  await alice.write('hello');
  await bob.sees('hello');
  await alice.mark('hello', 'read');

  await bob.look('hidden');
  await alice.write('are you looking?');
  await bob.sees('are you looking?');
  await alice.mark('are you looking?', 'delivered');
  await bob.page.waitForFunction(() => document.title.startsWith('(1) '));
  await bob.look('visible');
  await alice.mark('are you looking?', 'read');

  await bob.write('I am now');
  await alice.reads(['hello', 'are you looking?', 'I am now']);
  await bob.reads(['hello', 'are you looking?', 'I am now']);

  for (const status of ['busy', 'away', 'offline', 'online']) {
    await bob.page.getByLabel('Your status').selectOption(status);
    await alice.member('bob', status);
    await bob.member('bob', status);
  }
  await goodbye(alice, bob);
}

for (const [here, there] of [['Native', 'Native'], ['Native', 'Socket.IO'], ['Socket.IO', 'Native']]) {
  test(`two people talk, and see each other come, type, receive and read (${here}, ${there})`, () => talk(here, there));
}

overEach('who was away gets everything in order: messages, publications, and sends what was written', async (transport) => {
  const [room, alice, bob] = await gathering(['alice', transport], 'bob');
  await alice.write('one');
  await bob.reads(['one']);
  await alice.mark('one', 'read');

  await alice.click('Go offline');
  await alice.connection('offline');
  await bob.write('two');
  const published = await server.publish(room, 'newMessage', { content: 'three' });
  assert.equal(published.online, 1);
  assert.equal(published.queued, 1);
  await server.publish(room, 'orderShipped', { order: 4 });
  await bob.write('five');
  await bob.mark('two', 'sent');
  await alice.write('six');
  await alice.write('seven');
  await alice.mark('seven', 'waiting');
  await bob.member('alice', 'offline');
  assert.deepEqual(await alice.texts(), ['one', 'six', 'seven']);

  await alice.click('Go online');
  const all = ['one', 'two', 'three', 'five', 'six', 'seven'];
  await alice.reads(all);
  await bob.reads(all);
  await alice.mark('seven', 'read');
  await bob.mark('five', 'read');
  await bob.member('alice', 'online');
  assert.deepEqual(await server.log(room), all);
  const notice = alice.page.locator('.message:has-text("three") + .notice');
  assert.equal(await notice.innerText(), 'orderShipped {"order":4}');
  await alice.page.getByText('While you were away').waitFor();
  await goodbye(alice, bob);
});

overEach('a network that drops without a word is noticed, and resumed from', async (transport) => {
  const [room, alice, bob] = await gathering(['alice', transport], 'bob');
  await alice.write('hello');
  await bob.sees('hello');
  await alice.mark('hello', 'read');
  const before = alice.sent.length;
  await alice.context.setOffline(true);
  await bob.write('do you hear me?');
  await alice.connection('waiting');
  await alice.write('no');
  await alice.mark('no', 'waiting');
  await bob.write('hello?');
  await bob.mark('hello?', 'sent');
  await alice.context.setOffline(false);
  await alice.connection('live');
  await alice.reads(['hello', 'do you hear me?', 'hello?', 'no']);
  await bob.reads(['hello', 'do you hear me?', 'hello?', 'no']);
  assert.deepEqual(await server.log(room), ['hello', 'do you hear me?', 'hello?', 'no']);
  await bob.mark('hello?', 'read');
  await bob.member('alice', 'online');
  await alice.page.getByText('While you were away').waitFor();
  if (transport === 'Socket.IO') {
    // The library's recovery brought it: nothing was asked for.
    const sent = alice.sent.slice(before).filter((frame) => frame.includes('/chat,'));
    assert.match(sent.find((frame) => frame.startsWith('40/chat,')), /"pid":".*"offset":"/);
    assert.deepEqual(sent.filter((frame) => frame.includes('"since"')), []);
  }
  await goodbye(alice, bob);
});

overEach('a connection that is dead but looks alive is noticed when the page is looked at', async (transport) => {
  const [, bob] = await gathering('bob');
  const alice = await Visitor.join(browser, server.url, `room-${rooms}`, 'alice', { transport, cable: true });
  await bob.write('one');
  await alice.reads(['one']);
  alice.cut();
  await bob.write('two');
  await bob.mark('two', 'sent');
  await alice.look('hidden');
  await alice.look('visible');
  await alice.reads(['one', 'two']);
  await bob.mark('two', 'read');
  await goodbye(alice, bob);
});

overEach('after kill -9 of the server the pages come back by themselves and nothing is lost or twice', async (transport) => {
  const [room, alice, bob] = await gathering(['alice', transport], ['bob', transport]);
  const all = Array.from({ length: 30 }, (_, index) => `message ${index + 1}`);
  for (const text of all.slice(0, 10)) await alice.write(text);
  await bob.reads(all.slice(0, 10));
  // Some of these are on their way, with or without their acknowledgement.
  for (const text of all.slice(10, 20)) await alice.write(text);
  server.kill();
  await Promise.all([alice.connection('waiting'), bob.connection('waiting')]);
  for (const text of all.slice(20)) await alice.write(text);
  await alice.mark('message 30', 'waiting');

  await server.start();
  const time = { timeout: 60_000 };
  await Promise.all([alice.connection('live', time), bob.connection('live', time)]);
  await alice.reads(all);
  await bob.reads(all);
  await alice.mark('message 30', 'read');
  assert.deepEqual(await server.log(room), all);
  await goodbye(alice, bob);
});

overEach('a reload keeps name, room, transport and what waits to be sent, and shows what was said', async (transport) => {
  const [, alice, bob] = await gathering(['alice', transport], 'bob');
  await alice.write('before');
  await bob.reads(['before']);
  await alice.click('Go offline');
  await alice.write('not yet');
  await alice.page.reload();
  await alice.connection('live');
  await alice.reads(['before', 'not yet']);
  await bob.reads(['before', 'not yet']);
  await goodbye(alice, bob);
});

test('a newcomer sees the latest messages and can look further back', async () => {
  const [room, alice] = await gathering('alice');
  const messages = Array.from({ length: 120 }, (_, index) => ({
    room, event: 'newMessage', data: { content: `no. ${index + 1}` },
  }));
  await server.call('POST', '/publish', { messages: messages.slice(0, 100) });
  await server.call('POST', '/publish', { messages: messages.slice(100) });
  await alice.sees('no. 120');
  const bob = await Visitor.join(browser, server.url, room, 'bob');
  const texts = messages.map(({ data }) => data.content);
  await bob.reads(texts.slice(70));
  await bob.click('Show earlier messages');
  await bob.reads(texts.slice(20));
  await bob.click('Show earlier messages');
  await bob.reads(texts);
  await bob.page.getByRole('button', { name: 'Show earlier messages' }).waitFor({ state: 'hidden' });
  // The reader stays where they were, and what comes is announced.
  await bob.page.locator('#scroller').evaluate((scroller) => scroller.scrollTo(0, 0));
  await alice.write('down here');
  await bob.click('1 new');
  await alice.mark('down here', 'read');
  await goodbye(alice, bob);
});

test('what people write is never HTML, and long words stay on the screen', async () => {
  const [room, alice] = await gathering('alice');
  const bob = await Visitor.join(browser, server.url, room, 'bob', {
    viewport: { width: 320, height: 568 }, isMobile: true, hasTouch: true,
  });
  const nasty = '<img src=x onerror="document.title=\'hacked\'"><b>bold</b>';
  await alice.write(nasty);
  await bob.sees(nasty);
  await server.publish(room, 'news', { html: nasty });
  await server.publish(room, 'newMessage', { content: { not: 'a string' } });
  await bob.sees('{"not":"a string"}');
  assert.equal(await bob.page.locator('#log img, .text b, .notice b b').count(), 0);
  await bob.write('Donaudampfschifffahrtsgesellschaft'.repeat(12));
  await alice.page.locator('.message.other:has-text("Donau")').waitFor();
  assert.equal(await bob.overflow(), 0);
  assert.equal(await alice.overflow(), 0);
  assert.doesNotMatch(await bob.page.title(), /hacked/);
  await goodbye(alice, bob);
});

test('it fits a phone: nothing scrolls sideways, and the people are a button away', async () => {
  const [room, alice] = await gathering('alice');
  for (const [width, height] of [[320, 568], [390, 844]]) {
    const options = { viewport: { width, height }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
    const form = await Visitor.open(browser, server.url, options);
    await form.page.goto(server.url);
    assert.equal(await form.overflow(), 0);
    const bob = await Visitor.join(browser, server.url, room, `bob.with.a.rather.long.name-${width}`, options);
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
    // Everything to press is large enough for a finger.
    for (const button of await bob.page.locator('.top button:visible, #send').all()) {
      const box = await button.boundingBox();
      assert.ok(box.width >= 40 && box.height >= 40, `${box.width} x ${box.height}`);
    }
    await goodbye(form, bob);
  }
  await alice.leave();
});

overEach('a token is renewed before it expires, on the same socket', async (transport) => {
  const alice = await Visitor.open(browser, server.url);
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
  await alice.connection('live');
  // Each holds for 4 s and is renewed after 2.
  await alice.until(() => tokens, () => tokens >= 5, 'renewals');
  await alice.write('still here');
  await alice.mark('still here', 'sent');
  assert.equal(sockets, 1);
  await alice.leave();
});

overEach('a server without development tokens: a token can be pasted', async (transport) => {
  const alice = await Visitor.open(browser, server.url);
  await alice.page.route('**/dev/token', (route) => route.fulfill({
    status: 404,
    contentType: 'application/problem+json',
    body: JSON.stringify({ type: 'about:blank', title: 'Not Found', status: 404, code: 'notFound' }),
  }));
  await alice.page.goto(server.url);
  await alice.page.getByLabel('Your name').fill('somebody');
  await alice.page.getByLabel('Room').fill('pasted');
  await alice.page.getByLabel(transport).check();
  await alice.click('Join the room');
  const field = alice.page.getByLabel('Token');
  await field.fill('no token');
  await alice.click('Join the room');
  await alice.page.getByText('This is not a token').waitFor();
  await field.fill(await token({ sub: 'alice', rooms: ['elsewhere'] }));
  await alice.click('Join the room');
  // Refused, and told why.
  await alice.connection('stopped');
  await alice.page.locator('#banner', { hasText: 'does not open this room' }).waitFor();

  await alice.page.reload();
  await alice.connection('stopped', { state: 'detached' });
  await alice.page.getByLabel('Token').fill(await token({ sub: 'alice', rooms: ['pasted'] }));
  await alice.click('Join the room');
  await alice.connection('live');
  await alice.member('alice', 'online');
  // The browser itself reports the 404s and 403s that were asked for.
  alice.complaints = alice.complaints.filter((text) => !/status of 40[34]/.test(text));
  await alice.leave();
});

test('wrong names are explained at their field', async () => {
  const alice = await Visitor.open(browser, server.url);
  await alice.page.goto(server.url);
  const name = alice.page.getByLabel('Your name');
  await alice.click('Join the room');
  await alice.page.getByText('What shall the others call you?').waitFor();
  await name.fill('Zoë B');
  await alice.page.keyboard.press('Enter');
  await alice.page.getByText('Letters without accents').waitFor();
  assert.equal(await name.getAttribute('aria-invalid'), 'true');
  assert.equal(await name.evaluate((field) => field === document.activeElement), true);
  await name.fill('zoe.b');
  await alice.page.keyboard.press('Enter');
  await alice.connection('live');
  assert.equal(new URL(alice.page.url()).searchParams.get('room'), 'lobby');
  await alice.leave();
});

overEach('who is removed is told so and not brought back; a room that starts over starts over', async (transport) => {
  const [room, alice, bob] = await gathering(['alice', transport], ['bob', transport]);
  await alice.write('old');
  await bob.reads(['old']);
  await server.call('DELETE', `/rooms/${room}/connections?userId=alice`);
  await alice.connection('stopped');
  await alice.page.locator('#banner', { hasText: 'kicked' }).waitFor();
  await alice.click('Join again');
  await alice.connection('live');

  await server.call('DELETE', `/rooms/${room}`);
  for (const visitor of [alice, bob]) await visitor.page.getByText('The room has started over.').waitFor();
  await Promise.all([alice.connection('live'), bob.connection('live')]);
  await alice.write('new');
  await bob.reads(['new']);
  await alice.mark('new', 'read');

  await bob.click('Leave the room');
  await bob.page.getByLabel('Your name').waitFor();
  await alice.page.locator('.member[data-user=bob]').waitFor({ state: 'detached' });
  const members = await server.call('GET', `/rooms/${room}/members`);
  assert.deepEqual(members.map(({ userId }) => userId), ['alice']);
  await goodbye(alice, bob);
});

test('the transport is chosen on the form or in the address, remembered, and shown', async () => {
  const alice = await Visitor.open(browser, server.url);
  const asked = [];
  alice.page.on('request', (request) => asked.push(new URL(request.url())));
  const vendored = () => asked.filter(({ pathname }) => pathname.startsWith('/vendor/')).length;
  const chosen = (label) => alice.page.getByRole('radio', { name: label, checked: true }).waitFor();

  await alice.page.goto(`${server.url}/?room=chosen&transport=nonsense`);
  await chosen('Native');
  await alice.page.goto(`${server.url}/?room=chosen&transport=socketio`);
  await chosen('Socket.IO');
  await alice.page.getByLabel('Your name').fill('alice');
  await alice.page.getByLabel('Native').check();
  await alice.click('Join the room');
  await alice.connection('live');
  await alice.page.getByRole('status').getByText('native').waitFor();
  assert.equal(new URL(alice.page.url()).searchParams.get('transport'), 'native');
  assert.equal(vendored(), 0, 'who does not want the library does not get it');

  await alice.page.goto(`${server.url}/?room=chosen&transport=socketio`);
  await alice.connection('live');
  await alice.page.getByRole('status').getByText('Socket.IO').waitFor();
  assert.equal(vendored(), 1);
  await alice.page.goto(`${server.url}/?room=chosen`);
  await alice.connection('live');
  await alice.page.getByRole('status').getByText('Socket.IO').waitFor();
  assert.deepEqual(asked.filter(({ origin }) => origin !== server.url), [], 'nothing comes from elsewhere');
  await alice.leave();
});
