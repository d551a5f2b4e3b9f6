/** End-to-end tests of the dialects `module` and `relay` with socket.io-client, against
 * `wrangler dev`: an application of the original module runs with only the address changed. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { io } from 'socket.io-client';
import { Server, token } from '../browser/server.mjs';
import { TcpProxy } from './tcp-proxy.mjs';

/** Timeout of every wait, in milliseconds. */
const TIMEOUT = 10_000;
const WEBSOCKET = { transports: ['websocket'] };
const POLLING = { transports: ['polling'] };
let server;
const open = [];

before(async () => {
  server = await Server.start({ vars: { NAMESPACES: '/ /chat=module /app=relay', LOG_LEVEL: 'warn' } });
});
after(() => server.stop());

test.afterEach(() => open.splice(0).forEach((one) => one.close()));

/** Waits until `condition` returns a truthy value, and returns it. */
async function until(condition, message = condition.toString()) {
  for (const end = Date.now() + TIMEOUT; Date.now() < end; await sleep(10)) {
    const value = await condition();
    if (value) return value;
  }
  return assert.fail(`timeout: ${message}`);
}

/** Records the events of a socket. */
function listen(socket) {
  socket.received = [];
  socket.onAny((event, ...args) => socket.received.push({ event, args }));
  /** Returns the first arguments of the events with this name. */
  socket.all = (event) => socket.received.filter((one) => one.event === event).map(({ args }) => args[0]);
  /** Waits for an event that satisfies `matches`, and returns its data. */
  socket.next = (event, matches = () => true) =>
    until(() => socket.all(event).some(matches), `${event} in ${JSON.stringify(socket.received)}`)
      .then(() => socket.all(event).find(matches));
  open.push(socket);
  return socket;
}

/** The client of an application that was written for the original module. Only the address is
 * that of roomcast. */
async function app(user, { url = server.url, ...options } = {}) {
  const socket = io(`${url}/chat`, {
    transports: ['websocket'],
    query: { token: await token({ sub: user }) },
    reconnection: true,
    forceNew: true,
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
    ...options,
  });
  listen(socket);
  await once(socket, 'connect', { signal: AbortSignal.timeout(TIMEOUT) });
  return socket;
}

/** Connects an application and joins a room. */
async function joined(user, room, options) {
  const socket = await app(user, options);
  socket.emit('joinRoom', room);
  assert.equal(await socket.next('joinedRoom', (name) => name === room), room);
  return socket;
}

/** Connects a client of the protocol's own vocabulary at a gateway, and joins a room. */
async function native(user, room) {
  const socket = new WebSocket(`${server.url.replace('http', 'ws')}/ws?token=${await token({ sub: user })}`);
  const lines = [];
  socket.addEventListener('message', ({ data }) => lines.push(...data.split('\n').map((line) => JSON.parse(line))));
  await once(socket, 'open', { signal: AbortSignal.timeout(TIMEOUT) });
  open.push(socket);
  let last = 0;
  const client = {
    /** Returns the data of the events with this name. */
    all: (event) => lines.filter((line) => line.event === event).map(({ data }) => data),
    next: (event, matches = () => true) =>
      until(() => client.all(event).some(matches), `${event} in ${JSON.stringify(lines)}`)
        .then(() => client.all(event).find(matches)),
    async request(event, data) {
      last += 1;
      const id = last;
      socket.send(JSON.stringify({ event, data, id }));
      const answer = await until(() => lines.find((line) => line.ack === id), `the answer to ${event}`);
      assert.equal(answer.error, undefined, JSON.stringify(answer));
      return answer.data;
    },
  };
  if (room) await client.request('joinRoom', { roomId: room });
  return client;
}

/** The service of the application: what its NestJS services publish. */
const publish = (message) => server.call('POST', '/publish', message);

const content = (text) => (message) => message.content === text;

