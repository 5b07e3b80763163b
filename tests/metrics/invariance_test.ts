// Every metric of the table has the same value in batches of any size, for files in any order, on any number of threads and
// with the kernels of either profile. Networks are small; that real ones are invariant is shown in models/.

import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { generatedInputs, Workers } from "../../src/data/decode_pool.ts";
import type { InputSource } from "../../src/data/network_input.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { SetEvaluation } from "../../src/metrics/evaluate.ts";
import type { SetOptions } from "../../src/metrics/evaluation_options.ts";
import { evaluateTokenizer } from "../../src/metrics/evaluate_tokenizer.ts";
import { PairedSets } from "../../src/metrics/paired_sets.ts";
import { MS_SSIM_SIDE } from "../../src/metrics/psnr_ssim.ts";
import { Results, Selection } from "../../src/metrics/selection.ts";
import type { Scores, Subject } from "../../src/metrics/metric.ts";
import { METRICS } from "../../src/metrics/table.ts";
import { type Inception, INCEPTION_WIDTHS } from "../../src/models/inception.ts";
import type { Lpips } from "../../src/models/lpips.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { loadState } from "../../src/nn/layers.ts";
import type { Profile } from "../../src/gpu/device.ts";
import { reshape } from "../../src/ops/layout.ts";
import { abs, silu, sub } from "../../src/ops/math.ts";
import { linear } from "../../src/ops/matmul.ts";
import { averagePool } from "../../src/ops/pool.ts";
import { mean } from "../../src/ops/reduce.ts";
import { constant, type Tensor } from "../../src/tensor/tensor.ts";
import { type EncoderSource, openEncoder } from "../../src/zoo/encoders.ts";
import { testDevice } from "../helpers/check.ts";
import { TINY_ENCODER } from "../helpers/alignment.ts";
import { quietLog } from "../helpers/commands.ts";
import { open } from "../helpers/compare.ts";
import { checkpoint, inFolder } from "../helpers/encoder_files.ts";
import { formulaSource, shapesOf, units } from "../helpers/formula.ts";

/** How the scores are computed, and how near they must be to those of full batches. */
interface Way {
  batchSize: number;
  shuffled?: true;
  threads?: number;
  profile?: Profile;
  tolerance: number;
}

const WAYS: Record<string, Way> = {
  "in batches of 1": { batchSize: 1, tolerance: 1e-9 },
  "in batches of 7, of files in another order, decoded on 2 threads": {
    ...{ batchSize: 7, shuffled: true, threads: 2, tolerance: 1e-9 },
  },
  "with gpu kernels": { batchSize: 64, profile: "gpu", tolerance: 1e-4 },
};
const FULL: Way = { batchSize: 64, tolerance: 0 };

// Inception at full size takes seconds an image. The stand-in sees the same inputs and has fewer outputs.
Object.assign(INCEPTION_WIDTHS, { pooled: 24, spatial: 20, logits: 12 });
const CELLS = 4;
const fixed = (rows: number, columns: number, name: string) =>
  constant(Float32Array.from(units(name, rows * columns), (u) => (2 * u - 1) / 3), [rows, columns], name);
const INCEPTION = {
  identity: { name: "small", fingerprint: "0" },
  forward(x: Tensor) {
    const side = Math.floor(x.dim(1) / CELLS), columns = 3 * CELLS ** 2;
    const cells = reshape(averagePool(x, { kernel: side, stride: side }), [x.dim(0), columns]);
    const output = (name: keyof typeof INCEPTION_WIDTHS) =>
      silu(linear(cells, fixed(INCEPTION_WIDTHS[name], columns, name)));
    return { pooled: output("pooled"), spatial: output("spatial"), logits: output("logits") };
  },
} as unknown as Inception;
const LPIPS = { forward: (x: Tensor, y: Tensor) => mean(abs(sub(x, y)), [1, 2, 3]) } as unknown as Lpips;

/** The same images in another order. */
const shuffled = (images: InputSource): InputSource => {
  const at = (i: number) => (13 * i + 1) % images.length;
  return {
    ...{ length: images.length, classes: images.classes },
    ...{ label: (i) => images.label(at(i)), name: (i) => images.name(at(i)) },
    ...{ bytes: (i, ...more) => images.bytes(at(i), ...more), input: (i, view) => images.input(at(i), view) },
  };
};

/** Images in memory, the same file names for every `set`. */
const noise = (set: string, n: number, side: number): InputSource => {
  const images = Array.from(
    { length: n },
    (_, i) =>
      Uint8Array.from(units(`${set} ${i}`, 3 * side ** 2), (u, k) => 128 + 60 * Math.sin(k / 50) + 60 * u),
  );
  return {
    ...{ length: n, classes: ["a", "b"], label: (i: number) => i % 2, name: (i: number) => `${i}.png` },
    bytes: (i) => images[i]!,
    input: (i) =>
      Promise.resolve({
        width: side,
        height: side,
        data: Float32Array.from(images[i]!, (v) => v / 127.5 - 1),
      }),
  };
};

type Context = {
  options: SetOptions;
  encoder: EncoderSource;
  order: (images: InputSource) => InputSource;
  workers: Workers;
};
type Score = (selection: Selection, results: Results, context: Context) => Promise<void>;
const { log } = quietLog();
const shapes = (workers: Workers, n: number, seed: number, side = 32) =>
  generatedInputs(workers, new Shapes(n, seed), side);

/** Side of the pairs of images; MS-SSIM takes more. */
const SMALL_SIDE = 16;

