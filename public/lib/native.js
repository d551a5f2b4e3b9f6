/**
 * The native framing over a WebSocket: JSON objects separated by line breaks.
 * Carries events and answers; knows nothing of what they mean.
 *
 * A transport is anything with
 *   open({ url, room, token, since, epoch, history }, handlers) -> link
 * where `handlers` has
 *   connected(data)             once, first
 *   event(event, data, meta)    in order
 *   closed({ code, message, status?, retryAfterMs? })   once, last
 * and a link has
 *   request(event, data) -> Promise of the answer's data
 *   probe()    is anybody there? If not, `closed` follows soon
 *   close()    goodbye; no `closed` follows
 * so another can take this one's place: lib/socketio.js is one.
 */
import { refusal, RoomError } from './refusal.js';

/** The room reaps sockets that are silent for 90 s. */
const PING_EVERY = 25_000;
/** The server cuts who gives no sign while it is sent much: also after so many characters. */
const PING_AFTER = 4 * 1024 * 1024;
/** For an answer to a ping or a request, and for a socket to open. */
const PATIENCE = 10_000;
const PROBE_PATIENCE = 4_000;

export const nativeTransport = {
  open: (target, handlers) => new NativeLink(target, handlers),
};

class NativeLink {
  #socket;
  #handlers;
  #connected = false;
  #ended = false;
  #lastId = 0;
  /** Requests without an answer yet: id to { resolve, reject, timer }. */
  #waiting = new Map();
  #pinger;
  #read = 0;
  /** Runs out unless something is heard. */
  #deadline;

  constructor(target, handlers) {
    this.#handlers = handlers;
    const address = new URL(`/rooms/${encodeURIComponent(target.room)}/ws`, target.url);
    address.protocol = address.protocol.replace('http', 'ws');
    for (const name of ['since', 'epoch', 'history']) {
      if (target[name] !== undefined) address.searchParams.set(name, target[name]);
    }
    // The token travels in a header, never in an address: those get logged.
    const socket = new WebSocket(address, ['roomcast.v1', `bearer.${target.token}`]);
    this.#socket = socket;
    let opened = false;
    socket.onopen = () => (opened = true);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = async ({ code, reason }) => {
      const why = opened ? { code, message: reason } : await whyRefused(target);
      this.#end({ code, ...why });
    };
    this.#expect(PATIENCE, 'the server does not answer');
  }

  request(event, data) {
    return new Promise((resolve, reject) => {
      if (this.#ended) return reject(new RoomError({ code: 'disconnected', message: 'not connected' }));
      const id = (this.#lastId = (this.#lastId + 1) >>> 0);
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(new RoomError({ code: 'timeout', message: `no answer to ${event}` }));
        this.probe();
      }, PATIENCE);
      this.#waiting.set(id, { resolve, reject, timer });
      this.#socket.send(JSON.stringify({ event, data, id }));
    });
  }

  probe(patience = PROBE_PATIENCE) {
    if (this.#ended || !this.#connected) return;
    this.#socket.send('ping');
    this.#expect(patience, 'the connection is dead');
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
      this.probe(PATIENCE);
    }
    for (const line of frame.split('\n')) {
      if (this.#ended) return;
      if (!line) continue;
      let message;
      try {
        message = JSON.parse(line);
      } catch {
        return this.#end({ code: 4400, message: 'the server sent something that is not JSON' });
      }
      if (message.ack !== undefined) this.#answered(message);
      else if (this.#connected) this.#handlers.event(message.event, message.data, message.meta);
      else if (message.event === 'connected') {
        this.#connected = true;
        // The room knows from here on that this client pings; and workerd ends
        // connections late of clients that never said anything.
        this.probe(PATIENCE);
        this.#pinger = setInterval(() => this.probe(PATIENCE), PING_EVERY);
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

  #expect(patience, otherwise) {
    this.#deadline ??= setTimeout(() => this.#end({ code: 1006, message: otherwise }), patience);
  }

  #end(why) {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#pinger);
    clearTimeout(this.#deadline);
    // A dead connection takes its time to close; nobody waits for that.
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

/** Browsers do not tell why an upgrade was refused. */
async function whyRefused(target) {
  return (await refusal(target)) ?? { message: 'the server cannot be reached' };
}
