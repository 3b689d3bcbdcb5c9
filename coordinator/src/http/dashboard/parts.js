// What all pages are made of: badges, bars, tables, buttons, dialogs.

import { count, goesOn, word } from "./format.js";
import { Component, createRef, html } from "./html.js";
import { changed } from "./state.js";

/** How a state looks; what it is called comes with it. */
const LOOKS = {
  BADGE_STATE_FAILED: "bad",
  BADGE_STATE_RETRYING: "warn",
  BADGE_STATE_INDEXING: "busy",
  BADGE_STATE_INDEXED: "good",
  VERDICT_DEGRADED: "bad",
  VERDICT_INDEXING: "busy",
  VERDICT_HEALTHY: "good",
  JOB_STATE_FAILED: "bad",
  JOB_STATE_RUNNING: "busy",
  JOB_STATE_SUCCEEDED: "good",
  ATTEMPT_OUTCOME_RUNNING: "busy",
  ATTEMPT_OUTCOME_SUCCEEDED: "good",
  ATTEMPT_OUTCOME_FAILED: "bad",
  ATTEMPT_OUTCOME_EXPIRED: "bad",
  ATTEMPT_OUTCOME_NO_PROGRESS: "bad",
};

/** The class of a state's colour. */
export function look(state) {
  return LOOKS[state] ?? "calm";
}

/** The class of a badge's colour: what is degraded is no good news, whatever its state. */
export function badgeLook({ state, degraded }) {
  const own = look(state);
  return degraded && own !== "bad" ? "warn" : own;
}

/** A state as a chip. */
export function Chip({ state, prefix }) {
  return html`<span class=${`chip ${look(state)}`}>${word(state, prefix)}</span>`;
}

let nextId = 0;

/**
 * A source's badge. What went wrong and when it runs next is in a tip, which
 * comes with the pointer, the keyboard's focus or a tap.
 */
export class Badge extends Component {
  id = `tip-${nextId++}`;
  tip = createRef();

  show = (event) => {
    const tip = this.tip.current;
    if (!tip || tip.matches(":popover-open")) return;
    tip.showPopover();
    const at = event.currentTarget.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = at.bottom + 6;
    const fits = below + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${fits ? below : Math.max(8, at.top - tip.offsetHeight - 6)}px`;
  };

  hide = () => {
    if (this.tip.current?.matches(":popover-open")) this.tip.current.hidePopover();
  };

  keys = (event) => {
    if (event.key === "Escape") this.hide();
  };

  render({ badge }) {
    const looks = `chip badge ${badgeLook(badge)}`;
    if (!badge.lastError && !badge.nextRunTime) return html`<span class=${looks}>${badge.text}</span>`;
    return html`<button type="button" class=${looks} aria-describedby=${this.id}
        onMouseEnter=${this.show} onMouseLeave=${this.hide} onFocus=${this.show} onBlur=${this.hide}
        onClick=${this.show} onKeyDown=${this.keys}>${badge.text}</button>
      <div class="tip" role="tooltip" id=${this.id} popover="manual" ref=${this.tip}>
        ${badge.lastError && html`<p class="error">${badge.lastError}</p>`}
        ${badge.nextRunTime && html`<p class="sentence">${goesOn(badge)}</p>`}
      </div>`;
  }
}

/** How much of something is done, and how much was rejected. */
export function Bar({ done, rejected, total, state }) {
  const share = (part) => (Number(total) > 0 ? (100 * Number(part)) / Number(total) : 0);
  const says = `${count(done)} of ${count(total)}${Number(rejected) ? `, ${count(rejected)} rejected` : ""}`;
  return html`<span class=${`bar ${look(state)}`} role="img" aria-label=${says}>
    <svg width="100%" height="100%" aria-hidden="true">
      <rect class="done" height="100%" width=${`${share(done)}%`} />
      <rect class="rejected" height="100%" x=${`${share(done)}%`} width=${`${share(rejected)}%`} />
    </svg></span>`;
}

/**
 * A table; on a narrow screen each row is a card of its own, and the roles say
 * that it is a table still. `columns` are {name, key, look, cell(row)}, or
 * nothing where one is not to be shown.
 */
export function Table({ caption, columns, rows, rowKey, rowLook = () => "", under = () => null, empty }) {
  const shown = columns.filter(Boolean);
  if (rows.length === 0) return html`<p class="empty">${empty}</p>`;
  const head = ({ name, look = "", quiet }) =>
    html`<th role="columnheader" scope="col" class=${look}><span class=${quiet ? "unseen" : ""}>${name}</span></th>`;
  const body = rows.flatMap((row) => {
    const beneath = under(row);
    return [
      html`<tr role="row" key=${rowKey(row)} class=${rowLook(row)}>
        ${shown.map(({ name, look = "", cell, quiet }) => html`<td role="cell" key=${name} class=${look} data-name=${quiet ? "" : name}>${cell(row)}</td>`)}
      </tr>`,
      beneath && html`<tr role="row" key=${`under ${rowKey(row)}`} class="under"><td role="cell" colspan=${shown.length}>${beneath}</td></tr>`,
    ];
  });
  return html`<div class="sheet"><table role="table">
    <caption class="unseen">${caption}</caption>
    <thead role="rowgroup"><tr role="row">${shown.map(head)}</tr></thead>
    <tbody role="rowgroup">${body}</tbody>
  </table></div>`;
}

/** A button that does something elsewhere, and waits for it. */
export class Button extends Component {
  press = async () => {
    if (this.state.busy) return;
    this.setState({ busy: true });
    try {
      await this.props.does();
    } finally {
      this.setState({ busy: false });
    }
  };

  render({ children, look = "", label, disabled }, { busy }) {
    return html`<button type="button" class=${`button ${look}`} aria-label=${label} aria-busy=${busy ? "true" : undefined}
      disabled=${disabled} onClick=${this.press}>${children}</button>`;
  }
}

let question = null;

/** Asks before something that cannot be taken back; resolves to whether to do it. */
export function confirmed(title, text, verb) {
  return new Promise((resolve) => {
    question = { title, text, verb, resolve };
    changed();
  });
}

function answer(yes) {
  question?.resolve(yes);
  question = null;
  changed();
}

/** The question that is open, if one is. */
export function Question() {
  if (!question) return null;
  const { title, text, verb } = question;
  return html`<${Dialog} title=${title} onClose=${() => answer(false)}>
    <p>${text}</p>
    <div class="buttons">
      <button type="button" class="button" onClick=${() => answer(false)}>Leave it</button>
      <button type="button" class="button danger" onClick=${() => answer(true)}>${verb}</button>
    </div>
  <//>`;
}

/** A modal dialog, open for as long as it is there. The focus returns to where it was. */
export class Dialog extends Component {
  dialog = createRef();

  componentDidMount() {
    this.before = document.activeElement;
    this.dialog.current.showModal();
  }

  componentWillUnmount() {
    this.dialog.current?.close();
    this.before?.focus();
  }

  cancel = (event) => {
    event.preventDefault();
    this.props.onClose?.();
  };

  render({ title, children }) {
    return html`<dialog ref=${this.dialog} aria-labelledby="dialog-title" onCancel=${this.cancel}>
      <h2 id="dialog-title">${title}</h2>${children}
    </dialog>`;
  }
}

/** Why something is not shown. */
export function Trouble({ error }) {
  return error ? html`<p class="trouble" role="alert">${error.message}</p>` : null;
}
