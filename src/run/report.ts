// report.html of a run: a self-contained page with curves of training and validation from log.jsonl, pictures, the scores of
// each stage and the configuration. Curves are SVG; colors follow the system's light or dark mode.

import { basename, join } from "@std/path";
import { exists, readJson, writeAtomic } from "../formats/files.ts";
import { chart, COLOR_STYLE, escape } from "./chart.ts";
import { readBest, textOfBest } from "./checkpoint.ts";

type Row = Record<string, unknown>;

/** Rows of one kind, by step, without those of steps that a resumed run did again. */
function latestRows(rows: readonly Row[], event: string): Row[] {
  let found: Row[] = [];
  for (const row of rows) {
    if (row.event === "start") found = found.filter((r) => Number(r.step) <= Number(row.step));
    if (row.event === event) found.push(row);
  }
  return [...new Map(found.map((r) => [Number(r.step), r])).values()].sort((a, b) =>
    Number(a.step) - Number(b.step)
  );
}

/** A chart for each number of the rows. */
function chartsOf(rows: readonly Row[], stages: string[], prefix: string): string[] {
  const names = [...new Set(rows.flatMap((r) => Object.keys(r)))].filter((k) =>
    !["event", "step", "stage", "best", "n"].includes(k)
  );
  return names.map((name) =>
    chart(
      `${prefix}${name}`,
      rows.map((r) => [Number(r.step), Number(r[name] ?? NaN), String(r.stage ?? "")] as const),
      { x: "steps", series: stages, course: true },
    )
  ).filter(Boolean);
}

/**
 * Writes RUN/report.html from the files of the run.
 * @param about.sections HTML of what only this kind of run has, after the scores
 * @param about.file another name of the page
 * @param about.cards keys of metrics.json that are shown as cards [all]
 */
export async function writeReport(
  run: string,
  { title, line, sections = [], file = "report.html", cards }: {
    title: string;
    line: string;
    sections?: readonly string[];
    file?: string;
    cards?: readonly string[];
  },
): Promise<void> {
  const rows: Row[] = exists(join(run, "log.jsonl"))
    ? (await Deno.readTextFile(join(run, "log.jsonl"))).split("\n").flatMap((text) => {
      try {
        return text ? [JSON.parse(text) as Row] : [];
      } catch {
        return []; // incomplete last line of a killed run
      }
    })
    : [];
  const config = exists(join(run, "config.json")) ? readJson(join(run, "config.json")) as Row : {};
  const metrics = exists(join(run, "metrics.json")) ? readJson(join(run, "metrics.json")) as Row : {};
  writeAtomic(
    join(run, file),
    page(title, run, line, rows, config, cards ? chosen(metrics, cards) : metrics, pictures(run), sections),
  );
}

const chosen = (metrics: Row, keys: readonly string[]): Row =>
  Object.fromEntries(keys.filter((key) => key in metrics).map((key) => [key, metrics[key]]));

/** Maximum number of validations in a picture over time. */
const MAX_ROWS = 16;

/** Pictures of validations by their folder: the same images reconstructed, or samples of the same noise and classes. */
const OVER_TIME = [["validation", "Reconstructions"], ["samples", "Samples"]] as const;

/** One row a validation. */
function overTime(folder: string, what: string, validations: readonly Row[]): string {
  const rows = validations.map(({ step, stage }) => ({
    label: `step ${step}${stage ? `, ${stage}` : ""}`,
    path: join(folder, `step_${String(step).padStart(8, "0")}.png`),
  })).filter(({ path }) => exists(path));
  if (rows.length < 2) return "";
  const some = rows.filter((_, i) =>
    rows.length <= MAX_ROWS ||
    Math.floor(i * (MAX_ROWS - 1) / (rows.length - 1)) !==
      Math.floor((i - 1) * (MAX_ROWS - 1) / (rows.length - 1))
  );
  const originals = { label: "originals", path: join(folder, "originals.png") };
  const shown = [...some, ...exists(originals.path) ? [originals] : []].map(({ label, path }) =>
    `<tr><td>${escape(label)}</td><td><img alt="${escape(label)}" src="${uriOf(path)}"></td></tr>`
  );
  return `<h2>${what} over time</h2><div class="card"><table class="rows">${shown.join("")}</table></div>`;
}

/** The best checkpoint, if one is kept. */
function bestOf(run: string): string {
  const best = readBest(run);
  if (!best) return "";
  return `<p>Best checkpoint: ${
    escape(textOfBest(best))
  } (checkpoints/best.safetensors, tokenizer or model in best/)</p>`;
}

/** An image file as an address that a page can hold. */
export const uriOf = (path: string) => `data:image/png;base64,${Deno.readFileSync(path).toBase64()}`;

function pictures(run: string): { name: string; uri: string }[] {
  const folder = join(run, "images");
  const files = exists(folder)
    ? [...Deno.readDirSync(folder)].map(({ name }) => join(folder, name)).sort()
    : [];
  for (const name of ["grid.png"]) if (exists(join(run, name))) files.push(join(run, name));
  return files.filter((f) => f.endsWith(".png")).map((file) => ({
    name: basename(file, ".png").replace(/^\d+_/, "").replaceAll("_", " "),
    uri: uriOf(file),
  }));
}

