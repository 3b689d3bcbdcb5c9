// What the whole page shares: when to draw, what to say, and what time it is
// where the coordinator runs.

let draw = () => {};
let due = false;

/** Has `drawing` called whenever something was changed. */
export function drawWith(drawing) {
  draw = drawing;
}

/** Something was changed: draws once before the next frame. */
export function changed() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
  });
}

let skew = 0;

/** Learns from an answer's Date, which counts whole seconds, how far the clocks are apart. */
export function learnTime(response) {
  const theirs = Date.parse(response.headers.get("date") ?? "");
  const apart = theirs - Date.now();
  if (!Number.isNaN(apart)) skew = Math.abs(apart) > 2000 ? apart : 0;
}

/** The coordinator's time, in milliseconds. */
export function now() {
  return Date.now() + skew;
}

/** What the page has to say about actions, oldest first. */
export const notices = [];
const STAYS_MS = 8000;
let nextKey = 0;

/** Says something for a while, and returns it, to be changed or said at an end. */
export function say(text, look = "calm") {
  const notice = { key: nextKey++, text, look };
  notices.push(notice);
  if (notices.length > 4) notices.shift();
  changed();
  return notice;
}

/** Has a notice say its last, and go after a while. */
export function close(notice, text = notice.text, look = notice.look) {
  Object.assign(notice, { text, look });
  changed();
  setTimeout(() => hush(notice), STAYS_MS);
}

/** Takes a notice away. */
export function hush(notice) {
  const at = notices.indexOf(notice);
  if (at >= 0) notices.splice(at, 1);
  changed();
}