test('an application of the module and its service work beside a native client that sees the same messages', async () => {
  const room = 'general';
  const carol = await native('carol', room);
  const alice = await joined('alice', room);
  await carol.next('userJoined', ({ userId }) => userId === 'alice');
  // `bob` has the default transports, which begin with long-polling.
  const bob = await joined('bob', room, { transports: undefined });
  const seen = await alice.next('userJoinedRoom', ({ userId }) => userId === 'bob');
  assert.ok(Date.parse(seen.timestamp), 'a timestamp');

  // A message: the sender learns its id, everybody gets it, the sender too.
  alice.emit('sendMessage', { roomId: room, content: 'hello', attachments: [{ name: 'a.png' }] });
  const sent = await alice.next('messageSent');
  assert.equal(sent.status, 'sent');
  assert.ok(Date.parse(sent.timestamp));
  for (const one of [alice, bob]) {
    const message = await one.next('newMessage', content('hello'));
    assert.deepEqual(
      { ...message },
      {
        content: 'hello', attachments: [{ name: 'a.png' }], roomId: room, timestamp: sent.timestamp,
        id: sent.id, sender: 'alice', messageId: sent.id, senderId: 'alice', seq: 1,
      },
    );
  }
  const same = await carol.next('newMessage', content('hello'));
  assert.deepEqual([same.messageId, same.senderId, same.seq, same.id], [sent.id, 'alice', 1, undefined]);

  // The native client answers, with an id of its own.
  await carol.request('sendMessage', { roomId: room, content: 'from carol', messageId: 'carols-own' });
  for (const one of [alice, bob]) {
    const message = await one.next('newMessage', content('from carol'));
    assert.deepEqual([message.id, message.sender, message.seq], ['carols-own', 'carol', 2]);
  }

  // Typing: the caller too.
  alice.emit('typingIndicator', { roomId: room, isTyping: true });
  for (const one of [alice, bob]) {
    const typing = await one.next('userTyping', ({ userId }) => userId === 'alice');
    assert.deepEqual([typing.roomId, typing.isTyping], [room, true]);
    assert.ok(Date.parse(typing.timestamp));
  }
  await carol.next('userTyping', ({ userId, isTyping }) => userId === 'alice' && isTyping);

  // Presence: everybody, the caller too.
  alice.emit('presenceUpdate', { status: 'away' });
  for (const one of [alice, bob]) {
    const presence = await one.next('presenceUpdate', ({ userId, status }) => userId === 'alice' && status === 'away');
    assert.ok(Date.parse(presence.lastActive));
  }
  await carol.next('presenceUpdate', ({ userId, status }) => userId === 'alice' && status === 'away');

  // Receipts by message id, for both vocabularies.
  bob.emit('readReceipt', { messageId: sent.id, roomId: room });
  const receipt = await alice.next('messageRead', ({ userId }) => userId === 'bob');
  assert.equal(receipt.messageId, sent.id);
  assert.ok(Date.parse(receipt.timestamp));
  assert.deepEqual(await carol.next('messageRead', ({ userId }) => userId === 'bob'), { roomId: room, userId: 'bob', seq: 1, messageId: sent.id });
  bob.emit('readReceipt', { messageId: 'carols-own', roomId: room });
  await alice.next('messageRead', ({ userId, messageId }) => userId === 'bob' && messageId === 'carols-own');
  await carol.request('messageRead', { roomId: room, seq: 2 });
  const ofCarol = await alice.next('messageRead', ({ userId }) => userId === 'carol');
  assert.equal(ofCarol.messageId, 'carols-own', 'the room finds the id of the message');

  // The service publishes to the room, to a user, and to the room of a user.
  await publish({ event: 'newMessage', data: { content: 'from a service', timestamp: new Date().toISOString() }, room });
  for (const one of [alice, bob]) {
    const message = await one.next('newMessage', content('from a service'));
    assert.deepEqual([message.sender, message.seq], ['billing', 3]);
  }
  await publish({ event: 'notification', data: { message: 'for alice' }, userId: 'alice' });
  await publish({ event: 'notification', data: 'for bob', room: 'user:bob' });
  assert.deepEqual(await alice.next('notification'), { message: 'for alice' });
  assert.equal(await bob.next('notification'), 'for bob');
  assert.deepEqual([alice.all('notification').length, bob.all('notification').length], [1, 1]);

  // The heartbeat has no answer.
  alice.emit('heartbeat');

  // Messages after one that the client has, and the last ones.
  alice.emit('syncMessages', { roomId: room, lastMessageId: sent.id, limit: 10 });
  assert.deepEqual(await alice.next('syncComplete'), { roomId: room, syncedMessageCount: 2 });
  assert.equal(alice.all('newMessage').filter(content('from carol')).length, 2);
  bob.emit('syncMessages', { roomId: room, limit: 1 });
  const last = await bob.next('syncComplete');
  assert.deepEqual([last.roomId, last.syncedMessageCount], [room, 1]);

  // Leaving: the others hear of it, the caller does not.
  alice.emit('leaveRoom', room);
  assert.equal(await alice.next('leftRoom'), room);
  for (const one of [bob]) {
    const left = await one.next('userLeftRoom', ({ userId }) => userId === 'alice');
    assert.ok(Date.parse(left.timestamp));
  }
  await carol.next('userLeft', ({ userId }) => userId === 'alice');
  bob.emit('sendMessage', { roomId: room, content: 'is alice here?' });
  await bob.next('newMessage', content('is alice here?'));
  await sleep(300);
  assert.deepEqual(alice.all('userLeftRoom'), []);
  assert.deepEqual(alice.all('userJoinedRoom').filter(({ userId }) => userId === 'alice'), []);
  assert.equal(alice.all('newMessage').some(content('is alice here?')), false);

  // Events that the module does not have are not sent.
  const known = [
    'joinedRoom', 'leftRoom', 'messageSent', 'syncComplete', 'userJoinedRoom', 'userLeftRoom', 'newMessage',
    'userTyping', 'presenceUpdate', 'messageRead', 'notification',
  ];
  for (const { received } of [alice, bob]) {
    assert.deepEqual(received.filter(({ event }) => !known.includes(event)), []);
  }
});

