/** The real socket.io-client against the real runtime: what the clients of the
 * module that roomcast replaces do, and what is promised to them. */

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { io } from 'socket.io-client';
import { Server, token } from '../browser/server.mjs';
import { Cable } from './cable.mjs';

const PATIENCE = 10_000;
const WEBSOCKET = { transports: ['websocket'] };
let server;
const open = [];

before(async () => {
  server = await Server.start({ vars: { RETENTION_EVENTS: '100', MAX_ROOMS_PER_CONNECTION: '60' } });
});
after(() => server.stop());

test.afterEach(() => open.splice(0).forEach((one) => one.close()));

/** A client of `user` in `/chat`; everything it hears is in `heard`. */
function client(user, { url = server.url, nsp = '/chat', ...options } = {}) {
  const socket = io(url + nsp, {
    forceNew: true,
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
    ...WEBSOCKET,
    auth: async (give) => give({ token: await token({ sub: user }) }),
    ...options,
  });
  return listen(socket);
}

function listen(socket) {
  socket.heard = [];
  socket.onAny((event, ...args) => socket.heard.push({ event, args }));
  socket.contents = () =>
    socket.heard.filter(({ event }) => event === 'newMessage').map(({ args: [message] }) => message.content);
  socket.ask = (event, data) => socket.timeout(PATIENCE).emitWithAck(event, data);
  open.push(socket);
  return socket;
}

async function connected(socket) {
  if (!socket.connected) await once(socket, 'connect', { signal: AbortSignal.timeout(PATIENCE) });
  return socket;
}

async function joined(user, room, options) {
  const socket = await connected(client(user, options));
  const answer = await socket.ask('joinRoom', room);
  assert.equal(answer.roomId, room);
  return socket;
}

/** Loses the connection of `socket`, by its cable if nothing else is said; does
 * `meanwhile`; and waits until it is back. */
async function replugged(socket, cable, meanwhile = () => {}, { lose = () => cable.pull(), patience = PATIENCE } = {}) {
  const left = once(socket, 'disconnect');
  await lose();
  await left;
  await meanwhile();
  const back = once(socket, 'connect', { signal: AbortSignal.timeout(patience) });
  cable.plug();
  await back;
}

/** Waits until `what` says so. */
async function until(what, message = what.toString()) {
  for (const end = Date.now() + PATIENCE; Date.now() < end; await sleep(10)) {
    if (await what()) return;
  }
  assert.fail(`not in time: ${message}`);
}

const say = (room, content) => server.publish(room, 'newMessage', { content });

for (const [name, options] of [['websocket', { transports: ['websocket'] }], ['the default transports', {}]]) {
  test(`the snippet of the module's README runs unchanged, on ${name}`, async () => {
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
    // What was emitted before the join is not of a member.
    await connected(socket);
    const other = await joined('bob', room);
    await until(async () => (await socket.timeout(PATIENCE).emitWithAck('sendMessage', { content: 'hi', roomId: room })).seq);
    await until(() => messages.some((m) => m.content === 'hi' && m.senderId === 'alice' && m.roomId === room));
    other.emit('typingIndicator', { roomId: room, isTyping: true });
    await until(() => typing.some(([user, is]) => user === 'bob' && is));
    if (name !== 'websocket') {
      await until(() => socket.io.engine.transport.name === 'websocket', 'the upgrade');
    }
  });
}

test('a client of the default transports is on a WebSocket soon, whether it talks meanwhile or not', async () => {
  for (let n = 0; n < 8; n += 1) {
    const socket = await connected(client('alice', { transports: ['polling', 'websocket'] }));
    const began = Date.now();
    await until(() => socket.io.engine.transport.name === 'websocket', 'the upgrade');
    assert.ok(Date.now() - began < 5_000, 'not by the next ping');
    assert.equal((await socket.ask('joinRoom', 'upgraded')).roomId, 'upgraded');
  }
});

