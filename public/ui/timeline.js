/**
 * The messages, in the order of the room's log, followed by the unsent messages. While
 * the list is at the bottom, it scrolls to each new message.
 */

import { $, avatar, el, icon, listing, soon, tint } from './dom.js';

/** Messages of one sender within this time form a group. */
const TOGETHER = 5 * 60_000;
/** The list counts as at the bottom within this distance from it, in pixels. */
const NEAR = 48;

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
const dayName = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
const dayAndYear = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'long', year: 'numeric' });

const MARKS = {
  waiting: { icon: 'clock', text: 'Waiting to be sent' },
  sent: { icon: 'sent', text: 'Sent' },
  delivered: { icon: 'both', text: 'Delivered to everyone' },
  read: { icon: 'both', text: 'Read by everyone' },
  failed: { icon: 'failed', text: 'Not sent' },
};
const RANK = ['waiting', 'sent', 'delivered', 'read'];

export class Timeline {
  #self;
  #members;
  #onRead;
  /** The entries in the order shown: { kind, element, seq?, at, senderId?, mark? }. */
  #entries = [];
  /** Own messages whose event has not arrived, by messageId. */
  #pending = new Map();
  /** Own messages that some members have not read. */
  #unfinished = new Set();
  #atBottom = true;
  #unread = 0;
  #divider;
  #size = '';
  /** The highest `seq` shown. */
  #newest = 0;

  /** `onRead(seq)` is called when the user has seen everything up to `seq`. */
  constructor({ self, members, onRead }) {
    this.#self = self;
    this.#members = members;
    this.#onRead = onRead;
    this.#scroller.onscroll = () => this.#scrolled();
    $('jump').onclick = () => this.toBottom();
    // The keyboard of a phone and a growing composer reduce the height.
    new ResizeObserver(() => this.#follow()).observe(this.#scroller);
    this.clear();
  }

  get #scroller() {
    return $('scroller');
  }

  get unread() {
    return this.#unread;
  }

  /** The oldest `seq` shown, or null. */
  get oldest() {
    return this.#entries.find((entry) => entry.seq !== undefined)?.seq ?? null;
  }

