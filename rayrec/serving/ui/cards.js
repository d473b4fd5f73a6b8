/** One item as a card, with its tile, its facts and the reasons that put it there. */

import { appLink, el, icon } from "./dom.js";
import { formatPrice, formatShare, SEPARATOR } from "./format.js";
import { similarUrl } from "./state.js";

// As many as there are classes in tiles.css: .hue-0 and on, .lean-0, .shape-0
const HUES = 12;
const LEANS = 3;
const SHAPES = 5;
const PARTS = {
  lexical: "Words",
  dense: "Meaning",
  image: "Looks",
  content: "Alike",
  together: "Bought together",
  repeat: "Bought again",
  popular: "Popular",
  behavior: "Behavior",
  rerank: "Reranked",
};

export function card(hit) {
  const { item } = hit;
  const category = item.category ?? [];
  return el(
    "li",
    { class: "card", "data-testid": "card", "data-item-id": hit.item_id, tabindex: "-1" },
    picture(item),
    el(
      "div",
      { class: "card-body" },
      item.brand && el("p", { class: "card-brand" }, item.brand),
      el("h2", { class: "card-title", "data-testid": "card-title" }, item.title),
      category.length > 0 && el("p", { class: "card-category", title: category.join(SEPARATOR) }, categoryOf(item)),
      el("div", { class: "card-facts" }, price(item), stock(item)),
      hit.reasons?.length > 0 && reasons(hit.reasons),
      el("div", { class: "card-actions" }, similarLink(item, hit.item_id)),
    ),
  );
}

/** The innermost category that says more than the title does. */
function categoryOf({ title, category }) {
  const leaf = category.at(-1);
  const said = category.length > 1 && title.toLowerCase().startsWith(leaf.toLowerCase());
  return said ? category.at(-2) : leaf;
}

/** The item that others are compared with, above its similar items. */
export function seedPanel(item) {
  const attributes = Object.entries(item.attributes ?? {});
  return el(
    "div",
    { class: "seed" },
    picture(item),
    el(
      "div",
      { class: "seed-body" },
      el("p", { class: "card-brand" }, item.brand),
      el("p", { class: "seed-title" }, item.title),
      item.category?.length > 0 && el("p", { class: "card-category" }, item.category.join(" › ")),
      item.description && el("p", { class: "seed-description" }, item.description),
      attributes.length > 0 &&
        el("dl", { class: "attributes" }, attributes.map(attribute)),
      el("div", { class: "card-facts" }, price(item), stock(item)),
    ),
  );
}

function attribute([name, value]) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value));
}

function similarLink(item, id) {
  const label = `Items similar to ${item.title}`;
  return appLink(
    similarUrl(id),
    { class: "button small", "data-testid": "similar-button", "data-key": `similar ${id}`, "aria-label": label },
    icon("similar"),
    "Similar",
  );
}

function price(item) {
  const text = formatPrice(item.price_cents, item.currency);
  return el("span", { class: text ? "price" : "price none" }, text ?? "No price");
}

/** An item that does not say whether it is available gets no label rather than a guess. */
function stock({ available }) {
  if (available == null) return null;
  return el("span", { class: available ? "stock" : "stock out" }, available ? "Available" : "Sold out");
}

/** Pictures come from this server only; most catalogs here have none, and get a tile in their category's colour. */
function picture(item) {
  const uri = item.image_uri;
  if (!uri?.startsWith("/") || /^\/[/\\]/.test(uri)) return tile(item);
  const image = el("img", { class: "picture", src: uri, alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(tile(item)), { once: true });
  return image;
}

function tile(item) {
  const path = item.category ?? [];
  const hue = hash(path[0] ?? item.title) % HUES;
  const lean = hash(path[1] ?? "") % LEANS;
  const shape = hash(item.item_id) % SHAPES;
  return el(
    "div",
    { class: `tile hue-${hue} lean-${lean} shape-${shape}`, "aria-hidden": "true" },
    el("span", { class: "monogram" }, initials(path[1] ?? path[0] ?? item.title)),
  );
}

function initials(words) {
  const letters = words.match(/[\p{L}\p{N}]+/gu) ?? ["?"];
  return letters.slice(0, 2).map((word) => [...word][0].toUpperCase()).join("");
}

/** FNV-1a: the same colour for the same name on every page and in every session. */
function hash(text) {
  let value = 0x811c9dc5;
  for (const character of text) value = Math.imul(value ^ character.codePointAt(0), 0x01000193);
  return (value ^ (value >>> 15)) >>> 0;
}

function reasons(list) {
  return el("ul", { class: "reasons", "aria-label": "Why this item" }, list.map(reason));
}

function reason({ part, weight, text }) {
  const fill = el("span", { class: "bar-fill" });
  fill.style.width = `${Math.min(Math.max(weight, 0), 1) * 100}%`;
  return el(
    "li",
    { class: "reason", "data-testid": "reason", "data-part": part },
    el("span", { class: "reason-part" }, PARTS[part] ?? part),
    el("span", { class: "reason-share" }, formatShare(weight)),
    el("span", { class: "bar", "aria-hidden": "true" }, fill),
    el("span", { class: "reason-text" }, text),
  );
}

/** Placeholders of a card's size, so that nothing moves when the items arrive. */
export function skeletons(count) {
  return Array.from({ length: count }, () =>
    el(
      "li",
      { class: "card skeleton", "aria-hidden": "true" },
      el("div", { class: "tile" }),
      el(
        "div",
        { class: "card-body" },
        ["short", "long", "medium", "short"].map((length) => el("span", { class: `line ${length}` })),
      ),
    ),
  );
}