test('long-polling alone is enough', async () => {
  const socket = await joined('alice', 'polled', { transports: ['polling'] });
  for (let n = 0; n < 20; n += 1) socket.emit('sendMessage', { roomId: 'polled', content: n });
  await until(() => socket.contents().length === 20);
  assert.deepEqual(socket.contents(), [...Array(20).keys()]);
});

test('acknowledgements carry what is answered, and errors their code', async () => {
  const socket = await joined('alice', 'acks');
  const sent = await socket.ask('sendMessage', { roomId: 'acks', content: 'x', messageId: 'm1' });
  assert.deepEqual([sent.seq, sent.messageId], [1, 'm1']);
  const again = await socket.ask('sendMessage', { roomId: 'acks', content: 'x', messageId: 'm1' });
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
    const answer = await socket.ask(event, data);
    assert.equal(answer.error?.code, code, `${event} ${JSON.stringify(data)}: ${JSON.stringify(answer)}`);
    assert.ok(answer.error.message);
  }
  assert.deepEqual(await socket.ask('messageRead', { roomId: 'acks', seq: 1 }), { seq: 1 });
  assert.deepEqual(await socket.ask('setPresence', { status: 'busy' }), { status: 'busy' });
  const page = await socket.ask('sync', { roomId: 'acks', after: 0 });
  assert.equal(page.events.length, 1);
  assert.deepEqual(await socket.ask('leaveRoom', 'acks'), { roomId: 'acks' });
  assert.equal((await socket.ask('sendMessage', { roomId: 'acks', content: 'x' })).error.code, 'notJoined');
  assert.equal((await socket.ask('joinRoom', 'acks')).roomId, 'acks', 'and back');
  assert.equal((await socket.ask('sendMessage', { roomId: 'acks', content: 'y' })).seq, 2);
});

test('the token may come in `auth`, in the query or in a header; without one, or with a bad one, there is a connect_error', async () => {
  const jwt = await token({ sub: 'alice' });
  for (const options of [
    { auth: { token: jwt } },
    { auth: {}, query: { token: jwt } },
    { auth: {}, extraHeaders: { authorization: `Bearer ${jwt}` } },
  ]) {
    const socket = await connected(client('alice', options));
    await until(() => socket.heard.some(({ event, args }) => event === 'connected' && args[0].userId === 'alice'));
  }
  for (const options of [
    { auth: {} },
    { auth: { token: 'nonsense' } },
    { auth: { token: jwt }, query: { token: `${jwt}x` } },
    { auth: { token: await token({ sub: 'alice', ttl: '-2m' }) } },
  ]) {
    const socket = client('alice', { ...options, reconnection: false });
    const [error] = await once(socket, 'connect_error', { signal: AbortSignal.timeout(PATIENCE) });
    assert.equal(error.data?.code, 'unauthorized', error.message);
  }
  const socket = client('alice', { nsp: '/nowhere', reconnection: false });
  const [error] = await once(socket, 'connect_error', { signal: AbortSignal.timeout(PATIENCE) });
  assert.equal(error.message, 'Invalid namespace');
});

test('two namespaces on one connection are two clients', async () => {
  const first = await joined('alice', 'both');
  const second = listen(first.io.socket('/', { auth: { token: await token({ sub: 'alice' }) } }));
  second.connect();
  await connected(second);
  await second.ask('joinRoom', 'both');
  await first.ask('sendMessage', { roomId: 'both', content: 'x' });
  await until(() => first.contents().length === 1 && second.contents().length === 1);
  second.disconnect();
  assert.equal((await first.ask('sendMessage', { roomId: 'both', content: 'y' })).seq, 2);
  first.disconnect();
});

test('50 rooms on one socket, each in its order', async () => {
  const socket = await connected(client('alice'));
  const rooms = [...Array(50).keys()].map((n) => `many-${n}`);
  await Promise.all(rooms.map((room) => socket.ask('joinRoom', room)));
  for (let n = 0; n < 3; n += 1) {
    await Promise.all(rooms.map((room) => say(room, `${room} ${n}`)));
  }
  await until(() => socket.contents().length === 150);
  for (const room of rooms) {
    const of = socket.contents().filter((content) => content.startsWith(`${room} `));
    assert.deepEqual(of, [0, 1, 2].map((n) => `${room} ${n}`));
  }
});