  clear() {
    $('log').replaceChildren();
    this.#entries = [];
    this.#unfinished.clear();
    this.#newest = 0;
    this.#divider = undefined;
    this.#setUnread(0);
    for (const entry of this.#pending.values()) this.#place(entry, this.#entries.length);
    this.#emptyChanged();
  }

  /** Shows a `newMessage`. */
  message(data) {
    const { messageId, senderId, seq, timestamp } = data;
    const mine = senderId === this.#self;
    const waiting = mine ? this.#pending.get(messageId) : undefined;
    if (waiting) this.#take(waiting);
    this.#pending.delete(messageId);
    const entry = waiting ?? this.#bubble({ content: data.content, senderId, mine });
    entry.element.classList.remove('pending');
    entry.seq = seq;
    entry.at = Date.parse(timestamp);
    this.#stamp(entry);
    if (mine) this.#unfinished.add(entry);
    this.#appear(entry, mine);
  }

  /** Shows an own message whose event has not arrived. */
  pending({ messageId, data }) {
    if (this.#pending.has(messageId)) return;
    const entry = this.#bubble({ content: data.content, senderId: this.#self, mine: true });
    entry.element.classList.add('pending');
    entry.at = Date.now();
    entry.mark = 'waiting';
    this.#stamp(entry);
    this.#pending.set(messageId, entry);
    this.#place(entry, this.#entries.length);
    this.#removeDivider();
    this.toBottom();
  }

  /** Marks an own message as refused. Returns `false` if it is not shown. */
  failed(messageId, reason) {
    const entry = this.#pending.get(messageId);
    if (!entry) return false;
    this.#pending.delete(messageId);
    entry.mark = 'failed';
    entry.reason = reason;
    this.#stamp(entry);
    return true;
  }

  /** Shows an event that is not a message, or a notice about the log. */
  notice({ label, text, seq, timestamp, kind = 'notice' }) {
    const element = el('li', { class: `notice ${kind}` }, ...labelled(label, text));
    this.#appear({ kind, element, seq, at: timestamp ? Date.parse(timestamp) : Date.now() }, false);
  }

  /** Inserts a divider before the next messages. */
  divide(text) {
    this.#removeDivider();
    this.#divider = { kind: 'divider', at: Date.now(), element: el('li', { class: 'divider' }, el('span', {}, text)) };
    this.#place(this.#divider, this.#firstPending());
  }

  /** Inserts older events, oldest first, before all others. */
  earlier(messages) {
    const { scrollHeight, scrollTop } = this.#scroller;
    messages.forEach((message, index) => {
      const mine = message.senderId === this.#self;
      const entry = message.content === undefined
        ? { kind: 'notice', element: el('li', { class: 'notice' }, ...labelled(message.label, message.text)) }
        : this.#bubble({ content: message.content, senderId: message.senderId, mine });
      entry.seq = message.seq;
      entry.at = Date.parse(message.timestamp);
      if (mine && entry.kind === 'message') this.#unfinished.add(entry);
      this.#stamp(entry);
      this.#place(entry, index);
    });
    this.#emptyChanged();
    this.#scroller.scrollTop = scrollTop + this.#scroller.scrollHeight - scrollHeight;
  }

  /** Updates the marks after cursors have moved. */
  receipts = soon(() => {
    for (const entry of this.#unfinished) this.#stamp(entry);
  });

  /** Marks the messages as read if the page is visible and at the bottom. */
  look() {
    if (document.visibilityState !== 'visible' || !this.#atBottom) return;
    this.#setUnread(0);
    if (this.#newest) this.#onRead(this.#newest);
  }

  toBottom() {
    this.#atBottom = true;
    this.#follow();
    this.look();
  }

  // ---- entries

  #appear(entry, mine) {
    if (entry.seq !== undefined) this.#newest = Math.max(this.#newest, entry.seq);
    const seen = document.visibilityState === 'visible' && this.#atBottom;
    if (!mine && !seen && entry.kind === 'message') {
      if (!this.#unread && !this.#justDivided()) this.divide('New');
      this.#setUnread(this.#unread + 1);
    }
    this.#place(entry, this.#firstPending());
    this.#emptyChanged();
    this.#follow();
    this.look();
  }

  #firstPending() {
    let index = this.#entries.length;
    while (index > 0 && this.#entries[index - 1].kind === 'message' && this.#entries[index - 1].seq === undefined) index -= 1;
    return index;
  }

  #place(entry, index) {
    const next = this.#entries[index];
    this.#entries.splice(index, 0, entry);
    $('log').insertBefore(entry.element, next ? next.day ?? next.element : null);
    this.#arrange(index);
    this.#arrange(index + 1);
  }

  #take(entry) {
    const index = this.#entries.indexOf(entry);
    if (index < 0) return;
    this.#entries.splice(index, 1);
    entry.element.remove();
    entry.day?.remove();
    entry.day = undefined;
    this.#arrange(index);
  }

  /** Shows a line for each new day, and the name once for a group of messages. */
  #arrange(index) {
    const entry = this.#entries[index];
    if (!entry) return;
    const previous = this.#entries[index - 1];
    entry.day?.remove();
    entry.day = undefined;
    const newDay = !previous || new Date(previous.at).toDateString() !== new Date(entry.at).toDateString();
    if (newDay && entry.kind !== 'divider') {
      entry.day = el('li', { class: 'day' }, el('span', {}, nameDay(entry.at)));
      entry.element.before(entry.day);
    }
    const follows = !newDay && previous.kind === 'message' && entry.kind === 'message'
      && previous.senderId === entry.senderId && entry.at - previous.at < TOGETHER;
    entry.element.classList.toggle('follows', follows);
    previous?.element.classList.toggle('followed', follows);
    if (index === this.#entries.length - 1) entry.element.classList.remove('followed');
  }

  #bubble({ content, senderId, mine }) {
    const text = typeof content === 'string' ? content : JSON.stringify(content);
    const time = el('time');
    const mark = mine ? el('button', { class: 'mark', type: 'button' }) : null;
    const details = el('p', { class: 'details', hidden: true });
    const element = el(
      'li',
      { class: `message ${mine ? 'own' : 'other'}` },
      mine ? null : avatar(senderId),
      el(
        'div',
        { class: 'body' },
        mine ? el('p', { class: 'visually-hidden' }, 'You:') : tint(el('p', { class: 'who' }, senderId), senderId),
        el('p', { class: 'text', dir: 'auto' }, text),
        el('p', { class: 'meta' }, time, mark),
        details,
      ),
    );
    const entry = { kind: 'message', element, senderId, time, button: mark, details };
    if (mark) {
      mark.setAttribute('aria-expanded', 'false');
      mark.onclick = () => {
        details.hidden = !details.hidden;
        mark.setAttribute('aria-expanded', !details.hidden);
        this.#follow();
      };
    }
    return entry;
  }

  /** Updates time and mark of a message. */
  #stamp(entry) {
    if (entry.kind !== 'message') return;
    entry.time.textContent = clock.format(entry.at);
    entry.time.dateTime = new Date(entry.at).toISOString();
    entry.time.title = exact.format(entry.at);
    if (!entry.button) return;
    let text = exact.format(entry.at);
    if (entry.seq !== undefined) {
      const progress = this.#members.progress(entry.seq);
      // A message stays read when another member joins later.
      if (!(RANK.indexOf(entry.mark) > RANK.indexOf(progress.mark))) entry.mark = progress.mark;
      if (entry.mark === 'read') this.#unfinished.delete(entry);
      text = `${text} · no. ${entry.seq} · ${describeProgress(progress)}`;
    } else if (entry.reason) {
      text = entry.reason;
    }
    entry.details.textContent = text;
    if (entry.shown === entry.mark) return;
    entry.shown = entry.mark;
    const { icon: name, text: label } = MARKS[entry.mark];
    entry.element.dataset.mark = entry.mark;
    entry.button.title = label;
    entry.button.replaceChildren(icon(name), el('span', { class: 'visually-hidden' }, label));
  }

  #justDivided() {
    return this.#divider && this.#entries[this.#firstPending() - 1] === this.#divider;
  }

