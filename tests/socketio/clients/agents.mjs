/** Agents run the clients of the tests. An agent is a program or an object around one client
 * library. It executes operations and reports what an application would notice. Both are JSON,
 * one object per line if the agent is a process.
 *
 * Operations. `client` is a number that the test chooses; an agent has many clients.
 *
 * | `op` | meaning | further fields |
 * | --- | --- | --- |
 * | `open` | connects a client to namespaces; it reconnects by itself | `url`, `nsps`, `transports` (`null`: the default of the library), `query`, `token` |
 * | `token` | sets the token for the next connect | `token` |
 * | `connect` | connects again after the server has disconnected the client | |
 * | `request` | sends an event with an acknowledgement | `nsp`, `event`, `data`, `id` |
 * | `emit` | sends an event | `nsp`, `event`, `data` |
 * | `close` | closes a client | |
 *
 * Reports:
 *
 * | report | meaning |
 * | --- | --- |
 * | `{ client, nsp, state: "connect", recovered? }` | connected to a namespace |
 * | `{ client, nsp, state: "disconnect", reason? }` | disconnected |
 * | `{ client, nsp, state: "error", message, data? }` | could not connect |
 * | `{ client, nsp, event, args }` | an event, with the arguments of its handler |
 * | `{ client, id, answer }` | an acknowledgement, with the arguments of its callback |
 */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

/** Timeout of every wait, in milliseconds. Above the longest delay between two attempts of
 * the clients to reconnect, on a busy machine. */
const TIMEOUT = 60_000;

const require = createRequire(import.meta.url);
const AGENT = readFileSync(new URL('agent.js', import.meta.url), 'utf8');
const createAgent = new Function(`${AGENT}\nreturn createAgent;`)();

/** Returns the version of an installed npm package. */
export const npmVersion = (name) => require(`${name}/package.json`).version;

/** Starts an agent that is a process. */
export function processAgent(command, args) {
  return (report) => {
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    let errors = '';
    child.stderr.on('data', (data) => (errors += data));
    createInterface({ input: child.stdout }).on('line', (line) => report(JSON.parse(line)));
    // The agent may end while an operation is being written.
    child.stdin.on('error', () => {});
    return {
      send: (operation) => child.stdin.write(`${JSON.stringify(operation)}\n`),
      stop: () => child.kill('SIGKILL'),
      errors: () => errors,
    };
  };
}

/** Starts an agent that has one process for each client, and ends it with the client. */
export function processPerClientAgent(command, args) {
  return (report) => {
    const processes = new Map();
    const start = processAgent(command, args);
    return {
      send(operation) {
        const { op, client } = operation;
        if (op === 'open') processes.set(client, start(report));
        processes.get(client).send(operation);
        // The time that the client has to close its connection.
        if (op === 'close') setTimeout(() => processes.get(client).stop(), 1_000).unref();
      },
      stop: () => processes.forEach((one) => one.stop()),
      errors: () => [...processes.values()].map((one) => one.errors()).join(''),
    };
  };
}

/** Starts an agent of `socket.io-client` in this process. `name` is that of the package. */
export function nodeAgent(name) {
  return (report) => ({ send: createAgent(require(name).Manager, report), stop() {}, errors: () => '' });
}

/** Starts an agent of `socket.io-client` in pages of a browser: one page
 * per server URL, with all clients of that URL. */
export function pageAgent(browser, name) {
  const script = join(dirname(require.resolve(`${name}/package.json`)), 'dist/socket.io.js');
  return (report) => {
    const [pages, urls] = [new Map(), new Map()];
    let errors = '';
    const openPage = async (url) => {
      const page = await (await browser()).newPage();
      page.on('pageerror', (error) => (errors += `${error}\n`));
      await page.exposeFunction('report', report);
      // A page of the server itself, so that its origin is allowed.
      await page.goto(`${url}/healthz`);
      await page.addScriptTag({ path: script });
      await page.addScriptTag({ content: `${AGENT}\nwindow.agent = createAgent(io.Manager, window.report);` });
      return page;
    };
    const send = async (operation) => {
      const { op, client } = operation;
      if (op === 'open') urls.set(client, operation.url);
      const url = urls.get(client);
      if (!pages.has(url)) pages.set(url, openPage(url));
      await (await pages.get(url)).evaluate((one) => window.agent(one), operation);
    };
    return {
      send: (operation) => send(operation).catch((error) => (errors += `${error}\n`)),
      stop() {},
      errors: () => errors,
    };
  };
}

/** All clients of one agent. */
export class Agent {
  #agent;
  #clients = new Map();

  constructor(start) {
    this.#agent = start((report) => this.#clients.get(report.client)?.report(report));
  }

  /** Connects a client. Waits until it is connected to all namespaces, unless `wait` is
   * `false`. */
  async open({ wait = true, nsps = ['/'], ...options }) {
    const number = this.#clients.size;
    const client = new Client(nsps, (operation) => this.#agent.send({ client: number, ...operation }), () => this.#agent.errors());
    this.#clients.set(number, client);
    client.send({ op: 'open', nsps, transports: null, query: null, ...options });
    if (wait) await client.connected();
    return client;
  }

  stop() {
    for (const client of this.#clients.values()) client.close();
    this.#agent.stop();
  }
}

/** One client, which may be connected to several namespaces. */
class Client {
  /** All reports, in order. */
  reports = [];
  #nsps;
  #send;
  #errors;
  #requests = 0;
  #isClosed = false;

  constructor(nsps, send, errors) {
    this.#nsps = nsps;
    this.#send = send;
    this.#errors = errors;
  }

  send(operation) {
    this.#send(operation);
  }

  report(report) {
    this.reports.push(report);
  }

  /** Waits until `read` returns a truthy value, and returns it. */
  async until(read, what = read.toString()) {
    for (const end = Date.now() + TIMEOUT; Date.now() < end; await sleep(10)) {
      const value = await read();
      if (value) return value;
    }
    const reports = this.reports.slice(-12).map((report) => JSON.stringify(report)).join('\n');
    return assert.fail(`timeout: ${what}\nlast reports:\n${reports}\n${this.#errors()}`);
  }

  /** Returns the reports of a state. */
  states(state, nsp = '/') {
    return this.reports.filter((report) => report.state === state && report.nsp === nsp);
  }

  /** Returns the arguments of all events with this name. */
  events(event, nsp = '/') {
    return this.reports.filter((report) => report.event === event && report.nsp === nsp).map(({ args }) => args);
  }

  contents(nsp = '/') {
    return this.events('newMessage', nsp).map(([message]) => message?.content);
  }

  /** Waits until the client has connected `times` times. */
  async connected(times = 1) {
    for (const nsp of this.#nsps) {
      await this.until(() => this.states('connect', nsp).length >= times, `connection ${times} to ${nsp}`);
    }
    return this.states('connect', this.#nsps[0]).at(-1);
  }

  /** Waits for an event that `matches` accepts, and returns its arguments. */
  event(name, matches = () => true, nsp = '/') {
    return this.until(() => this.events(name, nsp).find(([data]) => matches(data)), `the event ${name}`);
  }

  /** Sends an event with an acknowledgement, and returns the only argument of the callback. */
  async request(event, data, nsp = '/') {
    const id = (this.#requests += 1);
    this.#send({ op: 'request', nsp, event, data, id });
    const { answer } = await this.until(() => this.reports.find((report) => report.id === id), `the answer to ${event}`);
    assert.equal(answer.length, 1, `the callback of ${event} must get one argument`);
    return answer[0];
  }

  close() {
    if (!this.#isClosed) this.#send({ op: 'close' });
    this.#isClosed = true;
  }
}
