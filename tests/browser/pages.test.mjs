/** Pages of other origins in Chromium: the reasons of refusals, HTTP requests, and the browser
 * client that is imported from the server. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { io } from 'socket.io-client';
import { Server, token } from './server.mjs';
import { launch } from './user.mjs';

/** Timeout of every wait, in milliseconds. */
const TIMEOUT = 20_000;

let server;
let browser;
/** The pages of an allowed origin and of another one. */
let page;
let foreign;
const sites = [];

before(async () => {
  const [allowed, other] = await Promise.all([site(), site()]);
  server = await Server.start({ vars: { ALLOWED_ORIGINS: allowed, CONNECTS_PER_MINUTE: '20' } });
  browser = await launch();
  [page, foreign] = await Promise.all([allowed, other].map(async (origin) => {
    const opened = await browser.newPage();
    await opened.goto(origin);
    return opened;
  }));
});

after(async () => {
  await browser?.close();
  sites.forEach((one) => one.close());
  await server?.stop();
});

/** Serves an empty page on another port, which is another origin. Returns the origin. */
async function site() {
  const empty = createServer((request, response) => {
    response.setHeader('content-type', 'text/html');
    response.end('<!doctype html><title>page</title>');
  });
  sites.push(empty);
  empty.listen(0, '127.0.0.1');
  await once(empty, 'listening');
  return `http://127.0.0.1:${empty.address().port}`;
}

const alice = (claims = {}) => token({ sub: 'alice', rooms: ['*'], ...claims });

/** Opens a native socket in a page. Returns the code and the reason of its close, or the first
 * frame. */
function connect(where, path, jwt) {
  return where.evaluate(([url, bearer]) => new Promise((resolve) => {
    const socket = new WebSocket(url, ['roomcast.v1', `bearer.${bearer}`]);
    socket.onmessage = ({ data }) => {
      socket.onclose = null;
      socket.close();
      resolve(JSON.parse(data.split('\n')[0]));
    };
    socket.onclose = ({ code, reason }) => resolve({ code, reason });
  }), [server.url.replace('http', 'ws') + path, jwt]);
}

test('a page tells the reasons of refused upgrades apart', { timeout: 60_000 }, async () => {
  const expired = await alice({ ttl: '-1m' });
  const limited = await alice({ rooms: ['other'] });
  for (const [path, jwt, code, reason] of [
    ['/rooms/r/ws', expired, 4401, 'unauthorized: the token has expired'],
    ['/ws', expired, 4401, 'unauthorized: the token has expired'],
    ['/rooms/r/ws', limited, 4403, 'forbidden: the token does not allow access to this room'],
    ['/rooms/r/ws?since=x', await alice(), 4400, 'badRequest: `since` must be an integer between 0 and 2^53-1'],
  ]) {
    assert.deepEqual(await connect(page, path, jwt), { code, reason }, path);
  }
  let answer;
  for (let n = 0; n < 40; n += 1) {
    answer = await connect(page, '/rooms/busy/ws', await alice());
    if (answer.code) break;
  }
  assert.equal(answer.code, 4429);
  assert.match(answer.reason, /^rateLimited \(retry after \d+ s\): too many connections from this address$/);
  // A good token connects, from this origin only.
  assert.equal((await connect(page, '/rooms/r/ws', await alice())).event, 'connected');
  const refused = await connect(foreign, '/rooms/r/ws', await alice());
  assert.deepEqual(refused, { code: 1006, reason: '' });
});

/** Sends a request from a page. Returns the status and the body, or the error. */
function request(where, method, path, jwt) {
  return where.evaluate(async ([url, verb, bearer]) => {
    try {
      const headers = bearer ? { authorization: `Bearer ${bearer}` } : {};
      const answer = await fetch(url, { method: verb, headers });
      const text = await answer.text();
      return {
        status: answer.status,
        body: text && JSON.parse(text),
        count: answer.headers.get('x-total-count'),
      };
    } catch (error) {
      return { error: String(error) };
    }
  }, [server.url + path, method, jwt]);
}

