// The tries of a job, and when they were.

import { JobButtons } from "./actions.js";
import { call, every } from "./api.js";
import { Time, clock, count, span } from "./format.js";
import { html } from "./html.js";
import { Chip, Table, Trouble } from "./parts.js";
import { changed, now as time } from "./state.js";

/** The job with its tries, kept up to date. */
export function followAttempts(jobId) {
  const it = { jobId, job: null, attempts: [], error: null };
  const load = async () => {
    const { job, attempts } = await call("JobService/GetJob", { jobId });
    Object.assign(it, { job, attempts, error: null });
    changed();
  };
  const { now, end } = every(10_000, load, (error) => {
    it.error = error;
    changed();
  });
  return Object.assign(it, { now, end });
}

/** A timeline of a job's tries, newest first. */
export function Attempts({ of: { job, attempts, error }, then }) {
  if (!job) return html`<${Trouble} error=${error} />`;
  const ends = (it) => Date.parse(it.endTime ?? "") || time();
  const from = Math.min(...attempts.map((it) => Date.parse(it.startTime)));
  const whole = Math.max(...attempts.map(ends)) - from || 1;
  const place = (it) => [(100 * (Date.parse(it.startTime) - from)) / whole, (100 * (ends(it) - Date.parse(it.startTime))) / whole];
  const columns = [
    { name: "Outcome", cell: (it) => html`<${Chip} state=${it.outcome} prefix="ATTEMPT_OUTCOME_" />` },
    {
      name: "When",
      look: "timeline",
      cell: (it) => html`<svg class=${it.outcome} width="100%" height="14" role="img" aria-label=${`from ${clock(it.startTime)}, for ${span((ends(it) - Date.parse(it.startTime)) / 1000)}`}>
        <line x1="0" x2="100%" y1="7" y2="7" /><rect x=${`${Math.min(99, place(it)[0])}%`} y="2" height="10" rx="2" width=${`${Math.max(1, place(it)[1])}%`} /></svg>`,
    },
    { name: "Began", look: "time", cell: (it) => html`<${Time} at=${it.startTime} />` },
    { name: "Took", look: "number", cell: (it) => span((ends(it) - Date.parse(it.startTime)) / 1000) },
    { name: "Chunks", look: "number", cell: (it) => count(it.chunksDone) },
    { name: "Charged", look: "named", cell: (it) => (it.charged ? "yes" : "no") },
    { name: "Epoch", look: "number", cell: (it) => count(it.epoch) },
    { name: "Worker", look: "wide", cell: (it) => html`<span class="clip" title=${it.workerId}>${it.workerId}</span>` },
    { name: "Why", look: "grow error", cell: (it) => it.error },
  ];
  return html`<${Trouble} error=${error} />
    <div class="facts"><dl>
      <div><dt>Range</dt><dd><bdi>${job.firstItemId}</bdi> … <bdi>${job.lastItemId}</bdi></dd></div>
      <div><dt>Revision</dt><dd>${count(job.revision)}</dd></div>
      <div><dt>Queued</dt><dd><${Time} at=${job.createTime} /></dd></div>
      <div><dt>Ended</dt><dd><${Time} at=${job.finishTime} none="not yet" /></dd></div>
      </dl><${JobButtons} job=${job} only=${["force"]} then=${then} />
    </div>
    <${Table} caption=${`Tries of job ${job.jobId}, newest first`} columns=${columns} rows=${attempts} rowKey=${(it) => it.epoch}
      empty="No worker has claimed it yet." />`;
}