test('everything that fails is an exception that names the reason', async () => {
  const socket = await app('erin');
  const failed = async (reason, event, ...args) => {
    const before = socket.all('exception').length;
    socket.emit(event, ...args);
    await until(() => socket.all('exception').length > before, `an exception after ${event}`);
    const exception = socket.all('exception').at(-1);
    assert.equal(exception.status, 'error');
    assert.match(exception.message, reason);
  };
  await failed(/unknown event `teleport`/, 'teleport', { x: 1 });
  await failed(/`roomId` must be a room name/, 'joinRoom', 'not a room');
  await failed(/join the room first/, 'sendMessage', { roomId: 'elsewhere', content: 'x' });
  await failed(/`roomId` is required/, 'typingIndicator', { isTyping: true });
  await failed(/`status` must be/, 'presenceUpdate', { status: 'asleep' });
  await failed(/binary data is not supported/, 'sendMessage', { roomId: 'r', content: Buffer.from('x') });
  await failed(/must not exceed/, 'sendMessage', { roomId: 'r', content: 'x'.repeat(200_000) });
  socket.emit('joinRoom', 'failing');
  await socket.next('joinedRoom');
  await failed(/no message with this id/, 'readReceipt', { roomId: 'failing', messageId: 'none' });
  await failed(/no message with this id/, 'syncMessages', { roomId: 'failing', lastMessageId: 'none' });
  await failed(/the token does not allow access/, 'joinRoom', 'user:alice');
});

