/** The clients that the scenarios run for. */

import { readFileSync } from 'node:fs';
import { nodeAgent, npmVersion, pageAgent, processAgent, processPerClientAgent } from './agents.mjs';
import { recordedAgent, recordings } from './recordings.mjs';

const TRANSPORTS = { websocket: ['websocket'], polling: ['polling'], default: null };
/** The client gets offsets and its connections are recovered. */
const RECOVERS = { offset: true, recovery: ['recovered', 'recovered'] };
/** The client gets offsets, which the server cannot know to be of no use. */
const GETS_OFFSETS = { offset: true, recovery: ['joins again', 'joins again'] };
/** The client gets offsets after it has sent a `pid`. */
const PROVES = { offset: false, recovery: ['joins again', 'recovered'] };
const NO_RECOVERY = { offset: false, recovery: ['joins again', 'joins again'] };

const file = (name) => new URL(`../${name}`, import.meta.url);
const [, python] = readFileSync(file('requirements.txt'), 'utf8').match(/^python-socketio==(.*)$/m);
const [, rust] = readFileSync(file('rust/Cargo.lock'), 'utf8').match(/name = "rust_socketio"\nversion = "(.*)"/);

/** Returns the clients. `browser` returns the browser. */
export function kinds(browser) {
  const all = [];
  const add = (client, version, transports, start, recovery) =>
    transports.forEach((name) => all.push({
      client, version, transport: name, transports: TRANSPORTS[name], start, ...(recovery[name] ?? recovery),
    }));
  const offsets = {
    'socket.io-client': { websocket: RECOVERS, polling: RECOVERS, default: RECOVERS },
    'socket.io-client-4-7': { websocket: RECOVERS, default: PROVES },
    'socket.io-client-4-5': { websocket: GETS_OFFSETS, default: NO_RECOVERY },
    'socket.io-client-4-0': { websocket: GETS_OFFSETS, default: NO_RECOVERY },
  };
  for (const [name, recovery] of Object.entries(offsets)) {
    const version = npmVersion(name);
    add('socket.io-client, Node.js', version, Object.keys(recovery), nodeAgent(name), recovery);
    if (name === 'socket.io-client-4-7') continue;
    const inPages = Object.keys(recovery).filter((transport) => transport !== 'polling');
    add('socket.io-client, Chromium', version, inPages, pageAgent(browser, name), recovery);
  }
  for (const [kind, name] of [['sync', 'Client'], ['async', 'AsyncClient']]) {
    const start = processAgent(process.env.ROOMCAST_PYTHON, [file('clients/agent.py').pathname, kind]);
    add(`python-socketio, ${name}`, python, ['websocket', 'polling', 'default'], start, NO_RECOVERY);
  }
  // The library goes on polling in a loop after the server has closed a connection.
  const agent = processPerClientAgent(process.env.ROOMCAST_RUST_AGENT, []);
  // Without the upgrade it sometimes sends two POST requests at once, which ends its session.
  add('rust_socketio', rust, ['websocket', 'default'], agent, NO_RECOVERY);
  for (const recording of recordings) {
    add(`${recording.name}, recorded`, recording.version, ['websocket', 'default'], recordedAgent(recording), NO_RECOVERY);
  }
  return all.sort((a, b) => (a.client < b.client ? -1 : Number(a.client > b.client)));
}
