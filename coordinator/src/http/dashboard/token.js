// The token that calls carry where the coordinator asks for one. It is kept for
// this tab, and forgotten with it.

import { changed } from "./state.js";

const KEY = "weir-token";

let waiting = null;

/** The token, or null. */
export function token() {
  return sessionStorage.getItem(KEY);
}

/** Whether the page has to ask for a token; whether it had one that was refused, and why. */
export function wanted() {
  return waiting;
}

/** Waits for another token than the one that was refused, for this reason. */
export function another(refused, why) {
  if (token() !== refused) return Promise.resolve();
  if (!waiting) {
    waiting = { refused: refused !== null, why };
    waiting.promise = new Promise((resolve) => (waiting.resolve = resolve));
    changed();
  }
  return waiting.promise;
}

/** Takes the token that was asked for. */
export function give(text) {
  sessionStorage.setItem(KEY, text.trim());
  waiting?.resolve();
  waiting = null;
  changed();
}

/** Forgets the token, and begins anew. */
export function forget() {
  sessionStorage.removeItem(KEY);
  location.reload();
}
