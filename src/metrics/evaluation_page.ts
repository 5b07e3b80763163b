// report.html of an evaluation: figures with what each was computed from, what is missing and which option would supply it,
// cautions, histograms, and the pictures of the folder.

import { join } from "@std/path";
import { exists } from "../formats/files.ts";
import type { Identity } from "../formats/provenance.ts";
import { escape } from "../run/chart.ts";
import { histogram, smallHistograms } from "../run/histogram.ts";
import { number, uriOf, writeReport } from "../run/report.ts";
import type { ChannelHistograms } from "./channel_histograms.ts";
import type { ImageScores } from "./image_scores.ts";
import type { Ingredients, ProbeIngredients, SetIngredients, SplitIngredients } from "./ingredients.ts";
import type { Scores } from "./metric.ts";
import { betterOf } from "./table.ts";

/** What the page shows next to figures. */
export interface Findings {
  /** Scores of each image of pairs. */
  images?: ImageScores;
  /** Distribution of each channel of the latents. */
  channels?: ChannelHistograms | undefined;
}

export interface Evaluation {
  scores: Scores;
  ingredients: Readonly<Record<string, Ingredients>>;
  findings: Findings;
  cautions: readonly string[];
  /** Metrics that are not computed, with what would supply them. */
  missing: ReadonlyMap<string, string>;
}

/** Figures shown as cards, where they were computed. */
const CARDS = ["psnr", "ssim", "lpips", "rfid", "probe", "cknna", "fid", "fd_encoder", "is", "copies", "nfe"];

/** Sections by what figures are computed from. */
const SECTIONS: readonly [title: string, from: readonly Ingredients["from"][]][] = [
  ["Reconstruction", ["reconstructions"]],
  ["Latents", ["latents"]],
  ["Classes", ["labels"]],
  ["Generated against real images", ["inception", "encoder", "six"]],
];

/** Pictures by file: title and what they show. */
const PICTURES: readonly [file: string, title: string, text: string][] = [
  [
    "pca.png",
    "Principal components",
    "Images; the first three principal components of the patch tokens of the encoder that the tokenizer was made from (if it is " +
    "known); those of the latents. Each map is colored by its own components: parts of one color are alike to it.",
  ],
  ["worst.png", "Worst reconstructions", "Originals above their reconstructions, the worst first."],
  ["samples.png", "Samples", "The first images, in the order of their numbers."],
  [
    "nearest.png",
    "Nearest training images",
    "Generated images above their nearest real ones, the closest first, by the distance relative to that between the real image " +
    "and its own nearest neighbour.",
  ],
];

/** Writes report.html into the folder of an evaluation. @param line the command line */
export async function writeEvaluationPage(out: string, line: string, evaluation: Evaluation): Promise<void> {
  const { findings } = evaluation;
  const sections = [
    cautions(evaluation.cautions),
    ...SECTIONS.map(([title, from]) => figures(title, from, evaluation)),
    perturbed(evaluation.scores),
    imageHistograms(findings.images),
    ...PICTURES.map(([file, title, text]) => picture(join(out, file), title, text)),
    channelHistograms(findings.channels),
    missing(evaluation.missing),
  ];
  await writeReport(out, { title: "Evaluation", line, sections: sections.filter(Boolean), cards: CARDS });
}

const titleOf = (key: string) => key.replaceAll("_", " ");
const NOISY = /^(.+)_sigma_([\d.e-]+)$/;

function cautions(all: readonly string[]): string {
  if (all.length === 0) return "";
  return `<h2>Cautions</h2>${all.map((text) => `<div class="card caution">${escape(text)}</div>`).join("")}`;
}

const ARROWS = { higher: "↑", lower: "↓" };

/** Figures of one kind as a table, grouped by what they are computed of, and below it what all have in common. */
function figures(
  title: string,
  from: readonly Ingredients["from"][],
  { scores, ingredients }: Evaluation,
): string {
  const own = Object.entries(ingredients).filter(([key, i]) => from.includes(i.from) && !NOISY.test(key));
  if (own.length === 0) return "";
  const groups = Map.groupBy(
    own,
    ([, { network, space, input, split, probe }]) =>
      [network && named(network), space, input, split && splitText(split), probe && probeText(probe)].filter((
        text,
      ) => text !== undefined).join(" · "),
  );
  const row = ([key, { real, fake, protocol }]: readonly [string, Ingredients]) => {
    const better = betterOf(key), arrow = better === undefined ? "" : ARROWS[better];
    return `<tr><td>${escape(titleOf(key))}</td><td><b>${number(scores[key] ?? NaN)}</b> ${arrow}</td><td>${
      real?.count ?? ""
    }</td><td>${fake?.count ?? ""}</td><td>${escape(protocol)}</td></tr>`;
  };
  const rows = [...groups].flatMap(([what, members]) => [
    `<tr><td colspan="5" class="group">${escape(what)}</td></tr>`,
    ...members.map(row),
  ]);
  const other = ["inception", "encoder", "six"].includes(from[0] as string) ? "generated" : "compared";
  const head = `<tr><th>figure</th><th>value</th><th>real</th><th>${other}</th><th>protocol</th></tr>`;
  const [[, first]] = own as [[string, Ingredients]];
  return `<h2>${title}</h2><div class="card"><table>${head}${rows.join("")}</table></div>` +
    `<details class="card common"><summary>What these figures have in common</summary><table class="facts">${
      commonFacts(first).map(([name, value]) => `<tr><td>${escape(name)}</td><td>${escape(value)}</td></tr>`)
        .join("")
    }</table></details>`;
}

