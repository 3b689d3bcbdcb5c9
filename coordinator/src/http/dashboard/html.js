// Elements from templates. What is put into one becomes text or an attribute,
// never markup.

import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export { Component, createRef, render } from "./vendor/preact.js";

export const html = htm.bind(h);
