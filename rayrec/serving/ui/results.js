/** The results column: loading, items, nothing, or an error. Each paint leaves no trace of the one before. */

import { card, skeletons } from "./cards.js";
import { appLink, byId, el, icon } from "./dom.js";
import { formatCount, formatTook, formatTotal } from "./format.js";
import { searchUrl } from "./state.js";

const results = byId("results");
const grid = byId("grid");
const notices = byId("notices");
const outcome = byId("outcome");
const more = byId("more");
const loading = byId("loading");
const SKELETONS = 12;

const TITLES = {
  0: "No answer",
  401: "Your session has expired",
  404: "Not found",
  429: "The shop is still busy",
  503: "The shop cannot answer right now",
};

/** keep: leave the items that are there, faded, rather than show placeholders. */
export function showLoading(keep) {
  setBusy(true);
  notices.replaceChildren();
  outcome.replaceChildren();
  if (keep && grid.children.length) return;
  grid.replaceChildren(...skeletons(SKELETONS));
  more.replaceChildren();
  byId("result-count").textContent = "";
  byId("took").textContent = "";
}

/** While the next page is on its way. */
export function showLoadingMore() {
  setBusy(true);
  more.querySelector("button")?.setAttribute("disabled", "");
}

export function showItems(answer, onMore) {
  grid.replaceChildren(...answer.hits.map(card));
  outcome.replaceChildren();
  paintFacts(answer, onMore);
  announce(formatTotal(answer.total, answer.total_is_exact));
}

/** answer: as it is with the new page; count: how many of its hits are new. */
export function showMoreItems(answer, count, onMore) {
  const fresh = answer.hits.slice(-count).map(card);
  grid.append(...fresh);
  paintFacts(answer, onMore);
  fresh[0]?.focus({ preventScroll: true }); // the button moved below them; reading goes on where they start
  announce(`${formatCount(count)} more, ${shownOf(answer)}`);
}

function paintFacts(answer, onMore) {
  setBusy(false);
  byId("result-count").textContent = formatTotal(answer.total, answer.total_is_exact);
  byId("took").textContent = formatTook(answer.took_ms);
  paintDegraded(answer.coverage);
  more.replaceChildren();
  if (!answer.cursor) return;
  more.append(
    el("button", { class: "button", type: "button", "data-testid": "load-more", onclick: onMore }, "Load more"),
    el("p", { class: "meta" }, shownOf(answer)),
  );
}

function shownOf({ hits, total, total_is_exact: isExact }) {
  return `${formatCount(hits.length)} of ${formatTotal(total, isExact)} shown`;
}

function paintDegraded(coverage) {
  notices.replaceChildren();
  if (!coverage?.degraded) return;
  const why = coverage.why ? `: ${coverage.why}` : "";
  notices.append(notice("degraded", "info", `Answered with reduced quality${why}.`));
}

export function showBusy(seconds) {
  const wait = Math.max(Math.ceil(seconds), 1);
  const text = `The shop is busy. Trying again in ${wait} ${wait === 1 ? "second" : "seconds"}.`;
  notices.replaceChildren(notice("busy", "info", text));
  announce(text);
}

function notice(testId, iconName, text) {
  return el("p", { class: "notice", "data-testid": testId }, icon(iconName), el("span", {}, text));
}

/** suggestions: a promise of texts to try instead. onClear: null if no filter is chosen. */
export function showEmpty(answer, { title, text, onClear, suggestions }) {
  grid.replaceChildren();
  paintFacts(answer, null);
  const ideas = el("div", { class: "ideas" });
  outcome.replaceChildren(
    el(
      "div",
      { class: "outcome", "data-testid": "empty" },
      icon("search"),
      el("h2", {}, title),
      el("p", {}, text),
      el(
        "div",
        { class: "actions" },
        onClear && el("button", { class: "button primary", type: "button", onclick: onClear }, "Clear filters"),
        appLink("/", { class: "button" }, "Browse everything"),
      ),
      ideas,
    ),
  );
  announce(title);
  suggestions.then((texts) => paintIdeas(ideas, texts));
}

function paintIdeas(root, texts) {
  if (!texts.length) return;
  root.replaceChildren(
    el("p", {}, "Try instead"),
    el("ul", {}, texts.map((text) => el("li", {}, appLink(searchUrl({ q: text }), { class: "chip" }, text)))),
  );
}

/** keep: the items that are there stay, and the error stands below them. */
export function showError(error, { keep, onRetry }) {
  setBusy(false);
  notices.replaceChildren();
  more.replaceChildren();
  if (!keep) {
    grid.replaceChildren();
    byId("result-count").textContent = "";
    byId("took").textContent = "";
  }
  const expired = error.status === 401;
  outcome.replaceChildren(
    el(
      "div",
      { class: "outcome", "data-testid": "error", role: "alert" },
      icon("alert"),
      el("h2", {}, TITLES[error.status] ?? "This did not work"),
      el("p", {}, error.message),
      error.hint && el("p", { class: "hint" }, sentence(error.hint)),
      el(
        "div",
        { class: "actions" },
        expired
          ? el("a", { class: "button primary", href: location.href, "data-testid": "reload" }, "Reload the page")
          : el("button", { class: "button primary", type: "button", "data-testid": "retry", onclick: onRetry }, "Retry"),
      ),
      error.requestId && el("p", { class: "request-id" }, "Request ", el("code", {}, error.requestId)),
    ),
  );
}

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);

function setBusy(busy) {
  results.setAttribute("aria-busy", String(busy));
  if (busy) document.querySelector(".progress-slot").append(loading);
  else loading.remove();
}

function announce(text) {
  byId("status").textContent = text;
}
