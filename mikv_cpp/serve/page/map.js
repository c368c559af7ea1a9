// The map: tokens from left to right, layers and their KV heads from top to bottom, coloured by precision.

import { colourOf, named } from "./colours.js";

const canvas = document.getElementById("map");
const place = document.getElementById("place");
const LEFT = 34; // px, for the layers' numbers
const BOTTOM = 16; // px, for the positions
const height = () => Math.max(170, Math.min(420, 0.3 * window.innerHeight)); // px, of all rows
const WIDEST = 14; // px of a column

let shown = null; // {rows, columns, perColumn, levels, nTokens, pieces, first}
let cursor = null; // {row, column}; row is null where the text points
const HINT = place.textContent;

function decoded(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function geometry() {
  const width = canvas.clientWidth - LEFT;
  const cell = Math.max(1, Math.min(14, height() / shown.rows.length));
  return { column: Math.min(WIDEST, width / Math.max(shown.columns, 1)), row: cell, height: cell * shown.rows.length };
}

/** How many columns there is room for. */
export function roomForColumns() {
  return Math.max(64, Math.min(2048, Math.floor(canvas.clientWidth - LEFT)));
}

/** Draw what /kv said. */
export function showMap(kv) {
  canvas.parentElement.hidden = !kv.map;
  if (!kv.map) return;
  shown = {
    rows: kv.map.rows,
    columns: kv.map.columns,
    perColumn: kv.map.tokens_per_column,
    perBit: kv.map.levels_per_bit,
    levels: decoded(kv.map.levels),
    nTokens: kv.tokens,
    pieces: kv.text.pieces,
    first: kv.text.first,
  };
  draw();
  if (cursor) tell();
}

function picture() {
  const { columns, levels, rows, perBit } = shown;
  const small = new OffscreenCanvas(Math.max(columns, 1), rows.length);
  const context = small.getContext("2d");
  const image = context.createImageData(small.width, small.height);
  const colours = new Map();
  levels.forEach((level, index) => {
    if (!level) return;
    if (!colours.has(level)) colours.set(level, colourOf(level / perBit));
    image.data.set([...colours.get(level), 255], 4 * index);
  });
  context.putImageData(image, 0, 0);
  return small;
}

/** Draw again: another size, or other colours. */
export function draw() {
  if (!shown || canvas.parentElement.hidden) return;
  const { column, row, height } = geometry();
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height + BOTTOM}px`;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round((height + BOTTOM) * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.imageSmoothingEnabled = false;
  context.fillStyle = named("empty");
  context.fillRect(LEFT, 0, canvas.clientWidth - LEFT, height);
  if (shown.columns) context.drawImage(picture(), LEFT, 0, shown.columns * column, height);
  axes(context, row, column, height);
  if (cursor) crosshair(context, row, column, height);
}

function axes(context, row, column, height) {
  context.fillStyle = named("quiet");
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "right";
  let free = 0;
  shown.rows.forEach(([layer, head], index) => {
    const top = index * row;
    if (head !== 0 || top < free) return;
    context.fillText(String(layer), LEFT - 6, top + Math.max(row / 2, 6));
    free = top + 22;
  });
  context.textBaseline = "alphabetic";
  const end = shown.columns * column;
  context.textAlign = "left";
  context.fillText("0", LEFT, height + 13);
  if (end > 60) {
    context.textAlign = "right";
    context.fillText(String(shown.nTokens), LEFT + end, height + 13);
  }
}

function crosshair(context, row, column, height) {
  context.strokeStyle = named("ink");
  context.lineWidth = 1;
  const left = LEFT + cursor.column * column;
  context.strokeRect(left - 0.5, 0.5, Math.max(column, 2) + 1, height - 1);
  if (cursor.row !== null) context.strokeRect(LEFT + 0.5, cursor.row * row - 0.5, shown.columns * column, Math.max(row, 2) + 1);
}

function tell() {
  if (cursor.row === null) return;
  const { columns, levels, rows, perBit, perColumn, pieces, first } = shown;
  const level = levels[cursor.row * columns + cursor.column] / perBit;
  const start = cursor.column * perColumn;
  const piece = pieces[start - first];
  const which = perColumn === 1 ? `token ${start}${piece === undefined ? "" : ` ${JSON.stringify(piece)}`}` : `tokens ${start} to ${Math.min(start + perColumn, shown.nTokens) - 1}`;
  const [layer, head] = rows[cursor.row];
  const bits = level === 16 ? "exact" : `${perColumn === 1 ? "" : "on average "}${level} bits`;
  place.textContent = `${which}: ${bits} in layer ${layer}, head ${head}`;
}

function go(row, column) {
  if (!shown?.columns) return;
  cursor = {
    row: Math.max(0, Math.min(shown.rows.length - 1, row)),
    column: Math.max(0, Math.min(shown.columns - 1, column)),
  };
  draw();
  tell();
}

/** Show where a token lies; null for none. */
export function pointAt(position) {
  if (position === null) cursor = null;
  else if (shown?.columns) cursor = { row: null, column: Math.min(shown.columns - 1, Math.floor(position / shown.perColumn)) };
  place.textContent = HINT;
  draw();
}

/** Wire the map up; onPlace is told the first token under the pointer, or null. */
export function startMap(onPlace) {
  canvas.addEventListener("pointermove", (event) => {
    if (!shown) return;
    const { column, row, height } = geometry();
    if (event.offsetX < LEFT || event.offsetY >= height || event.offsetX >= LEFT + shown.columns * column) return;
    go(Math.floor(event.offsetY / row), Math.floor((event.offsetX - LEFT) / column));
    onPlace(cursor.column * shown.perColumn);
  });
  canvas.addEventListener("pointerleave", () => {
    pointAt(null);
    onPlace(null);
  });
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], PageUp: [0, -20], PageDown: [0, 20] };
  canvas.addEventListener("keydown", (event) => {
    const step = steps[event.key] ?? { Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (!step || !shown?.columns) return;
    event.preventDefault();
    const from = cursor ?? { row: 0, column: shown.columns - 1 };
    go((from.row ?? 0) + step[0], from.column + step[1]);
    onPlace(cursor.column * shown.perColumn);
  });
  new ResizeObserver(draw).observe(canvas);
}
