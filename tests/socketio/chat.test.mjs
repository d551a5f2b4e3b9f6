/** End-to-end tests of the namespace `/` with socket.io-client,
 * against `wrangler dev`. */

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
let server;
const open = [];

before(async () => {
  server = await Server.start({ vars: { RETENTION_EVENTS: '100', MAX_ROOMS_PER_CONNECTION: '60', NAMESPACES: '/ /other /chat=module' } });
});
after(() => server.stop());

test.afterEach(() => open.splice(0).forEach((one) => one.close()));

/** Creates a client of `user` in `/`. Every received event is in `received`. */
function client(user, { url = server.url, nsp = '/', ...options } = {}) {
  const socket = io(url + nsp, {
    forceNew: true,
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
    ...WEBSOCKET,
    auth: async (done) => done({ token: await token({ sub: user }) }),
    ...options,
  });
  return listen(socket);
}

/** Records the events of a socket, and adds `contents` and `request`. */
function listen(socket) {
  socket.received = [];
  socket.onAny((event, ...args) => socket.received.push({ event, args }));
  socket.contents = () =>
    socket.received.filter(({ event }) => event === 'newMessage').map(({ args: [message] }) => message.content);
  socket.request = (event, data) => socket.timeout(TIMEOUT).emitWithAck(event, data);
  open.push(socket);
  return socket;
}

/** Waits until the socket is connected. */
async function connected(socket) {
  if (!socket.connected) await once(socket, 'connect', { signal: AbortSignal.timeout(TIMEOUT) });
  return socket;
}

/** Connects a client and joins a room. */
async function joined(user, room, options) {
  const socket = await connected(client(user, options));
  const answer = await socket.request('joinRoom', room);
  assert.equal(answer.roomId, room);
  return socket;
}

/** Interrupts the connection of `socket` by calling `by`, which cuts the proxy by
 * default. Runs `meanwhile` and waits for the reconnection. */
async function interrupt(socket, proxy, meanwhile = () => {}, { by = () => proxy.cut(), timeout = TIMEOUT } = {}) {
  const disconnected = once(socket, 'disconnect');
  await by();
  await disconnected;
  await meanwhile();
  const reconnected = once(socket, 'connect', { signal: AbortSignal.timeout(timeout) });
  proxy.restore();
  await reconnected;
}

/** Waits until `condition` returns a truthy value. */
async function until(condition, message = condition.toString()) {
  for (const end = Date.now() + TIMEOUT; Date.now() < end; await sleep(10)) {
    if (await condition()) return;
  }
  assert.fail(`timeout: ${message}`);
}

/** Publishes a message as a service. */
const publish = (room, content) => server.publish(room, 'newMessage', { content });

for (const [name, options] of [['websocket', { transports: ['websocket'] }], ['the default transports', {}]]) {
  test(`the example of the module's README runs unchanged with ${name}`, async () => {
    const room = name === 'websocket' ? 'room-id' : 'room-id-2';
    const jwt = await token({ sub: 'alice' });
    const socket = io(`${server.url}/chat`, { ...options, query: { token: jwt }, reconnection: true });
    open.push(socket);
    const messages = [];
    const typing = [];
    socket.on('connect', () => socket.emit('joinRoom', room));
    socket.on('newMessage', (m) => messages.push(m));
    socket.emit('sendMessage', { content: 'hi', roomId: room });
    socket.on('userTyping', (d) => typing.push([d.userId, d.isTyping]));
    socket.emit('typingIndicator', { roomId: room, isTyping: true });
    // The events emitted before the join may be refused.
    await connected(socket);
    const other = await joined('bob', room);
    await until(async () => (await socket.timeout(TIMEOUT).emitWithAck('sendMessage', { content: 'hi', roomId: room })).seq);
    await until(() => messages.some((m) => m.content === 'hi' && m.senderId === 'alice' && m.roomId === room));
    other.emit('typingIndicator', { roomId: room, isTyping: true });
    await until(() => typing.some(([user, is]) => user === 'bob' && is));
    if (name !== 'websocket') {
      await until(() => socket.io.engine.transport.name === 'websocket', 'the upgrade');
    }
  });
}

test('a client with the default transports upgrades to WebSocket within 5 s', async () => {
  for (let n = 0; n < 8; n += 1) {
    const socket = await connected(client('alice', { transports: ['polling', 'websocket'] }));
    const began = Date.now();
    await until(() => socket.io.engine.transport.name === 'websocket', 'the upgrade');
    assert.ok(Date.now() - began < 5_000, 'the upgrade must not wait for the next ping');
    assert.equal((await socket.request('joinRoom', 'upgraded')).roomId, 'upgraded');
  }
});

