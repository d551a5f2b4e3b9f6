/** Unit tests of the browser client, with a mocked clock and a fake connection. */

import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';
import { nativeTransport } from '../../public/lib/native.js';
import { RoomClient, RoomError } from '../../public/roomcast.js';

/** Runs pending promise callbacks without advancing the clock. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Advances the clock. */
async function advance(milliseconds) {
  await settle();
  mock.timers.tick(milliseconds);
  await settle();
}

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'], now: 1_800_000_000_000 }));
afterEach(() => mock.timers.reset());

/** A transport that records every opened connection in `links`. */
class FakeTransport {
  links = [];

  open(target, handlers) {
    const link = {
      target,
      handlers,
      sent: [],
      closed: false,
      probes: 0,
      request(event, data) {
        return new Promise((resolve, reject) => this.sent.push({ event, data, resolve, reject }));
      },
      probe() {
        this.probes += 1;
      },
      close() {
        this.closed = true;
      },
    };
    this.links.push(link);
    return link;
  }

  get link() {
    return this.links.at(-1);
  }
}

function setUp(options = {}) {
  const transport = new FakeTransport();
  let tokens = 0;
  const client = new RoomClient({
    room: 'r', url: 'http://room.test', transport, getToken: async () => `token ${(tokens += 1)}`, ...options,
  });
  const seen = [];
  client.on('newMessage', ({ seq }) => seen.push(seq));
  const states = [];
  client.on('state', ({ name }) => states.push(name));

  const fixture = {
    client,
    transport,
    seen,
    states,
    /** Connects and accepts the connection as the room does. */
    async connect({ seq = 0, epoch = 'e', delivered = 0, read = 0, ...more } = {}, replay = []) {
      client.connect();
      await fixture.accept({ seq, epoch, delivered, read, ...more }, replay);
    },
    /** Accepts the pending connection: `connected`, the replay, the answer to `joinRoom`. */
    async accept({ seq = 0, epoch = 'e', delivered = 0, read = 0, ...more } = {}, replay = []) {
      await settle();
      const { handlers } = transport.link;
      handlers.connected({ userId: 'me', epoch, seq, delivered, expiresAt: new Date(Date.now() + 3_600_000).toISOString(), ...more });
      replay.forEach((event) => fixture.deliver(event));
      fixture.request('joinRoom').resolve({ seq, delivered, read, members: [] });
      await settle();
    },
    /** Delivers a message to the client. */
    deliver(seq, fields = {}) {
      transport.link.handlers.event('newMessage', { seq, senderId: 'other', messageId: `m${seq}`, content: 'x', ...fields });
    },
    /** Ends the connection. */
    drop(reason = { code: 1006, message: 'gone' }) {
      const { link } = transport;
      for (const { reject } of link.sent) reject(new RoomError({ code: 'disconnected' }));
      link.handlers.closed(reason);
    },
    /** Returns the newest request for this event on the current connection. */
    request: (event) => transport.link.sent.findLast((request) => request.event === event),
    count: (event) => transport.link.sent.filter((request) => request.event === event).length,
  };
  return fixture;
}

test('the client resumes after the last received event with a fresh token', async () => {
  const fixture = setUp({ history: 5 });
  await fixture.connect({ seq: 3 }, [2, 3]);
  const [first] = fixture.transport.links;
  assert.deepEqual([first.target.token, first.target.history, first.target.since], ['token 1', 5, undefined]);
  fixture.deliver(4);
  fixture.drop();
  await advance(60_000);
  const { token, since, epoch, history } = fixture.transport.link.target;
  assert.deepEqual({ token, since, epoch, history }, { token: 'token 2', since: 4, epoch: 'e', history: undefined });
  await fixture.accept({ seq: 6 }, [5, 6]);
  assert.deepEqual(fixture.seen, [2, 3, 4, 5, 6]);
});

test('a connection without events is resumed from the head', async () => {
  const fixture = setUp();
  await fixture.connect({ seq: 7, delivered: 7 });
  fixture.drop();
  await advance(60_000);
  assert.equal(fixture.transport.link.target.since, 7);
});

