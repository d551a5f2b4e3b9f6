// The little of the DOM that the modules share. Text goes in as text only.

export const $ = (id) => document.getElementById(id);

export function element(tag, { dataset = {}, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  Object.assign(node.dataset, dataset);
  node.append(...children);
  return node;
}

/** The same colour for the same name, everywhere. */
export function avatar(userId) {
  let hash = 7;
  for (const character of userId) hash = (hash * 31 + character.codePointAt(0)) % 997;
  const node = element("span", { className: "avatar", ariaHidden: "true" });
  node.append(userId.slice(0, 2).toUpperCase());
  node.dataset.tone = hash % 8;
  return node;
}

export function toast(message, { sticky = false } = {}) {
  const close = element("button", { type: "button", ariaLabel: "Dismiss" }, "×");
  const node = element("p", { className: "toast" }, element("span", {}, message), close);
  close.onclick = () => node.remove();
  const box = $("toasts");
  while (box.childElementCount > 2) box.firstElementChild.remove();
  box.append(node);
  if (!sticky) setTimeout(() => node.remove(), 6_000);
}
