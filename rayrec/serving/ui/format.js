/** How numbers, prices and names of the API read on the page. */

const LOCALE = "en"; // the language of the page's own words
const number = new Intl.NumberFormat(LOCALE);
const percent = new Intl.NumberFormat(LOCALE, { style: "percent" });

export const SEPARATOR = " > ";

export const formatCount = (value) => number.format(value);
export const formatShare = (value) => percent.format(value);

export function formatPrice(cents, currency) {
  if (cents == null) return null;
  const amount = cents / 100;
  if (!currency) return new Intl.NumberFormat(LOCALE, { minimumFractionDigits: 2 }).format(amount);
  try {
    return new Intl.NumberFormat(LOCALE, { style: "currency", currency }).format(amount);
  } catch {
    return `${amount.toFixed(2)} ${currency}`; // not an ISO 4217 code
  }
}

/** A price range as people say it: the last price that is still inside, not the first that is not. */
export function formatRange({ gte, lt }, currency) {
  const low = gte == null ? null : formatPrice(gte, currency);
  const high = lt == null ? null : formatPrice(lt - 1, currency);
  if (low === null) return `up to ${high}`;
  if (high === null) return `${low} and more`;
  return low === high ? low : `${low} to ${high}`;
}

export function formatTotal(total, isExact) {
  const words = `${formatCount(total)} ${total === 1 && isExact ? "result" : "results"}`;
  return isExact ? words : `at least ${words}`;
}

export function formatTook(ms) {
  return ms < 1 ? "under 1 ms" : `${formatCount(Math.round(ms))} ms`;
}

const FIELDS = { category: "Category", brand: "Brand", price_cents: "Price", available: "Availability" };

/** The heading of a filter: "attributes.screen_size" is "Screen size". */
export function fieldName(field) {
  if (field in FIELDS) return FIELDS[field];
  const words = field.replace(/^attributes\./, "").replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export const leafOf = (path) => path.split(SEPARATOR).at(-1);
