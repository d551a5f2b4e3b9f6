/**
 * Who is in the room, how they are and how far they have come. Fed with the
 * room's events; without a DOM.
 */

const AVAILABLE = ['online', 'busy', 'away', 'offline'];

export class Members {
  /** userId to { status, lastSeen, typing, delivered, read }. */
  #members = new Map();
  #self;

  constructor(self) {
    this.#self = self;
  }

  /** Everybody, oneself first, then the most available. */
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

  /** The answer to `joinRoom`: what is not in it is no longer so. Cursors stay:
   * they never move back. */
  replace(members) {
    const before = this.#members;
    this.#members = new Map();
    for (const { userId, ...member } of members) {
      this.#members.set(userId, before.get(userId) ?? nobodyYet());
      this.#update(userId, { ...member, typing: false });
    }
  }

  forget() {
    this.#members.clear();
  }

  /** The connection is lost, and with it the news. */
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

  /** How far event `seq` has come: whom it reached, who read it, and whether
   * that is all others. */
  progress(seq) {
    const others = this.others();
    const delivered = others.filter((member) => member.delivered >= seq);
    const read = others.filter((member) => member.read >= seq);
    const all = (some) => others.length > 0 && some.length === others.length;
    const mark = all(read) ? 'read' : all(delivered) ? 'delivered' : 'sent';
    return { mark, delivered: names(delivered), read: names(read), others: others.length };
  }

  #update(userId, changes) {
    const member = this.#members.get(userId) ?? nobodyYet();
    const delivered = Math.max(member.delivered, changes.delivered ?? 0);
    const read = Math.max(member.read, changes.read ?? 0);
    this.#members.set(userId, { ...member, ...changes, delivered, read });
  }
}

const nobodyYet = () => ({ status: 'offline', lastSeen: undefined, typing: false, delivered: 0, read: 0 });
const names = (members) => members.map((member) => member.userId);
