/** Helpers for elements. Text is always inserted as text, never as HTML. */

export const $ = (id) => document.getElementById(id);

/** Creates an element with children. `class`, `role`, `data-…` and `aria-…` set
 * attributes, other names set properties. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'class' || name === 'role' || /^(data|aria)-/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Returns an icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Returns a disc with the initials of a name, in the colour of the name. */
export function avatar(name) {
  const letters = name.split(/[._:-]+/).filter(Boolean).slice(0, 2).map((part) => part[0]);
  return tint(el('span', { class: 'avatar', 'aria-hidden': 'true' }, (letters.join('') || '?').toUpperCase()), name);
}

/** Gives an element the colour of a name. */
export function tint(element, name) {
  // FNV-1a and the golden angle give similar names different colours.
  let hash = 0x811c9dc5;
  for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193) >>> 0;
  element.style.setProperty('--hue', Math.round((hash * 137.508) % 360));
  return element;
}

/** Formats a list of names: `alice`, `alice and bob`, `alice, bob and carol`. */
export const listing = new Intl.ListFormat('en', { type: 'conjunction' });

/** Returns a function that combines its calls: `work` runs once, 16 ms after the first
 * call. */
export function soon(work) {
  let scheduled = false;
  return () => {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => {
      scheduled = false;
      work();
    }, 16);
  };
}

/** Shows a text for 7 s, or until the user dismisses it. */
export function toast(text) {
  const close = el('button', { class: 'button quiet icon', type: 'button' }, icon('close'), el('span', { class: 'visually-hidden' }, 'Dismiss'));
  const note = el('div', { class: 'toast' }, el('p', {}, text), close);
  const timer = setTimeout(() => note.remove(), 7_000);
  close.onclick = () => {
    clearTimeout(timer);
    note.remove();
  };
  const toasts = $('toasts');
  // A repeated text replaces the earlier toast.
  for (const other of toasts.children) if (other.firstChild.textContent === text) other.remove();
  toasts.append(note);
}
