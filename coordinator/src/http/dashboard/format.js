// Numbers and times in words.

import { html } from "./html.js";
import { now } from "./state.js";

const NUMBERS = new Intl.NumberFormat("en");
const RATES = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "medium" });

/** A count; 64-bit numbers come as strings. */
export function count(number) {
  return NUMBERS.format(Number(number));
}

/** A count with its noun: "1 job", "2 jobs". */
export function counted(number, noun) {
  return `${count(number)} ${noun}${Number(number) === 1 ? "" : "s"}`;
}

/** A rate or a measure, to three digits. */
export function rate(number) {
  return RATES.format(number);
}

/** A time span in its largest one or two units. */
export function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [d, h, m, s] = [whole / 86400, (whole % 86400) / 3600, (whole % 3600) / 60, whole % 60].map(Math.floor);
  if (d > 0) return h > 0 ? `${d} d ${h} h` : `${d} d`;
  if (h > 0) return m > 0 ? `${h} h ${m} min` : `${h} h`;
  if (m > 0) return s > 0 && m < 10 ? `${m} min ${s} s` : `${m} min`;
  return `${s} s`;
}

/** A name of the contract in words: "JOB_STATE_QUEUED" without "JOB_STATE_" is "queued". */
export function word(name, prefix) {
  return (name ?? "").replace(prefix, "").replaceAll("_", " ").toLowerCase();
}

/** The time of day, with the date where it is not of today. */
export function clock(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date(now()).toDateString();
  return (today ? CLOCK : DAY).format(date);
}

/** How far a time is away, in words: "12 s ago", "in 3 min". */
export function away(time) {
  const seconds = (Date.parse(time) - now()) / 1000;
  if (seconds >= 0.5) return `in ${span(Math.ceil(seconds))}`;
  return seconds > -2 ? "now" : `${span(-seconds)} ago`;
}

/** When something is due that waits for its time. */
export function due(time) {
  return Date.parse(time) > now() ? `${away(time)}, at ${clock(time)}` : "as soon as a worker takes it";
}

/** When it goes on with a source, by its badge: what failed is queued again, all else runs. */
export function goesOn({ state, nextRunTime }) {
  if (!nextRunTime) return "";
  return `${state === "BADGE_STATE_FAILED" ? "queued again" : "next run"} ${due(nextRunTime)}`;
}

/** A count that is quiet while it is nothing. */
export function Tally({ of, look = "" }) {
  return html`<span class=${Number(of) ? look : "muted"}>${count(of)}</span>`;
}

/** When something is due, short. */
export function Due({ at }) {
  return Date.parse(at) > now() ? html`<${Time} at=${at} />` : "now";
}

/** A time and how far it is away; `none` where there is none. */
export function Time({ at, none }) {
  if (!at) return none ? html`<span class="muted">${none}</span>` : null;
  return html`<time datetime=${at} title=${DAY.format(new Date(at))}>${away(at)}</time>`;
}
