/**
 * A transport, as described in native.js, with the official Socket.IO client.
 *
 * RoomClient decides when to connect. The library handles heartbeats, the fallback to
 * long-polling and connection state recovery. For recovery, all links of a client use
 * one socket. If the server recovers the socket, it sends the missed events, and the
 * link only requests the members. Otherwise the link joins the room from `since`.
 */
import { io } from '../vendor/socket.io.esm.min.js';
import { refusal, RoomError } from './refusal.js';

/** Timeout of a connect, of a join and of an answer. */
const TIMEOUT = 10_000;
const PROBE_TIMEOUT = 4_000;

/** The HTTP status of each error code. */
const STATUS = { badRequest: 400, unauthorized: 401, forbidden: 403, notFound: 404, conflict: 409, rateLimited: 429 };

/** Returns a transport for one client. */
export function socketioTransport() {
  const line = { socket: null, token: undefined };
  return {
    open(target, handlers) {
      line.token = target.token;
      line.socket ??= io(new URL(target.url).origin, {
        // A function, so that each connection uses the newest token.
        auth: (give) => give({ token: line.token }),
        // The token is in a packet and never in a URL.
        transports: ['websocket', 'polling'],
        tryAllTransports: true,
        reconnection: false,
        autoConnect: false,
        forceNew: true,
        timeout: TIMEOUT,
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
  /** `#entered`: the server accepted the socket. `#connected`: it is in the room. */
  #entered = false;
  #connected = false;
  #ended = false;
  /** The events that arrived before the answer to `joinRoom`. */
  #held = [];
  #waiting = new Set();
  /** The timer that ends the connection unless an event arrives first. */
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
    this.#socket.onAny(this.#received);
    this.#expect(TIMEOUT, 'the server does not answer');
    // Discards the packets that the previous link could not send.
    this.#socket.sendBuffer = [];
    this.#socket.connect();
  }

  request(event, data) {
    return new Promise((resolve, reject) => {
      if (this.#ended || !this.#socket.connected) {
        return reject(new RoomError({ code: 'disconnected', message: 'not connected' }));
      }
      this.#waiting.add(reject);
      this.#socket.timeout(TIMEOUT).emit(event, { ...data, roomId: this.#target.room }, (late, answer) => {
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

  /** Sends a command, because the library answers pings but sends none. A refused
   * command is an answer as well. */
  probe() {
    if (this.#ended || !this.#connected) return;
    this.#expect(PROBE_TIMEOUT, 'the connection is dead');
    this.request('sync', { after: 0, limit: 1 }).catch(() => {});
  }

  close() {
    this.#handlers = null;
    this.#end({ code: 1000, message: 'closed' });
  }

  #received = (event, data, second) => {
    this.#alive();
    if (event === 'connected' && !this.#connected) return this.#enter(data);
    // The last argument of a logged event is its recovery offset, which the library reads.
    const meta = typeof second === 'object' ? second : undefined;
    // The socket also receives events of the user's personal room.
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

  /** `data` is the error that the server sent. It is missing if the server is unreachable. */
  #refused({ data, message }) {
    if (data) this.#end({ code: 1006, status: STATUS[data.code], message: data.message });
    else if (message === 'Invalid namespace') this.#end({ code: 1006, status: 404, message: 'the server has no namespace /' });
    else this.#end({ code: 1006, message: 'the server cannot be reached' });
  }

  async #dropped(reason) {
    if (reason !== 'io server disconnect') {
      return this.#end({ code: 1006, message: 'the connection was lost' });
    }
    // The server disconnected the client because of its token or by a kick.
    this.#fail();
    const why = await refusal({ ...this.#target, token: this.#line.token });
    return this.#end({ code: 4403, message: 'kicked', ...(why && { code: 1006, ...why }) });
  }

  #alive() {
    if (!this.#connected) return;
    clearTimeout(this.#deadline);
    this.#deadline = undefined;
  }

  #expect(timeout, otherwise) {
    this.#deadline ??= setTimeout(() => this.#end({ code: 1006, message: otherwise }), timeout);
  }

  #end(why) {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#deadline);
    const [socket, handlers] = [this.#socket, this.#handlers];
    for (const [event, listener] of Object.entries(this.#listeners)) socket.off(event, listener);
    socket.offAny(this.#received);
    // The server does not recover a socket after a regular disconnect, so a lost
    // connection is closed without a disconnect.
    if (handlers && socket.connected) socket.io.engine.close();
    else socket.disconnect();
    // The library keeps the offset. A socket is not used again if its offset may be
    // ahead of the events that the handlers received: the next link joins from `since`.
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
