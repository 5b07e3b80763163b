// A set of images as Inception sees it: the moments of its features, the features themselves, the Inception score; only
// what is asked for is computed and kept, so that a Frechet distance of 50,000 images needs no more memory than one of 50.

import { noGrad } from "../tensor/autograd.ts";
import { device } from "../gpu/device.ts";
import { capture } from "../gpu/program.ts";
import type { ImageSource } from "../data/image_source.ts";
import {
  type Inception,
  INCEPTION_WIDTHS,
  type InceptionInput,
  type InceptionOutput,
} from "../models/inception.ts";
import { input } from "../tensor/tensor.ts";
import { InceptionScore } from "./fidelity.ts";
import { type Features, frechet, type Gaussian, Moments } from "./frechet.ts";
import { type ImageProgram, infer, inferImages, Rows } from "./batched.ts";
import type { PairScore } from "./tokenizer.ts";

/** What may be asked about a set. */
export type FeatureKind = "moments" | "spatial" | "features" | "score";

/** The answers; each is there when it was asked for. */
export interface InceptionView {
  /** Of pooled features. */
  moments?: Gaussian;
  /** Of spatial features. */
  spatial?: Gaussian;
  /** Pooled ones [n, 2048]. */
  features?: Features;
  /** The Inception score. */
  score?: number;
}

/** Bytes of the largest map that one image needs, [147,147,64]. */
const LARGEST_MAP = 4 * 147 * 147 * 64;

const OUTPUT: Record<FeatureKind, InceptionOutput> = {
  moments: "pooled",
  features: "pooled",
  spatial: "spatial",
  score: "logits",
};

/** Inception made ready for images of one size and some questions. */
export class InceptionFeatures {
  private constructor(
    private readonly program: ImageProgram<InceptionOutput>,
    readonly kinds: readonly FeatureKind[],
  ) {}

  /** @param options.batchSize at most; smaller where the device binds less */
  static async open(
    inception: Inception,
    options: { size: number; batchSize: number; input: InceptionInput; kinds: readonly FeatureKind[] },
  ): Promise<InceptionFeatures> {
    const most = Math.floor(device().limits.maxStorageBufferBindingSize / LARGEST_MAP);
    const B = Math.max(1, Math.min(options.batchSize, most));
    const wanted = [...new Set(options.kinds.map((q) => OUTPUT[q]))];
    const x = input([B, options.size, options.size, 3], "f32", "images");
    const program = await capture("inception", { x }, ({ x }) =>
      noGrad(() => {
        const all = inception.forward(x, options.input);
        return Object.fromEntries(wanted.map((name) => [name, all[name]])) as typeof all;
      }), { batchInvariant: true }).prepare();
    return new InceptionFeatures(program, options.kinds);
  }

  /** Looks at images 0..n-1 of a source. */
  async extract(
    source: ImageSource,
    n: number = source.length,
    onProgress: (done: number) => void = () => {},
  ): Promise<InceptionView> {
    const seen = new FeatureStats(this.kinds);
    for await (const { first, count, outputs } of infer(this.program, source, n)) {
      seen.add(outputs);
      onProgress(first + count);
    }
    return seen.view();
  }

  /** Adds images at hand, [n,S,S,3] in -1..1, to what has been seen. */
  async add(images: Float32Array, seen: FeatureStats): Promise<void> {
    for await (const outputs of inferImages(this.program, images)) seen.add(outputs);
  }

  destroy(): void {
    this.program.destroy();
  }
}

/** Answers under way. */
export class FeatureStats {
  readonly #moments: Moments | undefined;
  readonly #spatial: Moments | undefined;
  readonly #rows: Rows | undefined;
  readonly #score: InceptionScore | undefined;
  #count = 0;

  constructor(kinds: readonly FeatureKind[]) {
    if (kinds.includes("moments")) this.#moments = new Moments(INCEPTION_WIDTHS.pooled);
    if (kinds.includes("spatial")) this.#spatial = new Moments(INCEPTION_WIDTHS.spatial);
    if (kinds.includes("features")) this.#rows = new Rows();
    if (kinds.includes("score")) this.#score = new InceptionScore(INCEPTION_WIDTHS.logits);
  }

  add({ pooled, spatial, logits }: Partial<Record<InceptionOutput, Float32Array>>): void {
    if (pooled) {
      this.#moments?.add(pooled);
      this.#rows?.add(pooled);
      this.#count += pooled.length / INCEPTION_WIDTHS.pooled;
    }
    if (spatial) this.#spatial?.add(spatial);
    if (logits) this.#score?.add(logits);
  }

  view(): InceptionView {
    return {
      ...this.#moments && { moments: this.#moments.gaussian() },
      ...this.#spatial && { spatial: this.#spatial.gaussian() },
      ...this.#rows && { features: this.#rows.features(this.#count) },
      ...this.#score && { score: this.#score.score() },
    };
  }
}

/** rFID: the Frechet distance of reconstructions from their originals. */
export class ReconstructionFrechet implements PairScore {
  readonly #originals = new FeatureStats(["moments"]);
  readonly #made = new FeatureStats(["moments"]);

  /** @param inception that was asked for moments */
  constructor(readonly inception: InceptionFeatures) {}

  async add(originals: Float32Array, made: Float32Array): Promise<void> {
    await this.inception.add(originals, this.#originals);
    await this.inception.add(made, this.#made);
  }

  async scores(): Promise<Record<string, number>> {
    const [a, b] = [this.#originals.view().moments, this.#made.view().moments];
    return a && b ? { rfid: await frechet(a, b) } : {};
  }
}
