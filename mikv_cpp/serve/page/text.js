// The text that the cache holds, each token shaded by its precision or its importance.

import { named, paint } from "./colours.js";

const box = document.getElementById("text");
const detail = document.getElementById("token");
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

let shown = null; // "text" of /kv
let shade = "bits";
let here = null; // index of the token that is told about
let mean = 0; // importance
let most = 0; // what 95 % of the tokens stay below: the few above would leave nothing to see of the others

/** Show what /kv said. Spans are kept: only what changed is touched. */
export function showText(text) {
  shown = text;
  const values = text.importance ?? [];
  most = [...values].sort((a, b) => a - b)[Math.floor(0.95 * values.length)] ?? 0;
  mean = values.length ? values.reduce((a, b) => a + b, 0) / values.length : 0;
  const follow = box.scrollHeight - box.scrollTop - box.clientHeight < 40 && here === null;
  box.querySelector(".more")?.remove();
  const spans = box.children;
  const control = new Set(text.control);
  text.pieces.forEach((piece, index) => {
    const span = spans[index] ?? box.appendChild(document.createElement("span"));
    if (span.textContent !== piece) span.textContent = piece;
    span.className = control.has(index) ? "control" : "";
    colour(span, index);
  });
  while (spans.length > text.pieces.length) box.lastChild.remove();
  if (text.first > 0) {
    const more = document.createElement("div");
    more.className = "more";
    more.textContent = `(${text.first} tokens before)`;
    box.append(more); // last, so that a token's place among the children is its index
    more.style.order = -1;
  }
  if (follow) box.scrollTop = box.scrollHeight;
  if (here !== null) mark(Math.min(here, text.pieces.length - 1));
}

function colour(span, index) {
  if (!shown.bits) return;
  if (shade === "bits") {
    paint(span, shown.bits[index]);
    return;
  }
  const share = most ? Math.min(1, Math.sqrt(shown.importance[index] / most)) : 0; // attention is uneven: its root shows more of it
  span.style.background = share ? `color-mix(in srgb, ${named("refined")} ${Math.round(100 * share)}%, transparent)` : "";
  span.style.color = "";
}

/** Colour everything again. */
export function redrawText() {
  shown?.pieces.forEach((_, index) => colour(box.children[index], index));
}

function mark(index) {
  box.querySelector(".here")?.classList.remove("here");
  here = index !== null && index >= 0 && index < (shown?.pieces.length ?? 0) ? index : null;
  if (here === null) return;
  box.children[here].classList.add("here");
  tell();
}

function tell() {
  const parts = [`token ${shown.first + here} ${JSON.stringify(shown.pieces[here])}`];
  if (shown.bits) {
    const tiers = [
      [shown.exact[here], "exact"],
      [shown.refined[here], "refined"],
      [1 - shown.exact[here] - shown.refined[here], "base"],
    ];
    const heads = tiers.filter(([share]) => share > 0.0005).map(([share, name]) => (share > 0.9995 ? name : `${name} ${percent(share)}`));
    parts.push(`${shown.bits[here].toFixed(1)} bits (${heads.join(", ")})`);
    parts.push(mean ? `importance ${(shown.importance[here] / mean).toFixed(1)} × mean` : "importance not measured yet");
  }
  detail.textContent = parts.join(" · ");
}

/** Mark the token at a position of the cache; null for none. */
export function markPosition(position) {
  mark(position === null || !shown ? null : position - shown.first);
  bringIntoView();
}

/** Scroll the box, and not the page, to the token that is marked. */
function bringIntoView() {
  if (here === null) return;
  const [inside, token] = [box.getBoundingClientRect(), box.children[here].getBoundingClientRect()];
  if (token.top < inside.top) box.scrollTop -= inside.top - token.top + 8;
  else if (token.bottom > inside.bottom) box.scrollTop += token.bottom - inside.bottom + 8;
}

/** Wire the text up; onToken is told the position of the token under the pointer, or null. */
export function startText(onToken) {
  const tellOf = (index) => {
    mark(index);
    onToken(here === null ? null : shown.first + here);
  };
  box.addEventListener("pointerover", (event) => {
    if (event.target.tagName === "SPAN") tellOf([...box.children].indexOf(event.target));
  });
  box.addEventListener("pointerleave", () => tellOf(null));
  box.addEventListener("blur", () => tellOf(null));
  box.addEventListener("keydown", (event) => {
    const last = (shown?.pieces.length ?? 0) - 1;
    const from = here ?? last + 1;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, ArrowUp: from - 10, ArrowDown: from + 10, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    tellOf(Math.max(0, Math.min(last, to)));
    bringIntoView();
  });
  document.getElementById("shade").addEventListener("change", (event) => {
    shade = event.target.value;
    redrawText();
  });
}