test('acknowledgement callbacks are called in addition to the events, with the same data', async () => {
  const socket = await app('fred');
  const request = (event, ...args) => socket.timeout(TIMEOUT).emitWithAck(event, ...args);
  assert.equal(await request('joinRoom', 'acks'), 'acks');
  assert.equal(await socket.next('joinedRoom'), 'acks');
  const sent = await request('sendMessage', { roomId: 'acks', content: 'x' });
  assert.deepEqual(await socket.next('messageSent'), sent);
  assert.deepEqual([sent.status, sent.seq, sent.messageId], ['sent', 1, sent.id]);
  assert.deepEqual(await request('typingIndicator', { roomId: 'acks', isTyping: true }), {});
  assert.deepEqual(await request('presenceUpdate', { status: 'busy' }), { status: 'busy' });
  assert.deepEqual(await request('readReceipt', { roomId: 'acks', messageId: sent.id }), { seq: 1 });
  assert.deepEqual(await request('heartbeat'), {});
  assert.deepEqual(await request('syncMessages', { roomId: 'acks' }), { roomId: 'acks', syncedMessageCount: 1 });
  const exception = await request('teleport');
  assert.deepEqual(await socket.next('exception'), exception);
  assert.deepEqual([exception.status, exception.code], ['error', 'badRequest']);
  assert.equal(await request('leaveRoom', 'acks'), 'acks');
});

for (const [name, options] of [['WebSocket', WEBSOCKET], ['long-polling', POLLING]]) {
  test(`a client on ${name} that never acknowledges does not receive its history on every connect`, async () => {
    const room = `history-${name === 'WebSocket' ? 1 : 2}`;
    const user = `grace-${name === 'WebSocket' ? 1 : 2}`;
    const first = await joined(user, room, options);
    const messages = [...Array(50).keys()].map((n) => ({ event: 'newMessage', data: { content: n }, room }));
    await publish({ messages });
    await until(() => first.all('newMessage').length === 50);
    // The next packet or pong of the client acknowledges.
    await until(async () => (await members(room))[0].delivered === 50, 'the acknowledgement by the server');
    first.disconnect();
    await publish({ event: 'newMessage', data: { content: 'missed' }, room });
    const second = await joined(user, room, options);
    await second.next('newMessage', content('missed'));
    assert.equal(second.all('newMessage').length, 1);
    // A regular disconnect is a packet after the event.
    second.disconnect();
    await until(async () => (await members(room))[0].delivered === 51);
    const third = await joined(user, room, options);
    await publish({ event: 'newMessage', data: { content: 'new' }, room });
    await third.next('newMessage', content('new'));
    assert.equal(third.all('newMessage').length, 1);
  });
}

const members = (room) => server.call('GET', `/rooms/${room}/members`);

test('events that were queued while the user was offline are emitted once on connect', async () => {
  const first = await app('heidi');
  await until(async () => (await server.call('GET', '/rooms/@heidi/presence')).users[0]?.connections === 1);
  first.disconnect();
  await publish({ event: 'orderShipped', data: { order: 4 }, userId: 'heidi' });
  await publish({ event: 'notification', data: { message: 'hi' }, userId: 'heidi' });
  const second = await app('heidi');
  assert.deepEqual(await second.next('orderShipped'), { order: 4 });
  assert.deepEqual(await second.next('notification'), { message: 'hi' });
  await until(async () => (await members('@heidi'))[0].delivered === 2);
  second.disconnect();
  const third = await app('heidi');
  await publish({ event: 'notification', data: { message: 'last' }, userId: 'heidi' });
  await third.next('notification', ({ message }) => message === 'last');
  assert.deepEqual(third.all('orderShipped'), []);
  assert.equal(third.all('notification').length, 1);
});

