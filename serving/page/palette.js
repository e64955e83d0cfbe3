// Read a map and a lasso, and give values their colours.

export const OTHER = 255;
// How an address names the points without a value of their own: as no JSON value is written.
export const WITHOUT_VALUE = { 0: "none", [OTHER]: "other" };

/** Read the answer of `map/points`: the length of a JSON object, the object, the positions, the codes. */
export function parsed(body) {
  const length = new DataView(body).getUint32(0, true);
  const about = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 4, length)));
  return { ...about, positions: new Uint16Array(body, 4 + length, 2 * about.count), codes: new Uint8Array(body, 4 + length + 4 * about.count, about.count) };
}

/** Return the colour of a code: hues a golden angle apart, which is never twice the same. */
export function rgb(code, dark) {
  if (code === 0) return dark ? [118, 126, 142] : [150, 156, 168];
  if (code === OTHER) return dark ? [90, 96, 110] : [185, 190, 200];
  const hue = ((code - 1) * 137.508 + 222) % 360;
  const light = (dark ? [0.66, 0.76, 0.56] : [0.5, 0.38, 0.6])[(code - 1) % 3];
  const chroma = 0.68 * Math.min(light, 1 - light);
  return [0, 8, 4].map((shift) => {
    const part = (shift + hue / 30) % 12;
    return Math.round(255 * (light - chroma * Math.max(-1, Math.min(part - 3, 9 - part, 1))));
  });
}

/** Return the corners [x, y, x, y, …] that an address holds, none where they make no polygon. */
export function cornersOf(text) {
  const numbers = text.split(",").map(Number);
  return numbers.length >= 6 && numbers.length % 2 === 0 && numbers.every(Number.isFinite) ? numbers : [];
}

export const pairs = (numbers) => Array.from({ length: numbers.length / 2 }, (_, at) => [numbers[2 * at], numbers[2 * at + 1]]);