test('a repeated event is ignored and a missing event causes a reconnection', async () => {
  const fixture = setUp();
  await fixture.connect({ seq: 2 }, [1, 2]);
  fixture.deliver(2);
  fixture.deliver(4);
  fixture.deliver(5);
  assert.deepEqual(fixture.seen, [1, 2]);
  assert.equal(fixture.transport.link.closed, true);
  await advance(60_000);
  assert.equal(fixture.transport.link.target.since, 2);
});

test('trimmed events are reported as a gap and skipped', async () => {
  const fixture = setUp();
  const gaps = [];
  fixture.client.on('gap', (gap) => gaps.push(gap));
  await fixture.connect({ seq: 1 }, [1]);
  fixture.drop();
  await advance(60_000);
  fixture.transport.link.handlers.connected({ userId: 'me', epoch: 'e', seq: 9, delivered: 1 });
  fixture.transport.link.handlers.event('gap', { roomId: 'r', from: 2, to: 7 });
  fixture.deliver(8);
  fixture.deliver(9);
  assert.deepEqual(gaps, [{ roomId: 'r', from: 2, to: 7 }]);
  assert.deepEqual(fixture.seen, [1, 8, 9]);
});

test('a new epoch resets position, receipts and events', async () => {
  const fixture = setUp();
  let resets = 0;
  fixture.client.on('reset', () => (resets += 1));
  await fixture.connect({ seq: 5, delivered: 5, read: 5 }, [5]);
  fixture.drop();
  await advance(60_000);
  await fixture.accept({ seq: 2, epoch: 'f', reset: true }, [1, 2]);
  assert.equal(resets, 1);
  assert.deepEqual(fixture.seen, [5, 1, 2]);
  await advance(1_000);
  assert.deepEqual(fixture.request('messageDelivered').data, { seq: 2 });
  fixture.drop();
  await advance(60_000);
  assert.deepEqual([fixture.transport.link.target.since, fixture.transport.link.target.epoch], [2, 'f']);
});

test('unacknowledged messages are resent with the same messageId in order', async () => {
  const fixture = setUp();
  fixture.client.send('one', { messageId: 'a' });
  fixture.client.send('two', { messageId: 'b' });
  assert.equal(fixture.client.outbox.length, 2);
  await fixture.connect();
  assert.deepEqual(fixture.request('sendMessage').data, { content: 'one', messageId: 'a' });
  fixture.drop();
  await advance(60_000);
  await fixture.accept();
  assert.deepEqual(fixture.request('sendMessage').data, { content: 'one', messageId: 'a' });
  fixture.request('sendMessage').resolve({ messageId: 'a', seq: 1, duplicate: true });
  await settle();
  assert.deepEqual(fixture.request('sendMessage').data, { content: 'two', messageId: 'b' });
  fixture.request('sendMessage').resolve({ messageId: 'b', seq: 2 });
  await settle();
  assert.deepEqual(fixture.client.outbox, []);
});

test('a message that arrives in the replay is not resent', async () => {
  const fixture = setUp();
  const sent = fixture.client.send('one', { messageId: 'a' });
  await fixture.connect();
  fixture.drop();
  await advance(3_600_000);
  await fixture.accept({ seq: 1 }, []);
  fixture.drop();
  await advance(60_000);
  const { handlers } = fixture.transport.link;
  handlers.connected({ userId: 'me', epoch: 'e', seq: 1, delivered: 0 });
  fixture.deliver(1, { senderId: 'me', messageId: 'a' });
  fixture.request('joinRoom').resolve({ seq: 1, delivered: 0, read: 0, members: [] });
  assert.equal((await sent).seq, 1);
  assert.equal(fixture.count('sendMessage'), 0);
});

