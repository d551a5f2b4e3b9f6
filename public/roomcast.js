// A small client for roomcast's native framing: no dependencies, no DOM.
//
//   const client = new RoomClient({ room: "general", token: async () => "…" });
//   client.on("newMessage", (data) => …);
//   client.connect();
//   await client.send({ content: "hi" });
//
// It resumes where it was, sends again what was not acknowledged under the same
// messageId, pings, and reconnects with backoff.

const PING_EVERY = 25_000;
const PONG_WITHIN = 10_000;
const ANSWER_WITHIN = 15_000;
const BACKOFF = { first: 500, most: 30_000 };
// After these it makes no sense to come back by oneself.
const FINAL_CODES = new Set([4403]);

export class RoomError extends Error {
  constructor({ code, message, retryAfterMs }) {
    super(message);
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

export class RoomClient {
  #options;
  #handlers = new Map();
  #socket = null;
  #wanted = false;
  #attempt = 0;
  #timers = {};
  #nextId = 0;
  #waiting = new Map(); // id -> { resolve, reject, timer }
  #outbox = new Map(); // messageId -> { event, data, resolve, reject }
  #seq = null; // the last logged event that was seen
  #epoch = null;

  /** room: its name. token: a function that gets a fresh token. base: the server's address. */
  constructor({ room, token, base = location.origin }) {
    this.#options = { room, token, base };
  }

  /** Events of the protocol by name, as (data, meta); "*" for all; "state" for the connection. */
  on(event, handler) {
    const handlers = this.#handlers.get(event) ?? [];
    handlers.push(handler);
    this.#handlers.set(event, handlers);
    return this;
  }

  get seq() {
    return this.#seq ?? 0;
  }

  connect() {
    this.#wanted = true;
    this.#attempt = 0;
    this.#dial();
  }

  /** Closes and stays away; what is in the outbox stays there. */
  disconnect() {
    this.#wanted = false;
    clearTimeout(this.#timers.redial);
    this.#socket?.close(1000);
    this.#lost(1000, "");
    this.#state("offline");
  }

  /** A message; resolves once it is durable, across reconnects. */
  send(data) {
    const messageId = data.messageId ?? crypto.randomUUID();
    return new Promise((resolve, reject) => {
      this.#outbox.set(messageId, { data: { ...data, messageId }, resolve, reject });
      this.#deliver(messageId);
    });
  }

  /** Any other command; rejects when the connection goes or no answer comes. */
  request(event, data = {}) {
    return new Promise((resolve, reject) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) {
        reject(new RoomError({ code: "offline", message: "not connected" }));
        return;
      }
      const id = (this.#nextId = (this.#nextId + 1) >>> 0);
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(new RoomError({ code: "timeout", message: `no answer to ${event}` }));
      }, ANSWER_WITHIN);
      this.#waiting.set(id, { resolve, reject, timer });
      this.#socket.send(JSON.stringify({ event, data, id }));
    });
  }

