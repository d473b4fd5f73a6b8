/** The filters next to the results, and the chips of what is chosen. */

import { el, icon, repaint } from "./dom.js";
import { fieldName, formatCount, formatRange, leafOf, SEPARATOR } from "./format.js";
import { chosenValues, isChosen, rangeKey, readRange } from "./state.js";

const SHORT_LIST = 8;
const TEST_IDS = { price_cents: "filter-price" };

// What was opened by hand outlives an answer: long lists shown in full, branches of the tree open or shut.
const shownInFull = new Set();
const branches = new Map();

/**
 * shown: {fields, facets, filters, total, currency}, as the last answer and the state have them.
 * onToggle(field, value as text).
 */
export function paintFilters(root, shown, onToggle) {
  const again = () => paintFilters(root, shown, onToggle);
  const groups = shown.fields.map((field) => group(field, shown, onToggle, again));
  repaint(root, groups);
}

function group(field, shown, onToggle, again) {
  const toggle = (value) => onToggle(field, value);
  const content = contentOf(field, shown, toggle, again);
  if (!content) return null;
  return el(
    "fieldset",
    { class: "filter", "data-testid": TEST_IDS[field] ?? `filter-${field}` },
    el("legend", {}, fieldName(field)),
    content,
  );
}

function contentOf(field, { facets, filters, total, currency }, toggle, again) {
  const facet = facets[field];
  const chosen = (value) => isChosen(filters, field, value);
  if (field === "available") {
    const count = facet?.find((entry) => entry.value === true)?.count ?? 0;
    return valueButton({ field, value: "true", name: "Available only", count, chosen: chosen("true"), toggle });
  }
  const isPrice = field === "price_cents";
  const entries = isPrice ? priceEntries(facet, filters, total, currency) : wordEntries(facet, filters[field]);
  if (!entries.length) return null;
  if (field === "category") return tree(entries, total, chosen, toggle, again);
  const items = entries.map((entry) => ({
    keep: chosen(entry.value),
    node: el("li", {}, valueButton({ ...entry, field, chosen: chosen(entry.value), toggle })),
  }));
  return shortList(field, "values", items, again);
}

/** The facet's values, and the chosen ones that it no longer counts. */
function wordEntries(facet = [], chosen = []) {
  const counted = facet.map(({ value, count }) => ({ value, name: value, count }));
  const known = new Set(counted.map((entry) => entry.value));
  const others = chosen.filter((value) => !known.has(value));
  return [...counted, ...others.map((value) => ({ value, name: value, count: null }))];
}

/** The ranges move with the results: one chosen before that is no longer among them still counts the total. */
function priceEntries(facet, { price_cents: chosen }, total, currency) {
  const entries = (facet?.ranges ?? []).map((range) => ({
    value: rangeKey(range),
    name: formatRange(range, currency),
    count: range.count,
    single: true,
  }));
  if (chosen && !entries.some((entry) => entry.value === rangeKey(chosen))) {
    entries.unshift({ value: rangeKey(chosen), name: formatRange(chosen, currency), count: total, single: true });
  }
  return entries;
}

function valueButton({ field, value, name, count, chosen, single, toggle }) {
  return el(
    "button",
    {
      class: single ? "value single" : "value",
      type: "button",
      "aria-pressed": String(chosen),
      "data-value": value,
      "data-key": `${field} ${value}`,
      onclick: () => toggle(value),
    },
    el("span", { class: "box", "aria-hidden": "true" }),
    el("span", { class: "value-name" }, name),
    el("span", { class: "count" }, count == null ? "" : formatCount(count)),
  );
}

/** items: [{node, keep}]; the first few, those to keep, and a button for the rest. */
function shortList(key, className, items, again) {
  const full = shownInFull.has(key) || items.length <= SHORT_LIST + 1;
  const shown = items.filter((item, i) => full || i < SHORT_LIST || item.keep);
  const list = el("ul", { class: className }, shown.map((item) => item.node));
  if (items.length <= SHORT_LIST + 1) return list;
  const rest = formatCount(items.length - SHORT_LIST);
  const flip = () => {
    if (!shownInFull.delete(key)) shownInFull.add(key);
    again();
  };
  const label = full ? "Show fewer" : `Show ${rest} more`;
  const more = {
    class: "link",
    type: "button",
    "aria-expanded": String(full),
    "data-key": `more ${key}`,
    onclick: flip,
  };
  list.append(el("li", {}, el("button", more, label)));
  return list;
}