function page(
  title: string,
  run: string,
  line: string,
  rows: Row[],
  config: Row,
  metrics: Row,
  images: { name: string; uri: string }[],
  sections: readonly string[],
): string {
  const steps = latestRows(rows, "step"), validations = latestRows(rows, "validation");
  const stages = [...new Set(steps.map((r) => String(r.stage ?? "")))].filter(Boolean);
  const charts = chartsOf(steps, stages, ""), scores = chartsOf(validations, stages, "validation ");
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${escape(title)} · ${escape(basename(run))}</title>
<style>
:root { color-scheme: light dark; --ink: light-dark(#1c2024, #e6e8ea); --soft: light-dark(#60686f, #9aa3ab); --line: light-dark(#dfe3e6, #343a40);
  --card: light-dark(#fff, #1b1f23); --page: light-dark(#f6f7f8, #121518); ${COLOR_STYLE} }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .7rem; } p { margin: .3rem 0; color: var(--soft); }
code { font: 13px ui-monospace, monospace; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .15rem .4rem; color: var(--ink); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); gap: 1rem; }
.cards.small { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)); gap: .5rem; } .small figure { padding: .4rem .5rem; }
.card { overflow-x: auto; } .scroll img { width: auto; max-width: none; min-width: 100%; } .facts td { text-align: left; overflow-wrap: anywhere; } .facts td:first-child { width: 9rem; color: var(--soft); }
td.group { color: var(--soft); font-size: 13px; padding-top: .8rem; overflow-wrap: anywhere; } .scroll { overflow-x: auto; }
.card.caution { border-left: 3px solid var(--b); margin: .5rem 0; } .card.common { margin-top: .5rem; } td:has(b) { white-space: nowrap; }
figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem; margin: 0; }
figure img { width: 100%; image-rendering: pixelated; display: block; border-radius: 4px; } figcaption { color: var(--soft); font-size: 13px; padding-bottom: .4rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; } td, th { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } td:first-child, th:first-child { text-align: left; } details summary { cursor: pointer; color: var(--soft); }
.big { display: flex; flex-wrap: wrap; gap: 1rem; } .big div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem; }
.big b { display: block; font-size: 1.35rem; font-weight: 600; } .big span { color: var(--soft); font-size: 13px; } .rows td { text-align: left; } .rows img { width: 100%; image-rendering: pixelated; display: block; } .rows td:first-child { width: 9rem; color: var(--soft); } svg text { fill: var(--soft); font-size: 11px; }
@media (max-width: 30rem) { td, th { padding: .3rem .35rem; } .card { padding: .5rem; } }
</style>
<h1>${escape(title)}</h1><p>${escape(run)}</p><p><code>${escape(line)}</code></p>
${scoreCards(metrics)}
${stageTable(metrics)}
${bestOf(run)}
${sections.join("\n")}
${scores.length ? `<h2>Validation</h2><div class="cards">${scores.join("")}</div>` : ""}
${OVER_TIME.map(([name, what]) => overTime(join(run, "images", name), what, validations)).join("")}
${
    images.length
      ? `<h2>Pictures</h2>${
        images.map(({ name, uri }) =>
          `<figure><figcaption>${escape(name)}</figcaption><img alt="${
            escape(name)
          }" src="${uri}"></figure><br>`
        ).join("")
      }`
      : ""
  }
${charts.length ? `<h2>Curves</h2><div class="cards">${charts.join("")}</div>` : ""}
<h2>Configuration</h2><details class="card"><summary>${Object.keys(config).length} options</summary><table>${
    Object.entries(config).map(([k, v]) => `<tr><td>${escape(k)}</td><td>${escape(shown(v))}</td></tr>`).join(
      "",
    )
  }</table></details>
</html>
`;
}

function shown(value: unknown): string {
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value !== "object" || value === null) return String(value);
  return Object.entries(value).map(([key, v]) => `${key}: ${v?.name ?? v}`).join(", ");
}

/** A number with four digits. */
export const number = (v: number) =>
  v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5)
    ? v.toExponential(2)
    : String(Number(v.toPrecision(4)));

function scoreCards(metrics: Row): string {
  const scores = Object.entries(metrics).filter(([, v]) => typeof v === "number") as [string, number][];
  if (!scores.length) return "";
  return `<h2>Scores</h2><div class="big">${
    scores.map(([k, v]) => `<div><b>${number(v)}</b><span>${escape(k.replaceAll("_", " "))}</span></div>`)
      .join("")
  }</div>`;
}

function stageTable(metrics: Row): string {
  const stages = metrics.stages as Record<string, Record<string, number>> | undefined;
  if (!stages) return "";
  const keys = [...new Set(Object.values(stages).flatMap((s) => Object.keys(s)))];
  const body = Object.entries(stages).map(([name, s]) =>
    `<tr><td>${escape(name)}</td>${
      keys.map((k) => `<td>${s[k] === undefined ? "" : number(s[k])}</td>`).join("")
    }</tr>`
  );
  return `<h2>Stages</h2><div class="card"><table><tr><th>stage</th>${
    keys.map((k) => `<th>${escape(k)}</th>`).join("")
  }</tr>${body.join("")}</table></div>`;
}
