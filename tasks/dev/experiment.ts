// The ablation of AlignTok at small scale on generated images. Goes on where it was interrupted; each cell takes minutes.
// Run: deno task experiment ablation [--out DIR] [--rows NAME,...] [--seeds N] [--scale N] [--jobs N] [--report]

import { parseArgs } from "@std/cli/parse-args";
import { fromFileUrl, join } from "@std/path";
import { type Row, ROWS, stepsOf } from "../../src/experiment/ablation.ts";
import { type Cell, runCell, scoresOf, secondsOf } from "../../src/experiment/cells.ts";
import { chart, type Found, markdownClaims, markdownTable, page } from "../../src/experiment/summary.ts";
import { UsageError } from "../../src/errors.ts";
import { makeFolder, writeAtomic } from "../../src/formats/files.ts";
import type { Scores } from "../../src/metrics/metric.ts";

const here = (name: string) => fromFileUrl(new URL(name, import.meta.url));
const USAGE = `Usage: deno task experiment ablation [options]

  --out DIR       Folder of the cells, the table, the chart and the page [runs/ablation]
  --rows NAME,... Rows to run [all: ${ROWS.map(({ name }) => name).join(",")}]
  --seeds N       Seeds of the rows that the claims compare; other rows run with the first [3]
  --scale N       Factor of all numbers of training steps [1]
  --jobs N        Cells that run at the same time, which a GPU has room for; each writes to its own log.txt [1]
  --report        Only write table.md, chart.svg and index.html from the finished cells
`;

const count = (name: string, text: unknown): number => {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  console.error(`Cannot run the experiment: --${name} is ${text}, not a positive integer\n\n${USAGE}`);
  return Deno.exit(2);
};

/** Cells in the order in which they run: the first seed of every row, then the others of the rows of the claims. */
function cellsOf(rows: readonly Row[], seeds: number, scale: number, out: string): Cell[] {
  return Array.from(
    { length: seeds },
    (_, seed) =>
      rows.filter(({ claimed }) => claimed || seed === 0).map((row) => {
        const folder = join(out, `${row.name}-${seed}`);
        const steps = stepsOf(row, { seed, scale }, folder, {
          tok: here("../../main.ts"),
          score: here("experiment_score.ts"),
        });
        return { row: row.name, seed, folder, steps };
      }),
  ).flat();
}

function writeSummary(cells: readonly Cell[], out: string): void {
  const found = new Map<string, Map<number, Scores>>();
  let seconds = 0, finished = 0, longest = 0;
  for (const cell of cells) {
    const scores = scoresOf(cell);
    if (!scores) continue;
    const own = found.get(cell.row) ?? new Map<number, Scores>();
    found.set(cell.row, own.set(cell.seed, scores));
    finished++;
    seconds += secondsOf(cell);
    longest = Math.max(longest, secondsOf(cell));
  }
  const facts = [
    `${finished} of ${cells.length} cells, ${(seconds / 60).toFixed(0)} minutes in all, the longest ` +
    `${(longest / 60).toFixed(1)} minutes, on ${navigator.hardwareConcurrency} cores`,
  ];
  const table = markdownTable(found as Found), claims = markdownClaims(found);
  writeAtomic(join(out, "table.md"), `${facts.join("\n")}\n\n${table}\n${claims}`);
  writeAtomic(join(out, "chart.svg"), chart(found));
  writeAtomic(join(out, "index.html"), page(found, facts));
  console.log(`${facts.join("\n")}\n\n${table}\n${claims}\nlook at ${join(out, "index.html")}`);
}

const args = parseArgs(Deno.args, {
  string: ["out", "rows", "seeds", "scale", "jobs"],
  boolean: ["report", "help"],
  default: { out: "runs/ablation", seeds: "3", scale: "1", jobs: "1" },
  unknown: (arg) => {
    if (arg === "ablation") return true;
    console.error(`Cannot run the experiment: unknown argument "${arg}"\n\n${USAGE}`);
    Deno.exit(2);
  },
});
if (args.help || args._[0] !== "ablation") {
  console.log(USAGE);
  Deno.exit(args.help ? 0 : 2);
}
const names = (args.rows as string | undefined)?.split(",") ?? ROWS.map(({ name }) => name);
const unknown = names.find((name) => !ROWS.some((row) => row.name === name));
if (unknown !== undefined) {
  console.error(`Cannot run the experiment: no row is named "${unknown}"\n\n${USAGE}`);
  Deno.exit(2);
}
const seeds = count("seeds", args.seeds), scale = count("scale", args.scale), jobs = count("jobs", args.jobs);
const out = args.out as string,
  cells = cellsOf(ROWS.filter(({ name }) => names.includes(name)), seeds, scale, out);
makeFolder(out);
try {
  const left = (args.report ? [] : cells.filter((cell) => !scoresOf(cell))).entries();
  const work = async () => {
    for (const [i, cell] of left) {
      const name = `${cell.row}, seed ${cell.seed}`;
      console.log(`\ncell ${i + 1} of those left: ${name}`);
      const log = jobs > 1 ? join(cell.folder, "log.txt") : undefined;
      await runCell(cell, (line) => console.log(`$ deno run -A ${line}`), log);
      writeSummary(cells, out);
    }
  };
  const ended = await Promise.allSettled(Array.from({ length: jobs }, work)); // a failed cell ends its own worker
  for (const end of ended) if (end.status === "rejected") throw end.reason;
  writeSummary(cells, out);
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  console.error(error.message);
  Deno.exit(2);
}
