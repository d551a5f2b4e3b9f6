/**
 * A client for one roomcast room, for web pages and for other JavaScript runtimes.
 *
 *   import { RoomClient } from './roomcast.js';
 *   const room = new RoomClient({ room: 'lobby', getToken: async () => '…' });
 *   room.on('newMessage', (message) => console.log(message.senderId, message.content));
 *   room.connect();
 *   await room.send('hi');
 *
 * The client reconnects and misses nothing. It resumes after the last event that
 * it received. It sends unacknowledged messages again with the same `messageId`,
 * and the room accepts each of them once.
 *
 * The client needs `WebSocket`, which browsers, Node 22, Deno and Bun have. On Node 20,
 * use socket.io-client, or set `globalThis.WebSocket` to the class of the package `ws`.
 *
 * Events for listeners, besides those of docs/protocol.md under their own names:
 *   state   { name }: `idle`, `connecting`, `live` (with `missed`, the number of
 *           events that are about to be replayed), `waiting` for the next attempt
 *           (with `retryAt` and `reason`), `offline` after `disconnect`, or
 *           `stopped` (with `reason`) if another attempt cannot succeed
 *   ready   the answer to `joinRoom`, with `members`: the replay is complete
 *   reset   the room has a new log: discard the events that are shown
 *   custom  { event, data, meta }: an event that docs/protocol.md does not list, or a
 *           listed event whose `data` is not an object
 *   outbox  the messages that are not acknowledged yet
 */
import { nativeTransport } from './lib/native.js';
import { problem, RoomError } from './lib/refusal.js';

export { RoomError };

const OWN_EVENTS = new Set([
  'newMessage', 'messageDelivered', 'messageRead', 'userTyping',
  'presenceUpdate', 'userJoined', 'userLeft', 'gap', 'error',
]);
/** Full jitter: the delay is random, up to a limit that doubles with each failure. */
const BACKOFF = { first: 500, most: 30_000 };
/** A connection that stays open for this time resets the delay. */
const STABLE_AFTER = 5_000;
/** A token is renewed this long before it expires, or after half of its remaining time
 * if that is later. */
const RENEW_BEFORE = 60_000;
/** Delay of the next attempt after a failed renewal. */
const RENEW_AGAIN = 5_000;
/** Maximum number of messages in flight. With 1, no message can overtake an earlier
 * message that the rate limit refused. */
const WINDOW = 1;
/** Receipts are combined for this time, because cursors are cumulative. */
const RECEIPT_DELAY = 100;
/** A typing indicator is repeated after this time, because it expires in the room after
 * 5 s. */
const TYPING_AGAIN = 3_000;
/** Typing ends after this time without a key. */
const TYPING_PAUSE = 3_000;
/** The longest delay that `setTimeout` accepts. */
const MAX_TIMEOUT = 2 ** 31 - 1;

const ignore = () => {};

export class RoomClient {
  /** The user id that the server reports, and the `seq` of the newest event. */
  userId = null;
  lastSeq = null;
  state = { name: 'idle' };

  #options;
  #listeners = new Map();
  /** Number of the newest attempt to connect. Callbacks of earlier attempts are ignored. */
  #attempt = 0;
  #failures = 0;
  #link = null;
  /** The link whose replay is complete. Messages are sent only after the replay,
   * because a message that arrives in the replay need not be sent again. */
  #replayed = null;
  #epoch;
  #limits = {};
  #status = 'online';
  #refused;
  #outbox = [];
  #paused = false;
  #confirmed = { delivered: 0, read: 0 };
  #toConfirm = { delivered: 0, read: 0 };
  #receiptTimer;
  #typing = { since: 0, timer: undefined };
  #retryTimer;
  #stableTimer;
  #renewTimer;

  /**
   * @param {object} options
   * @param {string} options.room
   * @param {() => Promise<string>} options.getToken called before each
   *   attempt; an error with `fatal: true` ends the attempts
   * @param {string} [options.url] of the server; by default the origin of the page
   * @param {number} [options.history] events before the head to start with
   * @param {{ load(): object[], save(outbox: object[]): void }} [options.store]
   *   keeps the outbox, for example over a reload
   * @param {object} [options.transport] `nativeTransport` of lib/native.js by
   *   default, or a `socketioTransport()` of lib/socketio.js
   */
  constructor(options) {
    this.#options = { url: globalThis.location?.origin, transport: nativeTransport, ...options };
    for (const { messageId, data } of options.store?.load() ?? []) {
      this.#outbox.push({ messageId, data, resolve: ignore, reject: ignore });
    }
  }