  #removeDivider() {
    if (this.#divider) this.#take(this.#divider);
    this.#divider = undefined;
  }

  #emptyChanged() {
    $('empty').hidden = this.#entries.length > 0;
  }

  // ---- scrolling

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    const size = `${scrollHeight} ${clientHeight}`;
    const resized = size !== this.#size;
    this.#size = size;
    // The size of the content changed, but the user did not scroll.
    if (resized && this.#atBottom) return this.#follow();
    this.#atBottom = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#jumpChanged();
    if (this.#atBottom) this.look();
  }

  #follow = soon(() => {
    if (this.#atBottom) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#jumpChanged();
  });

  #setUnread(unread) {
    this.#unread = unread;
    this.#jumpChanged();
    this.onUnread?.(unread);
  }

  #jumpChanged() {
    $('jump').hidden = this.#atBottom;
    $('jump-text').textContent = this.#unread ? `${this.#unread} new` : 'Latest';
  }
}

const labelled = (label, text) => (label ? [el('b', {}, label), ' ', text] : [text]);

function describeProgress({ delivered, read, others }) {
  if (!others) return 'no other members';
  const onlyDelivered = delivered.filter((name) => !read.includes(name));
  const parts = [];
  if (read.length) parts.push(`read by ${listing.format(read)}`);
  if (onlyDelivered.length) parts.push(`delivered to ${listing.format(onlyDelivered)}`);
  return parts.join(', ') || 'not delivered to other members yet';
}

function nameDay(at) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(at).setHours(0, 0, 0, 0)) / 86_400_000);
  if (days === 0) return 'Today';
  if (days === 1) return 'Yesterday';
  return (days < 180 ? dayName : dayAndYear).format(at);
}
