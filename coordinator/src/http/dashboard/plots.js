// The last hour, drawn.

import { clock, count, rate, span } from "./format.js";
import { Component, html } from "./html.js";
import { now } from "./state.js";

const HOUR_MS = 3600_000;
/** The plane of a plot, which is stretched to its place. */
const [WIDTH, HEIGHT] = [360, 100];

/** What is plotted. */
const PLOTS = [
  {
    name: "Throughput",
    value: (point, seconds) => Number(point.chunksEmbedded) / seconds,
    says: (value) => `${rate(value)} chunks/s`,
    look: "busy",
  },
  { name: "Pending chunks", value: (point) => Number(point.chunksPending), says: count, look: "calm" },
  { name: "Age of the queue", value: (point) => point.oldestReadyAgeSeconds, says: span, look: "warn" },
];

/** Throughput, pending chunks and the age of the queue over the last hour. */
export function Plots({ activity }) {
  const { points, intervalSeconds } = activity;
  return html`<div class="plots">${PLOTS.map((plot) => html`<${Plot} key=${plot.name} plot=${plot} points=${points} interval=${intervalSeconds} />`)}</div>`;
}

class Plot extends Component {
  point = (event) => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    this.setState({ at: now() - HOUR_MS * (1 - (event.clientX - left) / width) });
  };

  leave = () => this.setState({ at: null });

  render({ plot, points, interval }, { at }) {
    const values = points.map((point) => ({ time: Date.parse(point.time), value: plot.value(point, interval) }));
    const top = Math.max(...values.map(({ value }) => value), 0);
    const last = nearest(values, now(), interval);
    const shown = at ? nearest(values, at, interval) : last;
    const says = shown ? plot.says(shown.value) : "–";
    const when = at && shown ? `at ${clock(shown.time)}` : "now";
    const whole = last ? `${plot.name} in the last hour: now ${plot.says(last.value)}, at most ${plot.says(top)}` : `${plot.name}: nothing is known of this moment`;
    return html`<figure class=${`plot ${plot.look}`}>
      <figcaption><span>${plot.name}</span><strong>${says}</strong><span class="muted">${when}</span></figcaption>
      <div class="plane" onPointerMove=${this.point} onPointerLeave=${this.leave}>
        <span class="most" aria-hidden="true">${top > 0 && plot.says(top)}</span>
        <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label=${whole}>
          ${pieces(values, interval).map((piece, key) => drawn(piece, top || 1, key))}
          ${at && shown && html`<line class="at" x1=${x(shown.time)} x2=${x(shown.time)} y1="0" y2=${HEIGHT} />`}
        </svg>
      </div>
      <div class="axis" aria-hidden="true"><span>60 min ago</span><span>30</span><span>now</span></div>
    </figure>`;
  }
}

function x(time) {
  return WIDTH * (1 - (now() - time) / HOUR_MS);
}

function nearest(values, time, interval) {
  const far = ({ time: its }) => Math.abs(its - time);
  const best = values.reduce((best, value) => (best && far(best) <= far(value) ? best : value), null);
  return best && far(best) <= 3000 * interval ? best : null;
}

/** The values, cut where nobody was there to count. */
function pieces(values, interval) {
  const pieces = [];
  for (const value of values) {
    const piece = pieces.at(-1);
    if (piece && value.time - piece.at(-1).time < 2500 * interval) piece.push(value);
    else pieces.push([value]);
  }
  return pieces;
}

function drawn(piece, top, key) {
  // A point is of the interval that it ends: one alone is to be seen, too.
  const points = piece.map(({ time, value }) => [x(time), HEIGHT - (HEIGHT - 2) * (value / top)]);
  if (points.length === 1) points.unshift([points[0][0] - 1, points[0][1]]);
  const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L");
  const [from, to] = [points[0][0], points.at(-1)[0]];
  return [
    html`<path class="area" key=${`area ${key}`} d=${`M${from},${HEIGHT}L${line}L${to},${HEIGHT}Z`} />`,
    html`<path class="line" key=${`line ${key}`} d=${`M${line}`} />`,
  ];
}