test('an application of the module is recovered after a network loss, each event once', async () => {
  const proxy = await TcpProxy.start(server.port);
  open.push(proxy);
  const socket = await joined('ivan', 'lossy', { url: proxy.url });
  await publish({ event: 'newMessage', data: { content: 'before' }, room: 'lossy' });
  await socket.next('newMessage', content('before'));
  // The last argument of these events is a string, which the library takes for an offset.
  await publish({ event: 'note', data: 'a string', room: 'lossy', volatile: true });
  await socket.next('note');
  socket.emit('joinRoom', 'lossy-2');
  await socket.next('joinedRoom', (room) => room === 'lossy-2');
  const disconnected = once(socket, 'disconnect');
  proxy.cut();
  await disconnected;
  await publish({ event: 'newMessage', data: { content: 'missed' }, room: 'lossy' });
  await publish({ event: 'newMessage', data: { content: 'missed too' }, room: 'lossy-2' });
  const reconnected = once(socket, 'connect', { signal: AbortSignal.timeout(TIMEOUT) });
  proxy.restore();
  await reconnected;
  assert.equal(socket.recovered, true);
  await socket.next('newMessage', content('missed'));
  await socket.next('newMessage', content('missed too'));
  assert.deepEqual(socket.all('newMessage').map((message) => message.content).sort(), ['before', 'missed', 'missed too']);
  await until(async () => (await members('lossy'))[0].delivered === 2);
});

test('a receipt and a sync for messages of a restarted server are resolved', async () => {
  const socket = await joined('judy', 'durable');
  socket.emit('sendMessage', { roomId: 'durable', content: 'one' });
  const { id } = await socket.next('messageSent');
  await publish({ event: 'newMessage', data: { content: 'two' }, room: 'durable', messageId: 'two' });
  await socket.next('newMessage', content('two'));
  socket.disconnect();
  server.kill();
  await server.start();
  const again = await joined('judy', 'durable');
  const request = (event, data) => again.timeout(TIMEOUT).emitWithAck(event, data);
  assert.deepEqual(await request('readReceipt', { roomId: 'durable', messageId: id }), { seq: 1 });
  assert.deepEqual(await request('readReceipt', { roomId: 'durable', messageId: 'two' }), { seq: 2 });
  assert.deepEqual(await request('syncMessages', { roomId: 'durable', lastMessageId: id }), { roomId: 'durable', syncedMessageCount: 1 });
  assert.deepEqual(await request('syncMessages', { roomId: 'durable', lastMessageId: 'two' }), { roomId: 'durable', syncedMessageCount: 0 });
});

test('a broadcast of a service reaches every open connection of gateways and rooms', async () => {
  const [module, polling] = [await app('kim'), await app('lea', POLLING)];
  const own = await connect('mia', '/');
  const relay = await connect('noa', '/app');
  const gateway = await native('pia');
  const url = `${server.url.replace('http', 'ws')}/rooms/hall/ws?token=${await token({ sub: 'rob' })}`;
  const room = new WebSocket(url);
  open.push(room);
  const lines = [];
  room.addEventListener('message', ({ data }) => lines.push(...data.split('\n').map((line) => JSON.parse(line))));
  await until(() => lines.some(({ event }) => event === 'connected'));
  const broadcast = async (rooms) =>
    fetch(`${server.url}/broadcast`, {
      method: 'POST',
      headers: { authorization: `Bearer ${await token({ sub: 'billing', role: 'service', rooms })}` },
      body: JSON.stringify({ event: 'announcement', data }),
    });
  // Rooms and gateways register soon after their first connection.
  const data = { text: 'maintenance at noon' };
  const sent = await until(async () => {
    const answer = await broadcast({ '*': ['admin'] });
    assert.equal(answer.status, 200);
    const counts = await answer.json();
    return counts.rooms >= 1 && counts.gateways >= 2 && counts;
  });
  assert.equal(sent.failed, 0);
  for (const one of [module, polling, relay]) {
    assert.deepEqual(await one.next('announcement'), data);
  }
  await own.next('announcement');
  const { args } = own.received.filter(({ event }) => event === 'announcement').at(-1);
  assert.deepEqual([args[0], args[1].senderId, args[1].roomId], [data, 'billing', undefined]);
  assert.deepEqual(await gateway.next('announcement'), data);
  await until(() => lines.some(({ event }) => event === 'announcement'));
  assert.equal((await broadcast({ '*': ['write'], hall: ['admin'] })).status, 403);
});

