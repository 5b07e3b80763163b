// What a sweep found: a table, charts over guidance and over network evaluations, and sections of report.html.

import { join } from "@std/path";
import { SWEPT, type Swept, written } from "../cli/sweep_config.ts";
import { kebab } from "../cli/flags.ts";
import { writeAtomic, writeJson } from "../formats/files.ts";
import { type Chart, chart, chartFile, escape } from "../run/chart.ts";
import { uriOf, writeReport } from "../run/report.ts";
import { bestOf, type Cell, type CellResult, pictureOf, scoresOf, variedIn } from "./sweep.ts";

const round = (value: number) => String(Number(value.toPrecision(5)));

/** The scores of a cell in words. */
const scoreText = (cell: CellResult): string =>
  scoresOf([cell]).map((name) => `${name.replaceAll("_", " ")} ${round(cell.scores[name] ?? NaN)}`).join(
    " · ",
  );

/** The cell and its scores in words. */
export const describe = (varied: readonly (keyof Swept)[]) => (cell: CellResult): string =>
  [seriesOf(cell, varied), scoreText(cell)].filter(Boolean).join(": ");

/** Rows of texts: a head, then a row for each cell, the best one marked. */
export function tableOf(results: readonly CellResult[]): string[][] {
  const varied = variedIn(results), scores = scoresOf(results), best = bestOf(results);
  const head = [...varied.map(kebab), "NFE", "seconds", ...scores, ""];
  return [
    head,
    ...results.map((cell) => [
      ...varied.map((name) => written(cell.options[name])),
      String(cell.nfe),
      cell.seconds.toFixed(1),
      ...scores.map((name) => cell.scores[name] === undefined ? "" : round(cell.scores[name])),
      cell === best ? "best" : "",
    ]),
  ];
}

/** The table as lines with aligned columns. */
export function tableLines(results: readonly CellResult[]): string[] {
  const rows = tableOf(results), [head] = rows;
  const widths = head?.map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0))) ?? [];
  return rows.map((row) => row.map((text, i) => text.padStart(widths[i] ?? 0)).join("  ").trimEnd());
}

/** The options that distinguish a cell from others. */
const seriesOf = ({ options }: Cell, names: readonly (keyof Swept)[]) =>
  names.map((name) => `${kebab(name)} ${written(options[name])}`).join(", ");

/** The weights of guidance, each the x of a chart where it varies. */
const WEIGHTS = {
  cfg: "guidance weight",
  guideWeight: "autoguidance weight",
  ig: "internal guidance weight",
} as const satisfies Partial<Record<keyof Swept, string>>;

/**
 * A chart of each score over each weight of guidance, and over network evaluations, where these vary: a row each.
 * @param cells all combinations; those of one key share a result
 */
export function chartsOf(cells: readonly Cell[], results: readonly CellResult[]): Chart[][] {
  const byKey = new Map(results.map((result) => [result.key, result]));
  const varied = variedIn(cells);
  const over = (x: string, valueOf: (cell: CellResult) => number, names: readonly (keyof Swept)[]) => {
    const found = cells.flatMap((cell) => {
      const result = byKey.get(cell.key);
      return result ? [{ ...result, ...cell }] : [];
    });
    if (new Set(found.map(valueOf)).size < 2) return [];
    const sorted = found.toSorted((a, b) => valueOf(a) - valueOf(b));
    const series = [...new Set(found.map((cell) => seriesOf(cell, names)))];
    return scoresOf(results).map((score) => ({
      name: score,
      points: sorted.map((cell) =>
        [valueOf(cell), cell.scores[score] ?? NaN, seriesOf(cell, names)] as const
      ),
      options: { x, series, legend: true },
    }));
  };
  return [
    ...(Object.keys(WEIGHTS) as (keyof typeof WEIGHTS)[]).map((weight) =>
      over(WEIGHTS[weight], ({ options }) => options[weight], varied.filter((name) => name !== weight))
    ),
    over("network evaluations", ({ nfe }) => nfe, varied.filter((name) => name !== "steps")),
  ].filter((row) => row.length > 0);
}

/** The protocols of scores, for people: "fid: adm; fd_encoder: tok". */
export const protocolText = (protocols: Readonly<Record<string, string>>): string =>
  Object.entries(protocols).map(([name, protocol]) => `${name}: ${protocol}`).join("; ");

/** A cell with its scores, in metrics.json. */
export const metricsOf = ({ options, nfe, scores: { n: _, ...scores } }: CellResult) => ({
  options,
  nfe,
  ...scores,
});

interface About {
  folder: string;
  line: string;
  command: string;
  protocols: Readonly<Record<string, string>>;
}

/**
 * Writes metrics.json, charts.svg and report.html.
 * @param about.folder of the pictures of the cells
 * @param about.line the command line of the sweep
 * @param about.command samples with the options of the best cell
 * @param about.protocols of the scores by their keys
 */
export async function writeSweep(
  out: string,
  cells: readonly Cell[],
  results: readonly CellResult[],
  about: About,
): Promise<void> {
  const best = bestOf(results);
  writeJson(join(out, "metrics.json"), {
    n: results[0]?.scores.n,
    cells: results.map(metricsOf),
    ...best && { best: metricsOf(best) },
    protocols: about.protocols,
  });
  writeAtomic(join(out, "charts.svg"), chartFile(chartsOf(cells, results)));
  await writeReport(out, { title: "Sweep", line: about.line, sections: sectionsOf(cells, results, about) });
}

/** Sections of the page: the command of the best cell, the table, the charts, a picture of each cell. */
function sectionsOf(
  cells: readonly Cell[],
  results: readonly CellResult[],
  { folder, command, protocols }: About,
): string[] {
  const [head = [], ...rows] = tableOf(results), best = bestOf(results);
  const line = (tag: string, row: readonly string[]) =>
    `<tr>${row.map((text) => `<${tag}>${escape(text)}</${tag}>`).join("")}</tr>`;
  const charts = chartsOf(cells, results).flat().map(({ name, points, options }) =>
    chart(name, points, options)
  );
  const names = variedIn(results).length ? variedIn(results) : SWEPT;
  const pictures = results.map((cell) => {
    const caption = `${seriesOf(cell, names)}${cell === best ? " (best)" : ""} · ${scoreText(cell)}`;
    return `<figure><figcaption>${escape(caption)}</figcaption><img alt="${escape(caption)}" src="${
      uriOf(pictureOf(folder, cell))
    }"></figure>`;
  });
  return [
    `<h2>Best cell</h2><p><code>${escape(command)}</code></p>`,
    `<h2>Cells</h2><div class="card"><table>${line("th", head)}${
      rows.map((row) => line("td", row)).join("")
    }</table></div><p>Protocols: ${escape(protocolText(protocols))}</p>`,
    charts.some(Boolean) ? `<h2>Charts</h2><div class="cards">${charts.join("")}</div>` : "",
    `<h2>Samples</h2><p>The same noise and classes in every cell.</p><div class="cards">${
      pictures.join("")
    }</div>`,
  ];
}
