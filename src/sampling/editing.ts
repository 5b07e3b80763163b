// Editing of real images. Inversion: the ODE dx/dt = v(x, t) backwards from the image's latent at t = 1 to the noise that would
// make it (Song et al., 2021, section 4.3), then forwards with another class. Inpainting: the ODE forwards, where after each step
// the cells outside the mask are replaced by the image's own at that time, x_t = (1 - t) noise + t data (Lugmayr et al., 2022,
// without resampling), so that they end as the image's latent exactly.

import { UsageError } from "../errors.ts";
import { copy } from "../gpu/memory.ts";
import { capture, type Program } from "../gpu/program.ts";
import { toFloat, withImage } from "../image/image.ts";
import { resizeRows, type Size, squareOf } from "../image/resize.ts";
import { throwIfStopped } from "../interruption.ts";
import type { Denoiser } from "../models/denoiser.ts";
import { normalised, type Statistics } from "../models/normalisation.ts";
import type { ImageTokenizer } from "../models/tokenizer.ts";
import { slice } from "../ops/layout.ts";
import { add, mul, sub } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { noGrad } from "../tensor/autograd.ts";
import { input, readTensor, type Tensor, variable } from "../tensor/tensor.ts";
import { Guidance, type Terms } from "./guidance.ts";
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

type Step = Program<{ labels: Tensor }, Record<string, Tensor>>;

/** The flow of a model for one latent [1,S,S,C], in both directions of time. */
export class Flow {
  readonly #x: Tensor;
  readonly #times: Tensor;
  readonly #kept: Readonly<Record<keyof Kept, Tensor>>;
  readonly #guidance: Guidance;
  /** Evaluations of the network so far (NFE). */
  evaluations = 0;
  /** Programs by the key of their terms. */
  readonly #steps = new Map<string, Step>();

  /** @param options.cfg guidance weight; 1 for none */
  constructor(model: Denoiser, readonly options: { method: EditMethod; cfg: number }) {
    const { input_size: S, in_channels: C } = model.config;
    const latent = (label: string) => variable([1, S, S, C], { label });
    this.#x = latent("latent");
    this.#times = variable([2], { label: "times" });
    this.#kept = { mask: latent("mask"), noise: latent("noise"), data: latent("data") };
    this.#guidance = new Guidance(model, { cfg: options.cfg, cfgInterval: [0, 1] });
  }

  /**
   * Integrates from `x` [S,S,C] at times[0] through all times, ascending or descending.
   * @param label class number; that of "no class" is the number of classes
   * @param kept by default all cells are made
   * @returns the latent at the last time
   */
  async run(
    x: Float32Array<ArrayBuffer>,
    label: number,
    times: readonly number[],
    kept?: Kept,
  ): Promise<Float32Array<ArrayBuffer>> {
    const zero = new Float32Array(x.length), labels = Uint32Array.of(label);
    const { mask, noise, data } = kept ?? { mask: zero.map(() => 1), noise: zero, data: zero };
    const values = { mask, noise, data };
    for (const key of ["mask", "noise", "data"] as const) {
      await this.#kept[key].storage.materialise();
      this.#kept[key].storage.write(values[key]);
    }
    await this.#x.storage.materialise();
    this.#x.storage.write(x);
    for (let i = 1; i < times.length; i++) {
      throwIfStopped();
      const t = times[i - 1] as number, next = times[i] as number;
      // A step belongs to its earlier end in both directions.
      const terms = this.#guidance.terms(Math.min(t, next));
      let step = this.#steps.get(terms.key);
      if (!step) this.#steps.set(terms.key, step = await this.#capture(terms).prepare());
      this.#times.storage.write(new Float32Array([t, next]));
      step.run({ labels });
      this.evaluations += this.#guidance.evaluations(terms) * (this.options.method === "heun" ? 2 : 1);
    }
    return Float32Array.from(await readTensor(this.#x));
  }

  destroy(): void {
    for (const step of this.#steps.values()) step.destroy();
    this.#guidance.destroy();
    for (const { storage } of [this.#x, this.#times, ...Object.values(this.#kept)]) storage.destroy();
  }

  #capture(terms: Terms): Step {
    return capture("edit", { labels: input([1], "u32", "labels") }, ({ labels }) =>
      noGrad(() => {
        const t = slice(this.#times, 0, 0, 1), next = slice(this.#times, 0, 1, 2), dt = sub(next, t);
        const velocity = (x: Tensor, t: Tensor) => this.#guidance.velocity(x, t, labels, terms);
        const v = velocity(this.#x, t), euler = add(this.#x, mul(v, dt));
        const x = this.options.method === "euler"
          ? euler
          : add(this.#x, mul(pointwise(["0.5 * (x0 + x1)"], [v, velocity(euler, next)]), dt));
        const { mask, noise, data } = this.#kept;
        const known = add(mul(noise, pointwise(["1.0 - x0"], [next])), mul(data, next));
        copy(add(mul(mask, x), mul(pointwise(["1.0 - x0"], [mask]), known)), this.#x);
        return {};
      }));
  }
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
  const program = await capture(
    "encode",
    { x: input([1, size, size, 3], "f32", "image") },
    ({ x }) => noGrad(() => ({ z: normalised(tokenizer.encode(x), statistics) })),
  ).prepare();
  program.run({ x: toFloat(image) });
  const z = Float32Array.from(await program.read(program.outputs.z));
  program.destroy();
  return z;
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
