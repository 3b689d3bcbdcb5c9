// The coordinator's calls, as JSON: those with one answer, and those that go on.

import { changed, learnTime } from "./state.js";
import { another, token } from "./token.js";

/** A call that was refused: `code` as gRPC names it, and why. */
export class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** Refusals that asking again does not change. */
const FINAL = new Set(["NOT_FOUND", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION"]);

/** Longest silence of a stream before it is taken for broken; it is kept alive every 15 s. */
const SILENCE_MS = 40_000;

/** How long a stream must have been open to count as live, unless it says something before. */
const SETTLED_MS = 1000;

/** Waits between tries to resume a stream, the last for all that follow. */
const WAITS_MS = [300, 1000, 2000, 4000];

/** Makes a call such as "JobService/GetJob", and returns its answer. */
export async function call(method, request = {}) {
  const headers = { "content-type": "application/json" };
  const response = await ask(`api/${method}`, { method: "POST", headers, body: JSON.stringify(request) });
  return response.json();
}

async function ask(url, options) {
  for (;;) {
    const sent = token();
    const headers = sent === null ? options.headers : { ...options.headers, authorization: `Bearer ${sent}` };
    const response = await reach(url, { ...options, headers, cache: "no-store", redirect: "error" });
    learnTime(response);
    if (response.ok) return response;
    const why = await refusal(response);
    if (response.status !== 401) throw why;
    await another(sent, why.message);
  }
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refusal("UNAVAILABLE", "the coordinator cannot be reached");
  }
}

async function refusal(response) {
  try {
    const { code, message, violations = [] } = await response.json();
    const faults = violations.map((it) => `${it.field}: ${it.message}`);
    return new Refusal(code, faults.join("; ") || message);
  } catch {
    return new Refusal("UNKNOWN", `the coordinator answered ${response.status}`);
  }
}

/** Streams that are open or ought to be. */
const streams = new Set();

/** Whether something that ought to be live is not. */
export function broken() {
  return [...streams].some((stream) => stream.broken);
}

/**
 * Follows a call such as "JobService/WatchSource" until the function that is
 * returned is called. `on.answer(answer, first)` has each answer, and whether
 * it is the first of its connection; `on.failed(refusal)` is called at most
 * once, when asking again would not help. A stream that breaks is resumed by
 * itself, with the cursor of what came last; while the tab is hidden it is
 * closed.
 */
export function watch(method, request, on) {
  const stream = { broken: false, tries: 0, cursor: "" };
  streams.add(stream);
  let abort = new AbortController();
  let ended = false;

  const end = () => {
    ended = true;
    streams.delete(stream);
    abort.abort();
    document.removeEventListener("visibilitychange", turned);
    changed();
  };
  const turned = () => abort.abort();
  document.addEventListener("visibilitychange", turned);

  (async () => {
    while (!ended) {
      abort = new AbortController();
      if (document.hidden) {
        await aborted(abort.signal);
        continue;
      }
      try {
        await follow(stream, method, request, on, abort);
      } catch (error) {
        if (error instanceof Refusal && FINAL.has(error.code)) {
          end();
          on.failed(error);
          return;
        }
      }
      if (ended || abort.signal.aborted && !stream.silent) continue;
      stream.broken = true;
      changed();
      const wait = WAITS_MS[Math.min(stream.tries++, WAITS_MS.length - 1)];
      await pause(wait * (0.75 + Math.random() / 2), abort);
    }
  })();
  return end;
}

async function follow(stream, method, request, on, abort) {
  const asked = stream.cursor ? { ...request, cursor: stream.cursor } : request;
  const url = `api/${method}?request=${encodeURIComponent(JSON.stringify(asked))}`;
  const headers = { accept: "text/event-stream" };
  stream.silent = false;
  let silence, settled;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => {
      stream.silent = true;
      abort.abort();
    }, SILENCE_MS);
  };
  const live = () => {
    stream.tries = 0;
    if (!stream.broken) return;
    stream.broken = false;
    changed();
  };
  try {
    const response = await ask(url, { headers, signal: abort.signal });
    let first = true;
    heard();
    // One that resumes has nothing to say until something changes.
    settled = setTimeout(live, SETTLED_MS);
    for await (const { type, data, id } of events(response.body, heard)) {
      const said = JSON.parse(data);
      if (type === "failed") throw new Refusal(said.code, said.message);
      if (type === "end") return;
      if (id) stream.cursor = id;
      live();
      on.answer(said, first);
      first = false;
    }
  } finally {
    clearTimeout(silence);
    clearTimeout(settled);
  }
}

/** Server-sent events. <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream> */
async function* events(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    yield* parts.map(event).filter((it) => it.data !== "");
  }
}

function event(text) {
  const event = { type: "message", data: "", id: "" };
  for (const line of text.split("\n")) {
    const [, name, value] = /^(\w*): ?(.*)$/.exec(line) ?? [];
    if (name === "event") event.type = value;
    if (name === "data") event.data += value;
    if (name === "id") event.id = value;
  }
  return event;
}

function aborted(signal) {
  return new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
}

function pause(ms, abort) {
  // What was aborted, for silence, waits all the same.
  const until = abort.signal.aborted ? new Promise(() => {}) : aborted(abort.signal);
  return Promise.race([until, new Promise((resolve) => setTimeout(resolve, ms))]);
}

/**
 * Calls `step` at once, then every `ms`, and soon after the function `now` that
 * is returned is called; never twice at once, and not while the tab is hidden.
 * What it throws goes to `failed`, but that the coordinator is away, which the
 * page says already.
 */
export function every(ms, step, failed = () => {}) {
  const SOON_MS = 400;
  let timer, running, again, ended;
  const arm = (wait) => {
    clearTimeout(timer);
    if (!ended) timer = setTimeout(run, wait);
  };
  const run = async () => {
    if (document.hidden) return;
    running = true;
    again = false;
    try {
      await step();
    } catch (error) {
      if (!ended && error.code !== "UNAVAILABLE") failed(error);
    }
    running = false;
    arm(again ? SOON_MS : ms);
  };
  const now = () => (running ? (again = true) : arm(SOON_MS));
  const turned = () => document.hidden || running || arm(0);
  document.addEventListener("visibilitychange", turned);
  run();
  const end = () => {
    ended = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", turned);
  };
  return { now, end };
}
