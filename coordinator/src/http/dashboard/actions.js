// What an operator can do, and the buttons for it. What takes something away,
// or costs work that was done, asks first.

import { call } from "./api.js";
import { count, counted } from "./format.js";
import { html } from "./html.js";
import { Button, confirmed } from "./parts.js";
import { close, say } from "./state.js";

/** Most jobs that one press of a button reaches. */
const MOST = 10_000;

/** Tries to do something, and says how it went. */
async function attempt(doing, work) {
  const notice = say(`${doing} …`);
  try {
    close(notice, await work((text) => Object.assign(notice, { text })), "good");
    return true;
  } catch (error) {
    close(notice, `${doing} failed: ${error.message}`, "bad");
    return false;
  }
}

const ACTIONS = {
  retry: {
    verb: "Retry",
    method: "JobService/RetryJob",
    fits: (job) => ["JOB_STATE_QUEUED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"].includes(job.state),
  },
  cancel: {
    verb: "Cancel",
    method: "JobService/CancelJob",
    fits: (job) => ["JOB_STATE_QUEUED", "JOB_STATE_RUNNING"].includes(job.state),
    question: "What is embedded stays. What is still pending waits until somebody writes the source or retries the job.",
  },
  force: {
    verb: "Force",
    method: "JobService/RetryJob",
    with: { force: true },
    fits: () => true,
    question:
      "The vectors of the range are deleted and all of it is embedded anew, for a model that was swapped behind its name. Until then the range cannot be found.",
  },
};

/** Does something to one job, if it is wanted. */
async function toJob(action, job, then) {
  const { verb, method, question } = ACTIONS[action];
  const what = `${verb} job ${job.jobId} of ${job.namespace}/${job.source}`;
  if (question && !(await confirmed(`${what}?`, question, `${verb} the job`))) return;
  await attempt(what, async () => {
    await call(method, { jobId: job.jobId, ...ACTIONS[action].with });
    return `${what}: done`;
  });
  then?.();
}

/** The jobs that a failure last befell. */
async function jobsOf(failure) {
  const jobs = [];
  let pageToken = "";
  do {
    const page = await call("JobService/ListJobs", { failureId: failure.failureId, pageSize: 1000, pageToken });
    jobs.push(...page.jobs);
    pageToken = page.nextPageToken;
  } while (pageToken && jobs.length < MOST);
  return jobs;
}

/** Does something to every job of a failure that it can be done to, if it is wanted. */
async function toFailure(action, failure, then) {
  const { verb, method, question, fits } = ACTIONS[action];
  const what = `${verb} ${counted(failure.jobsAffected, "job")}`;
  if (question && !(await confirmed(`${what} of this failure?`, question, `${verb} them`))) return;
  await attempt(what, async (progress) => {
    const jobs = (await jobsOf(failure)).filter(fits);
    let [done, refused] = [0, null];
    for (const [at, job] of jobs.entries()) {
      try {
        await call(method, { jobId: job.jobId, ...ACTIONS[action].with });
        done += 1;
      } catch (error) {
        // One that moved on meanwhile holds up no other.
        if (error.code !== "FAILED_PRECONDITION" && error.code !== "NOT_FOUND") throw error;
        refused = error;
      }
      progress(`${what}: ${count(at + 1)} of ${count(jobs.length)}`);
    }
    const rest = refused ? `; not the others: ${refused.message}` : "";
    return `${what}: ${count(done)} of ${count(jobs.length)} done${rest}`;
  });
  then?.();
}

/** Takes back what was rejected of a source, and has all of it run again that came to a stop. */
async function retrySource({ namespace, name }) {
  const what = `Retry ${namespace}/${name}`;
  await attempt(what, async () => {
    const answer = await call("JobService/RetrySource", { namespace, name });
    return `${what}: ${counted(answer.chunksTakenBack, "rejected chunk")} queued again`;
  });
}

/** Takes a failure off the list. */
async function dismiss(failure, then) {
  const ask = () => call("JobService/DismissFailure", { failureId: failure.failureId });
  await attempt("Dismiss the failure", async () => {
    await ask();
    return "Dismissed, until it is seen again";
  });
  then?.();
}

/** Deletes a source, if it is wanted. */
async function remove(source, then) {
  const name = `${source.namespace}/${source.name}`;
  const loss = `Its ${counted(source.items, "item")}, ${counted(source.chunks, "chunk")} and their vectors are deleted, and its open jobs cancelled. This cannot be undone.`;
  if (!(await confirmed(`Delete ${name}?`, loss, "Delete the source"))) return;
  const request = { namespace: source.namespace, name: source.name };
  const gone = await attempt(`Delete ${name}`, async () => {
    const answer = await call("SourceService/DeleteSource", request);
    return `${name} is deleted, with ${counted(answer.embeddingsDeleted, "vector")}`;
  });
  if (gone) then?.();
}

/** The buttons of a job; `only` names those that are wanted. */
export function JobButtons({ job, then, only = ["retry", "cancel"] }) {
  const shown = only.filter((name) => ACTIONS[name].fits(job));
  return html`<div class="buttons">${shown.map((name) => {
    const { verb, question } = ACTIONS[name];
    return html`<${Button} key=${name} look=${name === "retry" ? "main" : ""} label=${`${verb} job ${job.jobId}`}
      does=${() => toJob(name, job, then)}>${verb}${question ? "…" : ""}<//>`;
  })}</div>`;
}

/** The buttons of a failure. */
export function FailureButtons({ failure, then }) {
  const none = Number(failure.jobsAffected) === 0;
  return html`<div class="buttons">
    ${Object.entries(ACTIONS).map(([name, { verb, question }]) => html`<${Button} key=${name} look=${name === "retry" ? "main" : ""}
      disabled=${none} label=${`${verb} the jobs of: ${failure.cause}`}
      does=${() => toFailure(name, failure, then)}>${verb}${question ? "…" : ""}<//>`)}
    <${Button} label=${`Dismiss: ${failure.cause}`} disabled=${Boolean(failure.dismissTime)}
      does=${() => dismiss(failure, then)}>Dismiss<//>
  </div>`;
}

/** The button that takes back what was rejected of a source, where something was. */
export function RetrySourceButton({ source }) {
  if (Number(source.chunksRejected) === 0) return null;
  return html`<${Button} look="main" label=${`Retry what was rejected of ${source.namespace}/${source.name}`}
    does=${() => retrySource(source)}>Retry rejected<//>`;
}

/** The button that deletes a source. */
export function DeleteButton({ source, then }) {
  return html`<${Button} look="danger" does=${() => remove(source, then)}>Delete…<//>`;
}
