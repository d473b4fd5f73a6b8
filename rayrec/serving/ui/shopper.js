/** Who "For you" is for: one of the shop's shoppers, any other id, or nobody yet. */

import { el } from "./dom.js";

/** onPick(id): "" for nobody yet. */
export function shopperForm(shoppers, user, onPick) {
  const known = user && !shoppers.includes(user) ? [user, ...shoppers] : shoppers;
  const select = el(
    "select",
    { id: "shopper-select", "data-testid": "shopper-select", "data-key": "shopper", onchange: () => onPick(select.value) },
    el("option", { value: "" }, "Nobody yet: a new visitor"),
    known.map((id) => el("option", { value: id }, `Shopper ${id}`)),
  );
  select.value = user;
  const input = el("input", {
    id: "shopper-input",
    "data-testid": "shopper-input",
    "data-key": "shopper id",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "Any shopper id",
    enterkeyhint: "go",
  });
  const submit = (event) => {
    event.preventDefault();
    if (input.value.trim()) onPick(input.value.trim());
  };
  return el(
    "form",
    { class: "shopper", "aria-label": "Shopper", onsubmit: submit },
    el("label", { class: "field", for: "shopper-select" }, el("span", {}, "Shop as"), select),
    el("label", { class: "field", for: "shopper-input" }, el("span", {}, "or enter an id"), input),
    el("button", { class: "button", type: "submit" }, "Show"),
  );
}
