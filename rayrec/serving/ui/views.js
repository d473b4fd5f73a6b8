/** What each view asks the API for, and how it introduces itself. */

import { fetchItem, recommendItems, searchItems, similarItems, suggest } from "./api.js";
import { seedPanel } from "./cards.js";
import { appLink, el, icon } from "./dom.js";
import { photoOf } from "./photo.js";
import { shopperForm } from "./shopper.js";

const PAGE_SIZE = 24;
const IDEAS = 6;

/** The answer of the API, first page; with `seed`, the item, for similar ones. */
export async function loadView(state, facets, explain, options) {
  if (state.view === "similar") {
    const [answer, { item }] = await Promise.all([
      similarItems(state.item, PAGE_SIZE, explain, options),
      fetchItem(state.item, options),
    ]);
    return { ...answer, seed: item };
  }
  if (state.view === "for-you") {
    const shopper = state.user ? { user_id: state.user } : {};
    return recommendItems({ ...shopper, k: PAGE_SIZE, explain }, options);
  }
  return searchItems({ ...searchRequest(state, explain), facets }, options);
}

/** Facets do not change from page to page: only the first one asks for them. */
export function loadNextPage(state, cursor, explain, options) {
  return searchItems({ ...searchRequest(state, explain), cursor }, options);
}

function searchRequest({ q, photo, filters, sort, user }, explain) {
  const image = photo ? { image: photoOf(photo) } : {};
  const shopper = user ? { user_id: user } : {};
  return { query: q, ...image, ...shopper, filters, sort, page_size: PAGE_SIZE, explain };
}

export function headingOf(state, seed) {
  if (state.view === "similar") return seed ? `Similar to ${seed.title}` : "Similar items";
  if (state.view === "for-you") return state.user ? `For shopper ${state.user}` : "Popular now";
  if (!state.q) return state.photo ? "Items like your photo" : "All items";
  const shopper = state.user ? ` for shopper ${state.user}` : "";
  return state.photo ? `Results for “${state.q}” and your photo${shopper}` : `Results for “${state.q}”${shopper}`;
}

/** What stands above the heading. before: {url, onBack} of the way back from similar items. */
export function introOf(state, seed, { shoppers, onPick, before }) {
  if (state.view === "for-you") return [shopperForm(shoppers, state.user ?? "", onPick)];
  if (state.view !== "similar") return [];
  const attributes = { class: "back", "data-testid": "back", "data-key": "back", onclick: before.onBack };
  return [appLink(before.url, attributes, icon("back"), "Back"), seed ? seedPanel(seed) : seedSkeleton()];
}

function seedSkeleton() {
  return el("div", { class: "seed skeleton", "aria-hidden": "true" }, el("div", { class: "tile" }));
}

export function emptyText(state) {
  if (state.view === "similar") return { title: "Nothing similar", text: "No other item comes close to this one." };
  if (state.view === "for-you") return { title: "Nothing to recommend", text: "The shop has no item to show yet." };
  const title = state.q ? `No results for “${state.q}”` : "No results";
  const filtered = Object.keys(state.filters).length > 0;
  if (filtered) return { title, text: "No item passes all chosen filters." };
  if (state.photo) return { title, text: "Try another photo, or other words." };
  return { title, text: "Check the spelling, or try fewer or more general words." };
}

/** Texts to search instead: what the whole query, its first word or that word's beginning suggests. */
export async function ideasFor({ view, q }) {
  if (view !== "search") return [];
  const [first = ""] = q.trim().split(/\s+/);
  for (const text of new Set([q.trim(), first, first.slice(0, 3)])) {
    if (!text) continue;
    const found = await suggest(text, IDEAS).catch(() => []);
    const others = found.map((entry) => entry.text).filter((other) => other.toLowerCase() !== q.trim().toLowerCase());
    if (others.length) return others;
  }
  return [];
}