async function pairs(
  n: number,
  side: number,
  ...[selection, results, { options, order }]: Parameters<Score>
) {
  const real = { name: "real", images: order(noise("real", n, side)) };
  const fake = { name: "fake", images: noise("fake", n, side) };
  await (await PairedSets.open(selection, options, real, fake, log))?.score(results);
}

/** What is scored, of images of which size. */
type Kind = Subject | "large pairs";

const SCORES: Record<Kind, Score> = {
  "large pairs": (...args) => pairs(3, MS_SSIM_SIDE, ...args),
  async model(selection, results, { options, order, workers }) {
    const real = { name: "real", images: order(shapes(workers, 17, 1)) };
    const fake = { name: "fake", images: order(shapes(workers, 16, 2)) };
    using evaluation = await SetEvaluation.open(selection, options, real, fake, log);
    await evaluation.score(real, fake, { images: order(shapes(workers, 20, 3)), side: 32 }, results);
  },
  sets: (selection, results, context) => pairs(8, SMALL_SIDE, selection, results, context),
  async tokenizer(selection, results, { options, order, workers }) {
    const encoder = { ...TINY_ENCODER, image_size: 4 }, [ch, z_channels] = [8, 8];
    const decoder = {
      ch,
      ch_mult: [1, 1],
      num_res_blocks: 0,
      attn_resolutions: [],
      resolution: 16,
      z_channels,
      groups: 4,
    };
    const half = [0.5, 0.5, 0.5],
      common = { image_size: 16, image_mean: half, image_std: half, adapter_hidden: 16 };
    const tokenizer = new Tokenizer(tokenizerConfig.parse({ ...common, encoder, decoder }));
    await loadState(tokenizer, formulaSource(shapesOf(tokenizer)));
    const [all, train] = [order(shapes(workers, 12, 1, 16)), order(shapes(workers, 20, 2, 16))];
    const images = { all, train, test: all, folder: undefined };
    await evaluateTokenizer(tokenizer, images, 16, selection, options, results, log);
  },
};

const namesOf = (subject: Subject) =>
  METRICS.filter(({ of, from }) => of.includes(subject) && from !== "six").map(({ name }) => name);
const PAIRED = METRICS.filter(({ from }) => from === "reconstructions").map(({ name }) => name);
const without = (name: string, names: readonly string[]) => [...new Set(names)].filter((n) => n !== name);

/** Metrics by what is scored, but for those of networks that are too large: `fd-cls`, `fd-pooled` and `mind` go the same way. */
const NAMES: Record<Kind, string[]> = {
  model: without("fd-dinov2", namesOf("model")),
  sets: without("ms-ssim", PAIRED),
  "large pairs": ["ms-ssim", "mse"],
  tokenizer: without("ms-ssim", namesOf("tokenizer")),
};

async function scored(
  kind: Kind,
  { batchSize, threads = 0, profile = "cpu", ...way }: Way,
): Promise<Scores> {
  await testDevice(profile);
  const results = new Results(), files = { inception: "file", lpips: ["file"] };
  await inFolder(async (folder) => {
    const fixture = await open("pooling_heads"), path = join(folder, "clip");
    await checkpoint(path, JSON.parse(fixture.metadata.get("clip") as string));
    fixture.close();
    using workers = new Workers(threads);
    const encoder = await openEncoder(path);
    const options: SetOptions = {
      ...{ batchSize, seed: 0, inceptionInput: "pytorch-fid", original: encoder },
      inception: () => Promise.resolve(INCEPTION),
      lpips: () => Promise.resolve(LPIPS),
      encoder: () => Promise.resolve(encoder),
    };
    const subject = kind === "large pairs" ? "sets" : kind;
    const selection = new Selection(subject, { metrics: NAMES[kind], ...files } as never);
    const order = way.shuffled ? shuffled : (images: InputSource) => images;
    await SCORES[kind](selection, results, { options, encoder, order, workers });
  });
  results.rethrow();
  return results.scores;
}

/** Scores, computed once. */
const known = new Map<string, Promise<Scores>>();
function scoresOf(kind: Kind, way: Way): Promise<Scores> {
  const key = JSON.stringify([kind, way]), scores = known.get(key) ?? scored(kind, way);
  known.set(key, scores);
  return scores;
}

const KEYS: Record<string, string[]> = {
  channels: ["latent_mean_min", "latent_mean_max", "latent_std_min", "latent_std_max"],
  classes: ["class_agreement", "class_agreement_independent"],
};

const keysOf = (name: string) => KEYS[name] ?? [name.replaceAll("-", "_")];

for (const [kind, names] of Object.entries(NAMES) as [Kind, string[]][]) {
  for (const [what, way] of Object.entries(WAYS)) {
    for (const name of names) {
      Deno.test(`${name} (${kind}) is the same ${what}`, async () => {
        const expected = await scoresOf(kind, FULL), scores = await scoresOf(kind, way);
        for (const key of keysOf(name)) {
          const value = expected[key] as number, other = scores[key] as number;
          assert(Number.isFinite(value), `${key} is ${value}`);
          const bound = way.tolerance * Math.abs(value);
          assert(Math.abs(other - value) <= bound, `${key}: ${other}, not ${value}`);
        }
      });
    }
  }
}

Deno.test("all scores are compared, and most of them are neither 0 nor 1", async () => {
  for (const [kind, names] of Object.entries(NAMES) as [Kind, string[]][]) {
    const scores = await scoresOf(kind, FULL), keys = names.flatMap(keysOf);
    assertEquals(Object.keys(scores).sort(), [...keys, "n"].sort());
    const special = Object.values(scores).filter((v) => Math.abs(v) < 1e-6 || Math.abs(v - 1) < 1e-6).length;
    assert(special <= keys.length / 3, JSON.stringify(scores));
  }
});