test('rooms past MAX_ROOMS_PER_CONNECTION are refused, and the socket goes on', async () => {
  const socket = await connected(client('greedy'));
  const answers = await Promise.all([...Array(70).keys()].map((n) => socket.ask('joinRoom', `greedy-${n}`)));
  assert.equal(answers.filter(({ roomId }) => roomId).length, 60);
  assert.ok(answers.slice(60).every(({ error }) => error?.code === 'conflict'));
  await socket.ask('leaveRoom', 'greedy-0');
  assert.equal((await socket.ask('joinRoom', 'greedy-69')).roomId, 'greedy-69');
});

test('a native gateway socket, a Socket.IO client and a socket of the room see the same events in the same order', async () => {
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
        if (line.ack === 1) native.isIn = true;
      }
    });
    await once(native, 'open');
    if (name === 'gateway') native.send('{"event":"joinRoom","data":"mixed","id":1}');
  }
  await until(() => natives[1].isIn);
  const socket = await joined('alice', 'mixed');
  await Promise.all(
    [...Array(20).keys()].map(async (n) => {
      socket.emit('sendMessage', { roomId: 'mixed', content: `alice ${n}` });
      natives[0].send(JSON.stringify({ event: 'sendMessage', data: { content: `own ${n}` } }));
      natives[1].send(JSON.stringify({ event: 'sendMessage', data: { content: `gateway ${n}`, roomId: 'mixed' } }));
      await say('mixed', `service ${n}`);
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

test('what is published to a user reaches every device, and waits for one that is away', async () => {
  const first = await connected(client('dora'));
  const second = await connected(client('dora', { nsp: '/', transports: ['polling'] }));
  const native = new WebSocket(`${server.url.replace('http', 'ws')}/rooms/@dora/ws?token=${await token({ sub: 'dora' })}`);
  const lines = [];
  native.addEventListener('message', ({ data }) => lines.push(...data.split('\n')));
  await once(native, 'open');
  const notify = (n) => server.call('POST', '/publish', { userId: 'dora', event: 'notice', data: { n } });
  const heard = (socket) => socket.heard.filter(({ event }) => event === 'notice').map(({ args }) => args[0].n);
  await until(async () => (await server.call('GET', '/rooms/@dora/presence')).users[0]?.connections === 3);
  await notify(1);
  await until(() => heard(first).length === 1 && heard(second).length === 1);
  await until(() => lines.some((line) => line.includes('"notice"')));
  const { args } = first.heard.find(({ event }) => event === 'notice');
  assert.deepEqual([args[1].roomId, args[1].seq], ['@dora', 1], 'the meta is the second argument');
  await server.call('POST', '/publish', { userId: 'dora', event: 'newMessage', data: { content: 'hi' }, volatile: true });
  await until(() => first.heard.some(({ event }) => event === 'newMessage'));
  const published = first.heard.find(({ event }) => event === 'newMessage').args;
  assert.equal(published[1].roomId, '@dora', 'and that of a message that was published');
  await first.ask('messageDelivered', { roomId: '@dora', seq: 1 });
  for (const one of [first, second]) one.disconnect();
  native.close();
  await until(async () => (await server.call('GET', '/rooms/@dora/presence')).users[0]?.connections === 0);
  await notify(2);
  await notify(3);
  const back = await connected(client('dora'));
  await until(() => heard(back).length === 2);
  assert.deepEqual(heard(back), [2, 3]);
});

test('presence, receipts and typing are told to the others, over one gateway or two', async () => {
  const alice = await joined('alice', 'social');
  const others = await Promise.all([...Array(8).keys()].map((n) => joined(`other-${n}`, 'social')));
  await until(() => alice.heard.filter(({ event }) => event === 'presenceUpdate').length === 8);
  await say('social', 'x');
  await Promise.all(others.map((other) => other.ask('messageRead', { roomId: 'social', seq: 1 })));
  await until(() => alice.heard.filter(({ event }) => event === 'messageRead').length === 8);
  others[0].disconnect();
  await until(() => alice.heard.some(({ event, args }) =>
    event === 'presenceUpdate' && args[0].userId === 'other-0' && args[0].status === 'offline'));
});

/** Talks, loses the connection by `lose`, gets `missed` while away, comes back. */
async function recovers(room, lose, { idle = async () => {}, alone = false } = {}) {
  const cable = await Cable.to(server.port);
  open.push(cable);
  const socket = await joined('alice', room, { url: cable.url });
  await socket.ask('joinRoom', `${room}-2`);
  if (!alone) {
    await say(room, 'before');
    await say(`${room}-2`, 'before 2');
    await until(() => socket.contents().length === 2);
  }
  await idle(socket);
  const { id } = socket;
  const missed = async () => {
    await say(room, 'missed 1');
    await say(`${room}-2`, 'missed 2');
    await say(room, 'missed 3');
  };
  await replugged(socket, cable, missed, { lose: () => lose(cable), patience: 30_000 });
  assert.equal(socket.recovered, true);
  assert.equal(socket.id, id, 'the same id');
  await until(() => socket.contents().length === (alone ? 3 : 5));
  await say(room, 'after');
  await until(() => socket.contents().at(-1) === 'after');
  assert.deepEqual(
    socket.contents().filter((content) => !content.includes('2')),
    [...(alone ? [] : ['before']), 'missed 1', 'missed 3', 'after'],
    'in order, none twice',
  );
  assert.equal(socket.contents().filter((content) => content === 'missed 2').length, 1);
  assert.equal((await socket.ask('sendMessage', { roomId: room, content: 'mine' })).error, undefined, 'in the room again');
}

test('recovered after the network dropped', () => recovers('drop', (cable) => cable.pull()));

test('recovered twice in a row', async () => {
  await recovers('twice', (cable) => cable.pull());
  await recovers('twice-b', (cable) => cable.pull());
});

test('one client is recovered again and again, whichever gateways it comes to', async () => {
  const cable = await Cable.to(server.port);
  open.push(cable);
  const socket = await joined('gina', 'again', { url: cable.url });
  for (let n = 1; n <= 5; n += 1) {
    await replugged(socket, cable, () => say('again', n));
    assert.equal(socket.recovered, true, `time ${n}`);
    await until(() => socket.contents().length === n);
  }
  assert.deepEqual(socket.contents(), [1, 2, 3, 4, 5]);
});

test('recovered although no event had come yet', () => recovers('quiet', (cable) => cable.pull(), { alone: true }));

test('an offset of an earlier connection does not hide what was missed', async () => {
  const cable = await Cable.to(server.port);
  open.push(cable);
  const socket = await joined('frank', 'stale-b', { url: cable.url });
  await socket.ask('joinRoom', 'stale-c');
  for (let n = 1; n <= 9; n += 1) await say('stale-b', `b ${n}`);
  await until(() => socket.contents().length === 9);
  // Goes by its own will, so that nothing is kept of it; the library keeps its
  // last offset all the same. The rooms are joined in another order.
  socket.disconnect().connect();
  await connected(socket);
  assert.equal(socket.recovered, false);
  await socket.ask('joinRoom', { roomId: 'stale-c', since: 0 });
  await socket.ask('joinRoom', { roomId: 'stale-b', since: 9 });
  await replugged(socket, cable, async () => {
    for (let n = 1; n <= 12; n += 1) await say('stale-c', `c ${n}`);
  });
  assert.equal(socket.recovered, true);
  await until(() => socket.contents().length === 21);
  assert.deepEqual(socket.contents().slice(9), [...Array(12).keys()].map((n) => `c ${n + 1}`));
});

/** How often a gateway of `server` was rebuilt with its sockets. */
const woken = (server) =>
  server.output.split('\n').filter((line) =>
    line.includes('"event":"wake"') && line.includes('"gateway"') && JSON.parse(line).connections > 0).length;

test('recovered after 11 s idle, over a real hibernation', async () => {
  const idle = async (socket) => {
    const before = woken(server);
    // The next ping, which wakes it, comes 25 s after one. What is due of clients
    // that were there before (two minutes after they went) keeps it awake, too.
    await once(socket.io.engine, 'ping', { signal: AbortSignal.timeout(30_000) });
    for (let tries = 0; woken(server) === before; tries += 1) {
      assert.ok(tries < 4, 'a gateway was rebuilt with its sockets');
      await sleep(11_500);
      await socket.ask('sync', { roomId: 'sleepy', after: 0 });
      // What it prints may be later than what it answers.
      await sleep(100);
    }
  };
  await recovers('sleepy', (cable) => cable.pull(), { idle });
});

test('a gateway to which clients came, upgraded and recovered, sleeps after 11 s idle', async () => {
  // Without pings, so that nothing is due but what their coming left.
  const quiet = await Server.start({ vars: { PING_INTERVAL_MS: '0', GATEWAY_SHARDS: '1' } });
  try {
    const cable = await Cable.to(quiet.port);
    open.push(cable);
    const upgraded = client('bob', { url: quiet.url, transports: ['polling', 'websocket'] });
    await connected(upgraded);
    await until(() => upgraded.io.engine.transport.name === 'websocket', 'the upgrade');
    const socket = await joined('alice', 'nap', { url: cable.url });
    await replugged(socket, cable);
    assert.equal(socket.recovered, true);
    await sleep(11_500);
    assert.equal(woken(quiet), 0);
    await socket.ask('sync', { roomId: 'nap', after: 0 });
    await until(() => woken(quiet) === 1, 'the gateway was rebuilt with its sockets');
  } finally {
    await quiet.stop();
  }
});

test('events go on after 11 s idle without a reconnection', async () => {
  const socket = await joined('alice', 'idle');
  await say('idle', 'a');
  await until(() => socket.contents().length === 1);
  await sleep(11_500);
  await say('idle', 'b');
  assert.equal((await socket.ask('sendMessage', { roomId: 'idle', content: 'c' })).seq, 3);
  await until(() => socket.contents().length === 3);
  assert.deepEqual(socket.contents(), ['a', 'b', 'c']);
});

test('recovered after a kill -9 of the runtime', () =>
  recovers('killed', async (cable) => {
    server.kill();
    cable.pull();
    await server.start();
  }));

test('not recovered, and told so, when what was missed is past retention', async () => {
  const cable = await Cable.to(server.port);
  open.push(cable);
  const socket = await joined('alice', 'past', { url: cable.url });
  await say('past', 'a');
  await until(() => socket.contents().length === 1);
  await replugged(socket, cable, async () => {
    for (let n = 0; n < 3; n += 1) {
      const messages = [...Array(50).keys()].map((m) => ({ room: 'past', event: 'newMessage', data: { content: `${n} ${m}` } }));
      await server.call('POST', '/publish', { messages });
    }
  });
  assert.equal(socket.recovered, false);
});

test('a forged or foreign pid, offset or sid opens nothing', async () => {
  const victim = await joined('victim', 'private', { auth: async (give) => give({ token: await token({ sub: 'victim', rooms: ['private'] }) }) });
  await say('private', 'secret');
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
    assert.equal((await mallory.ask('joinRoom', 'private')).error.code, 'forbidden');
    assert.deepEqual(mallory.contents(), []);
    mallory.disconnect();
  }
  const own = client('victim', { auth: { token: await token({ sub: 'victim' }), pid: victim._pid, offset: 'zz.zz.zz' } });
  await connected(own);
  assert.equal(own.recovered, false, 'an offset beyond the log');
  for (const sid of ['0-0', '7-abc', '99999-1', '-', '%00']) {
    const answer = await fetch(`${server.url}/socket.io/?EIO=4&transport=polling&sid=${sid}`);
    assert.deepEqual([answer.status, (await answer.json()).code], [400, 1], sid);
  }
});

test('a malformed packet closes that connection and no other', async () => {
  const good = await joined('alice', 'firm');
  for (const packet of ['4abc', '42{}', '42["x"', '451-["x"]', '9', '4', '40/chat,[]']) {
    const bad = client('bob', { reconnection: false });
    await connected(bad);
    const gone = once(bad, 'disconnect', { signal: AbortSignal.timeout(PATIENCE) });
    bad.io.engine.transport.ws.send(packet);
    if (packet.startsWith('45')) bad.io.engine.transport.ws.send('42["y"]');
    await gone;
  }
  assert.equal((await good.ask('sendMessage', { roomId: 'firm', content: 'x' })).seq, 1);
});

test('a kick ends the connection for good', async () => {
  const socket = await joined('eve', 'kicked');
  const left = once(socket, 'disconnect', { signal: AbortSignal.timeout(PATIENCE) });
  await server.call('DELETE', '/rooms/kicked/connections?userId=eve');
  assert.equal((await left)[0], 'io server disconnect');
});

test('polling answers a page of an allowed origin and no other', async () => {
  const poll = (origin, method = 'GET') =>
    fetch(`${server.url}/socket.io/?EIO=4&transport=polling`, { method, headers: { origin } });
  const same = await poll(server.url);
  assert.equal(same.headers.get('access-control-allow-origin'), server.url);
  assert.equal((await poll(server.url, 'OPTIONS')).status, 204);
  assert.equal((await poll('https://evil.example')).status, 403);
});

test('a gateway that sleeps closes who says nothing: no namespace, no pong, no ping', async () => {
  const sleepy = await Server.start({
    vars: { PING_INTERVAL_MS: '12000', PING_TIMEOUT_MS: '5000', CONNECT_TIMEOUT_MS: '30000', GHOST_TIMEOUT: '20s' },
  });
  try {
    const jwt = await token({ sub: 'ghost' });
    const url = sleepy.url.replace('http', 'ws');
    /** After how many seconds, and by which code, a socket is closed that says this. */
    const closed = async (path, says, { pongs = false } = {}) => {
      const socket = new WebSocket(url + path);
      if (pongs) socket.addEventListener('message', ({ data }) => data === '2' && socket.send('3'));
      await once(socket, 'open', { signal: AbortSignal.timeout(PATIENCE) });
      for (const text of says) socket.send(text);
      const began = Date.now();
      const [{ code }] = await once(socket, 'close', { signal: AbortSignal.timeout(90_000) });
      return [code, Math.round((Date.now() - began) / 1_000)];
    };
    const path = `/socket.io/?EIO=4&transport=websocket&token=${jwt}`;
    const [stranger, silent, ghost] = await Promise.all([
      closed(path, ['3'], { pongs: true }),
      closed(path, ['40/chat,', '3']),
      closed(`/ws?token=${jwt}`, ['ping']),
    ]);
    for (const [code, after, least, most] of [
      [...stranger, 29, 40],
      [...silent, 24, 50],
      [...ghost, 19, 45],
    ]) {
      assert.equal(code, 4408);
      assert.ok(least <= after && after <= most, `closed after ${after} s`);
    }
  } finally {
    sleepy.stop();
  }
});

test('python-socketio joins, sends and receives', async () => {
  const python = process.env.ROOMCAST_PYTHON;
  assert.ok(python, 'scripts/client-test sets ROOMCAST_PYTHON');
  const out = await new Promise((resolve, reject) => {
    const args = [new URL('client.py', import.meta.url).pathname, server.url];
    token({ sub: 'py' }).then((jwt) =>
      execFile(python, [...args, jwt], { timeout: 60_000 }, (error, stdout, stderr) =>
        error ? reject(new Error(`${error.message}\n${stdout}\n${stderr}`)) : resolve(stdout)));
  });
  assert.match(out, /^received hello from python$/m);
});
