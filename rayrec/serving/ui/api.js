/** The HTTP API: one function per endpoint, one kind of error, and patience when the server is busy. */

const TIMEOUT_MS = 20_000;
const BUSY_RETRIES = 2;
const LONGEST_WAIT_S = 15; // asked to wait longer than this, people decide for themselves

/** An answer that is not a result. status 0: there was no answer at all. */
export class ApiError extends Error {
  constructor(status, { code, message, hint, request_id: requestId } = {}, retryAfter = null) {
    super(message || `The server answered with status ${status}.`);
    Object.assign(this, { status, code: code ?? "unknown", hint: hint ?? null, requestId: requestId ?? null, retryAfter });
  }
}

export const fetchPage = (options) => call("GET", "/v1/page", null, options);
export const fetchItem = (id, options) => call("GET", `/v1/items/${encodeURIComponent(id)}`, null, options);
export const searchItems = (request, options) => call("POST", "/v1/search", request, options);
export const recommendItems = (request, options) => call("POST", "/v1/recommend", request, options);

export function similarItems(id, k, explain, options) {
  const query = new URLSearchParams({ k, ...(explain && { explain: true }) });
  return call("GET", `/v1/items/${encodeURIComponent(id)}/similar?${query}`, null, options);
}

export async function suggest(text, k, options) {
  const query = new URLSearchParams({ q: text, k });
  return (await call("GET", `/v1/suggest?${query}`, null, options)).suggestions;
}

/**
 * signal: gives the request up (rejects with AbortError). onBusy(seconds): called before each wait after a 429;
 * without it a 429 is an error at once.
 */
async function call(method, path, body, { signal, onBusy } = {}) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await callOnce(method, path, body, signal);
    } catch (error) {
      const patient = error.status === 429 && onBusy && attempt < BUSY_RETRIES && error.retryAfter <= LONGEST_WAIT_S;
      if (!patient) throw error;
      onBusy(error.retryAfter);
      await pause(error.retryAfter * 1000, signal);
    }
  }
}

async function callOnce(method, path, body, signal) {
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  try {
    const response = await fetch(path, {
      method,
      credentials: "same-origin",
      headers: body ? { "Content-Type": "application/json" } : {},
      body: body ? JSON.stringify(body) : undefined,
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    if (!response.ok) throw await errorOf(response);
    return await response.json();
  } catch (error) {
    if (error instanceof ApiError || signal?.aborted) throw error;
    throw new ApiError(0, unreachable(error));
  }
}

function unreachable(error) {
  if (error.name === "TimeoutError") {
    return { code: "timeout", message: "The shop took too long to answer.", hint: "try again in a moment" };
  }
  if (error.name === "SyntaxError") {
    return { code: "not_json", message: "The answer could not be read.", hint: "try again in a moment" };
  }
  return { code: "network", message: "The shop could not be reached.", hint: "check the connection, then try again" };
}

async function errorOf(response) {
  let details;
  try {
    details = (await response.json()).error;
  } catch {
    details = undefined; // a proxy in between may answer with something else
  }
  return new ApiError(response.status, details, secondsOf(response.headers.get("Retry-After")));
}

/** Retry-After is a number of seconds or a date. */
function secondsOf(header) {
  const seconds = Number(header ?? 1);
  if (!Number.isNaN(seconds)) return Math.max(seconds, 0);
  const date = Date.parse(header);
  return Number.isNaN(date) ? 1 : Math.max((date - Date.now()) / 1000, 0);
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
