// Who is here, how far they have read, and who is typing.

import { avatar, element } from "./dom.js";

const rank = { online: 0, busy: 1, away: 2, offline: 3 };
const words = { online: "online", busy: "busy", away: "away", offline: "offline" };
const typingFor = 6_000; // the room says when it ends; this is for a lost word

export class People {
  #list;
  #count;
  #typing;
  #members = new Map(); // userId -> { status, delivered, read, since, lastSeen }
  #typists = new Map(); // userId -> timer

  constructor({ list, count, typing }) {
    this.#list = list;
    this.#count = count;
    this.#typing = typing;
    this.me = null;
  }

  /** The members as the room knows them; cursors already heard of stay. */
  replace(members) {
    const before = this.#members;
    this.#members = new Map();
    for (const { userId, status, delivered = 0, read = 0 } of members) {
      const known = before.get(userId) ?? { delivered: 0, read: 0, since: 0 };
      this.#members.set(userId, {
        ...known,
        status,
        delivered: Math.max(known.delivered, delivered),
        read: Math.max(known.read, read),
      });
    }
    this.#render();
  }

  /** Nobody's cursors mean anything once the log started over. */
  forgetCursors() {
    for (const member of this.#members.values()) Object.assign(member, { delivered: 0, read: 0, since: 0 });
  }

  joined(userId, head) {
    if (!this.#members.has(userId)) {
      this.#members.set(userId, { status: "online", delivered: 0, read: 0, since: head });
    }
    this.#render();
  }

  left(userId) {
    this.#members.delete(userId);
    this.typing(userId, false);
    this.#render();
  }

  presence({ userId, status, lastSeen }) {
    const member = this.#members.get(userId) ?? { delivered: 0, read: 0, since: 0 };
    this.#members.set(userId, { ...member, status, lastSeen });
    if (status === "offline") this.typing(userId, false);
    this.#render();
  }

  receipt(kind, userId, seq) {
    const member = this.#members.get(userId);
    if (!member) return;
    member.delivered = Math.max(member.delivered, seq);
    if (kind === "read") member.read = Math.max(member.read, seq);
  }

  /** "sent", "delivered" or "read": what all the others have in common. Those
   *  who joined after a message do not count. */
  markOf(seq) {
    const others = [...this.#members].filter(([userId, { since }]) => userId !== this.me && since < seq);
    if (others.length === 0) return "sent";
    if (others.every(([, { read }]) => read >= seq)) return "read";
    if (others.every(([, { delivered }]) => delivered >= seq)) return "delivered";
    return "sent";
  }

  typing(userId, isTyping) {
    clearTimeout(this.#typists.get(userId));
    this.#typists.delete(userId);
    if (isTyping) this.#typists.set(userId, setTimeout(() => this.typing(userId, false), typingFor));
    const names = [...this.#typists.keys()];
    this.#typing.textContent =
      names.length === 0 ? "" :
      names.length === 1 ? `${names[0]} is typing` :
      names.length === 2 ? `${names[0]} and ${names[1]} are typing` :
      `${names.length} people are typing`;
  }

  /** While we are away we do not know what anybody does. */
  away() {
    for (const userId of [...this.#typists.keys()]) this.typing(userId, false);
  }

  #render() {
    const sorted = [...this.#members].sort(([a, x], [b, y]) =>
      (b === this.me) - (a === this.me) || rank[x.status] - rank[y.status] || a.localeCompare(b));
    const here = sorted.filter(([, { status }]) => status !== "offline").length;
    this.#count.textContent = `${here} of ${sorted.length} here`;
    this.#list.replaceChildren(...sorted.map(([userId, { status, lastSeen }]) => {
      const seen = status === "offline" && lastSeen ? `, last seen ${new Date(lastSeen).toLocaleString()}` : "";
      const face = avatar(userId);
      face.append(element("span", { className: "dot" }));
      return element("li", { dataset: { user: userId, status }, title: `${userId}, ${words[status]}${seen}` },
        face,
        element("span", { className: "who" },
          element("span", { className: "name" }, userId === this.me ? `${userId} (you)` : userId),
          element("span", { className: "what" }, words[status])));
    }));
  }
}
