// The page: a chat, and the cache as it fills.

import { isAnswering, startChat } from "./chat.js";
import { whenThemeChanges } from "./colours.js";
import { draw, pointAt, roomForColumns, showMap, startMap } from "./map.js";
import { showBytes, showTiers } from "./numbers.js";
import { readCache } from "./server.js";
import { markPosition, redrawText, showText, startText } from "./text.js";

const N_TEXT = 2048; // tokens whose text is shown
const BUSY_MS = 400; // between two looks at the cache while an answer is made
const IDLE_MS = 2500;

const state = document.getElementById("state");
let last = null;
let timer = 0;

function words(kv) {
  const speed = kv.speed.decode_tps ? ` · ${kv.speed.decode_tps.toFixed(1)} tokens/s` : "";
  const waiting = kv.waiting ? ` · ${kv.waiting} waiting` : "";
  return `${kv.busy ? "answering" : "ready"} · ${kv.tokens} of ${kv.context} tokens${speed}${waiting}`;
}

function show(kv) {
  last = kv;
  document.getElementById("model").textContent = kv.model;
  document.title = `${kv.model} · mikv_cpp`;
  state.textContent = words(kv);
  showBytes(kv);
  showTiers(kv);
  showMap(kv);
  showText(kv.text);
}

/** Look at the cache, and again after a while: soon while it fills, and never so often that looking is what the server does. */
async function look() {
  clearTimeout(timer);
  const start = performance.now();
  let pause = IDLE_MS;
  if (!document.hidden) {
    try {
      const kv = await readCache(roomForColumns(), N_TEXT);
      show(kv);
      if (kv.busy || isAnswering()) pause = Math.max(BUSY_MS, 4 * (performance.now() - start));
    } catch (error) {
      state.textContent = `no connection: ${error.message}`;
    }
  }
  clearTimeout(timer);
  timer = setTimeout(look, pause);
}

startChat(look);
startMap(markPosition);
startText(pointAt);
whenThemeChanges(() => {
  if (last) showTiers(last);
  draw();
  redrawText();
});
document.addEventListener("visibilitychange", look);
look();
