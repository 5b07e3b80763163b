// report.html of a run: a self-contained page with curves of training and validation from log.jsonl, pictures, the scores of
// each stage and the configuration. Curves are SVG; colors follow the system's light or dark mode.

import { basename, join } from "@std/path";
import { exists, readJson, writeAtomic } from "../formats/files.ts";
import { readBest, textOfBest } from "./checkpoint.ts";

type Row = Record<string, unknown>;

const escape = (text: unknown) =>
  String(text).replace(
    /[&<>"]/g,
    (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c] as string,
  );

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
      rows.map((r) => [Number(r.step), Number(r[name]), String(r.stage ?? "")]),
      stages,
    )
  ).filter(Boolean);
}

/** Writes RUN/report.html from the files of the run. */
export async function writeReport(
  run: string,
  { title, line }: { title: string; line: string },
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
  writeAtomic(join(run, "report.html"), page(title, run, line, rows, config, metrics, pictures(run)));
}

/** Maximum number of validations in the picture of reconstructions over time. */
const MAX_ROWS = 16;

/** Reconstructions of the same images, one row a validation. */
function overTime(run: string, validations: readonly Row[]): string {
  const folder = join(run, "images", "validation");
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
  return `<h2>Reconstructions over time</h2><div class="card"><table class="rows">${
    shown.join("")
  }</table></div>`;
}

/** The best checkpoint, if one is kept. */
function bestOf(run: string): string {
  const best = readBest(run);
  if (!best) return "";
  return `<p>Best checkpoint: ${
    escape(textOfBest(best))
  } (checkpoints/best.safetensors, tokenizer or model in best/)</p>`;
}

const uriOf = (path: string) => `data:image/png;base64,${Deno.readFileSync(path).toBase64()}`;

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
): string {
  const steps = latestRows(rows, "step"), validations = latestRows(rows, "validation");
  const stages = [...new Set(steps.map((r) => String(r.stage ?? "")))].filter(Boolean);
  const charts = chartsOf(steps, stages, ""), scores = chartsOf(validations, stages, "validation ");
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${escape(title)} · ${escape(basename(run))}</title>
<style>
:root { color-scheme: light dark; --ink: light-dark(#1c2024, #e6e8ea); --soft: light-dark(#60686f, #9aa3ab); --line: light-dark(#dfe3e6, #343a40);
  --card: light-dark(#fff, #1b1f23); --page: light-dark(#f6f7f8, #121518); --a: light-dark(#0b6bcb, #58a6ff); --b: light-dark(#c2410c, #ff9b5e); --c: light-dark(#15803d, #4ade80); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .7rem; } p { margin: .3rem 0; color: var(--soft); }
code { font: 13px ui-monospace, monospace; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .15rem .4rem; color: var(--ink); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 1rem; }
figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem; margin: 0; }
figure img { width: 100%; image-rendering: pixelated; display: block; border-radius: 4px; } figcaption { color: var(--soft); font-size: 13px; padding-bottom: .4rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; } td, th { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } td:first-child, th:first-child { text-align: left; } details summary { cursor: pointer; color: var(--soft); }
.big { display: flex; flex-wrap: wrap; gap: 1rem; } .big div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem; }
.big b { display: block; font-size: 1.35rem; font-weight: 600; } .big span { color: var(--soft); font-size: 13px; } .rows td { text-align: left; } .rows img { width: 100%; image-rendering: pixelated; display: block; } .rows td:first-child { width: 9rem; color: var(--soft); } svg text { fill: var(--soft); font-size: 11px; }
</style>
<h1>${escape(title)}</h1><p>${escape(run)}</p><p><code>${escape(line)}</code></p>
${scoreCards(metrics)}
${stageTable(metrics)}
${bestOf(run)}
${scores.length ? `<h2>Validation</h2><div class="cards">${scores.join("")}</div>` : ""}
${overTime(run, validations)}
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

const number = (v: number) =>
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

/** Number of points up to which each of them is marked. */
const MAX_MARKED = 30;

/** One curve; parts of different stages in different colours. Empty for a metric that was never used. */
function chart(name: string, points: [number, number, string][], stages: string[]): string {
  const good = points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  if (good.length < 2 || good.every(([, y]) => y === 0)) return "";
  const W = 310, H = 170, left = 46, right = 8, top = 8, bottom = 22;
  const xs = good.map(([x]) => x), ys = good.map(([, y]) => y);
  const x0 = Math.min(...xs), x1 = Math.max(...xs);
  // Positive curves that fall by more than tenfold get a logarithmic scale.
  const log = Math.min(...ys) > 0 && Math.max(...ys) / Math.min(...ys) > 10;
  const scale = (y: number) => log ? Math.log10(y) : y;
  const low = Math.min(...ys.map(scale)), high = Math.max(...ys.map(scale)), span = high - low || 1;
  const px = (x: number) => left + (W - left - right) * (x - x0) / (x1 - x0 || 1);
  const py = (y: number) => H - bottom - (H - top - bottom) * (scale(y) - low) / span;
  const ticks = [0, 1, 2, 3].map((i) => low + span * i / 3);
  const at = ([x, y]: [number, number, string]) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
  const path = (own: typeof good) => own.map((point, k) => `${k ? "L" : "M"}${at(point)}`).join("");
  const lines = (stages.length ? stages : [""]).map((stage, i) => {
    const own = good.filter(([, , s]) => s === stage || stage === ""), color = `var(--${"abc"[i % 3]})`;
    const title = `<title>${escape(stage)}</title>`;
    const curve = `<path d="${path(own)}" fill="none" stroke="${color}" stroke-width="1.7">${title}</path>`;
    if (good.length > MAX_MARKED) return curve;
    return curve +
      own.map(([x, y]) =>
        `<circle cx="${px(x).toFixed(1)}" cy="${py(y).toFixed(1)}" r="2.6" fill="${color}">${title}</circle>`
      ).join("");
  });
  // A stage may have a single point: a line through all of them shows the course.
  if (good.length <= MAX_MARKED) {
    lines.unshift(`<path d="${path(good)}" fill="none" stroke="var(--soft)" stroke-dasharray="3 3"/>`);
  }
  return `<figure><figcaption>${escape(name.replaceAll("_", " "))}${
    log ? " (logarithmic)" : ""
  }</figcaption><svg viewBox="0 0 ${W} ${H}" width="100%" role="img">
${
    ticks.map((t) => {
      const y = log ? 10 ** t : t;
      return `<line x1="${left}" x2="${W - right}" y1="${py(y).toFixed(1)}" y2="${
        py(y).toFixed(1)
      }" stroke="var(--line)"/><text x="${left - 5}" y="${(py(y) + 4).toFixed(1)}" text-anchor="end">${
        Number(y.toPrecision(3))
      }</text>`;
    }).join("")
  }
<text x="${left}" y="${H - 6}">${x0}</text><text x="${W - right}" y="${
    H - 6
  }" text-anchor="end">${x1} steps</text>${lines.join("")}</svg></figure>`;
}
