/** The page: keeps address, controls and results in step. */

import { ApiError, fetchPage } from "./api.js";
import { suggestionBox } from "./combobox.js";
import { byId, el, repaint } from "./dom.js";
import { setUpDrawer } from "./drawer.js";
import { paintChips, paintFilters, paintFilterSkeleton } from "./filters.js";
import { formatCount, formatTotal } from "./format.js";
import { photoChip, photoOf, setUpPhotos, takePhoto } from "./photo.js";
import * as results from "./results.js";
import { chosenValues, forYouUrl, memory, readState, searchUrl, SORTS, toggled, urlOf } from "./state.js";
import { emptyText, headingOf, ideasFor, introOf, loadNextPage, loadView } from "./views.js";

const REMEMBERED_ANSWERS = 20;
const UNKNOWN_SHOP = { name: "rayrec", facets: [], shoppers: [], photo_search: false };
let shop = UNKNOWN_SHOP; // until /v1/page has answered
let state;
let answer = null; // all pages of what is shown
let counted = { facets: {}, total: null }; // by the last search, also while the next one runs
let introduced = ""; // what the intro was last painted for
let currency = null; // facets and chips have prices, but only items say in which currency
let running = new AbortController();
let lastSearch = "/";
let explain = memory.get("explain") === "true";
const answers = new Map(); // by address, so that going back shows the same pages at the same place
const input = byId("search-input");
const box = suggestionBox(input, byId("suggestions"), search);

// -- going somewhere ----------------------------------------------------------------------------

/** Go to an address of this page; the entry before it stays one step back. */
function visit(url) {
  const before = state.view;
  if (url !== currentUrl()) history.pushState({ inside: true }, "", url);
  readAddress();
  scrollTo({ top: 0, behavior: "instant" });
  show();
  if (state.view !== before) byId("heading").focus({ preventScroll: true });
}

/** The box shows the query of the address; later paints leave it alone, for somebody may be typing. */
function readAddress() {
  state = readState(location.search);
  if (state.photo && !photoOf(state.photo)) forgetPhoto();
  box.close();
  input.value = state.view === "search" ? state.q : "";
}

const currentUrl = () => location.pathname + location.search;

/** From another view a search starts anew: the filters it would bring along are not in sight there. */
function search(query) {
  if (matchMedia("(pointer: coarse)").matches) input.blur(); // puts the on-screen keyboard away
  visit(state.view === "search" ? urlOf({ ...state, q: query }) : searchUrl({ q: query }));
}

const refine = (filters) => visit(urlOf({ ...state, filters }));
const toggleFilter = (field, value) => refine(toggled(state.filters, field, value));
const clearFilters = () => refine({});

/** The words in the box go along with the photo, sent or not. */
async function searchByPhoto(file) {
  try {
    const changes = { q: input.value.trim(), photo: await takePhoto(file) };
    visit(state.view === "search" ? urlOf({ ...state, ...changes }) : searchUrl(changes));
  } catch {
    const what = { message: "Your browser cannot read this file as a picture.", hint: "try a JPEG, PNG or WebP" };
    results.showError(new ApiError(0, what), { keep: true, onRetry: () => byId("photo-button").click() });
  }
}

function removePhoto() {
  visit(urlOf({ ...state, photo: null }));
  byId("photo-button").focus({ preventScroll: true });
}

/** An address from another tab names a photo that is not here. */
function forgetPhoto() {
  state = { ...state, photo: null };
  history.replaceState(history.state, "", urlOf(state));
}

function pickShopper(user) {
  memory.set("shopper", user);
  visit(forYouUrl(user));
}

function goBack(event) {
  if (!history.state?.inside || !isPlainClick(event)) return;
  event.preventDefault();
  history.back();
}

function onPopState() {
  const left = state;
  readAddress();
  const known = answers.get(answerKey());
  if (!known) return show();
  startOver();
  answer = known;
  paintControls();
  paintAnswer();
  if (left.view === "similar") focusSimilar(left.item);
}

/** Back from an item's similar ones, the keyboard is where it left. */
function focusSimilar(item) {
  const link = document.querySelector(`[data-key="similar ${CSS.escape(item)}"]`);
  link?.focus({ preventScroll: true });
}

// -- asking -------------------------------------------------------------------------------------

/** Drop whatever is under way; the signal of what comes next. */
function startOver() {
  running.abort();
  running = new AbortController();
  return running.signal;
}

/** Ask for what the state says and show it. */
async function show() {
  const signal = startOver();
  const keep = answer !== null && answer.view === state.view && state.view !== "similar";
  resolveShopper();
  if (!keep) answer = null;
  paintControls();
  results.showLoading(keep);
  try {
    if (shop === UNKNOWN_SHOP) await meetShop(signal);
    const loaded = await loadView(state, shop.facets, explain, { signal, onBusy: results.showBusy });
    if (signal.aborted) return;
    answer = { ...loaded, view: state.view };
    remember();
    paintControls();
    paintAnswer();
  } catch (error) {
    if (signal.aborted) return;
    answer = null;
    paintControls();
    for (const placeholder of document.querySelectorAll(".skeleton")) placeholder.remove(); // nothing is on its way
    results.showError(asApiError(error), { keep: false, onRetry: show });
  }
}

async function meetShop(signal) {
  shop = await fetchPage({ signal, onBusy: results.showBusy });
  paintControls();
}

