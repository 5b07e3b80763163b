// Frechet distance between images and their reconstructions in the space of any network: the mean of its tokens, one row of
// features an image. The key is fd_encoder, as for sets of images: it is no FID, and compares only within one encoder.

import { mean } from "../ops/reduce.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type ImageProgram, imageProgram, inferImages } from "./batched.ts";
import { frechet } from "./frechet.ts";
import { type Gaussian, Moments } from "./moments.ts";
import type { PairScore } from "./pairs.ts";

export class FeatureFrechet implements PairScore {
  #originals: Moments | undefined;
  #reconstructions: Moments | undefined;

  private constructor(
    private readonly program: ImageProgram<"y">,
    private readonly known: Gaussian | undefined,
  ) {}

  /**
   * @param tokens of images [B,S,S,3]: [B,T,C]
   * @param options.n number of images
   * @param options.originals their statistics, if they are known from another time
   */
  static async open(
    tokens: (x: Tensor) => Tensor,
    options: { size: number; batchSize: number; n: number; originals?: Gaussian | undefined },
  ): Promise<FeatureFrechet> {
    const { originals, n, ...batch } = options;
    const program = await imageProgram("features", (x) => ({ y: mean(tokens(x), [1]) }), {
      ...batch,
      n: 2 * n,
    });
    return new FeatureFrechet(program, originals);
  }

  async add(originals: Uint8Array, reconstructions: Uint8Array): Promise<void> {
    if (!this.known) this.#originals = await this.#added(this.#originals, originals);
    this.#reconstructions = await this.#added(this.#reconstructions, reconstructions);
  }

  /** Statistics of the originals, after all were added. */
  async originals(): Promise<Gaussian | undefined> {
    return this.known ?? await this.#originals?.gaussian();
  }

  async scores(): Promise<Record<string, number>> {
    const a = await this.originals(), b = await this.#reconstructions?.gaussian();
    return a && b ? { fd_encoder: await frechet(a, b) } : {};
  }

  destroy(): void {
    this.program.destroy();
    this.#originals?.[Symbol.dispose]();
    this.#reconstructions?.[Symbol.dispose]();
  }

  async #added(moments: Moments | undefined, images: Uint8Array): Promise<Moments | undefined> {
    for await (const { y } of inferImages(this.program, images)) {
      moments ??= new Moments(this.program.outputs.y.dim(-1));
      await moments.add(y);
    }
    return moments;
  }
}
