// Editing of real images. Inversion: the ODE dx/dt = v(x, t) backwards from the image's latent at t = 1 to the noise that would
// make it (Song et al., 2021, section 4.3), then forwards with another class. Inpainting: the ODE forwards, where after each step
// the cells outside the mask are replaced by the image's own at that time, x_t = (1 - t) noise + t data (Lugmayr et al., 2022,
// without resampling), so that they end as the image's latent exactly.

import { UsageError } from "../errors.ts";
import { capture } from "../gpu/program.ts";
import { toFloat, withImage } from "../image/image.ts";
import { resizeRows, type Size, squareOf } from "../image/resize.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { normalised, type Statistics } from "../models/normalisation.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { add, mul } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { noGrad } from "../tensor/autograd.ts";
import { constant, input, readTensor, type Tensor } from "../tensor/tensor.ts";
import { Sampler } from "./sampler.ts";
import { timeGrid } from "./times.ts";

/** Methods that integrate in both directions. */
export type EditMethod = "euler" | "heun";

/** What stays: cells [S,S,C] with mask 0 follow the line from `noise` to `data`. */
export interface Kept {
  /** 1 for cells that are made, 0 for those that stay. */
  mask: Float32Array<ArrayBuffer>;
  noise: Float32Array<ArrayBuffer>;
  data: Float32Array<ArrayBuffer>;
}

export interface OdeOptions {
  method: EditMethod;
  /** Guidance weight (1, none). */
  cfg?: number;
  /** From the time of the given latent to that of the result, ascending or descending. */
  times: readonly number[];
  /** By default all cells are made. */
  kept?: Kept | undefined;
  /**
   * Whether a network of data is asked at times up to 1 - minTimeLeft (0.95) only, whose velocities serve from there on (false).
   * Its own ones become too small there, and nothing at the image itself, so that inversion finds too little noise.
   */
  clampTime?: boolean;
}

/**
 * Solves the ODE of a model from the latent `x` [S,S,C] at times[0] to the last time, by the steps of the samplers.
 * @param label class number; that of "no class" is the number of classes
 * @returns the latent at the last time, and the evaluations of the network (NFE)
 */
export async function solveOde(
  model: Denoiser,
  x: Float32Array<ArrayBuffer>,
  label: number,
  { method, cfg = 1, times, kept, clampTime = false }: OdeOptions,
): Promise<{ x: Float32Array<ArrayBuffer>; evaluations: number }> {
  const { input_size: S, in_channels: C } = model.config, shape = [1, S, S, C];
  const known = kept &&
    {
      mask: constant(kept.mask, shape),
      noise: constant(kept.noise, shape),
      data: constant(kept.data, shape),
    };
  try {
    using sampler = await new Sampler(clampTime ? withClampedTime(model) : model, {
      ...{ sampler: method, steps: times.length - 1, shift: 1, times, cfg, cfgInterval: [0, 1] },
      ...{ batchSize: 1, seed: 0, batches: 1 },
      ...known && { constrain: (x, t) => withKnown(x, t, known) },
    }).prepare();
    const solved = await readTensor(await sampler.run(Uint32Array.of(label), 0, { noise: x }));
    return { x: Float32Array.from(solved), evaluations: sampler.evaluations[0] as number };
  } finally {
    for (const { storage } of Object.values(known ?? {})) storage.destroy();
  }
}

/** The same velocities up to time 1 - minTimeLeft, and that of this time after it, without a bound. */
function withClampedTime(model: Denoiser): Denoiser {
  const { minTimeLeft = 0, config, classTable } = model;
  if (minTimeLeft === 0) return model;
  const until = (t: Tensor) => pointwise(["min(x0, T(s0))"], [t], [1 - minTimeLeft]);
  return {
    config,
    ...classTable && { classTable },
    forward: (x, t, y) => model.forward(x, until(t), y),
    outputs: (x, t, y, options) => model.outputs(x, until(t), y, options),
  };
}

/** mask x + (1 - mask) ((1 - t) noise + t data) */
function withKnown(x: Tensor, t: Tensor, { mask, noise, data }: Record<keyof Kept, Tensor>): Tensor {
  const known = add(mul(noise, pointwise(["1.0 - x0"], [t])), mul(data, t));
  return add(mul(mask, x), mul(pointwise(["1.0 - x0"], [mask]), known));
}

/** Times from `from` to 1 (data), at least two: the grid of the samplers from there on. */
export function editTimes(steps: number, shift: number, from = 0): number[] {
  return [from, ...timeGrid(steps, shift).filter((t) => t > from)];
}

/** An image as the model's tokenizer takes it: resized and cropped to bytes [size, size, 3], with its own size. */
export async function readSquare(path: string, size: number): Promise<{ data: Uint8Array; original: Size }> {
  return await withImage(path, {}, async (image) => {
    const { original } = image;
    return { original, data: (await resizeRows(image, squareOf(original, size))).data };
  });
}

/** The normalised latent [S,S,C] of an image, bytes [size, size, 3]. */
export async function encodeImage(
  tokenizer: ImageTokenizer,
  image: Uint8Array,
  statistics: Statistics,
): Promise<Float32Array<ArrayBuffer>> {
  const size = Math.sqrt(image.length / 3);
  using program = await capture(
    "encode",
    { x: input([1, size, size, 3], "f32", "image") },
    ({ x }) => noGrad(() => ({ z: normalised(tokenizer.encode(x), statistics) })),
  ).prepare();
  program.run({ x: toFloat(image) });
  return Float32Array.from(await program.read(program.outputs.z));
}

/**
 * The mask of latent cells from a mask of pixels: a cell is painted where any of its pixels is white, 128 or more.
 * @param path image of the same size as `image`, resized and cropped like it
 * @returns [S,S,C], 1 for painted cells
 * @throws UsageError for another size, and if no pixel is white
 */
export async function readMask(
  path: string,
  image: { path: string; original: Size },
  { size, factor, channels: C }: { size: number; factor: number; channels: number },
): Promise<Float32Array<ArrayBuffer>> {
  const { data, original: { width, height } } = await readSquare(path, size), { original } = image;
  if (width !== original.width || height !== original.height) {
    throw new UsageError(
      `Cannot use the mask "${path}": it is ${width} x ${height} and the image "${image.path}" is ` +
        `${original.width} x ${original.height}; give a mask of the image's size`,
    );
  }
  const S = size / factor, mask = new Float32Array(S * S * C);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const at = 3 * (y * size + x), sum = (data[at] ?? 0) + (data[at + 1] ?? 0) + (data[at + 2] ?? 0);
      const cell = Math.floor(y / factor) * S + Math.floor(x / factor);
      if (sum >= 3 * 128) mask.fill(1, cell * C, (cell + 1) * C);
    }
  }
  if (mask.includes(1)) return mask;
  throw new UsageError(
    `Cannot use the mask "${path}": no pixel is white, so nothing is painted; paint it white`,
  );
}