async function showMore() {
  const { signal } = running;
  results.showLoadingMore();
  try {
    const next = await loadNextPage(state, answer.cursor, explain, { signal, onBusy: results.showBusy });
    if (signal.aborted) return;
    answer = { ...answer, ...next, facets: answer.facets, hits: [...answer.hits, ...next.hits] };
    remember();
    results.showMoreItems(answer, next.hits.length, showMore);
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 409) return show(); // another index answers now: its first page
    results.showError(asApiError(error), { keep: true, onRetry: retryMore });
  }
}

function retryMore() {
  byId("outcome").replaceChildren();
  showMore();
}

/** A fault of this page is shown like any other, and stays visible in the console. */
function asApiError(error) {
  if (error instanceof ApiError) return error;
  console.error(error);
  return new ApiError(0, { code: "page", message: "The page could not show the answer.", hint: "reload the page" });
}

/** An address that names no shopper means the one picked before, if any. */
function resolveShopper() {
  if (state.view === "similar" || state.user !== null) return;
  state = { ...state, user: memory.get("shopper") ?? "" };
  history.replaceState(history.state, "", urlOf(state));
}

const answerKey = () => `${currentUrl()} ${explain}`;

function remember() {
  answers.delete(answerKey());
  answers.set(answerKey(), answer);
  if (answers.size > REMEMBERED_ANSWERS) answers.delete(answers.keys().next().value);
}

// -- painting -----------------------------------------------------------------------------------

function paintControls() {
  const searching = state.view === "search";
  if (searching) lastSearch = currentUrl();
  if (answer?.view === "search") counted = answer;
  currency = answer?.hits.find((hit) => hit.item.currency)?.item.currency ?? currency;
  document.body.dataset.view = state.view;
  byId("photo-button").hidden = !shop.photo_search;
  byId("sort").value = state.sort;
  byId("explain-toggle").setAttribute("aria-checked", String(explain));
  paintTabs();
  paintHeading();
  const photo = searching && state.photo ? photoChip(state.photo, removePhoto) : null;
  paintChips(byId("chips"), photo, searching ? state.filters : {}, currency, toggleFilter, clearFilters);
  paintChosenCount(chosenValues(state.filters).length);
  const { facets, total } = counted;
  const shown = { fields: shop.facets, facets, filters: state.filters, total, currency };
  if (Object.keys(facets).length) paintFilters(byId("filter-groups"), shown, toggleFilter);
  else paintFilterSkeleton(byId("filter-groups"));
}

function paintTabs() {
  byId("search-tab").href = lastSearch;
  byId("for-you-tab").href = forYouUrl(memory.get("shopper"));
  for (const [id, view] of [["search-tab", "search"], ["for-you-tab", "for-you"]]) {
    if (state.view === view) byId(id).setAttribute("aria-current", "page");
    else byId(id).removeAttribute("aria-current");
  }
}

function paintHeading() {
  const heading = headingOf(state, answer?.seed);
  byId("heading").textContent = heading;
  byId("shop-name").textContent = shop.name;
  document.title = `${heading} · ${shop.name}`;
  paintIntro();
}

/** Only when it changes: a half typed shopper id survives the answer to the one before. */
function paintIntro() {
  const seed = answer?.seed;
  const wanted = JSON.stringify([state.view, state.item, state.user, shop.shoppers, seed]);
  if (wanted === introduced) return;
  introduced = wanted;
  const before = { url: lastSearch, onBack: goBack };
  repaint(byId("intro"), introOf(state, seed, { shoppers: shop.shoppers, onPick: pickShopper, before }));
}

function paintChosenCount(count) {
  byId("filters-chosen").textContent = formatCount(count);
  byId("filters-chosen").hidden = count === 0;
}

function paintAnswer() {
  byId("filters-done").textContent = `Show ${formatTotal(answer.total, answer.total_is_exact)}`;
  if (answer.hits.length) return results.showItems(answer, showMore);
  const onClear = Object.keys(state.filters).length ? clearFilters : null;
  results.showEmpty(answer, { ...emptyText(state), onClear, suggestions: ideasFor(state) });
}

// -- listening ----------------------------------------------------------------------------------

/** A click that opens a new tab or window, or that something else has dealt with, is not ours. */
const isPlainClick = (event) =>
  !(event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);

function followLink(event) {
  const link = event.target.closest("a[data-app]");
  if (!link || !isPlainClick(event)) return;
  event.preventDefault();
  visit(link.getAttribute("href"));
}

function focusSearch(event) {
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  input.focus();
  input.select();
}

function skipToResults(event) {
  event.preventDefault(); // the address stays free of a fragment
  byId("results").focus();
}

function toggleExplain() {
  explain = !explain;
  memory.set("explain", String(explain));
  show();
}

byId("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  search(input.value.trim());
});
byId("sort").addEventListener("change", (event) => visit(urlOf({ ...state, sort: event.target.value })));
byId("explain-toggle").addEventListener("click", toggleExplain);
byId("skip").addEventListener("click", skipToResults);
document.addEventListener("click", followLink);
document.addEventListener("keydown", focusSearch);
addEventListener("popstate", onPopState);
setUpDrawer();
setUpPhotos(searchByPhoto);

for (const [value, label] of Object.entries(SORTS)) byId("sort").append(el("option", { value }, label));
readAddress();
show();
