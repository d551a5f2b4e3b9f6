/**
 * A client for one roomcast room, to be used with or without a page.
 *
 *   import { RoomClient } from './roomcast.js';
 *   const room = new RoomClient({ room: 'lobby', getToken: async () => '…' });
 *   room.on('newMessage', (message) => console.log(message.senderId, message.content));
 *   room.connect();
 *   await room.send('hi');
 *
 * It comes back by itself and misses nothing: it resumes after the last event
 * it has seen, and what was sent but not acknowledged is sent again under the
 * same `messageId`, which the room takes once.
 *
 * Told to listeners, besides the events of the contract under their own names:
 *   state   { name }: `idle`, `connecting`, `live` (with `missed`, the events
 *           that are about to be replayed), `waiting` for the next try (with
 *           `retryAt` and the `reason`), `offline` after `disconnect`, or
 *           `stopped` (with the `reason`) where trying again is of no use
 *   ready   the answer to `joinRoom`, with the `members`: the replay is over
 *   reset   the room's log started over: forget what was shown
 *   custom  { event, data, meta }: an event that is not the contract's
 *   outbox  the messages that wait for their acknowledgement
 */
import { nativeTransport } from './lib/native.js';
import { problem, RoomError } from './lib/refusal.js';

export { RoomError };

const OWN_EVENTS = new Set([
  'newMessage', 'messageDelivered', 'messageRead', 'userTyping',
  'presenceUpdate', 'userJoined', 'userLeft', 'gap', 'error',
]);
/** Full jitter: a random time up to this, which doubles with every failure. */
const BACKOFF = { first: 500, most: 30_000 };
/** A connection that held for so long was a good one. */
const STABLE_AFTER = 5_000;
/** A token is renewed so long before it expires, or halfway if that is later. */
const RENEW_BEFORE = 60_000;
const RENEW_AGAIN = 5_000;
/** Messages on their way at a time: with one, none overtakes another that was
 * refused for being too fast. */
const WINDOW = 1;
/** Receipts wait so long for further ones: cursors are cumulative. */
const RECEIPT_DELAY = 100;
/** The room forgets a typing user after 5 s. */
const TYPING_AGAIN = 3_000;
const TYPING_PAUSE = 3_000;
const MAX_TIMEOUT = 2 ** 31 - 1;

const ignore = () => {};

export class RoomClient {
  /** Who the server says this is, and the newest `seq` seen. */
  userId = null;
  lastSeq = null;
  state = { name: 'idle' };

  #options;
  #listeners = new Map();
  /** Number of the latest dial; whatever belongs to an earlier one is void. */
  #dial = 0;
  #failures = 0;
  #link = null;
  /** The link whose replay is over. What came back in it needs no resending,
   * however long ago it was sent. */
  #caughtUp = null;
  #epoch;
  #limits = {};
  #status = 'online';
  #refused;
  #outbox = [];
  #paused = false;
  #told = { delivered: 0, read: 0 };
  #toTell = { delivered: 0, read: 0 };
  #receiptTimer;
  #typing = { since: 0, timer: undefined };
  #retryTimer;
  #stableTimer;
  #renewTimer;

  /**
   * @param {object} options
   * @param {string} options.room
   * @param {() => Promise<string>} options.getToken asked before every dial;
   *   an error with `fatal: true` ends the attempts
   * @param {string} [options.url] of the server; the page's own by default
   * @param {number} [options.history] events before the head to begin with
   * @param {{ load(): object[], save(outbox: object[]): void }} [options.store]
   *   keeps the outbox, for instance over a reload
   * @param {object} [options.transport] `nativeTransport` of lib/native.js by
   *   default, or a `socketioTransport()` of lib/socketio.js
   */
  constructor(options) {
    this.#options = { url: globalThis.location?.origin, transport: nativeTransport, ...options };
    for (const { messageId, data } of options.store?.load() ?? []) {
      this.#outbox.push({ messageId, data, resolve: ignore, reject: ignore });
    }
  }

  /** Calls `listener` at each `event`. Answers a function that ends this. */
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

  /** Messages that wait for their acknowledgement: `{ messageId, data }`. */
  get outbox() {
    return this.#outbox.map(({ messageId, data }) => ({ messageId, data }));
  }

  // ---- being connected

  connect() {
    if (['connecting', 'live'].includes(this.state.name)) return;
    this.#failures = 0;
    this.#refused = undefined;
    this.#dialNow();
  }

