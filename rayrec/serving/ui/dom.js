/** Building blocks of the page. Values only ever become text nodes or attributes, never markup. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element. Attributes that are null or false are left out; `onNAME` adds a listener. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

/** One of the symbols at the top of index.html; decoration, so hidden from assistive technology. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A link inside the page; app.js follows it without loading the document again. */
export function appLink(href, attributes, ...children) {
  return el("a", { href, "data-app": true, ...attributes }, ...children);
}

/** Replace what `root` shows, keeping keyboard focus on the control with the same `data-key`. */
export function repaint(root, ...children) {
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  root.replaceChildren(...children.flat().filter(Boolean));
  if (focused === undefined) return;
  const same = [...root.querySelectorAll("[data-key]")].find((node) => node.dataset.key === focused);
  same?.focus({ preventScroll: true });
}
