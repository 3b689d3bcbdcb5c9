// One source: its counts, its jobs with their tries, and the chunks that were
// rejected or truncated. Follows the source live.

import { DeleteButton, JobButtons, RetrySourceButton } from "./actions.js";
import { Attempts, followAttempts } from "./attempts.js";
import { call, every, watch } from "./api.js";
import { Due, Time, count, goesOn, word } from "./format.js";
import { Chunks, followChunks } from "./chunks.js";
import { html } from "./html.js";
import { Badge, Bar, Chip, Table, Trouble, badgeLook } from "./parts.js";
import { to, toSource } from "./route.js";
import { changed } from "./state.js";

/** Jobs of the past on the page at first, and more with each press. */
const PAGE = 20;

/** The source with its unsettled jobs, live; `news` is told whether a job was claimed, handed back or ended. */
function followSource(key, news) {
  const it = { source: null, jobs: new Map(), error: null };
  it.end = watch("JobService/WatchSource", key, {
    answer({ source, jobs, ended }) {
      const before = it.jobs;
      const moved = (job) => before.get(job.jobId)?.state !== job.state || before.get(job.jobId).epoch !== job.epoch;
      Object.assign(it, { source, jobs: new Map(jobs.map((job) => [job.jobId, job])), error: null });
      news(ended.length > 0 || jobs.some(moved));
      changed();
    },
    failed(error) {
      it.error = error;
      changed();
    },
  });
  return it;
}

/** The source's jobs, newest first, those of the past with them. */
function followHistory({ namespace, name }) {
  const list = { jobs: [], next: "", error: null };
  let size = PAGE;
  const load = async () => {
    const answer = await call("JobService/ListJobs", { namespace, source: name, pageSize: size });
    Object.assign(list, { jobs: answer.jobs, next: size < 1000 && answer.nextPageToken, error: null });
    changed();
  };
  const { now, end } = every(30_000, load, (error) => {
    list.error = error;
    changed();
  });
  const more = () => {
    size = Math.min(1000, size + 5 * PAGE);
    now();
  };
  return Object.assign(list, { now, end, more });
}

/** The page of the source that the address names, and of one of its jobs. */
export function sourcePage({ parts: [, namespace = "", name = "", openId] }) {
  const key = { namespace, name };
  const rejected = followChunks(key, "CHUNK_STATE_REJECTED");
  const truncated = followChunks(key, "CHUNK_STATE_TRUNCATED");
  const history = followHistory(key);
  let attempts;
  const show = (jobId) => {
    attempts?.end();
    attempts = jobId && followAttempts(jobId);
  };
  const live = followSource(key, (moved) => {
    if (moved) {
      history.now();
      attempts?.now();
    }
    rejected.of(live.source.chunksRejected);
    truncated.of(live.source.chunksTruncated);
  });
  show(openId);
  return {
    title: name,
    go({ parts }) {
      if (parts[1] !== namespace || parts[2] !== name) return false;
      show(parts[3]);
      return true;
    },
    end() {
      show(undefined);
      for (const part of [live, history]) part.end();
    },
    view(status) {
      const { source, error } = live;
      const trace = status?.traceUrlTemplate ?? "";
      return html`<${Head} name=${key} source=${source} gone=${error?.code === "NOT_FOUND"} />
        <${Trouble} error=${error?.code === "NOT_FOUND" ? null : error} />
        ${source && !error && html`
          <section aria-labelledby="jobs"><div class="heading"><h2 id="jobs">Jobs</h2></div>
            <${Jobs} name=${key} live=${live} history=${history} attempts=${attempts} trace=${trace} /></section>
          <${Chunks} list=${rejected} title="Rejected chunks" says="Why" total=${source.chunksRejected} />
          <${Chunks} list=${truncated} title="Truncated chunks" says="Its vector is of" total=${source.chunksTruncated} />`}`;
    },
  };
}

/** What the source is called stays the same element while all else comes and goes: the focus may be on it. */
function Head({ name, source, gone }) {
  const { badge } = source ?? {};
  return html`<nav class="crumbs" aria-label="Where this is"><a href=${to([])}>Sources</a> / <a href=${to([], { namespace: name.namespace })}>${name.namespace}</a></nav>
    <section class="card source" aria-labelledby="title">
      <div class="heading"><h1 id="title" tabindex="-1">${name.name}</h1>
        ${badge && !gone && html`<${Badge} badge=${badge} />
        <div class="end buttons"><${RetrySourceButton} source=${source} />
          <${DeleteButton} source=${source} then=${() => (location.hash = to([]))} /></div>`}</div>
      ${gone ? html`<p class="muted">There is no such source, or no longer.</p>` : source && html`<${Facts} source=${source} />`}
    </section>`;
}

