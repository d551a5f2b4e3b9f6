/**
 * The native framing over a WebSocket: JSON objects separated by line breaks.
 * Carries events and answers without interpreting them.
 *
 * A transport is an object with
 *   open({ url, room, token, since, epoch, history }, handlers) -> link
 * where `handlers` has
 *   connected(data)             once, first
 *   event(event, data, meta)    in order
 *   closed({ code, message, status?, retryAfterMs? })   once, last
 * and a link has
 *   request(event, data) -> Promise of the answer's data
 *   probe()    checks the connection; if it is dead, `closed` follows
 *   close()    ends the connection; no `closed` follows
 * lib/socketio.js is another transport.
 */
import { refusal, RoomError } from './refusal.js';

/** The room closes a socket as stale after 90 s without a ping. */
const PING_EVERY = 25_000;
/** The server closes slow consumers, so the client also pings after this many
 * characters. */
const PING_AFTER = 4 * 1024 * 1024;
/** Timeout of a ping, of a request, and of opening the socket. */
const TIMEOUT = 10_000;
const PROBE_TIMEOUT = 4_000;

export const nativeTransport = {
  open: (target, handlers) => new NativeLink(target, handlers),
};

class NativeLink {
  #socket;
  #handlers;
  #connected = false;
  #ended = false;
  #lastId = 0;
  /** The unanswered requests: maps an id to { resolve, reject, timer }. */
  #waiting = new Map();
  #pinger;
  /** Received characters, counted from 0 to `PING_AFTER`. */
  #read = 0;
  /** The timer that ends the connection unless a frame arrives first. */
  #deadline;

  constructor(target, handlers) {
    if (globalThis.WebSocket === undefined) {
      const text = 'this runtime has no WebSocket: use Node 22 or later, or set globalThis.WebSocket';
      // Another attempt would fail the same way.
      throw Object.assign(new Error(text), { fatal: true });
    }
    this.#handlers = handlers;
    const address = new URL(`/rooms/${encodeURIComponent(target.room)}/ws`, target.url);
    address.protocol = address.protocol.replace('http', 'ws');
    for (const name of ['since', 'epoch', 'history']) {
      if (target[name] !== undefined) address.searchParams.set(name, target[name]);
    }
    // The token is in a header and never in the URL, because URLs are logged.
    const socket = new WebSocket(address, ['roomcast.v1', `bearer.${target.token}`]);
    this.#socket = socket;
    let opened = false;
    socket.onopen = () => (opened = true);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = async ({ code, reason }) => {
      if (this.#connected) return this.#end({ code, message: reason });
      if (opened) return this.#end({ code, ...refusalOf(code, reason) });
      return this.#end({ code, ...(await whyRefused(target)) });
    };
    this.#expect(TIMEOUT, 'the server does not answer');
  }

  request(event, data) {
    return new Promise((resolve, reject) => {
      if (this.#ended) return reject(new RoomError({ code: 'disconnected', message: 'not connected' }));
      const id = (this.#lastId = (this.#lastId + 1) >>> 0);
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(new RoomError({ code: 'timeout', message: `no answer to ${event}` }));
        this.probe();
      }, TIMEOUT);
      this.#waiting.set(id, { resolve, reject, timer });
      this.#socket.send(JSON.stringify({ event, data, id }));
    });
  }

  probe(timeout = PROBE_TIMEOUT) {
    if (this.#ended || !this.#connected) return;
    this.#socket.send('ping');
    this.#expect(timeout, 'the connection is dead');
  }

  close() {
    this.#handlers = null;
    this.#end({ code: 1000, message: 'closed' });
  }

  #receive(frame) {
    clearTimeout(this.#deadline);
    this.#deadline = undefined;
    if (frame === 'pong') return;
    this.#read += frame.length;
    if (this.#read >= PING_AFTER) {
      this.#read = 0;
      this.probe(TIMEOUT);
    }
    for (const line of frame.split('\n')) {
      if (this.#ended) return;
      if (!line) continue;
      let message;
      try {
        message = JSON.parse(line);
      } catch {
        return this.#end({ code: 4400, message: 'the server sent a line that is not JSON' });
      }
      if (typeof message !== 'object' || message === null) continue;
      if (message.ack !== undefined) this.#answered(message);
      else if (this.#connected) this.#handlers.event(message.event, message.data, message.meta);
      else if (message.event === 'connected') {
        this.#connected = true;
        // After the first ping, the room expects further pings. Until the client has
        // sent a frame, workerd would also close the connection late.
        this.probe(TIMEOUT);
        this.#pinger = setInterval(() => this.probe(TIMEOUT), PING_EVERY);
        this.#handlers.connected(message.data);
      }
    }
  }

  #answered({ ack, data, error }) {
    const request = this.#waiting.get(ack);
    if (!request) return;
    this.#waiting.delete(ack);
    clearTimeout(request.timer);
    if (error) request.reject(new RoomError(error));
    else request.resolve(data);
  }

  #expect(timeout, otherwise) {
    this.#deadline ??= setTimeout(() => this.#end({ code: 1006, message: otherwise }), timeout);
  }

  #end(why) {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#pinger);
    clearTimeout(this.#deadline);
    // The close of a dead connection takes long. The client does not wait for it.
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(new RoomError({ code: 'disconnected', message: 'the connection was lost' }));
    }
    this.#waiting.clear();
    this.#handlers?.closed(why);
  }
}

/** Returns why the server closed a socket that it had accepted only to tell the reason: a code of
 * 4000 + the HTTP status, and `code (retry after 2 s): detail`. */
function refusalOf(code, reason) {
  const [, seconds, message] = /^\w+(?: \(retry after (\d+) s\))?: (.*)$/s.exec(reason) ?? [];
  if (message === undefined) return { message: reason };
  return { status: code - 4_000, message, ...(seconds && { retryAfterMs: seconds * 1_000 }) };
}

/** Returns the reason why the upgrade was refused. Browsers do not report it. */
async function whyRefused(target) {
  return (await refusal(target)) ?? { message: 'the server cannot be reached' };
}