test('a rate-limited message is retried in order and a refused message rejects with its error', async () => {
  const fixture = setUp();
  await fixture.connect();
  const one = fixture.client.send('one', { messageId: 'a' });
  const two = fixture.client.send('two', { messageId: 'b' });
  fixture.request('sendMessage').reject(new RoomError({ code: 'rateLimited', retryAfterMs: 500 }));
  await settle();
  assert.equal(fixture.count('sendMessage'), 1);
  await advance(500);
  assert.equal(fixture.request('sendMessage').data.messageId, 'a');
  fixture.request('sendMessage').resolve({ seq: 1 });
  await one;
  fixture.request('sendMessage').reject(new RoomError({ code: 'forbidden', message: 'no' }));
  await assert.rejects(two, { code: 'forbidden' });
  await assert.rejects(fixture.client.send('x'.repeat(70_000)), { code: 'tooLarge' });
  assert.deepEqual(fixture.client.outbox, []);
});

test('the outbox survives a reload of the page', async () => {
  let stored = [];
  const store = { load: () => stored, save: (outbox) => (stored = structuredClone(outbox)) };
  setUp({ store }).client.send('one', { messageId: 'a' });
  const fixture = setUp({ store });
  await fixture.connect();
  assert.deepEqual(fixture.request('sendMessage').data, { content: 'one', messageId: 'a' });
  fixture.request('sendMessage').resolve({ seq: 1 });
  await settle();
  assert.deepEqual(stored, []);
});

