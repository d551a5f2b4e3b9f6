/**
 * The members of the room, with presence, typing and cursors. The page updates them
 * from the events of the room. This module does not use the DOM.
 */

/** The statuses, from most to least available. */
const AVAILABLE = ['online', 'busy', 'away', 'offline'];

export class Members {
  /** Maps a user id to { status, lastSeen, typing, delivered, read }. */
  #members = new Map();
  #self;

  constructor(self) {
    this.#self = self;
  }

  /** Returns all members: the own user first, then by availability. */
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
  replace(members) {
    const before = this.#members;
    this.#members = new Map();
    for (const { userId, ...member } of members) {
      this.#members.set(userId, before.get(userId) ?? newMember());
      this.#update(userId, { ...member, typing: false });
    }
  }

  forget() {
    this.#members.clear();
  }

  /** Clears typing indicators when the connection is lost. */
  stopTyping() {
    for (const userId of this.#members.keys()) this.#update(userId, { typing: false });
  }

  joined(userId) {
    this.#update(userId, {});
  }

  left(userId) {
    this.#members.delete(userId);
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
    const all = (some) => others.length > 0 && some.length === others.length;
    const mark = all(read) ? 'read' : all(delivered) ? 'delivered' : 'sent';
    return { mark, delivered: names(delivered), read: names(read), others: others.length };
  }

  #update(userId, changes) {
    const member = this.#members.get(userId) ?? newMember();
    const delivered = Math.max(member.delivered, changes.delivered ?? 0);
    const read = Math.max(member.read, changes.read ?? 0);
    this.#members.set(userId, { ...member, ...changes, delivered, read });
  }
}

const newMember = () => ({ status: 'offline', lastSeen: undefined, typing: false, delivered: 0, read: 0 });
const names = (members) => members.map((member) => member.userId);
