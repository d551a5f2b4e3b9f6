/**
 * The members of the room, with presence, typing and cursors. The page updates them
 * from the events of the room. This module does not use the DOM.
 */

/** The statuses, from most to least available. */
const AVAILABLE = ['online', 'busy', 'away', 'offline'];

export class Members {
  /** Maps a user id to { status, lastSeen, typing, delivered, read }. */
  #members = new Map();
  /** The number of members that are not in the map. */
  #unlisted = 0;
  #self;

  constructor(self) {
    this.#self = self;
  }

  /** The number of members that are not listed: `joinRoom` lists at most 100. */
  get unlisted() {
    return this.#unlisted;
  }

  /** Returns the listed members: the own user first, then by availability. */
  list() {
    return [...this.#members]
      .map(([userId, member]) => ({ userId, self: userId === this.#self, ...member }))
      .sort((a, b) => b.self - a.self
        || AVAILABLE.indexOf(a.status) - AVAILABLE.indexOf(b.status)
        || a.userId.localeCompare(b.userId));
  }

  others() {
    return this.list().filter((member) => !member.self);
  }

  typing() {
    return this.others().filter((member) => member.typing).map((member) => member.userId);
  }

  /** Replaces the members by those of the answer to `joinRoom`. Keeps their cursors,
   * because cursors never move back. */
  replace({ members, memberCount }) {
    this.#unlisted = memberCount - members.length;
    const before = this.#members;
    this.#members = new Map();
    for (const { userId, ...member } of members) {
      this.#members.set(userId, before.get(userId) ?? newMember());
      this.#update(userId, { ...member, typing: false });
    }
    if (!this.#members.has(this.#self)) this.#update(this.#self, { status: 'online' });
  }

  forget() {
    this.#unlisted = 0;
    this.#members.clear();
  }

  /** Clears typing indicators when the connection is lost. */
  stopTyping() {
    for (const userId of this.#members.keys()) this.#update(userId, { typing: false });
  }

  joined(userId) {
    if (!this.#members.has(userId)) this.#members.set(userId, newMember());
  }

  left(userId) {
    if (!this.#members.delete(userId)) this.#unlist();
  }

  presence({ userId, status, lastSeen }) {
    this.#update(userId, { status, lastSeen, ...(status === 'offline' && { typing: false }) });
  }

  setTyping(userId, typing) {
    if (this.#members.has(userId)) this.#update(userId, { typing });
  }

  delivered(userId, seq) {
    this.#update(userId, { delivered: seq });
  }

  read(userId, seq) {
    this.#update(userId, { delivered: seq, read: seq });
  }

  /** Returns the users that received event `seq`, the users that read it, and its mark:
   * `sent`, `delivered` or `read`. */
  progress(seq) {
    const others = this.others();
    const delivered = others.filter((member) => member.delivered >= seq);
    const read = others.filter((member) => member.read >= seq);
    const count = others.length + this.#unlisted;
    const all = (some) => count > 0 && some.length === count;
    const mark = all(read) ? 'read' : all(delivered) ? 'delivered' : 'sent';
    return { mark, delivered: names(delivered), read: names(read), others: count };
  }

  #unlist() {
    this.#unlisted = Math.max(0, this.#unlisted - 1);
  }

  #update(userId, changes) {
    if (!this.#members.has(userId)) this.#unlist();
    const member = this.#members.get(userId) ?? newMember();
    const delivered = Math.max(member.delivered, changes.delivered ?? 0);
    const read = Math.max(member.read, changes.read ?? 0);
    this.#members.set(userId, { ...member, ...changes, delivered, read });
  }
}

const newMember = () => ({ status: 'offline', lastSeen: undefined, typing: false, delivered: 0, read: 0 });
const names = (members) => members.map((member) => member.userId);
