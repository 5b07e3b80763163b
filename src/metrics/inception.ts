// Inception features of a set of images: their moments, the features themselves, the Inception score. Only the requested
// kinds are computed and kept: a Frechet distance of 50,000 images takes no more memory than one of 50.

import { device } from "../gpu/device.ts";
import type { IdentifiedInputs, View } from "../data/network_input.ts";
import type { CacheSpace, FeatureCache } from "./feature_cache.ts";
import {
  type Inception,
  INCEPTION_WIDTHS,
  type InceptionInput,
  type InceptionOutput,
} from "../models/inception.ts";
import { throwIfStopped } from "../interruption.ts";
import { GROUPS, groupsOf } from "./bootstrap.ts";
import { InceptionScore } from "./fidelity.ts";
import { frechet } from "./frechet.ts";
import { MomentsWithout } from "./jackknife.ts";
import { type Features, type Gaussian, Moments } from "./moments.ts";
import { type ImageProgram, imageProgram, inferImages, Rows } from "./batched.ts";
import { inferCached } from "./cached_inference.ts";
import { bytesOf, type PairScore } from "./pairs.ts";

/** What can be computed of a set. */
export type FeatureKind = "moments" | "spatial" | "features" | "score";

/** The requested kinds, computed. */
export interface InceptionView {
  /** Of pooled features [n, 2048]. */
  moments?: Gaussian;
  /** Of spatial features [n, 2023]. */
  spatial?: Gaussian;
  /** Pooled features [n, 2048]. */
  features?: Features;
  /** The Inception score. */
  score?: number;
  /** Spatial features [n, 2023], and the score without each group of the n images: where intervals are computed. */
  spatialFeatures?: Features;
  scoreWithout?: { rows: number; scores: readonly number[] };
}

/** Bytes of the largest feature map of one image, [147,147,64]. */
const LARGEST_MAP = 4 * 147 * 147 * 64;

/** The network's output that a kind is computed of. */
export const INCEPTION_OUTPUT: Record<FeatureKind, InceptionOutput> = {
  moments: "pooled",
  features: "pooled",
  spatial: "spatial",
  score: "logits",
};

/** Inception prepared for images of one size, or for its own inputs, and the requested kinds of features. */
export class InceptionFeatures {
  private constructor(
    private readonly program: ImageProgram<InceptionOutput>,
    readonly kinds: readonly FeatureKind[],
    private readonly cache: CacheSpace<InceptionOutput> | undefined,
    readonly ingredients: NonNullable<PairScore["ingredients"]>,
    private readonly groups: boolean,
  ) {}

  /**
   * @param options.batchSize upper limit; smaller if the device cannot bind that much
   * @param options.groups for {@link extract}: whether it keeps what scores without groups are computed of (false)
   * @param options.floats for {@link extract} instead of {@link add}
   */
  static async open(
    inception: Inception,
    options: {
      size: number;
      batchSize: number;
      input: InceptionInput;
      kinds: readonly FeatureKind[];
      floats?: boolean;
      groups?: boolean;
      /** Keeps the features of inputs that a view makes [none]. */
      cache?: { features: FeatureCache | undefined; view: View };
    },
  ): Promise<InceptionFeatures> {
    const maxBatch = Math.floor(device().limits.maxStorageBufferBindingSize / LARGEST_MAP);
    const batchSize = Math.max(1, Math.min(options.batchSize, maxBatch));
    const wanted = [...new Set(options.kinds.map((q) => INCEPTION_OUTPUT[q]))];
    const { size, floats = false } = options;
    const program = await imageProgram("inception", (x) => {
      const all = inception.forward(x, options.input);
      return Object.fromEntries(wanted.map((name) => [name, all[name]])) as typeof all;
    }, { batchSize, size, floats });
    const { identity } = inception, { features, view } = options.cache ?? {};
    const widths = Object.fromEntries(wanted.map((name) => [name, INCEPTION_WIDTHS[name]]));
    using opened = new DisposableStack();
    opened.defer(() => program.destroy());
    const cache = identity && await features?.space(
      ["Inception", identity.fingerprint, options.input, JSON.stringify(view)],
      widths as Record<InceptionOutput, number>,
    );
    const ingredients = {
      ...identity && { network: identity },
      input: `${bytesOf(size)}, Inception as ${options.input} does`,
    };
    opened.move();
    return new InceptionFeatures(program, options.kinds, cache, ingredients, options.groups ?? false);
  }

  /** Features of all inputs. */
  async extract(
    source: IdentifiedInputs,
    onProgress: (done: number) => void = () => {},
  ): Promise<InceptionView> {
    using stats = new FeatureStats(this.kinds, this.groups ? source.length : undefined);
    for await (const { first, count, outputs } of inferCached(this.program, source, this.cache)) {
      await stats.add(outputs);
      onProgress(first + count);
    }
    return await stats.view();
  }

  /** Adds images in memory, RGB bytes [n,S,S,3], to `stats`. */
  async add(images: Uint8Array, stats: FeatureStats): Promise<void> {
    for await (const outputs of inferImages(this.program, images)) await stats.add(outputs);
  }

