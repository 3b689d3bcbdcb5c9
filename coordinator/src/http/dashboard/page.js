// The page: its frame, which stays, and what the address names within it.

import { broken, watch } from "./api.js";
import { failuresPage } from "./failures.js";
import { word } from "./format.js";
import { html, render } from "./html.js";
import { overviewPage } from "./overview.js";
import { Dialog, Question, Trouble } from "./parts.js";
import { here, to } from "./route.js";
import { sourcePage } from "./source.js";
import { changed, drawWith, hush, notices } from "./state.js";
import { forget, give, token, wanted } from "./token.js";

/** Pages by the first part of their address. */
const PAGES = { failures: failuresPage, sources: sourcePage };

let page, status, statusError, statusEnd, namespace;

/** Opens what the address names, within the page that is open where that can be. */
function open() {
  const place = here();
  const make = PAGES[place.parts[0]] ?? overviewPage;
  const before = page;
  if (before?.make === make && before.go(place)) {
    page.place = place;
  } else {
    before?.end();
    page = Object.assign(make(place), { make, place });
    // Whoever goes on by keyboard goes on from the top of what is new.
    if (before) requestAnimationFrame(() => document.getElementById("title")?.focus());
  }
  follow(place.query.get("namespace") ?? "");
  changed();
}

/** How all stands, or a namespace, live. */
function follow(wantedNamespace) {
  if (wantedNamespace === namespace) return;
  statusEnd?.();
  namespace = wantedNamespace;
  statusEnd = watch("JobService/WatchStatus", { namespace }, {
    answer(answer) {
      const before = status?.total.reasons.join();
      status = answer.status;
      statusError = null;
      if (before !== status.total.reasons.join()) page.news?.();
      changed();
    },
    failed(error) {
      statusError = error;
      changed();
    },
  });
}

function Frame() {
  const verdict = status ? word(status.total.verdict, "VERDICT_") : "";
  document.title = [page.title, verdict, "Weir"].filter(Boolean).join(" · ");
  const at = (make) => (page.make === make ? "page" : undefined);
  return html`
    <a class="skip" href="#title" onClick=${skip}>Skip to the content</a>
    <header>
      <a class="mark" href=${to([])}><img src="dashboard/icon.svg" alt="" width="22" height="22" />Weir</a>
      <nav aria-label="Pages">
        <a href=${to([])} aria-current=${at(overviewPage)}>Overview</a>
        <a href=${to(["failures"])} aria-current=${at(failuresPage)}>Failures</a>
      </nav>
      ${token() !== null && html`<button type="button" class="button" onClick=${forget}>Other token</button>`}
      <${Connection} />
    </header>
    <main>
      <${Trouble} error=${statusError} />
      ${broken() && !status && html`<p class="empty">The coordinator does not answer. The page goes on by itself as soon as it does.</p>`}
      ${page.view(status)}
    </main>
    <footer class="muted">${status && `Weir ${status.version}`}</footer>
    <${Notices} />
    <${Question} />
    <${AskToken} />`;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("title")?.focus();
}

function Connection() {
  const [look, text] = broken() ? ["broken", "reconnecting…"] : statusError ? ["", "not live"] : status ? ["live", "live"] : ["", "connecting…"];
  return html`<span class=${`connection ${look}`} role="status">${text}</span>`;
}

function Notices() {
  return html`<div class="notices" role="log" aria-live="polite" aria-label="What was done">${notices.map((notice) => html`
    <div key=${notice.key} class=${`notice ${notice.look}`}><span>${notice.text}</span>
      <button type="button" class="button" aria-label="Hide this" onClick=${() => hush(notice)}>×</button></div>`)}</div>`;
}

function AskToken() {
  const asked = wanted();
  if (!asked) return null;
  const submit = (event) => {
    event.preventDefault();
    const token = event.target.elements.token.value;
    if (token.trim()) give(token);
  };
  return html`<${Dialog} title="A token is needed">
    <form onSubmit=${submit}>
      <p>${asked.refused ? "The coordinator did not take the token. Is there another one?" : "The coordinator asks for a token. It is kept for this tab only."}</p>
      <p class="muted">It says: ${asked.why}</p>
      <label>Token <input name="token" type="password" autocomplete="off" required autofocus /></label>
      <div class="buttons"><button type="submit" class="button main">Go on</button></div>
    </form>
  <//>`;
}

drawWith(() => render(html`<${Frame} />`, document.body));
addEventListener("hashchange", open);
open();
// How far times are away changes by itself.
setInterval(() => document.hidden || changed(), 1000);
