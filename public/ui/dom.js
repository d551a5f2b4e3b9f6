/** The few things about elements that every view needs. Text goes in as text,
 * never as HTML. */

export const $ = (id) => document.getElementById(id);

/** An element with properties (or, after `class`, `data-`, `aria-`, attributes)
 * and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'class' || name === 'role' || /^(data|aria)-/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A disc with the first letters of a name, in a colour of the name's own. */
export function avatar(name) {
  const letters = name.split(/[._:-]+/).filter(Boolean).slice(0, 2).map((part) => part[0]);
  return tint(el('span', { class: 'avatar', 'aria-hidden': 'true' }, (letters.join('') || '?').toUpperCase()), name);
}

export function tint(element, name) {
  // FNV-1a, then the golden angle: names that differ little differ in colour.
  let hash = 0x811c9dc5;
  for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193) >>> 0;
  element.style.setProperty('--hue', Math.round((hash * 137.508) % 360));
  return element;
}

/** `alice`, `alice and bob`, `alice, bob and carol`. */
export const listing = new Intl.ListFormat('en', { type: 'conjunction' });

/** Calls `work` once, soon, however often it is asked to. */
export function soon(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    setTimeout(() => {
      asked = false;
      work();
    }, 16);
  };
}

export function toast(text) {
  const close = el('button', { class: 'button quiet icon', type: 'button' }, icon('close'), el('span', { class: 'visually-hidden' }, 'Dismiss'));
  const note = el('div', { class: 'toast' }, el('p', {}, text), close);
  const timer = setTimeout(() => note.remove(), 7_000);
  close.onclick = () => {
    clearTimeout(timer);
    note.remove();
  };
  const toasts = $('toasts');
  // The same thing over and over is one thing.
  for (const other of toasts.children) if (other.firstChild.textContent === text) other.remove();
  toasts.append(note);
}