test('a client with long-polling only sends and receives', async () => {
  const socket = await joined('alice', 'polled', { transports: ['polling'] });
  for (let n = 0; n < 20; n += 1) socket.emit('sendMessage', { roomId: 'polled', content: n });
  await until(() => socket.contents().length === 20);
  assert.deepEqual(socket.contents(), [...Array(20).keys()]);
});

test('acknowledgements carry the answer or the error code', async () => {
  const socket = await joined('alice', 'acks');
  const sent = await socket.request('sendMessage', { roomId: 'acks', content: 'x', messageId: 'm1' });
  assert.deepEqual([sent.seq, sent.messageId], [1, 'm1']);
  const again = await socket.request('sendMessage', { roomId: 'acks', content: 'x', messageId: 'm1' });
  assert.deepEqual([again.seq, again.duplicate], [1, true]);
  for (const [event, data, code] of [
    ['sendMessage', { roomId: 'elsewhere', content: 'x' }, 'notJoined'],
    ['sendMessage', { content: 'x' }, 'badRequest'],
    ['sendMessage', { roomId: 'acks' }, 'badRequest'],
    ['joinRoom', 'a b', 'badRequest'],
    ['joinRoom', '@bob', 'forbidden'],
    ['nonsense', {}, 'badRequest'],
    ['messageRead', { roomId: 'acks', seq: 99 }, 'badRequest'],
    ['sendMessage', { roomId: 'acks', content: new Uint8Array([1]) }, 'badRequest'],
  ]) {
    const answer = await socket.request(event, data);
    assert.equal(answer.error?.code, code, `${event} ${JSON.stringify(data)}: ${JSON.stringify(answer)}`);
    assert.ok(answer.error.message);
  }
  assert.deepEqual(await socket.request('messageRead', { roomId: 'acks', seq: 1 }), { seq: 1 });
  assert.deepEqual(await socket.request('setPresence', { status: 'busy' }), { status: 'busy' });
  const page = await socket.request('sync', { roomId: 'acks', after: 0 });
  assert.equal(page.events.length, 1);
  assert.deepEqual(await socket.request('leaveRoom', 'acks'), { roomId: 'acks' });
  assert.equal((await socket.request('sendMessage', { roomId: 'acks', content: 'x' })).error.code, 'notJoined');
  assert.equal((await socket.request('joinRoom', 'acks')).roomId, 'acks', 'a join after a leave');
  assert.equal((await socket.request('sendMessage', { roomId: 'acks', content: 'y' })).seq, 2);
});

test('the token is accepted in `auth`, the query or a header; a missing or invalid token causes a connect_error', async () => {
  const jwt = await token({ sub: 'alice' });
  for (const options of [
    { auth: { token: jwt } },
    { auth: {}, query: { token: jwt } },
    { auth: {}, extraHeaders: { authorization: `Bearer ${jwt}` } },
  ]) {
    const socket = await connected(client('alice', options));
    await until(() => socket.received.some(({ event, args }) => event === 'connected' && args[0].userId === 'alice'));
  }
  for (const options of [
    { auth: {} },
    { auth: { token: 'nonsense' } },
    { auth: { token: jwt }, query: { token: `${jwt}x` } },
    { auth: { token: await token({ sub: 'alice', ttl: '-2m' }) } },
  ]) {
    const socket = client('alice', { ...options, reconnection: false });
    const [error] = await once(socket, 'connect_error', { signal: AbortSignal.timeout(TIMEOUT) });
    assert.equal(error.data?.code, 'unauthorized', error.message);
  }
  const socket = client('alice', { nsp: '/nowhere', reconnection: false });
  const [error] = await once(socket, 'connect_error', { signal: AbortSignal.timeout(TIMEOUT) });
  assert.equal(error.message, 'Invalid namespace');
});

test('two namespaces on one connection join and leave rooms independently', async () => {
  const first = await joined('alice', 'both');
  const second = listen(first.io.socket('/other', { auth: { token: await token({ sub: 'alice' }) } }));
  second.connect();
  await connected(second);
  await second.request('joinRoom', 'both');
  await first.request('sendMessage', { roomId: 'both', content: 'x' });
  await until(() => first.contents().length === 1 && second.contents().length === 1);
  second.disconnect();
  assert.equal((await first.request('sendMessage', { roomId: 'both', content: 'y' })).seq, 2);
  first.disconnect();
});