/** Connects a client to a namespace. */
async function connect(user, nsp) {
  const socket = io(server.url + nsp, { ...WEBSOCKET, forceNew: true, auth: { token: await token({ sub: user }) } });
  listen(socket);
  socket.request = (event, ...args) => socket.timeout(TIMEOUT).emitWithAck(event, ...args);
  await once(socket, 'connect', { signal: AbortSignal.timeout(TIMEOUT) });
  return socket;
}

test('the dialect relay sends events with names of the application to their room', async () => {
  const [alice, bob] = [await connect('alice', '/app'), await connect('bob', '/app')];
  const own = await connect('carol', '/');
  for (const one of [alice, bob, own]) await one.request('joinRoom', 'board');
  // To the only room of the client, or to `roomId`.
  assert.equal((await alice.request('draw', { x: 1, y: 2 })).seq, 1);
  alice.emit('move', { roomId: 'board', to: 'e4' });
  assert.deepEqual(await bob.next('draw'), { x: 1, y: 2 });
  assert.deepEqual(await bob.next('move'), { roomId: 'board', to: 'e4' });
  const { args } = bob.received.find(({ event }) => event === 'draw');
  assert.ok(args.length === 1 || typeof args[1] === 'string', 'one argument, and the offset');
  const [data, meta] = own.received.find(({ event }) => event === 'draw')?.args ?? [];
  assert.deepEqual([data, meta.senderId, meta.seq], [{ x: 1, y: 2 }, 'alice', 1]);
  await alice.request('joinRoom', 'second');
  assert.match((await alice.request('draw', {})).error.message, /`roomId` is required/);
  assert.match((await alice.request('two words', {})).error.message, /two words/);
  // Without the dialect, the error names the event.
  assert.match((await own.request('draw', {})).error.message, /unknown event `draw`/);
});

test('the log names the namespace, the user and the connection of a packet to an unconnected namespace', async () => {
  const socket = await connect('mallory', '/');
  const closed = once(socket, 'disconnect', { signal: AbortSignal.timeout(TIMEOUT) });
  socket.io.opts.reconnection = false;
  socket.io.engine.transport.ws.send('42/chat,0["sendMessage",{}]');
  await closed;
  const record = await until(() => {
    const line = server.output.split('\n').find((one) => one.includes('"malformed"') && one.includes('"mallory"'));
    return line && JSON.parse(line);
  });
  assert.deepEqual([record.reason, record.code, record.namespace], ['malformed', 4400, '/chat']);
  assert.ok(record.connectionId);
});

test('a gateway with idle clients of the module hibernates', async () => {
  const quiet = await Server.start({ vars: { PING_INTERVAL_MS: '0', GATEWAY_SHARDS: '1', LOG_LEVEL: 'info' } });
  try {
    const restores = () =>
      quiet.output.split('\n').filter((line) =>
        line.includes('"event":"wake"') && line.includes('"gateway"') && JSON.parse(line).connections > 0).length;
    const socket = await joined('nina', 'nap', { url: quiet.url });
    await quiet.publish('nap', 'newMessage', { content: 'x' });
    await socket.next('newMessage');
    await until(async () => (await quiet.call('GET', '/rooms/nap/members'))[0].delivered === 1);
    await sleep(14_000);
    assert.equal(restores(), 0);
    // After hibernation, the command and its acknowledgement still belong together.
    assert.equal(await socket.timeout(TIMEOUT).emitWithAck('leaveRoom', 'nap'), 'nap');
    await until(() => restores() === 1, 'the gateway must be restored with its sockets');
  } finally {
    await quiet.stop();
  }
});
