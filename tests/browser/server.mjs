/** Runs `npx wrangler dev` on a free port with its own storage. The server can be
 * killed and started again. */

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { SignJWT } from 'jose';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const SECRET = 'a secret for the browser tests and nothing else';
/** Timeout of a start, in milliseconds. The first start may build the Worker. */
const START_TIMEOUT = 15 * 60_000;

const running = new Set();
process.on('exit', () => running.forEach((server) => server.kill()));
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));

export class Server {
  #process;
  #output = '';
  #storage = mkdtempSync(join(tmpdir(), 'roomcast-browser-'));

  #vars;
  #entry;
  #environment;

  constructor({ vars = {}, conformance = false } = {}) {
    this.#vars = vars;
    this.#entry = conformance ? ['build/conformance/index.js'] : [];
    this.#environment = conformance ? { ROOMCAST_FLAVOUR: 'conformance' } : {};
  }

  /** Starts a server. `vars` are settings in addition to the defaults below.
   * `conformance` selects the echo build. */
  static async start(options) {
    const server = new Server(options);
    server.port = await freePort();
    server.url = `http://127.0.0.1:${server.port}`;
    await server.start();
    return server;
  }

  /** Starts the server, or starts it again after `kill`. */
  async start() {
    const vars = {
      JWT_SECRET: SECRET, DEV_TOKENS: 'true', LOG_LEVEL: 'info', DEFAULT_ROOMS: '*', CONNECTS_PER_MINUTE: '100000', ...this.#vars,
    };
    const child = spawn(
      'npx',
      [
        'wrangler', 'dev', ...this.#entry, '--port', this.port, '--ip', '127.0.0.1', '--inspector-port', '0',
        '--persist-to', this.#storage, '--show-interactive-dev-session=false',
        ...Object.entries(vars).flatMap(([name, value]) => ['--var', `${name}:${value}`]),
      ],
      {
        cwd: ROOT,
        // A separate process group, so that wrangler and workerd can be killed together.
        detached: true,
        stdio: ['ignore', 'pipe', 'pipe'],
        env: { ...process.env, ...this.#environment, CI: '1', WRANGLER_SEND_METRICS: 'false', WRANGLER_LOG_PATH: join(this.#storage, 'logs') },
      },
    );
    this.#process = child;
    running.add(this);
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (data) => (this.#output += data));
    }
    for (const until = Date.now() + START_TIMEOUT; Date.now() < until; await sleep(200)) {
      if (child.exitCode !== null) break;
      if (await this.#isHealthy()) return;
    }
    this.kill();
    throw new Error(`wrangler dev did not start:\n${this.#output}`);
  }

  async #isHealthy() {
    try {
      const response = await fetch(`${this.url}/healthz`, { signal: AbortSignal.timeout(2_000) });
      return response.ok && (await response.json()).status === 'ok';
    } catch {
      // Not started yet, or too slow on a busy machine.
      return false;
    }
  }

  /** Everything that wrangler and workerd have printed. */
  get output() {
    return this.#output;
  }

  /** Kills wrangler and workerd with SIGKILL. */
  kill() {
    running.delete(this);
    try {
      process.kill(-this.#process.pid, 'SIGKILL');
    } catch (error) {
      if (error.code !== 'ESRCH') throw error;
    }
  }

  /** Kills the server and removes its storage. */
  async stop() {
    this.kill();
    // The killed processes release their files a moment later.
    await sleep(200);
    rmSync(this.#storage, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }

  // ---- HTTP requests as a service

  /** Sends a request with a service token and returns the body. */
  async call(method, path, body) {
    const response = await fetch(this.url + path, {
      method,
      headers: { authorization: `Bearer ${await token({ sub: 'billing', role: 'service', rooms: ['*'] })}` },
      body: body && JSON.stringify(body),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return JSON.parse(text);
  }

  publish(room, event, data) {
    return this.call('POST', '/publish', { room, event, data });
  }

  /** Returns the contents of the messages in the log of a room. */
  async log(room) {
    const { events } = await this.call('GET', `/rooms/${room}/messages?limit=1000`);
    return events.filter(({ event }) => event === 'newMessage').map(({ data }) => data.content);
  }
}

/** Signs a token. */
export function token({ sub, ttl = '1h', ...claims }) {
  return new SignJWT(claims)
    .setProtectedHeader({ alg: 'HS256', typ: 'JWT' })
    .setSubject(sub)
    .setIssuedAt()
    .setExpirationTime(ttl)
    .sign(new TextEncoder().encode(SECRET));
}

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
