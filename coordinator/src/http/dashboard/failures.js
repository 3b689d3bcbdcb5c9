// Failures, by cause: a list of them, and one with its jobs.

import { FailureButtons, JobButtons } from "./actions.js";
import { call, every } from "./api.js";
import { Due, Time, count, counted } from "./format.js";
import { html } from "./html.js";
import { Chip, Table, Trouble } from "./parts.js";
import { to, toJob } from "./route.js";
import { changed } from "./state.js";

/** Failures are counted while others look; they are asked for this often. */
const EVERY_MS = 5000;

/** The failures of a namespace, or of all, kept up to date. */
export function followFailures(namespace, pageSize) {
  const list = { failures: null, next: "", error: null };
  let pages = 1;
  const load = async () => {
    const failures = [];
    let pageToken = "";
    for (let page = 0; page < pages; page++) {
      const answer = await call("JobService/ListFailures", { namespace, pageSize, pageToken });
      failures.push(...answer.failures);
      pageToken = answer.nextPageToken;
      if (!pageToken) break;
    }
    Object.assign(list, { failures: inPlace(failures, list.failures), next: pageToken, error: null });
    changed();
  };
  const { now, end } = every(EVERY_MS, load, (error) => {
    list.error = error;
    changed();
  });
  const more = () => {
    pages += 1;
    now();
  };
  return Object.assign(list, { now, end, more });
}

/** What was shown keeps its place, so that nobody presses another's button; what is new comes first. */
function inPlace(failures, before) {
  const places = new Map(before?.map((it, place) => [it.failureId, place]));
  const place = (it) => places.get(it.failureId) ?? -1;
  return failures.sort((a, b) => place(a) - place(b));
}

const at = (failure) => to(["failures", failure.failureId]);

/** A table of failures. */
export function Failures({ list, then = list.now, open, under }) {
  if (!list.failures) return html`<${Trouble} error=${list.error} />`;
  const columns = [
    {
      name: "Cause",
      look: "grow",
      cell: (it) => html`<a class="cause" href=${it.failureId === open ? to(["failures"]) : at(it)} aria-expanded=${under ? String(it.failureId === open) : undefined}>${it.cause}</a>
        ${it.lastError !== it.cause && html`<div class="muted clip" title=${it.lastError}>${it.lastError}</div>`}
        <div class="muted">${it.namespace} · ${it.model} · last in <a href=${to(["sources", it.namespace, it.lastSource, it.lastJobId])}>${it.lastSource}</a></div>`,
    },
    { name: "Seen", look: "number", cell: (it) => `${count(it.occurrences)}×` },
    { name: "Jobs", look: "number", cell: (it) => count(it.jobsAffected) },
    { name: "First", look: "time", cell: (it) => html`<${Time} at=${it.firstSeenTime} />` },
    { name: "Last", look: "time", cell: (it) => html`<${Time} at=${it.lastSeenTime} />` },
    { name: "Last success", look: "time", cell: (it) => html`<${Time} at=${it.lastSuccessTime} none="none yet" />` },
    { name: "Actions", quiet: true, look: "actions", cell: (it) => html`<${FailureButtons} failure=${it} then=${then} />` },
  ];
  return html`<${Trouble} error=${list.error} />
    <${Table} caption="Failures by cause" columns=${columns} rows=${list.failures}
      rowKey=${(it) => it.failureId} under=${under} empty="No failure since the last one was dismissed." />`;
}

/** The jobs of a failure, kept up to date. */
function followJobs(failureId) {
  const PAGE = 50;
  const list = { jobs: null, next: "", error: null };
  const load = async () => {
    const answer = await call("JobService/ListJobs", { failureId, pageSize: PAGE });
    Object.assign(list, { jobs: answer.jobs, next: answer.nextPageToken, error: null });
    changed();
  };
  const { now, end } = every(EVERY_MS, load, (error) => {
    list.error = error;
    changed();
  });
  return Object.assign(list, { now, end });
}

function Jobs({ list, then }) {
  if (!list.jobs) return html`<${Trouble} error=${list.error} />`;
  const columns = [
    { name: "Job", look: "named", cell: (job) => html`<a href=${toJob(job)}>${job.jobId}</a>` },
    { name: "Source", look: "grow", cell: (job) => html`<a href=${toJob(job)}>${job.namespace}/${job.source}</a>` },
    { name: "State", cell: (job) => html`<${Chip} state=${job.state} prefix="JOB_STATE_" />` },
    { name: "Tries", look: "number", cell: (job) => `${job.attempt}/${job.maxAttempts}` },
    { name: "Done", look: "number", cell: (job) => `${count(job.chunksDone)}/${count(job.chunksTotal)}` },
    { name: "Next run", look: "time", cell: (job) => job.state !== "JOB_STATE_RUNNING" && html`<${Due} at=${job.runTime} />` },
    { name: "Actions", quiet: true, look: "actions", cell: (job) => html`<${JobButtons} job=${job} then=${then} />` },
  ];
  return html`<${Trouble} error=${list.error} />
    <${Table} caption="Jobs of the failure" columns=${columns} rows=${list.jobs} rowKey=${(job) => job.jobId}
      empty="No job is held up by it any more." />
    ${list.next && html`<p class="muted">These are the newest; there are more.</p>`}`;
}

/** The page of all failures; the address may name one whose jobs are shown. */
export function failuresPage({ parts: [, openId], query }) {
  const namespace = query.get("namespace") ?? "";
  const list = followFailures(namespace, 50);
  let jobs;
  const show = (failureId) => {
    jobs?.end();
    openId = failureId;
    jobs = failureId && followJobs(failureId);
  };
  show(openId);
  const then = () => {
    list.now();
    jobs?.now();
  };
  return {
    title: "Failures",
    news: then,
    go(place) {
      if ((place.query.get("namespace") ?? "") !== namespace) return false;
      show(place.parts[1]);
      return true;
    },
    end() {
      show(undefined);
      list.end();
    },
    view() {
      const under = (it) => it.failureId === openId && html`<${Jobs} list=${jobs} then=${then} />`;
      const known = list.failures?.length;
      return html`<section aria-labelledby="title">
        <div class="heading"><h1 id="title" tabindex="-1">Failures</h1>
          ${known > 0 && html`<span class="muted">${counted(known, "cause")}${list.next && " and more"}</span>`}</div>
        <${Failures} list=${list} then=${then} open=${openId} under=${under} />
        ${list.next && html`<button type="button" class="button" onClick=${list.more}>More</button>`}
      </section>`;
    },
  };
}