function Facts({ source }) {
  const { badge } = source;
  const figures = [
    ["Items", source.items],
    ["Chunks", source.chunks],
    ["Embedded", source.chunksEmbedded],
    ["Rejected", source.chunksRejected],
    ["Truncated", source.chunksTruncated],
    ["Revision", source.revision],
  ];
  return html`<p class="muted">${source.model} · changed <${Time} at=${source.updateTime} /> · put first <${Time} at=${source.createTime} /></p>
    <${Bar} done=${badge.done} rejected=${badge.rejected} total=${badge.total} state=${badge.state} />
    <dl class="figures">${figures.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${count(value)}</dd></div>`)}</dl>
    ${badge.lastError && html`<div class=${`trouble ${badgeLook(badge)}`}><p>${badge.lastError}</p>
      ${badge.nextRunTime && html`<p class="sentence">${goesOn(badge)}</p>`}</div>`}`;
}

/** Jobs as they are now, newest first: those that are followed live before what was listed. */
function merged(live, history) {
  const jobs = new Map(history.jobs.map((job) => [job.jobId, job]));
  for (const [id, job] of live.jobs) jobs.set(id, job);
  return [...jobs.values()].sort((a, b) => Number(b.jobId) - Number(a.jobId));
}

function troubleOf({ workerId, lastError }) {
  const says = workerId || lastError;
  return says && html`<div class=${workerId ? "muted clip" : "clip"} title=${says}>${says}</div>`;
}

function Jobs({ name, live, history, attempts, trace }) {
  const openId = attempts?.jobId;
  const unsettled = (job) => live.jobs.has(job.jobId);
  const waits = (job) => unsettled(job) && (job.state === "JOB_STATE_QUEUED" || job.state === "JOB_STATE_FAILED");
  const then = () => {
    history.now();
    attempts?.now();
  };
  const columns = [
    {
      name: "Job",
      look: "named",
      cell: ({ jobId }) => html`<a href=${jobId === openId ? toSource(name) : toSource(name, jobId)} aria-expanded=${String(jobId === openId)}
        aria-label=${`Job ${jobId} and its tries`}>${jobId}</a>`,
    },
    { name: "State", cell: (job) => html`<${Chip} state=${job.state} prefix="JOB_STATE_" />` },
    { name: "For", look: "named", cell: (job) => word(job.trigger, "JOB_TRIGGER_") },
    {
      name: "Done",
      look: "progress",
      cell: (job) => html`<${Bar} done=${job.chunksDone} rejected=${job.chunksRejected} total=${job.chunksTotal} state=${job.state} />
        <span class="figure">${count(job.chunksDone)}/${count(job.chunksTotal)}</span>`,
    },
    { name: "Tries", look: "number", cell: (job) => `${job.attempt}/${job.maxAttempts}` },
    { name: "Queued", look: "time", cell: (job) => html`<${Time} at=${job.createTime} />` },
    { name: "Next run", look: "time", cell: (job) => waits(job) && html`<${Due} at=${job.runTime} />` },
    { name: "Worker or error", look: "grow trouble-cell", cell: troubleOf },
    trace && {
      name: "Trace",
      cell: ({ traceId, jobId }) => traceId && html`<a href=${trace.replaceAll("{trace_id}", traceId)} target="_blank" rel="noreferrer" aria-label=${`Trace of job ${jobId}`}>trace</a>`,
    },
    { name: "Actions", quiet: true, look: "actions", cell: (job) => unsettled(job) && html`<${JobButtons} job=${job} then=${then} />` },
  ];
  const under = (job) => job.jobId === openId && html`<${Attempts} of=${attempts} then=${then} />`;
  return html`<${Trouble} error=${history.error} />
    <${Table} caption="Jobs, newest first" columns=${columns} rows=${merged(live, history)} rowKey=${(job) => job.jobId} under=${under} empty="There was none." />
    ${history.next && html`<button type="button" class="button" onClick=${history.more}>Older jobs</button>`}`;
}