test('events of 50 rooms on one socket are in order in each room', async () => {
  const socket = await connected(client('alice'));
  const rooms = [...Array(50).keys()].map((n) => `many-${n}`);
  await Promise.all(rooms.map((room) => socket.request('joinRoom', room)));
  for (let n = 0; n < 3; n += 1) {
    await Promise.all(rooms.map((room) => publish(room, `${room} ${n}`)));
  }
  await until(() => socket.contents().length === 150);
  for (const room of rooms) {
    const of = socket.contents().filter((content) => content.startsWith(`${room} `));
    assert.deepEqual(of, [0, 1, 2].map((n) => `${room} ${n}`));
  }
});

test('rooms over MAX_ROOMS_PER_CONNECTION are refused, and the socket stays usable', async () => {
  const socket = await connected(client('greedy'));
  const answers = await Promise.all([...Array(70).keys()].map((n) => socket.request('joinRoom', `greedy-${n}`)));
  assert.equal(answers.filter(({ roomId }) => roomId).length, 60);
  assert.ok(answers.slice(60).every(({ error }) => error?.code === 'conflict'));
  await socket.request('leaveRoom', 'greedy-0');
  assert.equal((await socket.request('joinRoom', 'greedy-69')).roomId, 'greedy-69');
});

test('a native gateway socket, a Socket.IO client and a room socket receive the same events in the same order', async () => {
  const jwt = await token({ sub: 'carol' });
  const base = server.url.replace('http', 'ws');
  const seen = { own: [], gateway: [] };
  const natives = [];
  for (const [name, path] of [['own', '/rooms/mixed/ws'], ['gateway', '/ws']]) {
    const native = new WebSocket(`${base}${path}?token=${jwt}`);
    natives.push(native);
    native.addEventListener('message', ({ data }) => {
      for (const line of data.split('\n').map((text) => JSON.parse(text))) {
        if (line.event === 'newMessage') seen[name].push(line.data);
        if (line.ack === 1) native.joined = true;
      }
    });
    await once(native, 'open');
    if (name === 'gateway') native.send('{"event":"joinRoom","data":"mixed","id":1}');
  }
  await until(() => natives[1].joined);
  const socket = await joined('alice', 'mixed');
  await Promise.all(
    [...Array(20).keys()].map(async (n) => {
      socket.emit('sendMessage', { roomId: 'mixed', content: `alice ${n}` });
      natives[0].send(JSON.stringify({ event: 'sendMessage', data: { content: `own ${n}` } }));
      natives[1].send(JSON.stringify({ event: 'sendMessage', data: { content: `gateway ${n}`, roomId: 'mixed' } }));
      await publish('mixed', `service ${n}`);
    }),
  );
  await until(() => socket.contents().length === 80 && seen.own.length === 80 && seen.gateway.length === 80);
  const log = await server.log('mixed');
  assert.deepEqual(socket.contents(), log);
  assert.deepEqual(seen.own.map(({ content }) => content), log);
  assert.deepEqual(seen.gateway.map(({ content }) => content), log);
  assert.deepEqual(seen.gateway.map(({ seq }) => seq), [...Array(80).keys()].map((n) => n + 1));
  natives.forEach((native) => native.close());
});

test('a publication to a user reaches every connection and is queued while the user is offline', async () => {
  const first = await connected(client('dora'));
  const second = await connected(client('dora', { nsp: '/other', transports: ['polling'] }));
  const native = new WebSocket(`${server.url.replace('http', 'ws')}/rooms/@dora/ws?token=${await token({ sub: 'dora' })}`);
  const lines = [];
  native.addEventListener('message', ({ data }) => lines.push(...data.split('\n')));
  await once(native, 'open');
  const notify = (n) => server.call('POST', '/publish', { userId: 'dora', event: 'notice', data: { n } });
  const notices = (socket) => socket.received.filter(({ event }) => event === 'notice').map(({ args }) => args[0].n);
  await until(async () => (await server.call('GET', '/rooms/@dora/presence')).users[0]?.connections === 3);
  await notify(1);
  await until(() => notices(first).length === 1 && notices(second).length === 1);
  await until(() => lines.some((line) => line.includes('"notice"')));
  const { args } = first.received.find(({ event }) => event === 'notice');
  assert.deepEqual([args[1].roomId, args[1].seq], ['@dora', 1], '`meta` must be the second argument');
  await server.call('POST', '/publish', { userId: 'dora', event: 'newMessage', data: { content: 'hi' }, volatile: true });
  await until(() => first.received.some(({ event }) => event === 'newMessage'));
  const published = first.received.find(({ event }) => event === 'newMessage').args;
  assert.deepEqual([published.length, published[0].roomId], [1, '@dora'], 'as a message of a user');
  await first.request('messageDelivered', { roomId: '@dora', seq: 1 });
  for (const one of [first, second]) one.disconnect();
  native.close();
  await until(async () => (await server.call('GET', '/rooms/@dora/presence')).users[0]?.connections === 0);
  await notify(2);
  await notify(3);
  const back = await connected(client('dora'));
  await until(() => notices(back).length === 2);
  assert.deepEqual(notices(back), [2, 3]);
});