const named = ({ name, fingerprint }: Identity) => `${name} (${fingerprint})`;

const splitText = ({ train, test, by, seed }: SplitIngredients) =>
  `${train} images train${test === undefined ? "" : `, ${test} test`} (${by}${
    seed === undefined ? "" : `; seed ${seed}`
  })`;

const probeText = ({ optimizer, penalty, iterations, converged }: ProbeIngredients) =>
  `probe: ${optimizer}; L2 penalty ${penalty}; ${iterations} iterations${converged ? "" : ", not converged"}`;

function setText({ name, fingerprint, count }: SetIngredients): string {
  return [name, fingerprint && `(${fingerprint})`, count !== undefined && `${count} images`].filter(Boolean)
    .join(" ");
}

/** Ingredients that all figures of a section share, by name. */
function commonFacts({ tokenizer, model, real, fake, sampling, ...i }: Ingredients): [string, string][] {
  const facts: [string, string | undefined][] = [
    ["tokenizer", tokenizer && named(tokenizer)],
    ["model", model && named(model)],
    ["real images", real && setText(real)],
    ["compared images", fake && setText(fake)],
  ];
  if (sampling) {
    const { sampler, steps, nfe, guidance, labels, ema, seed, images: [a, b], options } = sampling;
    facts.push(
      ["sampler", steps === undefined ? sampler : `${sampler}, ${steps} steps`],
      ["network evaluations", String(nfe)],
      ["guidance", guidance],
      ["labels", labels],
      ["EMA", String(ema)],
      ["noise", `seed ${seed}, images ${a} to ${b}`],
      ["sampling options", options],
    );
  }
  facts.push(
    ["precision", i.precision],
    ["seed of the figures", String(i.seed)],
    ["adapter", i.adapter],
    ["tok", i.tok],
  );
  return facts.filter((fact): fact is [string, string] => fact[1] !== undefined);
}

/** Scores of reconstructions from noisy latents, a row a score and a column a level. */
function perturbed(scores: Scores): string {
  const found = Object.keys(scores).flatMap((key) => {
    const [, name, sigma] = NOISY.exec(key) ?? [];
    return name === undefined ? [] : [{ key, name, sigma: sigma as string }];
  });
  if (found.length === 0) return "";
  const sigmas = [...new Set(found.map(({ sigma }) => sigma))],
    names = [...new Set(found.map(({ name }) => name))];
  const cell = (key: string) => `<td>${scores[key] === undefined ? "" : number(scores[key])}</td>`;
  const rows = names.map((name) =>
    `<tr><td>${escape(titleOf(name))}</td>${cell(name)}${
      sigmas.map((sigma) => cell(`${name}_sigma_${sigma}`)).join("")
    }</tr>`
  );
  return `<h2>Reconstruction from noisy latents</h2><p>Gaussian noise of these standard deviations, in units of each channel's ` +
    `own. Samples of a diffusion model are never exact; a decoder with a better rFID may bear their errors worse.</p>` +
    `<div class="card"><table><tr><th></th><th>0</th>${
      sigmas.map((sigma) => `<th>${sigma}</th>`).join("")
    }</tr>${rows.join("")}</table></div>`;
}

function imageHistograms(images: ImageScores | undefined): string {
  const columns = images?.columns ?? new Map<string, readonly number[]>();
  const charts = [...columns.keys()].filter((key) => !NOISY.test(key) && key !== "mse").map((key) => {
    const levels = [...columns].flatMap(([other, values]) => {
      const [, name, sigma] = NOISY.exec(other) ?? [];
      return name === key ? [{ name: `noise ${sigma}`, values }] : [];
    });
    const values = columns.get(key) ?? [];
    return histogram(`${titleOf(key)}, number of images`, [
      { name: levels.length ? "no noise" : titleOf(key), values },
      ...levels,
    ]);
  }).filter(Boolean);
  return charts.length ? `<h2>Each image</h2><div class="cards">${charts.join("")}</div>` : "";
}

function channelHistograms(channels: ChannelHistograms | undefined): string {
  const all = channels?.all ?? [];
  if (all.length === 0) return "";
  return `<h2>Channels of the latents</h2><p>Before diffusion's normalisation; the outer bins hold what is beyond.</p>` +
    smallHistograms(all.map((one, c) => ({ name: `channel ${c}`, ...one })));
}

function picture(path: string, title: string, text: string): string {
  if (!exists(path)) return "";
  return `<h2>${title}</h2><p>${escape(text)}</p><figure class="scroll"><img alt="${escape(title)}" src="${
    uriOf(path)
  }"></figure>`;
}

function missing(all: ReadonlyMap<string, string>): string {
  if (all.size === 0) return "";
  const byReason = Map.groupBy(all, ([, reason]) => reason);
  const rows = [...byReason].map(([reason, entries]) =>
    `<tr><td>${escape(entries.map(([name]) => name).join(", "))}</td><td>${escape(reason)}</td></tr>`
  );
  return `<h2>Not computed</h2><div class="card"><table class="facts">${rows.join("")}</table></div>`;
}