  async #dial() {
    this.#state("connecting");
    let token;
    try {
      token = await this.#options.token(); // a fresh one for every dial
    } catch (error) {
      this.#emit("error", { code: "token", message: error.message });
      this.#redial();
      return;
    }
    if (!this.#wanted) return;
    const url = new URL(`/rooms/${encodeURIComponent(this.#options.room)}/ws`, this.#options.base);
    url.protocol = url.protocol.replace("http", "ws");
    if (this.#seq === null) {
      url.searchParams.set("history", 50);
    } else {
      url.searchParams.set("since", this.#seq);
      url.searchParams.set("epoch", this.#epoch);
    }
    const socket = new WebSocket(url, ["roomcast.v1", `bearer.${token}`]);
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => {
      if (this.#socket === socket) this.#lost(code, reason);
    };
  }

  #receive(frame) {
    clearTimeout(this.#timers.pong);
    if (frame === "pong") return;
    for (const line of frame.split("\n")) {
      const { ack, error, event, data, meta } = JSON.parse(line);
      if (ack !== undefined) this.#answered(ack, error, data);
      else this.#event(event, data, meta);
    }
  }

  #answered(id, error, data) {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    if (error) waiting.reject(new RoomError(error));
    else waiting.resolve(data);
  }

  #event(event, data, meta) {
    if (event === "connected") {
      if (data.reset || (this.#epoch !== null && this.#epoch !== data.epoch)) {
        this.#seq = null;
        this.#emit("reset", data);
      }
      this.#epoch = data.epoch;
      this.#seq ??= 0;
      this.#attempt = 0;
      this.#expect(data.expiresAt);
      this.#ping();
      this.#state("live");
      for (const messageId of this.#outbox.keys()) this.#deliver(messageId);
    }
    const seq = meta?.seq ?? (event === "newMessage" ? data.seq : undefined);
    if (seq !== undefined) {
      if (seq <= this.#seq) return; // seen already
      this.#seq = seq;
    }
    if (event === "gap") this.#seq = Math.max(this.#seq, data.to);
    this.#emit(event, data, meta);
  }

  async #deliver(messageId) {
    const message = this.#outbox.get(messageId);
    if (!message || this.#socket?.readyState !== WebSocket.OPEN) return;
    try {
      const answer = await this.request("sendMessage", message.data);
      this.#outbox.delete(messageId);
      message.resolve(answer);
    } catch (error) {
      if (error.code === "rateLimited") {
        setTimeout(() => this.#deliver(messageId), error.retryAfterMs);
      } else if (!["offline", "timeout", "internal"].includes(error.code)) {
        this.#outbox.delete(messageId);
        message.reject(error);
      } // else it is sent again after the next connect
    }
  }

  #ping() {
    clearInterval(this.#timers.ping);
    this.#timers.ping = setInterval(() => {
      if (this.#socket?.readyState !== WebSocket.OPEN) return;
      this.#socket.send("ping");
      clearTimeout(this.#timers.pong);
      const socket = this.#socket;
      this.#timers.pong = setTimeout(() => {
        socket.close();
        if (this.#socket === socket) this.#lost(1006, "no pong");
      }, PONG_WITHIN);
    }, PING_EVERY);
  }

  /** Gets another token before this one expires. */
  #expect(expiresAt) {
    clearTimeout(this.#timers.refresh);
    const left = new Date(expiresAt) - Date.now();
    const wait = Math.min(Math.max(left - 60_000, left / 2), 2 ** 31 - 1);
    this.#timers.refresh = setTimeout(async () => {
      try {
        const token = await this.#options.token();
        this.#expect((await this.request("refreshToken", { token })).expiresAt);
      } catch (error) {
        this.#emit("error", { code: "token", message: error.message });
      }
    }, wait);
  }

  #lost(code, reason) {
    this.#socket = null;
    clearInterval(this.#timers.ping);
    clearTimeout(this.#timers.pong);
    clearTimeout(this.#timers.refresh);
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(new RoomError({ code: "offline", message: "the connection was lost" }));
    }
    this.#waiting.clear();
    if (!this.#wanted) return;
    if (FINAL_CODES.has(code)) {
      this.#wanted = false;
      this.#state("closed", { code, reason });
      return;
    }
    this.#redial();
  }

  /** Exponential backoff with full jitter. */
  #redial() {
    if (!this.#wanted) return;
    const most = Math.min(BACKOFF.most, BACKOFF.first * 2 ** this.#attempt);
    const wait = this.#attempt === 0 ? Math.random() * BACKOFF.first : Math.random() * most;
    this.#attempt += 1;
    this.#state("reconnecting", { inMs: wait });
    this.#timers.redial = setTimeout(() => this.#dial(), wait);
  }

  #state(state, detail = {}) {
    this.#emit("state", { state, ...detail });
  }

  #emit(event, data, meta) {
    for (const handler of this.#handlers.get(event) ?? []) handler(data, meta);
    if (event !== "state") for (const handler of this.#handlers.get("*") ?? []) handler(event, data, meta);
  }
}
