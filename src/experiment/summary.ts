// What an experiment found: means and spreads over seeds as a Markdown table, whether the claims hold, a chart of every cell
// (SVG), and a page with all of it.

import type { Scores } from "../metrics/metric.ts";
import { type Claim, CLAIMS, holds, QUANTITIES, type Quantity, type Row, ROWS } from "./ablation.ts";

/** Scores of the finished cells of each row, by seed. */
export type Found = ReadonlyMap<string, ReadonlyMap<number, Scores>>;

export interface Statistics {
  n: number;
  mean: Scores;
  /** Sample standard deviation; absent for a single seed. */
  std: Scores;
}

/** Statistics over the seeds of a row. */
export function statistics(cells: ReadonlyMap<number, Scores>): Statistics {
  const all = [...cells.values()], n = all.length, mean: Scores = {}, std: Scores = {};
  for (const key of Object.keys(all[0] ?? {})) {
    const values = all.map((scores) => scores[key] ?? NaN);
    const m = mean[key] = values.reduce((sum, v) => sum + v, 0) / n;
    if (n > 1) std[key] = Math.sqrt(values.reduce((sum, v) => sum + (v - m) ** 2, 0) / (n - 1));
  }
  return { n, mean, std };
}

/** A claim with its verdict, and the means that decide it. */
export interface Checked extends Claim {
  holds: boolean | undefined;
  values: readonly (number | undefined)[];
  /** Number of seeds that both rows have, and of those in which the claim holds. */
  seeds: readonly [total: number, holding: number];
}

export function checkClaims(found: Found): Checked[] {
  const means = new Map([...found].map(([row, cells]) => [row, statistics(cells).mean]));
  return CLAIMS.map((claim) => {
    const [a, b] = claim.rows.map((row) => found.get(row) ?? new Map<number, Scores>());
    const common = [...a?.keys() ?? []].filter((seed) => b?.has(seed));
    const holding = common.filter((seed) => {
      const one = claim.rows.map((row) => [row, found.get(row)?.get(seed) as Scores] as const);
      return holds(claim, new Map(one));
    });
    return {
      ...claim,
      holds: holds(claim, means),
      values: claim.rows.map((row) => means.get(row)?.[claim.key]),
      seeds: [common.length, holding.length],
    };
  });
}

/** The table of rows and quantities: mean, and ± the standard deviation over seeds. */
export function markdownTable(found: Found): string {
  const cell = (row: Row, { key, digits }: Quantity): string => {
    const cells = found.get(row.name);
    if (!cells?.size) return "";
    const { mean, std } = statistics(cells), value = mean[key];
    if (value === undefined) return "";
    return value.toFixed(digits) + (std[key] === undefined ? "" : ` ± ${std[key].toFixed(digits)}`);
  };
  const lines = ROWS.filter(({ name }) => found.get(name)?.size).map((row) => [
    row.title,
    String(found.get(row.name)?.size),
    ...QUANTITIES.map((q) => cell(row, q)),
  ]);
  const head = ["row", "seeds", ...QUANTITIES.map(({ title, better }) => `${title} ${ARROWS[better]}`)];
  const bar = head.map((_, i) => i === 0 ? "---" : "---:");
  return [head, bar, ...lines].map((line) => `| ${line.join(" | ")} |`).join("\n") + "\n";
}

const ARROWS = { higher: "↑", lower: "↓" };

/** The claims as a Markdown list. */
export function markdownClaims(found: Found): string {
  return checkClaims(found).map(({ text, key, rows, holds, values, seeds }) => {
    const titles = rows.map((name) => ROWS.find((row) => row.name === name)?.title ?? name);
    const { title, digits } = QUANTITIES.find((q) => q.key === key) as Quantity;
    const numbers = values.map((v) => v?.toFixed(digits) ?? "not run");
    const verdict = holds === undefined ? "not decided" : holds ? "holds" : "does not hold";
    return `- ${text}: **${verdict}** (${title}: ${titles[0]} ${numbers[0]}, ${titles[1]} ${numbers[1]}; ` +
      `${seeds[1]} of ${seeds[0]} seeds)`;
  }).join("\n") + "\n";
}

const LEFT = 190, PANEL = 150, GAP = 18, LINE = 24, TOP = 46;

