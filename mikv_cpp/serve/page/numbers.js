// Bytes against f16, and tokens by precision.

import { paint } from "./colours.js";

const MIB = 2 ** 20;
const inMib = (bytes) => {
  const mib = bytes / MIB;
  return mib >= 100 ? `${Math.round(mib).toLocaleString("en")} MiB` : `${mib.toFixed(mib < 10 ? 2 : 1)} MiB`;
};

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function bar(label, bytes, f16Bytes) {
  const share = f16Bytes ? bytes / f16Bytes : 0;
  const row = element("div", "bar");
  const track = element("div", "track");
  const filled = element("div", "");
  filled.style.width = `${100 * Math.min(share, 1)}%`;
  track.append(filled);
  const words = element("div", "words");
  words.append(element("strong", "", inMib(bytes)), ` of f16’s ${inMib(f16Bytes)}${f16Bytes ? ` · ${(100 * share).toFixed(1)} %` : ""}`);
  row.append(element("div", "", label), track, words);
  return row;
}

/** The bars of bytes. */
export function showBytes({ kv: stats, held }) {
  const box = document.getElementById("bytes");
  box.replaceChildren(bar("allocated", stats.bytes_total, stats.bytes_f16));
  if (held?.taken_back) box.append(element("p", "detail", `${held.taken_back} cells of an earlier answer wait to be overwritten`));
  else box.append(bar("in use", stats.bytes_used, stats.bytes_used_f16));
  if (stats.note) box.append(element("p", "detail", stats.note));
}

/** The table of tokens and attention by precision. */
export function showTiers(kv) {
  const stats = kv.kv;
  const held = kv.held ?? { exact: 0, refined: 0, base: 0 };
  const bits = stats.by_layer[0] ?? { k_bits: 16, v_bits: 16, refined_bits: 16 };
  const tiers = [
    ["exact", 16, "16 bits", held.exact, stats.mass_exact],
    ["refined", bits.refined_bits, `${bits.refined_bits} bits`, held.refined, stats.mass_refined],
    ["base", bits.k_bits, `K ${bits.k_bits}, V ${bits.v_bits} bits`, held.base, stats.mass_base],
  ];
  const table = document.getElementById("tiers");
  table.hidden = stats.by_layer.length === 0;
  table.tBodies[0].replaceChildren(
    ...tiers.map(([name, level, meaning, tokens, mass]) => {
      const row = element("tr", "");
      const head = element("th", "");
      head.scope = "row";
      const swatch = element("span", "swatch");
      paint(swatch, level);
      head.append(swatch, `${name} `, element("span", "note", `(${meaning})`));
      const share = element("div", "mass");
      const filled = element("div", "");
      filled.style.width = `${70 * mass}%`;
      paint(filled, level);
      share.append(filled, `${(100 * mass).toFixed(1)} %`);
      const cell = element("td", "");
      cell.append(share);
      row.append(head, element("td", "", tokens.toFixed(tokens < 10 ? 1 : 0)), cell);
      return row;
    }),
  );
  const legend = document.getElementById("legend");
  const steps = [...new Set([...stats.by_layer.flatMap((layer) => [layer.k_bits, layer.refined_bits]), 16])].sort((a, b) => a - b);
  legend.replaceChildren(
    ...steps.map((level) => {
      const entry = element("span", "");
      const swatch = element("span", "swatch");
      paint(swatch, level);
      entry.append(swatch, level === 16 ? "exact" : `${level}`);
      return entry;
    }),
  );
}