test('a page reads rooms, requests tickets, and reads the errors', async () => {
  const jwt = await alice();
  await server.publish('history', 'newMessage', { content: 'hi' });
  const history = await request(page, 'GET', '/rooms/history/messages', jwt);
  assert.equal(history.body.events[0].data.content, 'hi');
  const members = await request(page, 'GET', '/rooms/history/members', jwt);
  assert.deepEqual([members.status, members.count], [200, '0']);
  assert.equal((await request(page, 'GET', '/rooms/history/presence', jwt)).body.memberCount, 0);
  assert.deepEqual(await request(page, 'HEAD', '/rooms/history/messages', jwt), { status: 200, body: '', count: null });
  assert.equal((await request(page, 'POST', '/tickets', jwt)).status, 201);
  for (const [path, bearer, status, code] of [
    ['/rooms/history/messages', 'x', 401, 'unauthorized'],
    ['/rooms/history/messages', await alice({ rooms: ['a'] }), 403, 'forbidden'],
    ['/rooms/history/messages?limit=0', jwt, 400, 'badRequest'],
    ['/rooms/a%20b/messages', jwt, 400, 'badRequest'],
  ]) {
    const answer = await request(page, 'GET', path, bearer);
    assert.deepEqual([answer.status, answer.body?.code], [status, code], path);
  }
  assert.ok((await request(foreign, 'GET', '/rooms/history/messages', jwt)).error);
  for (const where of [page, foreign]) {
    assert.equal((await request(where, 'GET', '/openapi.json')).body.info.title, 'roomcast');
  }
});

test('a page imports the browser client from the server', async () => {
  const sent = await page.evaluate(async ([url, jwt]) => {
    const { RoomClient } = await import(`${url}/roomcast.js`);
    const room = new RoomClient({ url, room: 'imported', getToken: async () => jwt });
    room.connect();
    const receipt = await room.send('hi');
    const { events } = await room.before(2);
    room.disconnect();
    return [receipt.seq, events[0].data.content];
  }, [server.url, await alice()]);
  assert.deepEqual(sent, [1, 'hi']);
  const reasons = await page.evaluate(async ([url, tokens]) => {
    const { RoomClient } = await import(`${url}/roomcast.js`);
    return Promise.all(tokens.map((jwt) => new Promise((resolve) => {
      const room = new RoomClient({ url, room: 'imported', getToken: async () => jwt });
      room.on('state', ({ name, reason }) => {
        if (!['waiting', 'stopped'].includes(name)) return;
        room.disconnect();
        resolve([name, reason]);
      });
      room.connect();
    })));
  }, [server.url, [await alice({ ttl: '-1m' }), await alice({ rooms: ['a'] })]]);
  assert.deepEqual(reasons, [
    ['waiting', 'the token has expired'],
    ['stopped', 'the token does not allow access to this room'],
  ]);
});

/** Connects with socket.io-client in a page. Returns the errors within three seconds. */
function socketIo(where, options) {
  return where.evaluate(async ([url, more]) => {
    const { io } = await import(`${url}/vendor/socket.io.esm.min.js`);
    const socket = io(`${url}/chat`, { forceNew: true, reconnectionDelay: 10, reconnectionDelayMax: 10, ...more });
    const errors = [];
    socket.on('connect_error', (error) => errors.push({
      message: error.message, data: error.data, status: error.context?.status, active: socket.active,
    }));
    for (let waited = 0; !errors.length && waited < 10_000; waited += 50) await new Promise((done) => setTimeout(done, 50));
    await new Promise((done) => setTimeout(done, 3_000));
    socket.disconnect();
    return errors;
  }, [server.url, options]);
}

const REFUSED = {
  message: 'invalid, used or expired ticket',
  data: { code: 'unauthorized', message: 'invalid, used or expired ticket' },
};

test('a refused Socket.IO client of a page gets a connect_error with a code, once', { timeout: 60_000 }, async () => {
  const errors = await socketIo(page, { transports: ['websocket'], query: { ticket: 'x' } });
  assert.deepEqual(errors, [{ ...REFUSED, status: undefined, active: false }]);
  const [polling] = await socketIo(page, { transports: ['polling'], reconnection: false, query: { ticket: 'x' } });
  assert.deepEqual([polling.message, polling.status], ['xhr poll error', 401]);
  const expired = await socketIo(page, { auth: { token: await alice({ ttl: '-1m' }) } });
  assert.deepEqual(expired.map(({ data }) => data.code), ['unauthorized']);
});

test('a client in Node that sends the own origin gets the same connect_error, once', async () => {
  const socket = io(`${server.url}/chat`, {
    forceNew: true, transports: ['websocket'], query: { ticket: 'x' }, reconnectionDelay: 10, reconnectionDelayMax: 10,
    extraHeaders: { origin: server.url },
  });
  const errors = [];
  socket.on('connect_error', ({ message, data }) => errors.push({ message, data }));
  await once(socket, 'connect_error', { signal: AbortSignal.timeout(TIMEOUT) });
  await sleep(1_000);
  socket.disconnect();
  assert.deepEqual(errors, [REFUSED]);
});
