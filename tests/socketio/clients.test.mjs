/** Clients in several languages against `wrangler dev`: every scenario of
 * clients/scenarios.mjs for every client of clients/kinds.mjs, and clients that the server
 * refuses. The results are in docs/clients.md; a test fails if they are different.
 * `CLIENTS_TABLE=write` writes them. */

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { once } from 'node:events';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Server, token } from '../browser/server.mjs';
import { launch } from '../browser/user.mjs';
import { Agent, nodeAgent, npmVersion } from './clients/agents.mjs';
import { kinds } from './clients/kinds.mjs';
import { scenarios } from './clients/scenarios.mjs';
import { documented, results, write } from './clients/table.mjs';
import { TcpProxy } from './tcp-proxy.mjs';

/** Number of clients that run all scenarios at the same time. */
const CONCURRENCY = 3;
/** Scenarios that mostly wait, with the number of clients that run them at the same time. */
const WAITING = { 'token expires': 12, restart: Infinity };
/** Time within which a client that was refused must not try again, in milliseconds. */
const QUIET = 5_000;

const require = createRequire(import.meta.url);
/** Part of the name of the clients to run; all by default. */
const ONLY = process.env.CLIENTS ?? '';
const all = kinds(() => (browser ??= launch())).filter((kind) => label(kind).includes(ONLY));
/** Each client's results, by scenario. */
const cells = new Map(all.map((kind) => [kind, {}]));
const refusals = [];
const agents = new Map();
const proxies = [];
let browser;
let server;
let reference;

before(async () => {
  assert.ok(process.env.ROOMCAST_PYTHON && process.env.ROOMCAST_RUST_AGENT, 'run scripts/client-test');
  server = await Server.start({ vars: { NAMESPACES: '/,/support', JOINS_BURST: '1000', REFUSED_CONNECTS_PER_MINUTE: '100000' } });
  reference = new Agent(nodeAgent('socket.io-client'));
});
after(async () => {
  for (const agent of [...agents.values(), reference]) agent?.stop();
  for (const proxy of proxies) proxy.close();
  await (await browser)?.close();
  await server?.stop();
});

const agentOf = (kind) => {
  if (!agents.has(kind.start)) agents.set(kind.start, new Agent(kind.start));
  return agents.get(kind.start);
};

function label(kind) {
  return `${kind.client} ${kind.version}, ${kind.transport}`;
}

/** Runs a scenario for a client, and records the result. */
async function run(kind, name, restarted) {
  const id = `${all.indexOf(kind)}-${name.replace(' ', '-')}`;
  const opened = [];
  const context = {
    server,
    kind,
    user: `user-${id}`,
    room: `room-${id}`,
    async open(options) {
      const jwt = await token({ sub: context.user });
      const client = await agentOf(kind).open({ url: server.url, transports: kind.transports, token: jwt, ...options });
      opened.push(client);
      return client;
    },
    async peer(room) {
      const jwt = await token({ sub: `peer-${id}` });
      const peer = await reference.open({ url: server.url, transports: ['websocket'], token: jwt });
      opened.push(peer);
      assert.equal((await peer.request('joinRoom', room)).roomId, room);
      return peer;
    },
    async proxy() {
      const proxy = await TcpProxy.start(server.port);
      proxies.push(proxy);
      return proxy;
    },
    restarted,
  };
  try {
    cells.get(kind)[name] = (await scenarios[name](context)) ?? 'yes';
  } finally {
    for (const client of opened) client.close();
  }
}

describe('every client', { concurrency: CONCURRENCY }, () => {
  for (const kind of all) {
    test(label(kind), async (t) => {
      const names = Object.keys(scenarios).filter((name) => !(name in WAITING));
      await Promise.all(names.map((name) => t.test(name, () => run(kind, name))));
    });
  }
});

describe('every client renews its token', { concurrency: WAITING['token expires'] }, () => {
  for (const kind of all) test(label(kind), () => run(kind, 'token expires'));
});

