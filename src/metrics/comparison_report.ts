// What a comparison shows: a table with one column a run, the same as JSON, and sections of compare.html.

import { escape } from "../run/chart.ts";
import type { Interval } from "./bootstrap.ts";
import { type Comparison, type Figure, isInside } from "./comparison.ts";

const round = (value: number) => String(Number(value.toPrecision(4)));
/** A difference: two digits say how large it is. */
const delta = (value: number) => `${value < 0 ? "" : "+"}${Number(value.toPrecision(2))}`;
const span = ({ low, high }: Interval) => `[${round(low)}, ${round(high)}]`;
const ARROWS = { higher: " ↑", lower: " ↓" };
const nameOf = ({ key, better }: Figure) => `${key}${better ? ARROWS[better] : ""}`;

/** Value and interval; "*" marks the best, "~" a difference from it whose interval holds zero. */
function textOf({ values, intervals, best, differences }: Figure, r: number): string {
  const value = values[r], interval = intervals[r];
  if (value === undefined) return "";
  const mark = r === best ? " *" : isInside(differences[r]) ? " ~" : "";
  return `${round(value)}${interval ? ` ${span(interval)}` : ""}${mark}`;
}

/** The table as lines with aligned columns, what the marks mean, and notes. */
export function comparisonLines({ runs, facts, figures, notes }: Comparison): string[] {
  const rows = [
    ["", ...runs.map(({ name }) => name)],
    ...facts.map(({ name, values }) => [name, ...values.map((value) => value ?? "")]),
    ...figures.map((figure) => [nameOf(figure), ...runs.map((_, r) => textOf(figure, r))]),
  ];
  const widths = rows[0]?.map((_, c) => Math.max(...rows.map((row) => row[c]?.length ?? 0))) ?? [];
  const marked = figures.some(({ best }) => best !== undefined);
  const legend =
    "* the best; ~ zero is inside the 95 % interval of the difference from it; in brackets: 95 % interval";
  return [
    ...rows.map((row) => row.map((text, c) => text.padEnd(widths[c] ?? 0)).join("  ").trimEnd()),
    ...marked ? [legend] : [],
    ...notes,
  ];
}

/** As in compare.json: intervals are pairs, and null is what a run does not have. */
export function comparisonJson({ runs, facts, figures, notes }: Comparison): Record<string, unknown> {
  const pair = (interval: Interval | undefined) => interval ? [interval.low, interval.high] : null;
  return {
    runs,
    facts: Object.fromEntries(facts.map(({ name, values }) => [name, values.map((v) => v ?? null)])),
    figures: Object.fromEntries(figures.map(({ key, better, values, intervals, best, differences }) => [key, {
      better: better ?? null,
      values: values.map((v) => v ?? null),
      intervals: intervals.map(pair),
      best: best ?? null,
      differences: differences.map((d) => d ? { value: d.value, interval: pair(d.interval) } : null),
      inside: differences.map((d) => d?.interval ? isInside(d) : null),
    }])),
    notes,
  };
}

/** Sections of the page. */
export function comparisonSections({ runs, facts, figures, notes }: Comparison): string[] {
  const row = (tag: string, cells: readonly string[]) =>
    `<tr>${cells.map((cell) => `<${tag}>${cell}</${tag}>`).join("")}</tr>`;
  const cell = (figure: Figure, r: number) => {
    const { values, intervals, best, differences } = figure, value = values[r], interval = intervals[r];
    if (value === undefined) return "";
    const number = r === best ? `<b>${round(value)}</b>` : round(value), from = differences[r];
    const text = [
      ...interval ? [span(interval)] : [],
      ...from ? [`${delta(from.value)}${isInside(from) ? " (inside its interval)" : ""}`] : [],
    ];
    return `${number}${
      text.map((line) => `<br><small style="white-space: nowrap">${escape(line)}</small>`).join("")
    }`;
  };
  const head = row("th", ["", ...runs.map(({ name }) => escape(name))]);
  const card = (rows: readonly string[]) =>
    `<div class="card" style="overflow-x: auto"><table>${head}${rows.join("")}</table></div>`;
  const plots = figures.map((figure) => plotOf(figure, runs.map(({ name }) => name))).filter(Boolean);
  return [
    `<h2>Figures</h2><p>Bold: the best. In brackets: the 95 % interval. Below: the difference from the best.</p>${
      card(
        figures.map((figure) => row("td", [escape(nameOf(figure)), ...runs.map((_, r) => cell(figure, r))])),
      )
    }`,
    notes.length ? `<h2>Notes</h2>${notes.map((note) => `<p>${escape(note)}</p>`).join("")}` : "",
    plots.length ? `<h2>Intervals</h2><div class="cards">${plots.join("")}</div>` : "",
    `<h2>How they were made</h2>${
      card(facts.map(({ name, values }) => row("td", [name, ...values.map((v) => v ?? "")].map(escape))))
    }`,
  ];
}

const W = 310, LEFT = 96, RIGHT = 14, LINE = 22, TOP = 10;

/** A dot for the value of each run and a line for its interval; empty without an interval. */
function plotOf({ key, values, intervals, best }: Figure, names: readonly string[]): string {
  const ends = intervals.flatMap((i) => i ? [i.low, i.high] : []);
  if (!ends.length) return "";
  const all = [...ends, ...values.filter((v) => v !== undefined)], low = Math.min(...all);
  const range = Math.max(...all) - low || 1, H = TOP + LINE * names.length + 20;
  const x = (v: number) => (LEFT + (W - LEFT - RIGHT) * (v - low) / range).toFixed(1);
  const marks = values.map((value, r) => {
    const y = TOP + LINE * r + 12, interval = intervals[r], color = r === best ? "var(--b)" : "var(--a)";
    const short = (names[r] ?? "").length > 14 ? `${names[r]?.slice(0, 13)}…` : names[r];
    const line = interval
      ? `<line x1="${x(interval.low)}" x2="${
        x(interval.high)
      }" y1="${y}" y2="${y}" stroke="${color}" stroke-width="2"/>`
      : "";
    const dot = value === undefined ? "" : `<circle cx="${x(value)}" cy="${y}" r="4" fill="${color}"/>`;
    return `<text x="${LEFT - 8}" y="${y + 4}" text-anchor="end">${escape(short)}</text>${line}${dot}`;
  });
  const end = (v: number, anchor: string) =>
    `<text x="${x(v)}" y="${H - 4}" text-anchor="${anchor}">${round(v)}</text>`;
  return `<figure><figcaption>${escape(key.replaceAll("_", " "))}</figcaption><svg viewBox="0 0 ${W} ${H}" ` +
    `width="100%" role="img">${marks.join("")}${end(low, "start")}${end(low + range, "end")}</svg></figure>`;
}