test('presence updates and receipts reach users at other gateways', async () => {
  const alice = await joined('alice', 'social');
  const others = await Promise.all([...Array(8).keys()].map((n) => joined(`other-${n}`, 'social')));
  await until(() => alice.received.filter(({ event }) => event === 'presenceUpdate').length === 8);
  await publish('social', 'x');
  await Promise.all(others.map((other) => other.request('messageRead', { roomId: 'social', seq: 1 })));
  await until(() => alice.received.filter(({ event }) => event === 'messageRead').length === 8);
  others[0].disconnect();
  await until(() => alice.received.some(({ event, args }) =>
    event === 'presenceUpdate' && args[0].userId === 'other-0' && args[0].status === 'offline'));
});

/** Joins two rooms, interrupts the connection with `interruptBy`, publishes events, and
 * asserts that connection state recovery delivers these events. `idle` runs before the
 * interruption. With `silent`, no event is sent before the interruption. */
async function assertRecovers(room, interruptBy, { idle = async () => {}, silent = false } = {}) {
  const proxy = await TcpProxy.start(server.port);
  open.push(proxy);
  const socket = await joined('alice', room, { url: proxy.url });
  await socket.request('joinRoom', `${room}-2`);
  if (!silent) {
    await publish(room, 'before');
    await publish(`${room}-2`, 'before 2');
    await until(() => socket.contents().length === 2);
  }
  await idle(socket);
  const { id } = socket;
  const missed = async () => {
    await publish(room, 'missed 1');
    await publish(`${room}-2`, 'missed 2');
    await publish(room, 'missed 3');
  };
  await interrupt(socket, proxy, missed, { by: () => interruptBy(proxy), timeout: 30_000 });
  assert.equal(socket.recovered, true);
  assert.equal(socket.id, id, 'the id must stay the same');
  await until(() => socket.contents().length === (silent ? 3 : 5));
  await publish(room, 'after');
  await until(() => socket.contents().at(-1) === 'after');
  assert.deepEqual(
    socket.contents().filter((content) => !content.includes('2')),
    [...(silent ? [] : ['before']), 'missed 1', 'missed 3', 'after'],
    'events must arrive in order, each once',
  );
  assert.equal(socket.contents().filter((content) => content === 'missed 2').length, 1);
  assert.equal((await socket.request('sendMessage', { roomId: room, content: 'mine' })).error, undefined, 'the rooms must be joined again');
}

test('the connection is recovered after a network loss', () => assertRecovers('drop', (proxy) => proxy.cut()));

test('two clients are recovered one after the other', async () => {
  await assertRecovers('twice', (proxy) => proxy.cut());
  await assertRecovers('twice-b', (proxy) => proxy.cut());
});

test('one client is recovered five times, at any gateway', async () => {
  const proxy = await TcpProxy.start(server.port);
  open.push(proxy);
  const socket = await joined('gina', 'again', { url: proxy.url });
  for (let n = 1; n <= 5; n += 1) {
    await interrupt(socket, proxy, () => publish('again', n));
    assert.equal(socket.recovered, true, `recovery ${n}`);
    await until(() => socket.contents().length === n);
  }
  assert.deepEqual(socket.contents(), [1, 2, 3, 4, 5]);
});

test('the connection is recovered if no event was received before', () => assertRecovers('quiet', (proxy) => proxy.cut(), { silent: true }));

