// LPIPS of reconstructions: the mean distance between an image and its reconstruction.

import { noGrad } from "../tensor/autograd.ts";
import { UsageError } from "../errors.ts";
import { device } from "../gpu/device.ts";
import { capture, type Program } from "../gpu/program.ts";
import { notFinite } from "../formats/finite.ts";
import type { Lpips } from "../models/lpips.ts";
import { imageInput, packImages, pixels } from "../ops/pixels.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { bytesOf, type PairScore } from "./pairs.ts";

export class LpipsScore implements PairScore {
  readonly name = "lpips";
  #sum = 0;
  #count = 0;

  private constructor(
    private readonly program: Program<{ x: Tensor; y: Tensor }, { d: Tensor }>,
    readonly ingredients: NonNullable<PairScore["ingredients"]>,
    private readonly owner = true,
  ) {}

  /** @param options.batchSize upper limit; smaller if the device cannot bind that much */
  static async open(lpips: Lpips, options: { size: number; batchSize: number }): Promise<LpipsScore> {
    const { size: S } = options;
    const maxBatch = Math.floor(device().limits.maxStorageBufferBindingSize / (4 * S * S * 64));
    const B = Math.max(1, Math.min(options.batchSize, maxBatch));
    const images = () => imageInput(B, S);
    const program = capture(
      "lpips",
      { x: images(), y: images() },
      ({ x, y }) => noGrad(() => ({ d: lpips.forward(pixels(x), pixels(y)) })),
      { batchInvariant: true },
    );
    const { fingerprint } = lpips, network = fingerprint && { name: "LPIPS-VGG", fingerprint };
    return new LpipsScore(await program.prepare(), { ...network && { network }, input: bytesOf(S) });
  }

  async add(originals: Uint8Array, reconstructions: Uint8Array): Promise<number[]> {
    const { size, shape } = this.program.inputs.x, [B, S] = shape as [number, number], each = 3 * S * S;
    const values: number[] = [];
    for (let at = 0; at < originals.length; at += B * each) {
      const x = new Uint32Array(size), y = new Uint32Array(size);
      packImages(originals.subarray(at, at + B * each), S, x);
      packImages(reconstructions.subarray(at, at + B * each), S, y);
      this.program.run({ x, y });
      const distances = await this.program.read(this.program.outputs.d);
      const count = Math.min(B, (originals.length - at) / each);
      const fault = notFinite(distances.subarray(0, count));
      if (fault !== undefined) {
        throw new UsageError(
          `Cannot compute LPIPS: the distances from image ${this.#count} on hold ${fault}; use other weights of VGG-16`,
        );
      }
      for (const d of distances.subarray(0, count)) {
        this.#sum += d;
        values.push(d);
      }
      this.#count += count;
    }
    return values;
  }

  scores(): Record<string, number> {
    return { lpips: this.#sum / this.#count };
  }

  again(): LpipsScore {
    return new LpipsScore(this.program, this.ingredients, false);
  }

  destroy(): void {
    if (this.owner) this.program.destroy();
  }
}
