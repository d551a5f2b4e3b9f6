/** The list of members, the typing indicators, and the status selector. */

import { $, avatar, el, listing, soon, tint } from './dom.js';

const LABELS = { online: 'Online', away: 'Away', busy: 'Busy', offline: 'Offline' };
const ago = new Intl.RelativeTimeFormat('en', { numeric: 'auto' });

export class People {
  #members;

  constructor(members) {
    this.#members = members;
  }

  changed = soon(() => this.#render());

  #render() {
    const members = this.#members.list();
    const { unlisted } = this.#members;
    const rest = unlisted > 0 ? [el('li', { class: 'member' }, `and ${unlisted} more`)] : [];
    $('members').replaceChildren(...members.map(row), ...rest);
    $('people-count').textContent = members.filter((member) => member.status !== 'offline').length;
    this.#renderTyping(this.#members.typing());
  }

  #renderTyping(typing) {
    const line = $('typing');
    const text = typing.length > 3
      ? `${typing.length} people are typing`
      : `${listing.format(typing)} ${typing.length === 1 ? 'is' : 'are'} typing`;
    if (!typing.length) return line.replaceChildren();
    if (line.textContent === text) return;
    const dots = el('span', { class: 'dots', 'aria-hidden': 'true' }, el('i'), el('i'), el('i'));
    line.replaceChildren(dots, el('span', {}, text));
  }
}

function row({ userId, status, lastSeen, self }) {
  const picture = avatar(userId);
  picture.append(el('span', { class: 'status', 'data-status': status }));
  return el(
    'li',
    { class: 'member', 'data-user': userId, 'data-status': status },
    picture,
    el(
      'div',
      { class: 'member-text' },
      tint(el('p', { class: 'member-name' }, userId, self ? el('span', { class: 'you' }, ' you') : null), userId),
      el('p', { class: 'member-status' }, status === 'offline' && lastSeen ? `Seen ${since(lastSeen)}` : LABELS[status] ?? status),
    ),
  );
}

function since(time) {
  const minutes = Math.round((Date.parse(time) - Date.now()) / 60_000);
  if (minutes > -1) return 'just now';
  if (minutes > -60) return ago.format(minutes, 'minute');
  if (minutes > -60 * 24) return ago.format(Math.round(minutes / 60), 'hour');
  return ago.format(Math.round(minutes / 1_440), 'day');
}

/** Sets up the panel. A wide screen always shows it. A narrow screen shows a button that
 * opens it. */
export function setUpPanel() {
  const [panel, toggle] = [$('people'), $('people-toggle')];
  const show = (open) => {
    toggle.setAttribute('aria-expanded', open);
    panel.classList.toggle('open', open);
  };
  const close = () => {
    show(false);
    toggle.focus();
  };
  toggle.onclick = () => {
    show(toggle.getAttribute('aria-expanded') !== 'true');
    if (panel.classList.contains('open')) $('people-close').focus();
  };
  $('people-close').onclick = close;
  panel.onkeydown = ({ key }) => {
    if (key === 'Escape' && panel.classList.contains('open')) close();
  };
}