test('an offset of an earlier connection does not hide missed events', async () => {
  const proxy = await TcpProxy.start(server.port);
  open.push(proxy);
  const socket = await joined('frank', 'stale-b', { url: proxy.url });
  await socket.request('joinRoom', 'stale-c');
  for (let n = 1; n <= 9; n += 1) await publish('stale-b', `b ${n}`);
  await until(() => socket.contents().length === 9);
  // After a disconnect by the client the server keeps no session, but the library
  // keeps its last offset. The rooms are joined in another order.
  socket.disconnect().connect();
  await connected(socket);
  assert.equal(socket.recovered, false);
  await socket.request('joinRoom', { roomId: 'stale-c', since: 0 });
  await socket.request('joinRoom', { roomId: 'stale-b', since: 9 });
  await interrupt(socket, proxy, async () => {
    for (let n = 1; n <= 12; n += 1) await publish('stale-c', `c ${n}`);
  });
  assert.equal(socket.recovered, true);
  await until(() => socket.contents().length === 21);
  assert.deepEqual(socket.contents().slice(9), [...Array(12).keys()].map((n) => `c ${n + 1}`));
});

/** Returns how often a gateway was restored with its sockets. */
const restores = (server) =>
  server.output.split('\n').filter((line) =>
    line.includes('"event":"wake"') && line.includes('"gateway"') && JSON.parse(line).connections > 0).length;

test('the connection is recovered after a hibernation of the gateway', async () => {
  const idle = async (socket) => {
    const before = restores(server);
    // The gateway wakes for a ping every 25 s, so the wait begins after a ping. It also
    // wakes when clients of earlier tests expire, two minutes after their disconnect,
    // so the test tries several times.
    await once(socket.io.engine, 'ping', { signal: AbortSignal.timeout(30_000) });
    for (let tries = 0; restores(server) === before; tries += 1) {
      assert.ok(tries < 4, 'a gateway must be restored with its sockets');
      await sleep(11_500);
      await socket.request('sync', { roomId: 'sleepy', after: 0 });
      // The log record may be printed after the answer.
      await sleep(100);
    }
  };
  await assertRecovers('sleepy', (proxy) => proxy.cut(), { idle });
});

test('a gateway hibernates after connects, upgrades and recoveries', async () => {
  // Pings are off, so that only timers of connects, upgrades and recoveries could keep
  // the gateway awake.
  const quiet = await Server.start({ vars: { PING_INTERVAL_MS: '0', GATEWAY_SHARDS: '1' } });
  try {
    const proxy = await TcpProxy.start(quiet.port);
    open.push(proxy);
    const upgraded = client('bob', { url: quiet.url, transports: ['polling', 'websocket'] });
    await connected(upgraded);
    await until(() => upgraded.io.engine.transport.name === 'websocket', 'the upgrade');
    const socket = await joined('alice', 'nap', { url: proxy.url });
    await interrupt(socket, proxy);
    assert.equal(socket.recovered, true);
    await sleep(11_500);
    assert.equal(restores(quiet), 0);
    await socket.request('sync', { roomId: 'nap', after: 0 });
    await until(() => restores(quiet) === 1, 'the gateway must be restored with its sockets');
  } finally {
    await quiet.stop();
  }
});

test('events are delivered after 11 s idle without a reconnection', async () => {
  const socket = await joined('alice', 'idle');
  await publish('idle', 'a');
  await until(() => socket.contents().length === 1);
  await sleep(11_500);
  await publish('idle', 'b');
  assert.equal((await socket.request('sendMessage', { roomId: 'idle', content: 'c' })).seq, 3);
  await until(() => socket.contents().length === 3);
  assert.deepEqual(socket.contents(), ['a', 'b', 'c']);
});

test('the connection is recovered after kill -9 of the runtime', () =>
  assertRecovers('killed', async (proxy) => {
    server.kill();
    proxy.cut();
    await server.start();
  }));

test('the connection is not recovered if missed events were trimmed', async () => {
  const proxy = await TcpProxy.start(server.port);
  open.push(proxy);
  const socket = await joined('alice', 'past', { url: proxy.url });
  await publish('past', 'a');
  await until(() => socket.contents().length === 1);
  await interrupt(socket, proxy, async () => {
    for (let n = 0; n < 3; n += 1) {
      const messages = [...Array(50).keys()].map((m) => ({ room: 'past', event: 'newMessage', data: { content: `${n} ${m}` } }));
      await server.call('POST', '/publish', { messages });
    }
  });
  assert.equal(socket.recovered, false);
});

