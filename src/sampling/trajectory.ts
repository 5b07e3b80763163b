// A grid over time: a row for each image, a column for each time. A column shows the decoded data prediction X = x + (1 - t) v, what
// the model expects of the image at that time; the state x itself decodes to noise until near the end.

import type { Image } from "../image/image.ts";
import { grid } from "../image/image.ts";
import { capture, type Program } from "../gpu/program.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { permute } from "../ops/layout.ts";
import { add, mul } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { noGrad } from "../tensor/autograd.ts";
import { input, type Tensor, variable } from "../tensor/tensor.ts";
import type { DiffusionModel } from "../zoo/runs.ts";
import { decodeLatents } from "./decode.ts";
import { batchNoise, type GenerateOptions } from "./generate.ts";
import { Guidance, type Terms } from "./guidance.ts";
import { Sampler } from "./sampler.ts";

/** Maximum number of rows and columns. */
export const MAX_ROWS = 8, MAX_TIMES = 8;

/**
 * Draws the data predictions of images at up to 8 times, and the images themselves in the last column.
 * @param options.labels one for each row
 * @param options.sampler one with a grid of times: not dopri5, whose times differ from image to image
 */
export async function drawTrajectory(
  { dit, config }: Pick<DiffusionModel, "dit" | "config">,
  tokenizer: ImageTokenizer,
  options: Pick<GenerateOptions, "labels" | "first" | "noise"> & ConstructorParameters<typeof Sampler>[1],
): Promise<Image> {
  const { labels, first = 0, steps } = options, B = labels.length;
  const sampler = await new Sampler(dit, { ...options, batchSize: B, batches: 1 }).prepare();
  const classes = Uint32Array.from(labels),
    [, S, , C] = sampler.latents.shape as [number, number, number, number];
  const time = variable([1], { label: "time" }), programs = new Map<string, Prediction>();
  const columns: Float32Array[] = [];
  const guidance = new Guidance(dit, options); // of its own: APG has a state that the sampler's steps update
  const count = Math.min(steps, MAX_TIMES),
    shown = new Set(Array.from({ length: count }, (_, k) => Math.floor(k * steps / count)));
  let step = 0;
  try {
    const noise = options.noise &&
      await batchNoise(labels.map((_, i) => first + i), options.noise, C * S * S, B);
    await sampler.run(classes, first, {
      noise,
      onStep: async (t, terms) => {
        if (!shown.has(step++)) return;
        const program = programs.get(terms.key) ?? await prediction(sampler.latents, guidance, time, terms);
        programs.set(terms.key, program);
        time.storage.write(new Float32Array([t]));
        program.run({ labels: classes });
        columns.push((await program.read(program.outputs.y)).slice());
      },
    });
    const last = await capture("last", {}, () => ({ y: permute(sampler.latents, [0, 3, 1, 2]) })).prepare();
    last.run();
    columns.push((await last.read(last.outputs.y)).slice());
    last.destroy();
  } finally {
    for (const program of programs.values()) program.destroy();
    guidance.destroy();
    time.storage.destroy();
    sampler.destroy();
  }
  const across = columns.length, size = C * S * S;
  const latents = {
    length: B * across,
    shape: [C, S, S] as const,
    latent(i: number) {
      const row = Math.floor(i / across), column = columns[i % across] as Float32Array;
      return column.subarray(row * size, (row + 1) * size);
    },
  };
  const { latent_mean: mean = [], latent_std: std = [] } = config, images: Uint8Array[] = [];
  for await (
    const { image } of decodeLatents(tokenizer, latents, { batchSize: B, statistics: { mean, std } })
  ) {
    images.push(image);
  }
  return grid(images, S * tokenizer.factor, across);
}

type Prediction = Program<{ labels: Tensor }, { y: Tensor }>;

/** The data prediction [B,C,S,S] at the sampler's latents and `time`. */
function prediction(
  latents: Tensor,
  guidance: Guidance,
  time: Tensor,
  terms: Terms,
): Promise<Prediction> {
  const B = latents.dim(0);
  return capture("data prediction", { labels: input([B], "u32", "labels") }, ({ labels }) =>
    noGrad(() => {
      const v = guidance.velocity(latents, pointwise(["x0"], [time], [], [B]), labels, terms);
      const X = add(latents, mul(v, pointwise(["1.0 - x0"], [time])));
      return { y: permute(X, [0, 3, 1, 2]) };
    }), { batchInvariant: true }).prepare();
}
