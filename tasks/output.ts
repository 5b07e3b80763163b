// Output that several commands share: encoding with progress, and scores.

import { join } from "@std/path";
import type { EvalConfig } from "../src/cli/config.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import { exists, writeJson } from "../src/formats/files.ts";
import type { Provenance } from "../src/formats/provenance.ts";
import { type Evaluation, writeEvaluationPage } from "../src/metrics/evaluation_page.ts";
import { INTERVALS } from "../src/metrics/intervals.ts";
import type { Results } from "../src/metrics/selection.ts";
import type { ImageTokenizer } from "../src/models/tokenizer.ts";
import type { Log, Progress } from "../src/run/log.ts";
import { type EncodeOptions, encodeTo } from "../src/train/encode_latents.ts";

/** encodeTo() with a progress line, which includes the latents of an interrupted run. */
export async function encodeShown(
  folder: string,
  tokenizer: ImageTokenizer,
  source: ImageSource,
  options: EncodeOptions,
  log: Log,
): Promise<void> {
  let progress: Progress | undefined;
  await encodeTo(folder, tokenizer, source, {
    ...options,
    onStart(known) {
      if (known) log.line(`${known} of ${source.length} latents are there already: going on`);
      progress = log.progress("encoding", source.length, "images", known);
    },
    onProgress: (done) => progress?.update(done),
  });
  progress?.end();
}

/** What is read of an evaluation, its figures first. samples.npz is not among it: it may be what is scored. */
const READ = [
  "metrics.json",
  "report.html",
  INTERVALS,
  "images.csv",
  "worst.png",
  "nearest.png",
  "samples.png",
  "pca.png",
];

/**
 * Writes config.json of an evaluation in `out`: its options, and what its scores are made from. All that can be refused has been
 * checked, nothing is scored yet: what an earlier evaluation left is removed now, so that a failure half-way never leaves files of both.
 */
export const recordOfScores =
  (out: string, { num, imageSize, protocol, inceptionInput, metrics, latentNoise }: EvalConfig) =>
  (madeFrom: Provenance, others: Readonly<Record<string, unknown>> = {}): void => {
    const options = { num, imageSize, protocol, inceptionInput, metrics, latentNoise, ...others };
    const config = join(out, "config.json"),
      before = exists(config) ? READ.map((name) => join(out, name)) : [];
    for (const path of before.filter(exists)) Deno.removeSync(path);
    writeJson(config, { command: "eval", ...options, made_from: madeFrom });
  };

/** Prints scores and writes them to metrics.json and a page in `out`; nothing if there are none. */
export async function reportScores(
  { scores, ingredients }: Pick<Results, "scores" | "ingredients">,
  out: string,
  { line, ...about }: { line: string } & Pick<Evaluation, "findings" | "cautions" | "missing">,
  log: Log,
): Promise<void> {
  if (Object.keys(scores).length === 0) return;
  log.begin();
  for (const [name, value] of Object.entries(scores)) {
    const number = String(Number(value.toPrecision(5))), { protocol = "" } = ingredients[name] ?? {};
    log.line(`${name.padEnd(30)} ${number.padEnd(12)} ${protocol}`.trimEnd());
  }
  writeJson(join(out, "metrics.json"), { ...scores, ingredients });
  await writeEvaluationPage(out, line, { scores, ingredients, ...about });
  log.line(`scores: ${join(out, "metrics.json")}`);
  log.line(`page: ${join(out, "report.html")}`);
}
