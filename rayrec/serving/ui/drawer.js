/** On narrow screens the filters are a drawer over the page; on wide ones they stand beside the results. */

import { byId } from "./dom.js";

const narrow = matchMedia("(max-width: 819px)"); // as in filters.css

export function setUpDrawer() {
  const panel = byId("filters");
  const toggle = byId("filters-toggle");
  const behind = [byId("top"), byId("results")];

  function setOpen(open) {
    document.body.classList.toggle("filters-open", open);
    toggle.setAttribute("aria-expanded", String(open));
    for (const part of behind) part.inert = open; // Tab stays inside the drawer
    for (const [name, value] of [["role", "dialog"], ["aria-modal", "true"]]) {
      if (open) panel.setAttribute(name, value);
      else panel.removeAttribute(name);
    }
  }

  function close() {
    if (!document.body.classList.contains("filters-open")) return;
    setOpen(false);
    toggle.focus();
  }

  toggle.addEventListener("click", () => {
    setOpen(true);
    byId("filters-close").focus();
  });
  byId("filters-close").addEventListener("click", close);
  byId("filters-done").addEventListener("click", close);
  panel.addEventListener("keydown", (event) => event.key === "Escape" && close());
  narrow.addEventListener("change", () => setOpen(false));
  addEventListener("popstate", () => setOpen(false));
}