test('every client continues after the server was killed and started again', { concurrency: true }, async (t) => {
  let ready = 0;
  let restart;
  const restarted = new Promise((...functions) => (restart = functions));
  const arrive = () => {
    if ((ready += 1) === all.length) {
      server.kill();
      server.start().then(...restart);
    }
    return restarted;
  };
  await Promise.all(all.map((kind) => t.test(label(kind), async () => {
    let waits = false;
    try {
      await run(kind, 'restart', () => {
        waits = true;
        return arrive();
      });
    } finally {
      // The other clients do not wait for a client that has failed.
      if (!waits) arrive();
    }
  })));
});

/** Records the result of a client that the server refuses. */
const refuse = (client, version, transport, result) => refusals.push([client, version, transport, result]);

describe('clients of protocols that the server does not speak', { concurrency: true }, () => {
  for (const [transport, options] of [['websocket', { transports: ['websocket'] }], ['polling', { transports: ['polling'] }], ['default', {}]]) {
    for (const nsp of ['/', '/support']) {
      test(`Engine.IO 3 by ${transport} in ${nsp} is told to update the library`, async () => {
        const socket = require('socket.io-client-2-5')(server.url + nsp, { forceNew: true, reconnectionDelay: 100, ...options });
        const events = [];
        for (const event of ['connect', 'disconnect', 'reconnecting']) socket.on(event, () => events.push(event));
        const [message] = await once(socket, 'error', { signal: AbortSignal.timeout(30_000) });
        assert.match(message, /update the client library/);
        await sleep(QUIET);
        assert.deepEqual(events, ['disconnect'], 'the client must not reconnect');
        socket.close();
        if (nsp === '/') refuse('socket.io-client, Node.js', npmVersion('socket.io-client-2-5'), transport, `\`error\`: ${message}`);
      });
    }
    test(`the msgpack parser by ${transport} is told to use the default one`, async () => {
      const { Manager } = require('socket.io-client');
      const manager = new Manager(server.url, { parser: require('socket.io-msgpack-parser'), reconnectionDelay: 100, ...options });
      const socket = manager.socket('/support', { auth: { token: await token({ sub: 'msgpack' }) } });
      const events = [];
      for (const event of ['connect', 'disconnect', 'connect_error']) socket.on(event, () => events.push(event));
      for (const event of ['reconnect_attempt', 'reconnect']) manager.on(event, () => events.push(event));
      socket.connect();
      const [{ message }] = await once(socket, 'connect_error', { signal: AbortSignal.timeout(30_000) });
      assert.match(message, /remove the option `parser`/);
      await sleep(QUIET);
      assert.deepEqual(events, ['connect_error'], 'the client must not reconnect');
      socket.close();
      const name = 'socket.io-client with socket.io-msgpack-parser';
      refuse(name, `${npmVersion('socket.io-client')} and ${npmVersion('socket.io-msgpack-parser')}`, transport, `\`connect_error\`: ${message}`);
    });
  }
});

test('the log says why the server refused these clients', async () => {
  for (const reason of ['the client speaks Engine.IO 3', 'remove the option `parser`']) {
    assert.ok(server.output.split('\n').some((line) => line.includes('"event":"reject"') && line.includes(reason)), reason);
  }
});

test('docs/clients.md has these results', { skip: ONLY !== '' && 'only a part of the clients was run' }, () => {
  const names = Object.keys(scenarios);
  const rows = all.map((kind) => [kind.client, kind.version, kind.transport, ...names.map((name) => cells.get(kind)[name] ?? 'failed')]);
  const sorted = refusals.sort(([a, , b], [c, , d]) => (a + b < c + d ? -1 : 1));
  const found = results(
    [['client', 'version', 'transport', ...names], ...rows],
    [['client', 'version', 'transport', 'the application gets'], ...sorted],
  );
  if (process.env.CLIENTS_TABLE === 'write') write(found);
  assert.equal(documented(), found, 'run CLIENTS_TABLE=write scripts/client-test tests/socketio/clients.test.mjs');
});
