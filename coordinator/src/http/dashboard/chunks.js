// The chunks of a source that are worth a look: those that were rejected, and
// those that were truncated.

import { call } from "./api.js";
import { Time, count } from "./format.js";
import { html } from "./html.js";
import { Table, Trouble } from "./parts.js";
import { changed } from "./state.js";

const PAGE = 50;

/** The chunks of a source in one state; read again when `of` is told another count. */
export function followChunks(key, state) {
  const list = { chunks: [], next: "", error: null };
  let known = "0";
  const load = async (pageToken) => {
    try {
      const answer = await call("SourceService/ListChunks", { ...key, state, pageSize: PAGE, pageToken });
      const chunks = pageToken ? [...list.chunks, ...answer.chunks] : answer.chunks;
      Object.assign(list, { chunks, next: answer.nextPageToken, error: null });
    } catch (error) {
      list.error = error;
    }
    changed();
  };
  const of = (number) => {
    if (number === known) return;
    known = number;
    load("");
  };
  return Object.assign(list, { of, more: () => load(list.next) });
}

/** Such chunks, where there are some. */
export function Chunks({ list, title, says, total }) {
  if (list.chunks.length === 0) return html`<${Trouble} error=${list.error} />`;
  const columns = [
    { name: "Item", look: "grow", cell: (it) => html`<code><bdi>${it.itemId}</bdi>${it.chunkIndex > 0 && `#${it.chunkIndex}`}</code>` },
    { name: "Characters", look: "number", cell: (it) => count(it.chars) },
    { name: says, look: "grow", cell: (it) => it.reason || `the first ${count(it.truncatedTo)} characters` },
    { name: "When", look: "time", cell: (it) => html`<${Time} at=${it.time} />` },
  ];
  return html`<section aria-label=${title}>
    <div class="heading"><h2>${title}</h2><span class="muted">${count(total)}</span></div>
    <${Trouble} error=${list.error} />
    <${Table} caption=${title} columns=${columns} rows=${list.chunks} rowKey=${(it) => `${it.itemId}#${it.chunkIndex}`} />
    ${list.next && html`<button type="button" class="button" onClick=${list.more}>More</button>`}
  </section>`;
}
