// Histograms as SVG for pages: one chart of several sets of values, and a row of small ones.

import { escape } from "./chart.ts";

const W = 310, H = 180, LEFT = 40, RIGHT = 8, TOP = 20, BOTTOM = 22;
const BINS = 24;
const COLORS = ["a", "b", "c", "d", "e", "f"];

/** Values under a name. */
export interface Series {
  name: string;
  values: readonly number[];
}

/** Numbers of values in equal bins from `low` to `high`. */
export function binned(values: readonly number[], low: number, high: number, bins: number): number[] {
  const counts = new Array<number>(bins).fill(0);
  for (const value of values) {
    const bin = Math.min(bins - 1, Math.max(0, Math.floor((value - low) / (high - low) * bins)));
    counts[bin] = (counts[bin] as number) + 1;
  }
  return counts;
}

/** A histogram for a page: the first series filled, the others as outlines. Empty for fewer than two finite values. */
export function histogram(title: string, series: readonly Series[]): string {
  const finite = series.map(({ name, values }) => ({ name, values: values.filter(Number.isFinite) }));
  const all = finite.flatMap(({ values }) => values);
  if (all.length < 2) return "";
  const min = all.reduce((a, b) => Math.min(a, b)), max = all.reduce((a, b) => Math.max(a, b));
  const [low, high] = min < max ? [min, max] : [min - 0.5, min + 0.5];
  const counts = finite.map(({ values }) => binned(values, low, high, BINS)),
    top = Math.max(...counts.flat());
  const x = (k: number) => (LEFT + (W - LEFT - RIGHT) * k / BINS).toFixed(1);
  const y = (count: number) => (H - BOTTOM - (H - BOTTOM - TOP) * count / top).toFixed(1);
  const shapes = counts.map((own, i) => {
    const path = own.map((count, k) => `${k ? "" : `M${x(0)} ${y(0)}`}V${y(count)}H${x(k + 1)}`).join("") +
      `V${y(0)}`;
    const color = `var(--${COLORS[i % COLORS.length]})`;
    const fill = i === 0 ? `fill="${color}" fill-opacity=".35"` : 'fill="none"';
    return `<path d="${path}" ${fill} stroke="${color}" stroke-width="1.5"><title>${
      escape(finite[i]?.name)
    }</title></path>`;
  });
  const keys = finite.map(({ name }, i) =>
    `<tspan dx="${i ? 10 : 0}" style="fill: var(--${COLORS[i % COLORS.length]})">${escape(name)}</tspan>`
  ).join("");
  const label = (value: number) => Number(value.toPrecision(4));
  return `<figure><figcaption>${
    escape(title)
  }</figcaption><svg viewBox="0 0 ${W} ${H}" width="100%" role="img">
<line x1="${LEFT}" x2="${W - RIGHT}" y1="${y(0)}" y2="${y(0)}" stroke="var(--line)"/>
${shapes.join("\n")}
<text x="${LEFT - 5}" y="${TOP + 10}" text-anchor="end">${top}</text>
<text x="${LEFT}" y="${H - 6}">${label(low)}</text>
<text x="${W - RIGHT}" y="${H - 6}" text-anchor="end">${label(high)}</text>
${series.length > 1 ? `<text x="${LEFT}" y="12">${keys}</text>` : ""}</svg></figure>`;
}

/** Counts in bins between two values. */
export interface Binned {
  name: string;
  from: number;
  to: number;
  counts: readonly number[];
}

/** A small histogram for each, with its range. */
export function smallHistograms(all: readonly Binned[]): string {
  const width = 120, height = 44;
  const one = ({ name, from, to, counts }: Binned) => {
    const top = Math.max(1, ...counts), step = width / counts.length;
    const path = counts.map((count, k) =>
      `V${(height - 2 - (height - 4) * count / top).toFixed(1)}H${((k + 1) * step).toFixed(1)}`
    ).join("");
    const range = `${Number(from.toPrecision(3))} to ${Number(to.toPrecision(3))}`;
    return `<figure><figcaption>${escape(name)}</figcaption><svg viewBox="0 0 ${width} ${
      height + 13
    }" width="100%" ` +
      `role="img"><path d="M0 ${height - 2}${path}V${height - 2}Z" fill="var(--a)"/>` +
      `<text x="0" y="${height + 11}" style="font-size: 9px">${range}</text></svg></figure>`;
  };
  return `<div class="cards small">${all.map(one).join("")}</div>`;
}