/** A chart with one panel for each quantity: a dot for each cell, a bar at the mean. */
export function chart(found: Found): string {
  const rows = ROWS.filter(({ name }) => found.get(name)?.size);
  const width = LEFT + QUANTITIES.length * (PANEL + GAP), height = TOP + rows.length * LINE + 24;
  const labels = rows.map(({ title }, i) =>
    `<text x="${LEFT - 10}" y="${TOP + i * LINE + 16}" text-anchor="end">${escape(title)}</text>`
  );
  const stripes = rows.map((_, i) =>
    i % 2 ? "" : `<rect class="stripe" x="0" y="${TOP + i * LINE}" width="${width}" height="${LINE}"/>`
  );
  const panels = QUANTITIES.map((quantity, i) => panel(quantity, rows, found, LEFT + i * (PANEL + GAP)));
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" role="img" ` +
    `font-family="system-ui, sans-serif" font-size="12">
<style>text { fill: #30363c } .soft { fill: #68717a } .stripe { fill: #8881 } .dot { fill: #0b6bcb; fill-opacity: .65 }
.mean { stroke: #c2410c; stroke-width: 2.5 } .axis { stroke: #8886 }
@media (prefers-color-scheme: dark) { text { fill: #e6e8ea } .soft { fill: #9aa3ab } .dot { fill: #58a6ff } }</style>
${[...stripes, ...labels, ...panels].join("\n")}
</svg>
`;
}

function panel(
  { key, title, better, digits }: Quantity,
  rows: readonly Row[],
  found: Found,
  x0: number,
): string {
  const values = rows.map(({ name }) =>
    [...found.get(name)?.values() ?? []].flatMap((scores) => scores[key] ?? [])
  );
  const all = values.flat(), bottom = TOP + rows.length * LINE;
  if (!all.length) return "";
  // Distances that differ by more than tenfold get a logarithmic axis.
  const log = Math.min(...all) > 0 && Math.max(...all) / Math.min(...all) > 10;
  const scale = (v: number) => log ? Math.log10(v) : v;
  const low = Math.min(...all.map(scale)), high = Math.max(...all.map(scale)), span = high - low || 1;
  const px = (v: number) => (x0 + 6 + (PANEL - 12) * (scale(v) - low) / span).toFixed(1);
  const end = (v: number, anchor: string, x: number) =>
    `<text class="soft" x="${x}" y="${bottom + 16}" text-anchor="${anchor}" font-size="11">${
      (log ? 10 ** v : v).toFixed(digits)
    }</text>`;
  const marks = values.flatMap((own, i) => {
    const y = TOP + i * LINE + LINE / 2, mean = own.reduce((sum, v) => sum + v, 0) / own.length;
    if (!own.length) return [];
    return [
      ...own.map((v) => `<circle class="dot" cx="${px(v)}" cy="${y}" r="4"/>`),
      `<line class="mean" x1="${px(mean)}" x2="${px(mean)}" y1="${y - 8}" y2="${y + 8}"/>`,
    ];
  });
  return `<g><text x="${x0}" y="18" font-weight="600">${escape(title)}</text>
<text class="soft" x="${x0}" y="34" font-size="11">${better} is better${log ? ", log" : ""}</text>
<line class="axis" x1="${x0}" x2="${x0}" y1="${TOP}" y2="${bottom}"/>
${end(low, "start", x0)}${end(high, "end", x0 + PANEL)}
${marks.join("")}</g>`;
}

/** A page with the chart, the claims, the table and the commands. */
export function page(found: Found, facts: readonly string[]): string {
  const table = markdownTable(found).trim().split("\n").filter((_, i) => i !== 1).map((line, i) => {
    const tag = i === 0 ? "th" : "td";
    return `<tr>${
      line.slice(2, -2).split(" | ").map((text) => `<${tag}>${escape(text)}</${tag}>`).join("")
    }</tr>`;
  });
  const claims = markdownClaims(found).trim().split("\n").map((line) =>
    `<li>${escape(line.slice(2)).replace(/\*\*(.*?)\*\*/, "<b>$1</b>")}</li>`
  );
  const commands = ROWS.filter(({ name }) => found.get(name)?.size).map(({ title, align }) =>
    `<tr><td>${escape(title)}</td><td><code>tok align ${escape(align.join(" "))}</code></td></tr>`
  );
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Ablation of AlignTok at small scale</title>
<style>
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1260px; padding: 0 1.25rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #8884 }
td:first-child, th:first-child, td:last-child code { text-align: left } svg { max-width: 100%; height: auto } code { font-size: 13px }
</style>
<h1>Ablation of AlignTok at small scale</h1>
${facts.map((fact) => `<p>${escape(fact)}</p>`).join("\n")}
${chart(found)}
<h2>Claims</h2><ul>${claims.join("\n")}</ul>
<h2>Means ± standard deviations over seeds</h2><table>${table.join("\n")}</table>
<h2>Commands</h2><table>${commands.join("\n")}</table>
</html>
`;
}

const escape = (text: string) =>
  text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c] as string);