  /** Calls `listener` for each `event`. Returns a function that removes it. */
  on(event, listener) {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  get room() {
    return this.#options.room;
  }

  get status() {
    return this.#status;
  }

  /** The messages that are not acknowledged yet: `{ messageId, data }`. */
  get outbox() {
    return this.#outbox.map(({ messageId, data }) => ({ messageId, data }));
  }

  // ---- the connection

  /** Connects, and reconnects until `disconnect` is called. */
  connect() {
    if (['connecting', 'live'].includes(this.state.name)) return;
    this.#failures = 0;
    this.#refused = undefined;
    this.#open();
  }

  /** Connects at once if the client waits for the next attempt. Checks the connection
   * if there is one. Call it when the network returns or the page becomes visible. */
  wake() {
    if (this.state.name === 'waiting') this.#open();
    else if (this.state.name === 'live') this.#link.probe();
  }

  /** Disconnects until `connect`. The user stays a member and misses nothing. */
  disconnect() {
    this.#close({ name: 'offline' });
  }

  /** Ends the membership, and with it the offline queue. */
  async leave() {
    if (this.#link) await this.#link.request('leaveRoom', {}).catch(ignore);
    this.disconnect();
  }

  async #open() {
    clearTimeout(this.#retryTimer);
    const attempt = ++this.#attempt;
    const current = (handler) => (...args) => attempt === this.#attempt && handler(...args);
    this.#setState({ name: 'connecting' });
    let token;
    try {
      token = await this.#options.getToken();
      if (attempt !== this.#attempt) return;
      const resume = this.lastSeq === null
        ? { history: this.#options.history }
        : { since: this.lastSeq, epoch: this.#epoch };
      this.#link = this.#options.transport.open(
        { url: this.#options.url, room: this.room, token, ...resume },
        {
          connected: current((data) => this.#connected(data)),
          event: current((event, data, meta) => this.#event(event, data, meta)),
          closed: current((why) => this.#closed(why, token)),
        },
      );
    } catch (error) {
      if (attempt !== this.#attempt) return;
      const fatal = error.fatal || error instanceof SyntaxError;
      if (fatal) this.#close({ name: 'stopped', reason: error.message });
      else this.#retry(error.message, error.retryAfterMs);
    }
  }

  #connected(data) {
    if (this.#epoch !== undefined && (data.reset || data.epoch !== this.#epoch)) {
      this.lastSeq = null;
      this.#confirmed = { delivered: 0, read: 0 };
      this.#toConfirm = { delivered: 0, read: 0 };
      this.#notify('reset');
    }
    this.#epoch = data.epoch;
    this.#limits = data.limits ?? {};
    this.#refused = undefined;
    this.userId = data.userId;
    this.#stableTimer = setTimeout(() => (this.#failures = 0), STABLE_AFTER);
    this.#renewAt(data.expiresAt);
    this.#setState({ name: 'live', missed: this.lastSeq === null ? 0 : data.seq - this.lastSeq });
    const link = this.#link;
    if (this.#status !== 'online') this.setStatus(this.#status).catch(ignore);
    // The answer comes after the replay, so it marks the end of the replay.
    link.request('joinRoom', {}).then((joined) => {
      if (link !== this.#link) return;
      this.lastSeq ??= joined.seq;
      for (const cursor of ['delivered', 'read']) {
        this.#confirmed[cursor] = Math.max(this.#confirmed[cursor], joined[cursor]);
      }
      this.#replayed = link;
      this.#notify('ready', joined);
      this.#scheduleReceipts();
      this.#pump();
    }, (error) => this.#failed(link, error));
  }

  #closed({ code, status, message, retryAfterMs }, token) {
    const refusedAgain = (code === 4401 || status === 401) && token === this.#refused;
    if (code === 4401 || status === 401) this.#refused = token;
    if ([4403, 4409].includes(code) || refusedAgain || [400, 403, 404].includes(status)) {
      this.#close({ name: 'stopped', reason: message || 'refused' });
    } else {
      this.#retry(message, retryAfterMs);
    }
  }

  /** Handles the failure of a request that must succeed. */
  #failed(link, error) {
    if (link !== this.#link || error.code === 'disconnected') return;
    if (error.code === 'notJoined') this.#close({ name: 'stopped', reason: 'no longer a member of this room' });
    else {
      link.close();
      this.#retry(error.message, error.retryAfterMs);
    }
  }

  #retry(reason, atLeast = 0) {
    this.#close();
    const most = Math.min(BACKOFF.most, BACKOFF.first * 2 ** this.#failures++);
    const delay = Math.max(atLeast, Math.random() * most);
    this.#retryTimer = setTimeout(() => this.#open(), delay);
    this.#setState({ name: 'waiting', reason, retryAt: Date.now() + delay });
  }

  #close(state) {
    this.#attempt += 1;
    for (const timer of [this.#retryTimer, this.#stableTimer, this.#renewTimer, this.#receiptTimer]) clearTimeout(timer);
    this.#receiptTimer = undefined;
    this.#endTyping();
    const link = this.#link;
    this.#link = null;
    link?.close();
    if (state) this.#setState(state);
  }

  #renewAt(expiresAt) {
    const left = Date.parse(expiresAt) - Date.now();
    this.#renewIn(Math.max(left - RENEW_BEFORE, left / 2));
  }

  #renewIn(delay) {
    clearTimeout(this.#renewTimer);
    this.#renewTimer = setTimeout(async () => {
      const link = this.#link;
      try {
        const { expiresAt } = await link.request('refreshToken', { token: await this.#options.getToken() });
        if (link === this.#link) this.#renewAt(expiresAt);
      } catch {
        // When the token expires, the server closes the socket, and a new token is fetched.
        if (link === this.#link) this.#renewIn(RENEW_AGAIN);
      }
    }, Math.min(Math.max(delay, 1_000), MAX_TIMEOUT));
  }

  // ---- events of the server

  #event(event, data, meta) {
    // Older logs may contain messages of services whose `data` is not an object.
    const known = OWN_EVENTS.has(event) && typeof data === 'object' && data !== null;
    const seq = meta?.seq ?? (event === 'newMessage' && known ? data.seq : undefined);
    if (seq !== undefined) {
      if (this.lastSeq !== null && seq <= this.lastSeq) return;
      if (this.lastSeq !== null && seq > this.lastSeq + 1) {
        // The server must not skip an event. Resuming after the last one is always correct.
        return this.#retry(`event ${this.lastSeq + 1} is missing`);
      }
      this.lastSeq = seq;
      this.#receipt('delivered', seq);
    }
    if (!known) return this.#notify('custom', { event, data, meta });
    if (event === 'gap') this.lastSeq = Math.max(this.lastSeq ?? 0, data.to);
    if (event === 'newMessage' && data.senderId === this.userId) this.#settle(data.messageId, data);
    this.#notify(event, data, meta);
    if (event === 'userLeft' && data.userId === this.userId) {
      this.#close({ name: 'stopped', reason: 'no longer a member of this room' });
    }
  }

  // ---- commands

  /** Sends a message, now or as soon as the client is connected. Returns the
   * acknowledgement. */
  send(content, { messageId = newId(), ...fields } = {}) {
    const data = { ...fields, content };
    const bytes = new TextEncoder().encode(JSON.stringify(data)).length;
    // Leaves space for the rest of the frame.
    if (bytes > (this.#limits.maxFrameBytes ?? 65_536) - 400) {
      const error = { code: 'tooLarge', message: 'the message is too long' };
      return Promise.reject(new RoomError(error));
    }
    return new Promise((resolve, reject) => {
      this.#outbox.push({ messageId, data, resolve, reject });
      this.#outboxChanged();
      this.#pump();
    });
  }

  /** Sends a custom event. Unlike a message, it needs a connection. */
  emit(event, data, { volatile = false } = {}) {
    return this.request('emit', { event, data, volatile });
  }

  /** Sends a command and returns the answer. Needs a connection. */
  request(event, data) {
    if (this.#link && this.state.name === 'live') return this.#link.request(event, data);
    return Promise.reject(new RoomError({ code: 'disconnected', message: 'not connected' }));
  }

  /** Returns the events before `seq`, oldest first: `{ events, more }`. */
  async before(seq, limit = 50) {
    const address = new URL(`/rooms/${encodeURIComponent(this.room)}/messages`, this.#options.url);
    address.search = new URLSearchParams({ before: seq, limit });
    const token = await this.#options.getToken();
    const answer = await fetch(address, { headers: { authorization: `Bearer ${token}` } });
    if (answer.ok) return answer.json();
    const { error, message } = await problem(answer);
    throw new RoomError({ code: error, message });
  }

  /** Marks everything up to `seq` as read. */
  read(seq) {
    this.#receipt('read', seq);
  }

  /** Sets the status: `online`, `away`, `busy` or `offline` (shown as offline, but
   * still receiving). Later connections use the same status. */
  async setStatus(status) {
    this.#status = status;
    if (this.state.name === 'live') await this.request('setPresence', { status });
  }

  /** Call it for every key. Sends a typing indicator every few seconds. Ends it after a
   * pause, or at once if `isTyping` is `false`. */
  typing(isTyping = true) {
    if (!isTyping) {
      if (this.#typing.since && this.#link) this.#sendTyping(false);
      return this.#endTyping();
    }
    if (this.state.name !== 'live') return;
    clearTimeout(this.#typing.timer);
    this.#typing.timer = setTimeout(() => this.typing(false), TYPING_PAUSE);
    if (Date.now() - this.#typing.since < TYPING_AGAIN) return;
    this.#typing.since = Date.now();
    this.#sendTyping(true);
  }

  #endTyping() {
    clearTimeout(this.#typing.timer);
    this.#typing = { since: 0, timer: undefined };
  }

  #sendTyping(isTyping) {
    this.request('typingIndicator', { isTyping }).catch(ignore);
  }

  /** Sends the messages of the outbox, oldest first. */
  #pump() {
    const link = this.#link;
    if (!link || link !== this.#replayed || this.#paused) return;
    for (const item of this.#outbox.slice(0, WINDOW)) {
      if (item.link === link) continue;
      item.link = link;
      link.request('sendMessage', { ...item.data, messageId: item.messageId }).then(
        (receipt) => this.#settle(item.messageId, receipt),
        (error) => this.#unsent(item, link, error),
      );
    }
  }

  #unsent(item, link, error) {
    item.link = undefined;
    if (error.code === 'rateLimited' || error.code === 'internal') {
      if (this.#paused) return;
      this.#paused = true;
      setTimeout(() => {
        this.#paused = false;
        this.#pump();
      }, error.retryAfterMs ?? 1_000);
    } else if (error.code === 'timeout' || error.code === 'notJoined') {
      this.#failed(link, error);
    } else if (error.code !== 'disconnected') {
      this.#settle(item.messageId, null, error);
    }
  }

  #settle(messageId, receipt, error) {
    const index = this.#outbox.findIndex((item) => item.messageId === messageId);
    if (index < 0) return;
    const [item] = this.#outbox.splice(index, 1);
    if (error) item.reject(error);
    else item.resolve({ messageId, seq: receipt.seq, timestamp: receipt.timestamp });
    this.#outboxChanged();
    this.#pump();
  }

  #outboxChanged() {
    this.#options.store?.save(this.outbox);
    this.#notify('outbox', this.outbox);
  }

  #receipt(cursor, seq) {
    if (seq <= this.#toConfirm[cursor]) return;
    this.#toConfirm[cursor] = seq;
    this.#scheduleReceipts();
  }

  #scheduleReceipts() {
    this.#receiptTimer ??= setTimeout(() => {
      this.#receiptTimer = undefined;
      this.#sendReceipts();
    }, RECEIPT_DELAY);
  }

  /** A read receipt implies delivery, so one of the two is enough in most cases. */
  #sendReceipts() {
    if (this.state.name !== 'live') return;
    const link = this.#link;
    const confirm = (cursor, event) => {
      const seq = this.#toConfirm[cursor];
      if (seq <= this.#confirmed[cursor]) return;
      link.request(event, { seq }).then(
        (answer) => (this.#confirmed[cursor] = Math.max(this.#confirmed[cursor], answer.seq)),
        (error) => this.#failed(link, error),
      );
    };
    confirm('read', 'messageRead');
    if (this.#toConfirm.delivered > this.#toConfirm.read) confirm('delivered', 'messageDelivered');
  }

  // ---- listeners

  #setState(state) {
    this.state = state;
    this.#notify('state', state);
  }

  #notify(event, ...args) {
    for (const listener of this.#listeners.get(event) ?? []) {
      try {
        listener(...args);
      } catch (error) {
        // An exception in a listener must not affect other listeners or the connection.
        console.error(error);
      }
    }
  }
}

/** Returns 128 random bits in hexadecimal. `crypto.randomUUID` exists only on secure
 * origins, and a development server on the local network is not a secure origin. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
