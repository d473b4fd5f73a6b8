/** Suggestions under the search box: the WAI-ARIA combobox with a list and manual selection. */

import { suggest } from "./api.js";
import { el } from "./dom.js";
import { formatCount } from "./format.js";

const DEBOUNCE_MS = 80;
const SHOWN = 8;

/** onChoose(text): a suggestion was taken. Returns {close}, which also drops an answer that is under way. */
export function suggestionBox(input, list, onChoose) {
  let timer;
  let running;
  let options = [];
  let active = -1;

  function close() {
    clearTimeout(timer);
    running?.abort();
    options = [];
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    activate(-1);
  }

  function activate(place) {
    active = place;
    options.forEach((option, i) => option.setAttribute("aria-selected", String(i === place)));
    if (place < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", options[place].id);
    options[place].scrollIntoView({ block: "nearest" });
  }

  function open(suggestions, typed) {
    options = suggestions.map((suggestion, i) => optionOf(suggestion, i, typed, take));
    list.replaceChildren(...options);
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    activate(-1);
  }

  function take(text) {
    close();
    onChoose(text);
  }

  async function ask() {
    const typed = input.value.trim();
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    try {
      const suggestions = await suggest(typed, SHOWN, { signal });
      if (signal.aborted) return; // a later key press is already asking
      if (suggestions.length && document.activeElement === input) open(suggestions, typed);
      else close();
    } catch {
      if (!signal.aborted) close(); // suggestions are a comfort: without them the box still searches
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    running?.abort();
    if (input.value.trim()) timer = setTimeout(ask, DEBOUNCE_MS);
    else close();
  });

  input.addEventListener("keydown", (event) => {
    if (event.isComposing || list.hidden) {
      if (event.key === "ArrowDown" && !event.isComposing && input.value.trim()) {
        event.preventDefault();
        ask();
      }
      return;
    }
    const steps = { ArrowDown: active + 1, ArrowUp: active < 0 ? options.length - 1 : active - 1 };
    if (event.key in steps) {
      event.preventDefault();
      const place = steps[event.key];
      activate(place >= options.length ? -1 : place); // past either end: back to the typed text
    } else if (event.key === "Enter" && active >= 0) {
      event.preventDefault();
      take(options[active].dataset.text);
    } else if (event.key === "Escape") {
      event.preventDefault(); // or a search field would empty itself
      close();
    }
  });

  input.addEventListener("blur", close);
  return { close };
}

function optionOf({ text, count }, place, typed, take) {
  return el(
    "li",
    {
      id: `suggestion-${place}`,
      class: "suggestion",
      role: "option",
      "aria-selected": "false",
      "data-testid": "suggestion",
      "data-text": text,
      onpointerdown: (event) => event.preventDefault(), // keep the focus, or `blur` closes before the click
      onclick: () => take(text),
    },
    el("span", { class: "suggestion-text" }, emphasised(text, typed)),
    count != null && el("span", { class: "count" }, formatCount(count)),
  );
}

/** What the suggestion adds stands out; what was typed already does not. */
function emphasised(text, typed) {
  const start = text.toLowerCase().indexOf(typed.toLowerCase());
  if (start < 0) return [text];
  const end = start + typed.length;
  return [el("b", {}, text.slice(0, start)), text.slice(start, end), el("b", {}, text.slice(end))];
}
