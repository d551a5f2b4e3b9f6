/** Tests the rules of both protocol pages with the echo server of `make conformance`,
 * which uses the Engine.IO and Socket.IO layers of roomcast:
 * https://socket.io/docs/v4/engine-io-protocol/
 * https://socket.io/docs/v4/socket-io-protocol/ */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { WebSocket } from 'ws';
import { Server } from '../browser/server.mjs';

const POLLING = '/engine.io/?EIO=4&transport=polling';
const WEBSOCKET = '/engine.io/?EIO=4&transport=websocket';
const SOCKET_IO = '/socket.io/?EIO=4&transport=websocket';
const INTERVAL = 1_000;
const TIMEOUT = 500;
const CONNECT_TIMEOUT = 2_000;
let server;

before(async () => {
  server = await Server.start({
    conformance: true,
    vars: {
      PING_INTERVAL_MS: String(INTERVAL), PING_TIMEOUT_MS: String(TIMEOUT),
      CONNECT_TIMEOUT_MS: String(CONNECT_TIMEOUT), MAX_PAYLOAD: '1000000',
    },
  });
});
after(() => server.stop());

/** A WebSocket whose frames are read one by one. */
class Socket {
  #frames = [];
  #waiters = [];

  constructor(path) {
    this.ws = new WebSocket(server.url.replace('http', 'ws') + path);
    this.ws.on('error', () => {});
    this.ws.on('message', (data, binary) => {
      const frame = binary ? [...data] : data.toString();
      const waiter = this.#waiters.shift();
      if (waiter) waiter(frame);
      else this.#frames.push(frame);
    });
  }

  /** Waits for the end of the connection. */
  get closed() {
    if (this.ws.readyState === WebSocket.CLOSED) return Promise.resolve();
    return once(this.ws, 'close', { signal: AbortSignal.timeout(15_000) });
  }

  static async open(path) {
    const socket = new Socket(path);
    await once(socket.ws, 'open', { signal: AbortSignal.timeout(10_000) });
    return socket;
  }

  send(frame) {
    this.ws.send(frame);
  }

