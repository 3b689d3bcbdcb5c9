// The first page: how all stands, what moves, what failed.

import { JobButtons, RetrySourceButton } from "./actions.js";
import { call, every, watch } from "./api.js";
import { Tally, Time, count, goesOn, span, word } from "./format.js";
import { Failures, followFailures } from "./failures.js";
import { html } from "./html.js";
import { Badge, Bar, Chip, Table, Trouble, look } from "./parts.js";
import { Plots } from "./plots.js";
import { replace, to, toSource } from "./route.js";
import { changed } from "./state.js";

/** Sources on a page of the list. */
const PAGE = 50;
/** How long somebody who types may pause before the list follows. */
const TYPED_MS = 250;

const keyOf = ({ namespace, name }) => `${namespace}/${name}`;

/** A page of sources, live. */
function followSources(asked, before) {
  // What was shown stays until there is something else to show.
  const list = { sources: new Map(before?.sources), known: before?.known, next: "", previous: "", error: null };
  list.end = watch("JobService/WatchSources", { ...asked, pageSize: PAGE }, {
    answer(answer, first) {
      if (first) list.sources.clear();
      for (const key of answer.gone) list.sources.delete(keyOf(key));
      for (const summary of answer.sources) list.sources.set(keyOf(summary.source), summary);
      Object.assign(list, { known: true, error: null, next: answer.nextPageToken, previous: answer.previousPageToken });
      changed();
    },
    failed(error) {
      list.error = error;
      changed();
    },
  });
  return list;
}

function followActivity() {
  const list = { activity: null };
  const load = async () => {
    list.activity = await call("JobService/GetActivity", {});
    changed();
  };
  const { end } = every(10_000, load);
  return Object.assign(list, { end });
}

const byName = (a, b) => (keyOf(a.source) < keyOf(b.source) ? -1 : 1);

function Sources({ list, unsettled }) {
  if (!list.known) return html`<${Trouble} error=${list.error} />`;
  const columns = [
    { name: "Source", look: "grow", cell: ({ source }) => html`<a href=${toSource(source)}><span class="muted">${source.namespace}/</span>${source.name}</a>` },
    { name: "Status", cell: ({ source }) => html`<${Badge} badge=${source.badge} />` },
    {
      name: "Embedded",
      look: "progress",
      cell: ({ source: { badge } }) => Number(badge.total) > 0 && html`<${Bar} done=${badge.done} rejected=${badge.rejected} total=${badge.total} state=${badge.state} />
        <span class="figure">${count(badge.done)}/${count(badge.total)}</span>`,
    },
    { name: "Model", look: "wide", cell: ({ source }) => html`<span class="muted">${source.model}</span>` },
    { name: "Changed", look: "time", cell: ({ source }) => html`<${Time} at=${source.updateTime} />` },
    {
      name: "Trouble",
      look: "trouble-cell",
      cell: ({ source: { badge } }) => badge.lastError && html`<div class="clip" title=${badge.lastError}>${badge.lastError}</div>
        ${badge.nextRunTime && html`<div class="muted">${goesOn(badge)}</div>`}`,
    },
    {
      name: "Actions",
      quiet: true,
      look: "actions",
      cell: ({ source, job }) => (source.badge.degraded && job ? html`<${JobButtons} job=${job} only=${["retry"]} />` : html`<${RetrySourceButton} source=${source} />`),
    },
  ];
  const rows = [...list.sources.values()].sort(byName);
  const empty = unsettled ? "Nothing is unsettled." : "There is no source here. “weir put FILE” makes one.";
  return html`<${Trouble} error=${list.error} />
    <${Table} caption="Sources by namespace and name" columns=${columns} rows=${rows} rowKey=${({ source }) => keyOf(source)} empty=${empty} />`;
}

function Namespaces({ status, namespace }) {
  const columns = [
    { name: "Namespace", look: "grow", cell: (it) => html`<a href=${to([], { namespace: it.namespace })}>${it.namespace}</a>` },
    { name: "Verdict", cell: (it) => html`<${Chip} state=${it.verdict} prefix="VERDICT_" /> <span class="muted">${it.reasons.join(", ")}</span>` },
    { name: "Sources", look: "number", cell: (it) => count(it.sources) },
    { name: "Chunks", look: "number", cell: (it) => count(it.chunks) },
    { name: "Pending", look: "number", cell: (it) => html`<${Tally} of=${it.chunksPending} />` },
    { name: "Rejected", look: "number", cell: (it) => html`<${Tally} of=${it.chunksRejected} />` },
    { name: "Running", look: "number", cell: (it) => html`<${Tally} of=${it.jobsRunning} />` },
    { name: "Retrying", look: "number", cell: (it) => html`<${Tally} of=${it.jobsRetrying} look="warn tone" />` },
    { name: "Failed", look: "number", cell: (it) => html`<${Tally} of=${it.jobsFailed} look="bad tone" />` },
  ];
  return html`<section aria-labelledby="namespaces">
    <div class="heading"><h2 id="namespaces">Namespaces</h2>${namespace && html`<a href=${to([])}>Show all</a>`}</div>
    <${Table} caption="Namespaces" columns=${columns} rows=${status?.namespaces ?? []} rowKey=${(it) => it.namespace} empty="There is none yet." />
  </section>`;
}

