/**
 * Socket.IO, with the library's own client: a transport as in native.js.
 *
 * When and how often to try is the session's business, as ever; the library
 * keeps its heartbeats, its fallback to long-polling and its recovery: one
 * socket serves link after link, so that it can show the server where it was.
 * Where the server recovers it, what was missed comes by itself, and nothing is
 * asked for but who is there now; otherwise the room is joined from `since`.
 */
import { io } from '../vendor/socket.io.esm.min.js';
import { refusal, RoomError } from './refusal.js';

/** For a connection and its room, for an answer, and for a probe. */
const PATIENCE = 10_000;
const PROBE_PATIENCE = 4_000;

/** What a refusal of the room would have been over HTTP. */
const STATUS = { badRequest: 400, unauthorized: 401, forbidden: 403, notFound: 404, conflict: 409, rateLimited: 429 };

/** A transport for one client. */
export function socketioTransport() {
  const line = { socket: null, token: undefined };
  return {
    open(target, handlers) {
      line.token = target.token;
      line.socket ??= io(`${new URL(target.url).origin}/chat`, {
        // A function, so that each connection has the token of its day.
        auth: (give) => give({ token: line.token }),
        // The token travels in a packet, never in an address.
        transports: ['websocket', 'polling'],
        tryAllTransports: true,
        reconnection: false,
        autoConnect: false,
        forceNew: true,
        timeout: PATIENCE,
      });
      return new SocketIoLink(line, target, handlers);
    },
  };
}

class SocketIoLink {
  #line;
  #socket;
  #target;
  #handlers;
  /** The server has let the socket in; after that, it is in the room. */
  #entered = false;
  #connected = false;
  #ended = false;
  /** Events that came before it was known where the room is: to be told then. */
  #held = [];
  #waiting = new Set();
  /** Runs out unless something is heard. */
  #deadline;
  #listeners;

  constructor(line, target, handlers) {
    this.#line = line;
    this.#socket = line.socket;
    this.#target = target;
    this.#handlers = handlers;
    this.#listeners = {
      connect: () => (this.#entered = true),
      connect_error: (error) => this.#refused(error),
      disconnect: (reason) => this.#dropped(reason),
    };
    for (const [event, listener] of Object.entries(this.#listeners)) this.#socket.on(event, listener);
    this.#socket.onAny(this.#heard);
    this.#expect(PATIENCE, 'the server does not answer');
    // What the last link could not send was its own affair.
    this.#socket.sendBuffer = [];
    this.#socket.connect();
  }

  request(event, data) {
    return new Promise((resolve, reject) => {
      if (this.#ended || !this.#socket.connected) {
        return reject(new RoomError({ code: 'disconnected', message: 'not connected' }));
      }
      this.#waiting.add(reject);
      this.#socket.timeout(PATIENCE).emit(event, { ...data, roomId: this.#target.room }, (late, answer) => {
        if (!this.#waiting.delete(reject)) return;
        if (late) {
          reject(new RoomError({ code: 'timeout', message: `no answer to ${event}` }));
          return this.probe();
        }
        this.#alive();
        if (answer?.error) return reject(new RoomError(answer.error));
        if (event === 'refreshToken') this.#line.token = data.token;
        resolve(answer);
      });
    });
  }

  /** The library answers pings but sends none: anything that is answered will
   * do, be it by a refusal. */
  probe() {
    if (this.#ended || !this.#connected) return;
    this.#expect(PROBE_PATIENCE, 'the connection is dead');
    this.request('sync', { after: 0, limit: 1 }).catch(() => {});
  }

  close() {
    this.#handlers = null;
    this.#end({ code: 1000, message: 'closed' });
  }

  #heard = (event, data, second) => {
    this.#alive();
    if (event === 'connected' && !this.#connected) return this.#enter(data);
    // The last argument of a logged event is its offset, for the library.
    const meta = typeof second === 'object' ? second : undefined;
    // The user's personal room is on this socket too.
    const room = meta?.roomId ?? data?.roomId;
    if (room !== undefined && room !== this.#target.room) return undefined;
    if (this.#connected) return this.#handlers?.event(event, data, meta);
    return this.#held.push([event, data, meta]);
  };

  async #enter(greeting) {
    const { since, epoch, history } = this.#target;
    try {
      const joined = await this.request('joinRoom', this.#socket.recovered ? {} : { since, epoch, history });
      if (this.#ended) return;
      this.#connected = true;
      this.#alive();
      this.#handlers.connected({ ...greeting, ...joined });
      for (const event of this.#held.splice(0)) this.#handlers?.event(...event);
    } catch (error) {
      const { code, message, retryAfterMs } = error;
      this.#end({ code: 1006, status: STATUS[code], message, retryAfterMs });
    }
  }

  /** `data` is the server's word; without, it may not even have been asked. */
  #refused({ data, message }) {
    if (data) this.#end({ code: 1006, status: STATUS[data.code], message: data.message });
    else if (message === 'Invalid namespace') this.#end({ code: 1006, status: 404, message: 'the server has no /chat' });
    else this.#end({ code: 1006, message: 'the server cannot be reached' });
  }

  async #dropped(reason) {
    if (reason !== 'io server disconnect') {
      return this.#end({ code: 1006, message: 'the connection was lost' });
    }
    // Told to go: for the token, which a fresh one puts right, or by somebody.
    this.#fail();
    const why = await refusal({ ...this.#target, token: this.#line.token });
    return this.#end({ code: 4403, message: 'kicked', ...(why && { code: 1006, ...why }) });
  }

  #alive() {
    if (!this.#connected) return;
    clearTimeout(this.#deadline);
    this.#deadline = undefined;
  }

  #expect(patience, otherwise) {
    this.#deadline ??= setTimeout(() => this.#end({ code: 1006, message: otherwise }), patience);
  }

  #end(why) {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#deadline);
    const [socket, handlers] = [this.#socket, this.#handlers];
    for (const [event, listener] of Object.entries(this.#listeners)) socket.off(event, listener);
    socket.offAny(this.#heard);
    // After a goodbye the server has nothing to recover, so a lost connection
    // goes without one.
    if (handlers && socket.connected) socket.io.engine.close();
    else socket.disconnect();
    // A socket whose offset may be another's (the library keeps it), or further
    // on than what was told, is not used again: the room is joined from `since`.
    const spent = !handlers || (this.#entered && !this.#connected);
    if (spent || socket.connected) this.#line.socket = null;
    this.#fail();
    handlers?.closed(why);
  }

  #fail() {
    for (const reject of this.#waiting) {
      reject(new RoomError({ code: 'disconnected', message: 'the connection was lost' }));
    }
    this.#waiting.clear();
  }
}