  /** Something happened that may change the outlook: try now, or see whether
   * the connection still is one. */
  wake() {
    if (this.state.name === 'waiting') this.#dialNow();
    else if (this.state.name === 'live') this.#link.probe();
  }

  /** Until `connect`. The user stays a member and misses nothing. */
  disconnect() {
    this.#hangUp({ name: 'offline' });
  }

  /** Ends the membership, and with it the queue of what is missed. */
  async leave() {
    if (this.#link) await this.#link.request('leaveRoom', {}).catch(ignore);
    this.disconnect();
  }

  async #dialNow() {
    clearTimeout(this.#retryTimer);
    const dial = ++this.#dial;
    const current = (handler) => (...args) => dial === this.#dial && handler(...args);
    this.#setState({ name: 'connecting' });
    let token;
    try {
      token = await this.#options.getToken();
      if (dial !== this.#dial) return;
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
      if (dial !== this.#dial) return;
      const fatal = error.fatal || error instanceof SyntaxError;
      if (fatal) this.#hangUp({ name: 'stopped', reason: error.message });
      else this.#retry(error.message, error.retryAfterMs);
    }
  }

  #connected(data) {
    if (this.#epoch !== undefined && (data.reset || data.epoch !== this.#epoch)) {
      this.lastSeq = null;
      this.#told = { delivered: 0, read: 0 };
      this.#toTell = { delivered: 0, read: 0 };
      this.#tell('reset');
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
    // Answered after the replay, so it also marks the end of that.
    link.request('joinRoom', {}).then((joined) => {
      if (link !== this.#link) return;
      this.lastSeq ??= joined.seq;
      for (const cursor of ['delivered', 'read']) {
        this.#told[cursor] = Math.max(this.#told[cursor], joined[cursor]);
      }
      this.#caughtUp = link;
      this.#tell('ready', joined);
      this.#receiptsSoon();
      this.#pump();
    }, (error) => this.#failed(link, error));
  }

  #closed({ code, status, message, retryAfterMs }, token) {
    const refusedAgain = (code === 4401 || status === 401) && token === this.#refused;
    if (code === 4401 || status === 401) this.#refused = token;
    if (code === 4403 || refusedAgain || [400, 403, 404].includes(status)) {
      this.#hangUp({ name: 'stopped', reason: message || 'refused' });
    } else {
      this.#retry(message, retryAfterMs);
    }
  }

  /** A request failed where it should not. */
  #failed(link, error) {
    if (link !== this.#link || error.code === 'disconnected') return;
    if (error.code === 'notJoined') this.#hangUp({ name: 'stopped', reason: 'no longer a member of this room' });
    else {
      link.close();
      this.#retry(error.message, error.retryAfterMs);
    }
  }

  #retry(reason, atLeast = 0) {
    this.#hangUp();
    const most = Math.min(BACKOFF.most, BACKOFF.first * 2 ** this.#failures++);
    const delay = Math.max(atLeast, Math.random() * most);
    this.#retryTimer = setTimeout(() => this.#dialNow(), delay);
    this.#setState({ name: 'waiting', reason, retryAt: Date.now() + delay });
  }

  #hangUp(state) {
    this.#dial += 1;
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
        // Once it has expired the socket is closed, and a new token fetched.
        if (link === this.#link) this.#renewIn(RENEW_AGAIN);
      }
    }, Math.min(Math.max(delay, 1_000), MAX_TIMEOUT));
  }

  // ---- what comes in

  #event(event, data, meta) {
    const seq = meta?.seq ?? (event === 'newMessage' ? data.seq : undefined);
    if (seq !== undefined) {
      if (this.lastSeq !== null && seq <= this.lastSeq) return;
      if (this.lastSeq !== null && seq > this.lastSeq + 1) {
        // Must not happen. Asking again from here is always right.
        return this.#retry(`event ${this.lastSeq + 1} is missing`);
      }
      this.lastSeq = seq;
      this.#receipt('delivered', seq);
    }
    if (event === 'gap') this.lastSeq = Math.max(this.lastSeq ?? 0, data.to);
    if (event === 'newMessage' && data.senderId === this.userId) this.#settle(data.messageId, data);
    if (OWN_EVENTS.has(event)) this.#tell(event, data, meta);
    else this.#tell('custom', { event, data, meta });
    if (event === 'userLeft' && data.userId === this.userId) {
      this.#hangUp({ name: 'stopped', reason: 'no longer a member of this room' });
    }
  }

