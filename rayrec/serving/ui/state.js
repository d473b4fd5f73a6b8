/**
 * What the page shows, as a value: {view, q, photo, sort, filters, item, user}. It lives in the address, so that back,
 * forward, reload and a sent link all show the same; every function here returns a new state.
 */

import { SEPARATOR } from "./format.js";

export const SORTS = {
  relevance: "Best match",
  price_asc: "Price: low to high",
  price_desc: "Price: high to low",
  newest: "Newest",
  popular: "Most popular",
};
const VIEWS = ["search", "similar", "for-you"];
const WORD_FIELD = /^(category|brand|currency|attributes\..+)$/;
const RANGE = /^(\d*)-(\d*)$/;

export function readState(search) {
  const params = new URLSearchParams(search);
  const view = params.get("view");
  const sort = params.get("sort");
  return {
    view: VIEWS.includes(view) ? view : "search",
    q: params.get("q") ?? "",
    photo: params.get("photo"),
    sort: Object.hasOwn(SORTS, sort) ? sort : "relevance",
    filters: readFilters(params),
    item: params.get("item") ?? "",
    user: params.get("user"), // null: not said; "": nobody yet
  };
}

function readFilters(params) {
  const filters = {};
  for (const [field, value] of params) {
    if (WORD_FIELD.test(field)) filters[field] = [...(filters[field] ?? []), value];
    else if (field === "available" && value === "true") filters.available = true;
    else if (field === "price_cents") {
      const range = readRange(value);
      if (range) filters.price_cents = range;
    }
  }
  return filters;
}

export function readRange(text) {
  const [, low = "", high = ""] = RANGE.exec(text) ?? [];
  if (low === "" && high === "") return null;
  return { ...(low !== "" && { gte: Number(low) }), ...(high !== "" && { lt: Number(high) }) };
}

export const rangeKey = ({ gte, lt }) => `${gte ?? ""}-${lt ?? ""}`;

/** The address of a state, shortest form: what is as usual is left out. */
export function urlOf(state) {
  const params = new URLSearchParams();
  if (state.view !== "search") params.set("view", state.view);
  if (state.view === "similar") params.set("item", state.item);
  if (state.view === "for-you" && state.user !== null) params.set("user", state.user);
  if (state.view === "search") {
    if (state.q) params.set("q", state.q);
    if (state.user) params.set("user", state.user);
    if (state.photo) params.set("photo", state.photo);
    if (state.sort !== "relevance") params.set("sort", state.sort);
    for (const [field, value] of chosenValues(state.filters)) params.append(field, value);
  }
  const query = params.toString();
  return query ? `/?${query}` : "/";
}

export const similarUrl = (item) => urlOf({ view: "similar", item });
export const forYouUrl = (user) => urlOf({ view: "for-you", user });
export const searchUrl = (changes) => urlOf({ view: "search", q: "", sort: "relevance", filters: {}, ...changes });

/** [field, value as text] of every chosen filter value, in the order they were chosen. */
export function chosenValues(filters) {
  return Object.entries(filters).flatMap(([field, wanted]) => {
    if (field === "price_cents") return [[field, rangeKey(wanted)]];
    return [wanted].flat().map((value) => [field, String(value)]);
  });
}

export function isChosen(filters, field, value) {
  return chosenValues(filters).some(([f, v]) => f === field && v === value);
}

/** Filters with `value` (as text) of `field` chosen, or no longer chosen. */
export function toggled(filters, field, value) {
  const { [field]: before, ...others } = filters;
  const on = !isChosen(filters, field, value);
  if (field === "available") return on ? { ...others, available: true } : others;
  if (field === "price_cents") return on ? { ...others, price_cents: readRange(value) } : others;
  const values = on ? [...unrelated(field, before ?? [], value), value] : before.filter((v) => v !== value);
  return values.length ? { ...others, [field]: values } : others;
}

/** A category and one inside it never both stay: the newer choice narrows or widens the older one. */
function unrelated(field, values, value) {
  if (field !== "category") return values;
  const inside = (path, root) => path.startsWith(root + SEPARATOR);
  return values.filter((other) => !inside(other, value) && !inside(value, other));
}

/** What the tab remembers next to its address. A browser may refuse; then it forgets. */
export const memory = {
  get(key) {
    try {
      return sessionStorage.getItem(`rayrec.${key}`);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      sessionStorage.setItem(`rayrec.${key}`, value);
    } catch {
      return;
    }
  },
};