  next() {
    if (this.#frames.length) return Promise.resolve(this.#frames.shift());
    return new Promise((resolve, reject) => {
      this.#waiters.push(resolve);
      setTimeout(() => reject(new Error('no frame in 3 s')), 3_000).unref();
    });
  }

  /** Returns the next frame that is not a ping. Answers pings. */
  async nextPacket() {
    for (;;) {
      const frame = await this.next();
      if (frame !== '2') return frame;
      this.send('3');
    }
  }

  /** Answers all further pings. */
  answerPings() {
    this.ws.on('message', (data) => data.toString() === '2' && this.send('3'));
    return this;
  }
}

const http = (path, options) => fetch(server.url + path, options);

async function handshake(path = POLLING) {
  const answer = await http(path);
  assert.equal(answer.status, 200);
  assert.equal(answer.headers.get('content-type'), 'text/plain; charset=UTF-8');
  const text = await answer.text();
  assert.equal(text[0], '0');
  return JSON.parse(text.slice(1));
}

const poll = (sid, options) => http(`${POLLING}&sid=${sid}`, options);
const post = (sid, body) => poll(sid, { method: 'POST', body });
const OPEN = ['maxPayload', 'pingInterval', 'pingTimeout', 'sid', 'upgrades'];

describe('Engine.IO: handshake', () => {
  for (const [name, open, upgrades] of [
    ['polling', () => handshake(), ['websocket']],
    ['WebSocket', async () => {
      const socket = await Socket.open(WEBSOCKET);
      const frame = await socket.next();
      socket.ws.close();
      return JSON.parse(frame.slice(1));
    }, []],
  ]) {
    test(`opens a session over ${name}`, async () => {
      const packet = await open();
      assert.deepEqual(Object.keys(packet).sort(), OPEN);
      assert.deepEqual(packet.upgrades, upgrades);
      assert.deepEqual([packet.pingInterval, packet.pingTimeout, packet.maxPayload], [INTERVAL, TIMEOUT, 1_000_000]);
    });
  }

  test('refuses an invalid handshake over HTTP with its error code', async () => {
    for (const [method, path, code] of [
      ['GET', '/engine.io/?transport=polling', 5],
      ['GET', '/engine.io/?EIO=abc&transport=polling', 5],
      ['GET', '/engine.io/?EIO=3&transport=polling', 5],
      ['GET', '/engine.io/?EIO=4', 0],
      ['GET', '/engine.io/?EIO=4&transport=abc', 0],
      ['POST', POLLING, 2],
      ['PUT', POLLING, 2],
      ['GET', `${POLLING}&sid=zzz`, 1],
      ['GET', `${POLLING}&sid=0-forged`, 1],
      ['POST', `${POLLING}&sid=0-forged`, 1],
      ['GET', WEBSOCKET, 3],
    ]) {
      const answer = await http(path, { method });
      assert.deepEqual([answer.status, (await answer.json()).code], [400, code], `${method} ${path}`);
    }
  });

  test('refuses an invalid handshake over WebSocket', async () => {
    for (const path of [
      '/engine.io/?transport=websocket', '/engine.io/?EIO=abc&transport=websocket', '/engine.io/?EIO=4',
      '/engine.io/?EIO=4&transport=abc', `${WEBSOCKET}&sid=0-forged`,
    ]) {
      const socket = new Socket(path);
      const [, answer] = await once(socket.ws, 'unexpected-response', { signal: AbortSignal.timeout(5_000) });
      assert.equal(answer.statusCode, 400, path);
    }
  });
});

describe('Engine.IO: messages', () => {
  test('are echoed over polling: single, several in a payload, binary as base64', async () => {
    const { sid } = await handshake();
    const waiting = poll(sid);
    await sleep(20);
    const posted = await post(sid, '4hello');
    assert.deepEqual([posted.status, await posted.text()], [200, 'ok']);
    assert.equal(await (await waiting).text(), '4hello');
    await (await post(sid, '4a\x1e4€ \x1ebAQIDBA==')).text();
    assert.equal(await (await poll(sid)).text(), '4a\x1e4€ \x1ebAQIDBA==');
  });

  test('are echoed over WebSocket: text and binary', async () => {
    const socket = await Socket.open(WEBSOCKET);
    await socket.next();
    socket.send('4hello');
    assert.equal(await socket.nextPacket(), '4hello');
    socket.send(Buffer.from([1, 2, 3, 4]));
    assert.deepEqual(await socket.nextPacket(), [1, 2, 3, 4]);
    socket.ws.close();
  });

  test('a malformed packet ends the session', async () => {
    for (const body of ['abc', '', '4a\x1ex', 'b!!!', '2', '5']) {
      const { sid } = await handshake();
      assert.equal((await post(sid, body)).status, 400, JSON.stringify(body));
      assert.equal((await poll(sid)).status, 400);
    }
    for (const frame of ['abc', '', '2', 'b!!!']) {
      const socket = await Socket.open(WEBSOCKET);
      await socket.next();
      socket.send(frame);
      await socket.closed;
    }
  });

  test('a payload over maxPayload ends the session', async () => {
    const { sid } = await handshake();
    assert.equal((await post(sid, `4${'x'.repeat(1_000_000)}`)).status, 413);
    assert.equal((await poll(sid)).status, 400);
    const socket = await Socket.open(WEBSOCKET);
    socket.send(`4${'x'.repeat(1_000_000)}`);
    await socket.closed;
  });
});

describe('Engine.IO: heartbeat', () => {
  test('the server pings, and a client that answers stays connected', async () => {
    const { sid } = await handshake();
    const socket = await Socket.open(WEBSOCKET);
    await socket.next();
    for (let n = 0; n < 3; n += 1) {
      assert.equal(await (await poll(sid)).text(), '2');
      await (await post(sid, '3')).text();
      assert.equal(await socket.next(), '2');
      socket.send('3');
    }
    socket.ws.close();
  });

  test('a client that does not answer a ping is closed after the timeout', async () => {
    const socket = await Socket.open(WEBSOCKET);
    const opened = Date.now();
    await socket.closed;
    const after = Date.now() - opened;
    assert.ok(after >= INTERVAL + TIMEOUT - 50 && after < INTERVAL + TIMEOUT + 1_500, `after ${after} ms`);
    const { sid } = await handshake();
    assert.equal(await (await poll(sid)).text(), '2');
    await sleep(TIMEOUT + 150);
    assert.equal((await poll(sid)).status, 400);
  });
});

describe('Engine.IO: close', () => {
  test('by the client over polling, with a noop for the pending poll', async () => {
    const { sid } = await handshake();
    const waiting = poll(sid);
    await sleep(20);
    assert.equal(await (await post(sid, '1')).text(), 'ok');
    assert.equal(await (await waiting).text(), '6');
    assert.equal((await poll(sid)).status, 400);
  });

  test('by the client over WebSocket', async () => {
    const socket = await Socket.open(WEBSOCKET);
    await socket.next();
    socket.send('1');
    await socket.closed;
  });

  test('by a second concurrent poll', async () => {
    const { sid } = await handshake();
    const first = poll(sid);
    await sleep(20);
    const second = await poll(sid);
    assert.equal(await (await first).text(), '1');
    assert.equal(second.status, 400);
    assert.equal((await poll(sid)).status, 400);
  });

  test('by an aborted poll', async () => {
    const { sid } = await handshake();
    const controller = new AbortController();
    const waiting = poll(sid, { signal: controller.signal }).catch(() => {});
    await sleep(50);
    controller.abort();
    await waiting;
    await sleep(100);
    assert.equal((await poll(sid)).status, 400);
  });
});

describe('Engine.IO: upgrade', () => {
  async function upgraded() {
    const { sid } = await handshake();
    const waiting = poll(sid);
    await sleep(20);
    const socket = await Socket.open(`${WEBSOCKET}&sid=${sid}`);
    socket.send('2probe');
    assert.equal(await socket.next(), '3probe');
    assert.equal(await (await waiting).text(), '6');
    socket.send('5');
    socket.send('4done');
    assert.equal(await socket.nextPacket(), '4done');
    return { sid, socket };
  }

  test('from polling to WebSocket, with a probe', async () => {
    const { socket } = await upgraded();
    socket.send('4hi');
    assert.equal(await socket.nextPacket(), '4hi');
    socket.ws.close();
  });

  test('packets queued for a poll are sent over the WebSocket', async () => {
    const { sid } = await handshake();
    const socket = await Socket.open(`${WEBSOCKET}&sid=${sid}`);
    socket.send('2probe');
    assert.equal(await socket.next(), '3probe');
    await (await post(sid, '4early')).text();
    socket.send('5');
    assert.equal(await socket.nextPacket(), '4early');
    socket.ws.close();
  });

  test('after an upgrade polls are refused, a second WebSocket is closed, and the session continues', async () => {
    const { sid, socket } = await upgraded();
    assert.equal((await poll(sid)).status, 400);
    assert.equal((await post(sid, '4x')).status, 400);
    const second = await Socket.open(`${WEBSOCKET}&sid=${sid}`);
    await second.closed;
    socket.send('4still');
    assert.equal(await socket.nextPacket(), '4still');
    socket.ws.close();
  });

  test('an invalid probe closes the WebSocket and leaves the session unchanged', async () => {
    const { sid } = await handshake();
    const socket = await Socket.open(`${WEBSOCKET}&sid=${sid}`);
    socket.send('4hi');
    await socket.closed;
    await (await post(sid, '4poll')).text();
    assert.equal(await (await poll(sid)).text(), '4poll');
  });
});

/** Opens a Socket.IO session. */
async function session() {
  const socket = await Socket.open(SOCKET_IO);
  assert.equal((await socket.next())[0], '0');
  return socket;
}

/** Opens a Socket.IO session and connects to `/`. */
async function connected(auth = '') {
  const socket = await session();
  socket.send(`40${auth}`);
  assert.match(await socket.nextPacket(), /^40\{"sid":"[^"]+"\}$/);
  assert.equal(await socket.nextPacket(), `42["auth",${auth || '{}'}]`);
  return socket;
}

describe('Socket.IO: connect', () => {
  test('to the main namespace, with and without a payload', async () => {
    (await connected()).ws.close();
    (await connected('{"token":"123"}')).ws.close();
  });

  test('to a custom namespace, with and without a comma', async () => {
    for (const [packet, auth] of [['40/custom,', '{}'], ['40/custom', '{}'], ['40/custom,{"a":1}', '{"a":1}']]) {
      const socket = await session();
      socket.send(packet);
      assert.match(await socket.nextPacket(), /^40\/custom,\{"sid":"[^"]+"\}$/);
      assert.equal(await socket.nextPacket(), `42/custom,["auth",${auth}]`);
      socket.ws.close();
    }
  });

  test('to an unknown namespace is refused', async () => {
    const socket = await session();
    socket.send('40/random');
    assert.equal(await socket.nextPacket(), '44/random,{"message":"Invalid namespace"}');
    socket.ws.close();
  });

  test('to several namespaces on one connection, with a disconnect from one', async () => {
    const socket = await connected();
    socket.send('40/custom');
    assert.match(await socket.nextPacket(), /^40\/custom/);
    await socket.nextPacket();
    socket.send('42/custom,["message",1]');
    assert.equal(await socket.nextPacket(), '42/custom,["message-back",1]');
    socket.send('41/custom');
    socket.send('42["message",2]');
    assert.equal(await socket.nextPacket(), '42["message-back",2]');
    socket.send('40/custom');
    assert.match(await socket.nextPacket(), /^40\/custom/, 'a second CONNECT after a disconnect');
    socket.ws.close();
  });

  test('a client without a namespace is closed after the timeout', async () => {
    const socket = (await session()).answerPings();
    const opened = Date.now();
    await socket.closed;
    const after = Date.now() - opened;
    assert.ok(after > CONNECT_TIMEOUT - 100 && after < CONNECT_TIMEOUT + 1_000, `after ${after} ms`);
  });

  test('over polling', async () => {
    const { sid } = await handshake('/socket.io/?EIO=4&transport=polling');
    const path = `/socket.io/?EIO=4&transport=polling&sid=${sid}`;
    await (await http(path, { method: 'POST', body: '40' })).text();
    const packets = (await (await http(path)).text()).split('\x1e');
    assert.match(packets[0], /^40\{"sid"/);
    await (await http(path, { method: 'POST', body: '42["message","x"]\x1e451-["message",{"_placeholder":true,"num":0}]\x1ebAQID' })).text();
    const back = [];
    while (back.length < 3) {
      const answer = (await (await http(path)).text()).split('\x1e');
      if (answer.includes('2')) await (await http(path, { method: 'POST', body: '3' })).text();
      back.push(...answer.filter((packet) => !['2', '42["auth",{}]'].includes(packet)));
    }
    assert.deepEqual(back, ['42["message-back","x"]', '451-["message-back",{"_placeholder":true,"num":0}]', 'bAQID']);
  });
});

describe('Socket.IO: events and acknowledgements', () => {
  test('text events are echoed and acknowledged', async () => {
    const socket = await connected();
    socket.send('42["message",1,"2",{"3":[false]}]');
    assert.equal(await socket.nextPacket(), '42["message-back",1,"2",{"3":[false]}]');
    socket.send('42456["message-with-ack",1,"2",{"3":[false]}]');
    assert.equal(await socket.nextPacket(), '43456[1,"2",{"3":[false]}]');
    socket.ws.close();
  });

  test('binary events are echoed and acknowledged', async () => {
    const socket = await connected();
    const placeholders = '{"_placeholder":true,"num":0},"x",{"_placeholder":true,"num":1}';
    for (const [packet, answer] of [
      [`452-["message",${placeholders}]`, `452-["message-back",${placeholders}]`],
      [`452-789["message-with-ack",${placeholders}]`, `462-789[${placeholders}]`],
    ]) {
      socket.send(packet);
      socket.send(Buffer.from([1, 2, 3]));
      socket.send(Buffer.from([4, 5, 6]));
      assert.equal(await socket.nextPacket(), answer);
      assert.deepEqual(await socket.nextPacket(), [1, 2, 3]);
      assert.deepEqual(await socket.nextPacket(), [4, 5, 6]);
    }
    socket.ws.close();
  });

  test('unexpected acknowledgements of a client are ignored', async () => {
    const socket = await connected();
    socket.send('431["x"]');
    socket.send('461-2[{"_placeholder":true,"num":0}]');
    socket.send(Buffer.from([1]));
    socket.send('42["message","x"]');
    assert.equal(await socket.nextPacket(), '42["message-back","x"]');
    socket.ws.close();
  });
});

describe('Socket.IO: malformed packets close the connection', () => {
  for (const frames of [
    ['4'], ['4abc'], ['47'], ['44{}'], ['42{}'], ['42[]'], ['42'], ['42["x"'], ['42[{}]'], ['42["disconnect"]'],
    ['43["x"]'], ['431{}'], ['45["x"]'], ['451["x"]'], ['4599999-["x"]'], ['40abc'], ['40[]'], ['40/custom,x'],
    ['42/custom,["message"]'], ['41/custom'], [Buffer.from([1])],
    ['451-["x",{"_placeholder":true,"num":0}]', '42["message"]'],
  ]) {
    test(frames.map((frame) => (typeof frame === 'string' ? frame : 'a stray attachment')).join(' then '), async () => {
      const socket = (await connected()).answerPings();
      for (const frame of frames) socket.send(frame);
      await socket.closed;
    });
  }

  test('an event before any CONNECT', async () => {
    const socket = await session();
    socket.send('42["message"]');
    await socket.closed;
  });

  test('announced attachments that never arrive', { timeout: 30_000 }, async () => {
    const socket = (await connected()).answerPings();
    socket.send('451-["message",{"_placeholder":true,"num":0}]');
    const sent = Date.now();
    await socket.closed;
    assert.ok(Date.now() - sent > 9_000 && Date.now() - sent < 15_000);
  });
});