  // ---- what goes out

  /** Sends a message, now or once connected. Answers the room's receipt. */
  send(content, { messageId = newId(), ...fields } = {}) {
    const data = { ...fields, content };
    const bytes = new TextEncoder().encode(JSON.stringify(data)).length;
    // With some room for what goes around it.
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

  /** Sends a custom event; unlike a message it is not kept for later. */
  emit(event, data, { volatile = false } = {}) {
    return this.request('emit', { event, data, volatile });
  }

  /** Asks the server, and answers what it does. Needs a connection. */
  request(event, data) {
    if (this.#link && this.state.name === 'live') return this.#link.request(event, data);
    return Promise.reject(new RoomError({ code: 'disconnected', message: 'not connected' }));
  }

  /** The messages before `seq`, oldest first: `{ events, more }`. */
  async before(seq, limit = 50) {
    const address = new URL(`/rooms/${encodeURIComponent(this.room)}/messages`, this.#options.url);
    address.search = new URLSearchParams({ before: seq, limit });
    const token = await this.#options.getToken();
    const answer = await fetch(address, { headers: { authorization: `Bearer ${token}` } });
    if (answer.ok) return answer.json();
    const { error, message } = await problem(answer);
    throw new RoomError({ code: error, message });
  }

  /** Everything up to `seq` has been seen by the user. */
  read(seq) {
    this.#receipt('read', seq);
  }

  /** `online`, `away`, `busy` or `offline` (shown so, still receiving). Holds
   * for the connections to come. */
  async setStatus(status) {
    this.#status = status;
    if (this.state.name === 'live') await this.request('setPresence', { status });
  }

  /** Call it at every key. The others are told now and then, and of the end:
   * at a pause, or at once with `false`. */
  typing(isTyping = true) {
    if (!isTyping) {
      if (this.#typing.since && this.#link) this.#tellTyping(false);
      return this.#endTyping();
    }
    if (this.state.name !== 'live') return;
    clearTimeout(this.#typing.timer);
    this.#typing.timer = setTimeout(() => this.typing(false), TYPING_PAUSE);
    if (Date.now() - this.#typing.since < TYPING_AGAIN) return;
    this.#typing.since = Date.now();
    this.#tellTyping(true);
  }

  #endTyping() {
    clearTimeout(this.#typing.timer);
    this.#typing = { since: 0, timer: undefined };
  }

  #tellTyping(isTyping) {
    this.request('typingIndicator', { isTyping }).catch(ignore);
  }

  /** Sends what waits, oldest first. */
  #pump() {
    const link = this.#link;
    if (!link || link !== this.#caughtUp || this.#paused) return;
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
    this.#tell('outbox', this.outbox);
  }

  #receipt(cursor, seq) {
    if (seq <= this.#toTell[cursor]) return;
    this.#toTell[cursor] = seq;
    this.#receiptsSoon();
  }

  #receiptsSoon() {
    this.#receiptTimer ??= setTimeout(() => {
      this.#receiptTimer = undefined;
      this.#tellReceipts();
    }, RECEIPT_DELAY);
  }

  /** Reading implies delivery, so mostly one of the two is enough. */
  #tellReceipts() {
    if (this.state.name !== 'live') return;
    const link = this.#link;
    const confirm = (cursor, event) => {
      const seq = this.#toTell[cursor];
      if (seq <= this.#told[cursor]) return;
      link.request(event, { seq }).then(
        (answer) => (this.#told[cursor] = Math.max(this.#told[cursor], answer.seq)),
        (error) => this.#failed(link, error),
      );
    };
    confirm('read', 'messageRead');
    if (this.#toTell.delivered > this.#toTell.read) confirm('delivered', 'messageDelivered');
  }

  // ---- telling

  #setState(state) {
    this.state = state;
    this.#tell('state', state);
  }

  #tell(event, ...args) {
    for (const listener of this.#listeners.get(event) ?? []) {
      try {
        listener(...args);
      } catch (error) {
        // One listener's fault is neither the others' nor the connection's.
        console.error(error);
      }
    }
  }
}

/** 128 random bits. `crypto.randomUUID` exists on secure origins only, which a
 * development server on the local network is not. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
