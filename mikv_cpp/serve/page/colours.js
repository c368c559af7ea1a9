// Colours of precisions: blue below 5 bits (base), orange from there (refined), magenta for exact; darker or brighter with the bits.

const LIGHT = [[2, "#d3e3f5"], [3, "#b3d0ee"], [4, "#8fb8e2"], [5, "#f4b26a"], [6, "#e58a2f"], [8, "#c4560f"], [16, "#7b1f63"]];
const DARK = [[2, "#1c3557"], [3, "#274c7a"], [4, "#33629a"], [5, "#d18a2a"], [6, "#e9a23f"], [8, "#f8cd7c"], [16, "#ff7ab6"]];
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** [red, green, blue] of so many bits; between two steps, what lies between. */
export function colourOf(bits) {
  const steps = dark.matches ? DARK : LIGHT;
  const above = steps.findIndex(([step]) => bits <= step);
  if (above <= 0) return channels(steps[above < 0 ? steps.length - 1 : 0][1]);
  const [[low, from], [high, to]] = [steps[above - 1], steps[above]];
  const share = (bits - low) / (high - low);
  const other = channels(to);
  return channels(from).map((value, index) => Math.round(value + share * (other[index] - value)));
}

/** The same as CSS, and a colour for text on it. */
export function paint(element, bits) {
  const [red, green, blue] = colourOf(bits);
  element.style.background = `rgb(${red} ${green} ${blue})`;
  element.style.color = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#10141b" : "#ffffff";
}

/** A value of page.css. */
export function named(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Have `redraw` called when the system changes between light and dark. */
export function whenThemeChanges(redraw) {
  dark.addEventListener("change", redraw);
}