test('a forged or foreign pid, offset or sid gives no access', async () => {
  const victim = await joined('victim', 'private', { auth: async (done) => done({ token: await token({ sub: 'victim', rooms: ['private'] }) }) });
  await publish('private', 'secret');
  await until(() => victim.contents().length === 1);
  const jwt = await token({ sub: 'mallory', rooms: ['public'] });
  for (const auth of [
    { pid: victim._pid, offset: victim._lastOffset },
    { pid: victim._pid },
    { pid: '0-0000', offset: '0.0' },
    { pid: '99999-1', offset: 'x' },
    { pid: 'x'.repeat(10_000), offset: '..' },
  ]) {
    const mallory = client('mallory', { auth: { token: jwt, ...auth } });
    await connected(mallory);
    assert.equal(mallory.recovered, false);
    assert.notEqual(mallory._pid, victim._pid);
    assert.equal((await mallory.request('joinRoom', 'private')).error.code, 'forbidden');
    assert.deepEqual(mallory.contents(), []);
    mallory.disconnect();
  }
  const own = client('victim', { auth: { token: await token({ sub: 'victim' }), pid: victim._pid, offset: 'zz.zz.zz' } });
  await connected(own);
  assert.equal(own.recovered, false, 'an invalid offset');
  for (const sid of ['0-0', '7-abc', '99999-1', '-', '%00']) {
    const answer = await fetch(`${server.url}/socket.io/?EIO=4&transport=polling&sid=${sid}`);
    assert.deepEqual([answer.status, (await answer.json()).code], [400, 1], sid);
  }
});

test('a malformed packet closes only its connection', async () => {
  const good = await joined('alice', 'firm');
  for (const packet of ['4abc', '42{}', '42["x"', '451-["x"]', '9', '4', '40[]']) {
    const bad = client('bob', { reconnection: false });
    await connected(bad);
    const closed = once(bad, 'disconnect', { signal: AbortSignal.timeout(TIMEOUT) });
    bad.io.engine.transport.ws.send(packet);
    if (packet.startsWith('45')) bad.io.engine.transport.ws.send('42["y"]');
    await closed;
  }
  assert.equal((await good.request('sendMessage', { roomId: 'firm', content: 'x' })).seq, 1);
});

test('a kick disconnects the client without a reconnection', async () => {
  const socket = await joined('eve', 'kicked');
  const disconnected = once(socket, 'disconnect', { signal: AbortSignal.timeout(TIMEOUT) });
  await server.call('DELETE', '/rooms/kicked/connections?userId=eve');
  assert.equal((await disconnected)[0], 'io server disconnect');
});

test('polling is answered only for pages of allowed origins', async () => {
  const poll = (origin, method = 'GET') =>
    fetch(`${server.url}/socket.io/?EIO=4&transport=polling`, { method, headers: { origin } });
  const same = await poll(server.url);
  assert.equal(same.headers.get('access-control-allow-origin'), server.url);
  assert.equal((await poll(server.url, 'OPTIONS')).status, 204);
  assert.equal((await poll('https://evil.example')).status, 403);
});

test('a hibernated gateway closes connections without a namespace, a pong or a ping', async () => {
  const sleepy = await Server.start({
    vars: { PING_INTERVAL_MS: '12000', PING_TIMEOUT_MS: '5000', CONNECT_TIMEOUT_MS: '30000', GHOST_TIMEOUT: '20s' },
  });
  try {
    const jwt = await token({ sub: 'stale' });
    const url = sleepy.url.replace('http', 'ws');
    /** Sends `frames` on a new socket. Returns the close code and the seconds until the
     * close. With `pongs`, it answers pings. */
    const closed = async (path, frames, { pongs = false } = {}) => {
      const socket = new WebSocket(url + path);
      if (pongs) socket.addEventListener('message', ({ data }) => data === '2' && socket.send('3'));
      await once(socket, 'open', { signal: AbortSignal.timeout(TIMEOUT) });
      for (const frame of frames) socket.send(frame);
      const began = Date.now();
      const [{ code }] = await once(socket, 'close', { signal: AbortSignal.timeout(90_000) });
      return [code, Math.round((Date.now() - began) / 1_000)];
    };
    const path = `/socket.io/?EIO=4&transport=websocket&token=${jwt}`;
    const [unconnected, silent, stale] = await Promise.all([
      closed(path, ['3'], { pongs: true }),
      closed(path, ['40', '3']),
      closed(`/ws?token=${jwt}`, ['ping']),
    ]);
    for (const [code, after, least, most] of [
      [...unconnected, 29, 40],
      [...silent, 24, 50],
      [...stale, 19, 45],
    ]) {
      assert.equal(code, 4408);
      assert.ok(least <= after && after <= most, `closed after ${after} s`);
    }
  } finally {
    sleepy.stop();
  }
});