  destroy(): void {
    this.program.destroy();
  }
}

/** Accumulates the requested kinds over batches. */
export class FeatureStats implements Disposable {
  readonly #moments: Moments | undefined;
  readonly #spatial: Moments | undefined;
  readonly #rows: Rows | undefined;
  readonly #spatialRows: Rows | undefined;
  readonly #score: InceptionScore | undefined;
  /** Number of rows. */
  #count = { pooled: 0, spatial: 0 };
  /** Kept, as rows are read once. */
  #features: Pick<InceptionView, "features" | "spatialFeatures"> | undefined;

  /** @param images their number, to keep what scores without groups are computed of: rows, 8 kB an image [none is kept] */
  constructor(kinds: readonly FeatureKind[], private readonly images?: number) {
    const groups = images !== undefined;
    if (kinds.includes("moments")) this.#moments = new Moments(INCEPTION_WIDTHS.pooled);
    if (kinds.includes("spatial")) this.#spatial = new Moments(INCEPTION_WIDTHS.spatial);
    if (kinds.includes("features") || groups && kinds.includes("moments")) this.#rows = new Rows();
    if (groups && kinds.includes("spatial")) this.#spatialRows = new Rows();
    if (!kinds.includes("score")) return;
    this.#score = new InceptionScore(
      INCEPTION_WIDTHS.logits,
      undefined,
      groups ? groupsOf(images) : undefined,
    );
  }

  async add({ pooled, spatial, logits }: Partial<Record<InceptionOutput, Float32Array>>): Promise<void> {
    if (pooled) {
      await this.#moments?.add(pooled);
      this.#rows?.add(pooled);
      this.#count.pooled += pooled.length / INCEPTION_WIDTHS.pooled;
    }
    if (spatial) {
      await this.#spatial?.add(spatial);
      this.#spatialRows?.add(spatial);
      this.#count.spatial += spatial.length / INCEPTION_WIDTHS.spatial;
    }
    if (logits) this.#score?.add(logits);
  }

  async view(): Promise<InceptionView> {
    return {
      ...this.#moments && { moments: await this.#moments.gaussian() },
      ...this.#spatial && { spatial: await this.#spatial.gaussian() },
      ...this.#kept(),
      ...this.#score && { score: this.#score.score() },
      ...this.#score && this.images !== undefined &&
        { scoreWithout: { rows: this.images, scores: this.#score.without() } },
    };
  }

  #kept(): Pick<InceptionView, "features" | "spatialFeatures"> {
    return this.#features ??= {
      ...this.#rows && { features: this.#rows.features(this.#count.pooled) },
      ...this.#spatialRows && { spatialFeatures: this.#spatialRows.features(this.#count.spatial) },
    };
  }

  [Symbol.dispose](): void {
    this.#moments?.[Symbol.dispose]();
    this.#spatial?.[Symbol.dispose]();
  }
}

/** rFID: the Frechet distance between images and their reconstructions. */
export class ReconstructionFrechet implements PairScore {
  readonly ingredients: NonNullable<PairScore["ingredients"]>;
  readonly #originals: FeatureStats;
  readonly #reconstructions: FeatureStats;

  /**
   * @param inception opened for moments; destroy() destroys it
   * @param images their number, for {@link withoutGroups} [none]
   * @param first has the same originals
   */
  constructor(
    readonly inception: InceptionFeatures,
    private readonly images?: number,
    private readonly first?: ReconstructionFrechet,
  ) {
    this.ingredients = { space: "pooled", ...inception.ingredients };
    this.#originals = first ? first.#originals : new FeatureStats(["moments"], images);
    this.#reconstructions = new FeatureStats(["moments"], images);
  }

  async add(originals: Uint8Array, reconstructions: Uint8Array): Promise<void> {
    if (!this.first) await this.inception.add(originals, this.#originals);
    await this.inception.add(reconstructions, this.#reconstructions);
  }

  async scores(): Promise<Record<string, number>> {
    const { moments: a } = await this.#originals.view(), { moments: b } = await this.#reconstructions.view();
    return a && b ? { rfid: await frechet(a, b) } : {};
  }

  /** A group is left out of both sets: of pairs. */
  async withoutGroups(onGroup: (done: number) => void): Promise<Record<string, number[]>> {
    if (this.images === undefined) return {};
    const { features: a } = await this.#originals.view(),
      { features: b } = await this.#reconstructions.view();
    if (!a || !b) return {};
    onGroup(0);
    const originals = await MomentsWithout.open(a), reconstructions = await MomentsWithout.open(b);
    const rfid: number[] = [];
    for (let g = 0; g < GROUPS; g++) {
      throwIfStopped();
      rfid.push(await frechet(await originals.group(g), await reconstructions.group(g)));
      onGroup(g + 1);
    }
    return { rfid };
  }

  again(): ReconstructionFrechet {
    return new ReconstructionFrechet(this.inception, this.images, this.first ?? this);
  }

  destroy(): void {
    this.#reconstructions[Symbol.dispose]();
    if (this.first) return;
    this.inception.destroy();
    this.#originals[Symbol.dispose]();
  }
}