// -- the tree of categories ---------------------------------------------------------------------

function tree(entries, total, chosen, toggle, again) {
  return level(rootsOf(entries), "category", { total, chosen, toggle, again });
}

/** Paths "A > B" as nested nodes; a parent that the facet left out is put in without a count. */
function rootsOf(entries) {
  const roots = [];
  const nodes = new Map();
  const nodeOf = (path) => {
    if (nodes.has(path)) return nodes.get(path);
    const node = { path, count: null, children: [] };
    nodes.set(path, node);
    const parent = path.split(SEPARATOR).slice(0, -1).join(SEPARATOR);
    (parent ? nodeOf(parent).children : roots).push(node);
    return node;
  };
  for (const { value, count } of entries) nodeOf(value).count = count;
  return roots;
}

function level(nodes, key, tools) {
  const items = nodes.map((node) => ({ keep: holdsChoice(node, tools.chosen), node: branch(node, tools) }));
  return shortList(key, "values tree", items, tools.again);
}

function branch(node, tools) {
  const { path, count, children } = node;
  const open = children.length > 0 && (branches.get(path) ?? opensByItself(node, tools));
  const name = leafOf(path);
  const { chosen, toggle } = tools;
  const value = valueButton({ field: "category", value: path, name, count, chosen: chosen(path), toggle });
  const flip = () => {
    branches.set(path, !open);
    tools.again();
  };
  const twist = {
    class: "twist",
    type: "button",
    "aria-expanded": String(open),
    "aria-label": `Categories in ${name}`,
    "data-key": `twist ${path}`,
    onclick: flip,
  };
  const gap = el("span", { class: "twist" });
  return el(
    "li",
    {},
    el("div", { class: "branch" }, children.length ? el("button", twist, icon("chevron")) : gap, value),
    open && level(children, path, tools),
  );
}

/** A branch shows its inside when something in it, or it, is chosen, or when most results are in it. */
function opensByItself(node, { total, chosen }) {
  return holdsChoice(node, chosen) || (total != null && node.count > total / 2);
}

function holdsChoice(node, chosen) {
  return chosen(node.path) || node.children.some((child) => holdsChoice(child, chosen));
}

// -- chips --------------------------------------------------------------------------------------

/** first: a chip that stands before those of filters, or null. */
export function paintChips(root, first, filters, currency, onRemove, onClear) {
  const chips = chosenValues(filters).map(([field, value]) => chip(field, value, currency, onRemove));
  const attributes = { class: "link", type: "button", "data-testid": "clear-filters", onclick: onClear };
  const clear = el("button", attributes, "Clear all");
  repaint(root, first, chips, chips.length > 0 && clear);
}

function chip(field, value, currency, onRemove) {
  return el(
    "button",
    {
      class: "chip",
      type: "button",
      title: field === "category" ? value : null,
      "aria-label": `Remove filter ${fieldName(field)}: ${chipText(field, value, currency)}`,
      "data-testid": "chip",
      "data-key": `chip ${field} ${value}`,
      onclick: () => onRemove(field, value),
    },
    el("span", {}, chipText(field, value, currency)),
    icon("close"),
  );
}

function chipText(field, value, currency) {
  if (field === "available") return "Available only";
  if (field === "price_cents") return formatRange(readRange(value), currency);
  return field === "category" ? leafOf(value) : value;
}

/** Grey lines where the filters will be, before the first answer. */
export function paintFilterSkeleton(root) {
  const line = (length) => el("span", { class: `line ${length}` });
  root.replaceChildren(
    ...["medium", "long", "medium", "long", "short", "medium", "long", "short"].map((length) =>
      el("div", { class: "skeleton skeleton-row", "aria-hidden": "true" }, line(length)),
    ),
  );
}
