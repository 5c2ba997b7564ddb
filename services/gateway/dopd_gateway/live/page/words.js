// Numbers, times and durations as people read them. Values in, text out.

/** 950, 12.3k, 4.1M */
export function count(number) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= 0.9995 * size && number >= 1000) return `${Number((number / size).toPrecision(3))}${unit}`;
  }
  return String(Math.round(number));
}

/** A rate: 0.4, 8.3, 120 */
export function rate(value) {
  return value >= 99.5 ? count(value) : Number(value.toFixed(value < 9.95 ? 2 : 1)).toString();
}

/** A duration: 310 µs, 12.5 ms, 310 ms, 2.4 s, 3 min */
export function took(seconds) {
  if (!seconds) return "0";
  if (seconds < 0.00095) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.9995) return `${Number((seconds * 1e3).toPrecision(3))} ms`;
  if (seconds < 120) return `${Number(seconds.toPrecision(3))} s`;
  return `${Math.round(seconds / 60)} min`;
}

/** How long ago, in one unit. */
export function ago(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.round(seconds / size)} ${unit} ago`;
  }
  return `${Math.max(0, Math.round(seconds))} s ago`;
}

/** 14:05:09, or 14:05 */
export function clock(atS, withSeconds = true) {
  const date = new Date(atS * 1000);
  const parts = [date.getHours(), date.getMinutes(), ...(withSeconds ? [date.getSeconds()] : [])];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

export function percent(share) {
  return `${Number((share * 100).toFixed(share > 0 && share < 1 && share > 0.985 ? 1 : 0))} %`;
}

/** `1 worker`, `2 workers` */
export function many(number, what) {
  return `${count(number)} ${what}${number === 1 ? "" : "s"}`;
}

/** w2 before w10. */
export const inOrder = new Intl.Collator("en", { numeric: true }).compare;