function Filter({ namespace, typed, unsettled, set }) {
  const type = (event) => {
    typed.prefix = event.target.value;
    set({ prefix: typed.prefix }, TYPED_MS);
  };
  return html`<div class="filter" role="search" aria-label="Filter the sources">
    <label>Namespace <input type="search" value=${namespace} placeholder="all" onChange=${(event) => set({ namespace: event.target.value.trim() })} autocomplete="off" spellcheck="false" /></label>
    <label>Name begins with <input type="search" value=${typed.prefix} onInput=${type} autocomplete="off" spellcheck="false" /></label>
    <label class="check"><input type="checkbox" checked=${unsettled}
      onChange=${(event) => set({ unsettled: event.target.checked ? "1" : "" })} /> Unsettled only</label>
  </div>`;
}

/** What of the sources the address asks for. */
function asked({ query }) {
  return {
    namespace: query.get("namespace") ?? "",
    namePrefix: query.get("prefix") ?? "",
    unsettledOnly: query.get("unsettled") === "1",
    pageToken: query.get("page") ?? "",
  };
}

/** The page. */
export function overviewPage(place) {
  const { namespace } = asked(place);
  let { query } = place;
  const typed = { prefix: query.get("prefix") ?? "" };
  let sources = followSources(asked(place));
  const failures = followFailures(namespace, 5);
  const activity = followActivity();
  let timer;
  const address = (change) => to([], { ...Object.fromEntries(query), page: "", ...change });
  const set = (change, wait = 0) => {
    clearTimeout(timer);
    timer = setTimeout(() => replace(address(change)), wait);
  };
  return {
    title: "Overview",
    news: failures.now,
    go(place) {
      if (asked(place).namespace !== namespace) return false;
      query = place.query;
      typed.prefix = query.get("prefix") ?? "";
      sources.end();
      sources = followSources(asked(place), sources);
      return true;
    },
    end() {
      clearTimeout(timer);
      for (const part of [sources, failures, activity]) part.end();
    },
    view(status) {
      const unsettled = query.get("unsettled") === "1";
      return html`<h1 id="title" class="unseen" tabindex="-1">Overview</h1>
        ${status && html`<${Summary} status=${status.total} />`}
        ${activity.activity && html`<${Plots} activity=${activity.activity} />`}
        ${(failures.failures?.length > 0 || failures.error) && html`<section aria-labelledby="failures">
          <div class="heading"><h2 id="failures">Failures</h2><a href=${to(["failures"], { namespace })}>All failures</a></div>
          <${Failures} list=${failures} /></section>`}
        ${(status?.namespaces.length > 1 || namespace) && html`<${Namespaces} status=${status} namespace=${namespace} />`}
        <section aria-labelledby="sources">
          <div class="heading"><h2 id="sources">Sources</h2><${Filter} namespace=${namespace} typed=${typed} unsettled=${unsettled} set=${set} /></div>
          <${Sources} list=${sources} unsettled=${unsettled} />
          <nav class="pages" aria-label="Pages of sources">
            ${sources.previous && html`<a class="button" href=${address({ page: sources.previous })}>Previous page</a>`}
            ${sources.next && html`<a class="button" href=${address({ page: sources.next })}>Next page</a>`}
          </nav>
        </section>`;
    },
  };
}

/** The verdict with its reasons, and the figures behind it. */
function Summary({ status }) {
  const { verdict, reasons } = status;
  const queued = Number(status.jobsReady) + Number(status.jobsDelayed);
  const figures = [
    ["Queued jobs", count(queued), Number(status.jobsDelayed) ? `${count(status.jobsDelayed)} delayed` : ""],
    ["Running jobs", count(status.jobsRunning), Number(status.jobsRetrying) ? `${count(status.jobsRetrying)} retrying` : ""],
    ["Pending chunks", count(status.chunksPending), `of ${count(status.chunks)}`],
    ["Oldest waiting", Number(status.jobsReady) ? span(status.oldestReadyAgeSeconds) : "–", ""],
    ["Rejected chunks", count(status.chunksRejected), ""],
    ["Sources", count(status.sources), ""],
  ];
  return html`<section class="summary" aria-label="How all stands">
    <div class=${`verdict ${look(verdict)}`} role="status" aria-live="polite">
      <strong><span>${word(verdict, "VERDICT_")}</span></strong>
      ${reasons.length > 0 && html`<ul>${reasons.map((reason) => html`<li key=${reason}>${reason}</li>`)}</ul>`}
    </div>
    <dl class="figures">${figures.map(([name, value, note]) => html`<div key=${name}><dt>${name}</dt><dd>${value}<small>${note}</small></dd></div>`)}</dl>
  </section>`;
}