test('reconnects back off exponentially with jitter, and a stable connection resets the delay', async () => {
  const fixture = setUp();
  mock.method(Math, 'random', () => 1);
  const delays = [];
  fixture.client.on('state', ({ name, retryAt }) => name === 'waiting' && delays.push(retryAt - Date.now()));
  fixture.client.connect();
  for (let tries = 0; tries < 9; tries += 1) {
    await settle();
    fixture.drop();
    await advance(delays.at(-1));
  }
  assert.deepEqual(delays, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
  await fixture.accept();
  await advance(6_000);
  fixture.drop();
  assert.equal(delays.at(-1), 500);
  // `retryAfterMs` of the server takes precedence.
  await advance(500);
  fixture.drop({ code: 1006, status: 429, message: 'too many', retryAfterMs: 20_000 });
  assert.equal(delays.at(-1), 20_000);
  mock.restoreAll();
});

test('the client does not reconnect after a kick or a refusal, and replaces an expired token', async () => {
  for (const reason of [{ code: 4403, message: 'kicked' }, { code: 4409, message: 'replaced' }, { code: 1006, status: 403, message: 'no' }]) {
    const fixture = setUp();
    await fixture.connect();
    fixture.drop(reason);
    await advance(3_600_000);
    assert.equal(fixture.client.state.name, 'stopped');
    assert.equal(fixture.client.state.reason, reason.message);
    assert.equal(fixture.transport.links.length, 1);
  }
  const fixture = setUp();
  await fixture.connect();
  fixture.drop({ code: 4401, message: 'token expired' });
  await advance(60_000);
  assert.equal(fixture.transport.link.target.token, 'token 2');
  const same = setUp({ getToken: async () => 'the same' });
  await same.connect();
  same.drop({ code: 4401, message: 'token expired' });
  await advance(60_000);
  same.drop({ code: 1006, status: 401, message: 'token expired' });
  assert.equal(same.client.state.name, 'stopped');
});

test('a token is refreshed before it expires', async () => {
  const fixture = setUp();
  await fixture.connect({ expiresAt: new Date(Date.now() + 600_000).toISOString() });
  await advance(539_000);
  assert.equal(fixture.count('refreshToken'), 0);
  await advance(1_000);
  assert.deepEqual(fixture.request('refreshToken').data, { token: 'token 2' });
  fixture.request('refreshToken').reject(new RoomError({ code: 'internal' }));
  await advance(5_000);
  assert.deepEqual(fixture.request('refreshToken').data, { token: 'token 3' });
});

test('repeated connects open one connection, also after a disconnect', async () => {
  const fixture = setUp();
  fixture.client.connect();
  fixture.client.disconnect();
  fixture.client.connect();
  fixture.client.connect();
  await settle();
  assert.equal(fixture.transport.links.length, 1);
  await fixture.accept();
  fixture.client.disconnect();
  assert.equal(fixture.transport.link.closed, true);
  await advance(3_600_000);
  assert.deepEqual(fixture.states, ['connecting', 'offline', 'connecting', 'live', 'offline']);
});

test('receipts are coalesced, and a read receipt implies delivery', async () => {
  const fixture = setUp();
  await fixture.connect({ seq: 3 }, [1, 2, 3]);
  fixture.client.read(2);
  fixture.client.read(3);
  await advance(200);
  assert.deepEqual(fixture.request('messageRead').data, { seq: 3 });
  assert.equal(fixture.count('messageRead'), 1);
  assert.equal(fixture.count('messageDelivered'), 0);
  fixture.request('messageRead').resolve({ seq: 3 });
  fixture.deliver(4);
  fixture.deliver(5);
  await advance(200);
  assert.deepEqual(fixture.request('messageDelivered').data, { seq: 5 });
  // The receipt was lost with the connection, so it is sent again.
  fixture.drop();
  await advance(60_000);
  await fixture.accept({ seq: 5, delivered: 3, read: 3 });
  await advance(200);
  assert.deepEqual(fixture.request('messageDelivered').data, { seq: 5 });
});

test('typing is sent at intervals and its end after a pause', async () => {
  const fixture = setUp();
  await fixture.connect();
  for (let keys = 0; keys < 40; keys += 1) {
    fixture.client.typing();
    await advance(100);
  }
  const sent = () => fixture.transport.link.sent.filter(({ event }) => event === 'typingIndicator').map(({ data }) => data.isTyping);
  assert.deepEqual(sent(), [true, true]);
  await advance(3_000);
  assert.deepEqual(sent(), [true, true, false]);
  fixture.client.typing();
  fixture.client.typing(false);
  fixture.client.typing(false);
  assert.deepEqual(sent(), [true, true, false, true, false]);
});

test('an exception in a listener does not affect the client', async () => {
  const fixture = setUp();
  const shown = mock.method(console, 'error', () => {});
  fixture.client.on('newMessage', () => {
    throw new Error('an exception in a listener');
  });
  await fixture.connect({ seq: 2 }, [1, 2]);
  assert.deepEqual(fixture.seen, [1, 2]);
  assert.equal(fixture.client.state.name, 'live');
  assert.equal(shown.mock.callCount(), 2);
  mock.restoreAll();
});

test('an event with malformed data is reported as custom and the next events arrive', async () => {
  const fixture = setUp();
  const custom = [];
  fixture.client.on('custom', ({ event, data }) => custom.push([event, data]));
  await fixture.connect();
  const { handlers } = fixture.transport.link;
  [null, 'text', 7].forEach((data, index) => handlers.event('newMessage', data, { seq: index + 1, senderId: 'service' }));
  handlers.event('userLeft', null);
  fixture.deliver(4);
  assert.deepEqual(custom, [['newMessage', null], ['newMessage', 'text'], ['newMessage', 7], ['userLeft', null]]);
  assert.deepEqual(fixture.seen, [4]);
  assert.equal(fixture.client.state.name, 'live');
});

test('without WebSocket the client stops with a reason instead of reconnecting', async () => {
  mock.property(globalThis, 'WebSocket', undefined);
  const fixture = setUp({ transport: nativeTransport });
  fixture.client.connect();
  await advance(3_600_000);
  assert.deepEqual(fixture.states, ['connecting', 'stopped']);
  assert.match(fixture.client.state.reason, /no WebSocket/);
  mock.restoreAll();
});

// ---- the native framing

class FakeSocket {
  static last;
  sent = [];
  closed = false;

  constructor(url, protocols) {
    Object.assign(this, { url: String(url), protocols });
    FakeSocket.last = this;
  }

  send(text) {
    this.sent.push(text);
  }

  close() {
    this.closed = true;
  }
}

function openNative(closed = () => {}) {
  mock.property(globalThis, 'WebSocket', FakeSocket);
  const received = [];
  const link = nativeTransport.open(
    { url: 'https://room.test', room: 'a:b@c', token: 'header.body.signature', since: 4, epoch: 'e' },
    {
      connected: (data) => received.push(['connected', data]),
      event: (event, data, meta) => received.push([event, data, meta]),
      closed: (reason) => {
        received.push(['closed', reason.code]);
        closed(reason);
      },
    },
  );
  const socket = FakeSocket.last;
  mock.restoreAll();
  return { link, socket, received, receive: (data) => socket.onmessage({ data }) };
}

test('the token is sent in a header and the position in the URL', () => {
  const { socket } = openNative();
  assert.equal(socket.url, 'wss://room.test/rooms/a%3Ab%40c/ws?since=4&epoch=e');
  assert.deepEqual(socket.protocols, ['roomcast.v1', 'bearer.header.body.signature']);
});

test('frames are split into lines and answers resolve their requests', async () => {
  const { link, received, receive } = openNative();
  receive('{"event":"connected","data":{"seq":1}}\n{"event":"x","data":"line\\nbreak","meta":{"seq":1}}\n');
  const [one, two] = [link.request('sync', { after: 0 }), link.request('typingIndicator', {})];
  receive('{"ack":2,"error":{"code":"rateLimited","message":"slow","retryAfterMs":7}}\n{"ack":1,"data":{"head":1}}');
  assert.deepEqual(await one, { head: 1 });
  await assert.rejects(two, { code: 'rateLimited', retryAfterMs: 7 });
  assert.deepEqual(received, [['connected', { seq: 1 }], ['x', 'line\nbreak', { seq: 1 }]]);
  receive('not JSON');
  assert.deepEqual(received.at(-1), ['closed', 4400]);
});

test('the client pings after 4 MiB of received data, so that the server does not close the connection as slow', async () => {
  const { socket, receive } = openNative();
  receive('{"event":"connected","data":{}}');
  const large = JSON.stringify({ event: 'x', data: 'x'.repeat(1 << 20) });
  receive('pong');
  for (let n = 0; n < 3; n += 1) receive(large);
  assert.deepEqual(socket.sent, ['ping'], 'only the ping after connecting');
  receive(large);
  assert.deepEqual(socket.sent, ['ping', 'ping']);
  receive('pong');
});

test('the client pings, and closes a connection that does not answer', async () => {
  const { link, socket, received, receive } = openNative();
  receive('{"event":"connected","data":{}}');
  assert.deepEqual(socket.sent, ['ping']);
  receive('pong');
  await advance(25_000);
  assert.deepEqual(socket.sent, ['ping', 'ping']);
  receive('pong');
  await advance(25_000);
  assert.deepEqual(socket.sent, ['ping', 'ping', 'ping']);
  const request = link.request('sync', {});
  await Promise.all([assert.rejects(request, { code: 'disconnected' }), advance(10_000)]);
  assert.deepEqual(received.at(-1), ['closed', 1006]);
  assert.equal(socket.closed, true);
  await advance(60_000);
  assert.equal(socket.sent.length, 4);
});

test('a socket that was accepted only to refuse it has the reason of the refusal', () => {
  for (const [code, reason, expected] of [
    [4401, 'unauthorized: the token has expired', { code: 4401, status: 401, message: 'the token has expired' }],
    [4429, 'rateLimited (retry after 12 s): too many connects: wait', {
      code: 4429, status: 429, message: 'too many connects: wait', retryAfterMs: 12_000,
    }],
    [4401, 'token expired', { code: 4401, message: 'token expired' }],
  ]) {
    let closed;
    const { socket } = openNative((why) => (closed = why));
    socket.onopen();
    socket.onclose({ code, reason });
    assert.deepEqual({ ...closed }, expected);
  }
});

test('the client closes a connection if the server sends nothing', async () => {
  const { received, socket } = openNative();
  socket.onopen();
  await advance(10_000);
  assert.deepEqual(received, [['closed', 1006]]);
});
