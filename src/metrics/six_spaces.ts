// FDr6 (FD-loss, arXiv 2604.28190) and MIND6: the mean over six spaces of FD / valFD, of MIND. The encoders are on the device one
// after another; Inception, which other metrics use too, stays.

import { type Inception, INCEPTION_SIDE, SAMPLING } from "../models/inception.ts";
import { inputs, type InputSource, Sizes, type View } from "../data/network_input.ts";
import { fingerprintOf, type Identity, type Provenance } from "../formats/provenance.ts";
import type { Log } from "../run/log.ts";
import { EncoderFeatures, type FormName, readsHead } from "./encoder_features.ts";
import type { FeatureCache } from "./feature_cache.ts";
import { type ImageSet, sixNeeded } from "./image_set.ts";
import type { Intervals } from "./intervals.ts";
import { InceptionFeatures, type InceptionView } from "./inception.ts";
import type { Results } from "./selection.ts";
import {
  othersOfSix,
  recordedAs,
  recordOther,
  SIX_SPACES,
  type SixEncoders,
  type SixSpace,
  unknownOfSix,
} from "./six_networks.ts";
import type { Scores, SetContext, SixMetric } from "./metric.ts";

/** The view of Inception: ADM's crop, then as FD-loss resizes. */
const INCEPTION_VIEW: View = {
  square: 256,
  crop: "adm",
  network: { kind: "stretched", side: INCEPTION_SIDE, sampling: SAMPLING.fdr6 },
};

/** The key of a metric's figure in a space. */
const keyIn = (six: SixSpace, { key }: Pick<SixMetric, "key">) => `${key}_${six.key}`;

/** The six networks, and what was computed of the real images. */
export class SixSpaces {
  readonly #networks = new Map<SixSpace, Promise<Identity>>();
  /** Of the real images. */
  readonly #views = new Map<InputSource, Map<string, InceptionView>>();

  constructor(
    private readonly encoders: SixEncoders,
    private readonly inception: Inception | undefined,
    private readonly features: FeatureCache | undefined,
    private readonly log: Log,
    /** What the stored features of each set were computed with [unknown]. */
    private readonly stored: readonly (Provenance | undefined)[] = [],
  ) {}

  /** Networks by their names. */
  async networks(): Promise<Provenance> {
    const all: Record<string, Identity> = {};
    for (const six of this.encoders.keys()) all[recordedAs(six)] = await this.network(six);
    return Object.assign(all, ...[...this.encoders].map(([six, encoder]) => recordOther(six, encoder)));
  }

  /** The network of a space. */
  network(six: SixSpace): Promise<Identity> {
    const known = this.#networks.get(six) ?? this.#identity(six);
    this.#networks.set(six, known); // reading the weights takes a while
    return known;
  }

  async #identity(six: SixSpace): Promise<Identity> {
    const encoder = this.encoders.get(six);
    if (!encoder) {
      const own = six.space === "inception_fdr6" ? this.inception?.identity : undefined;
      const recorded = this.stored.map((about) => about?.[recordedAs(six)]).find((entry) =>
        typeof entry === "object"
      );
      return own ?? recorded ?? { name: `unknown, for ${six.network}`, fingerprint: "" };
    }
    const parts = [await encoder.fingerprint()];
    if (readsHead(six.space as FormName)) parts.push(await encoder.headFingerprint() ?? "");
    return { name: encoder.path, fingerprint: fingerprintOf(...parts) };
  }

  /**
   * Computes metrics in all spaces and their means.
   * @param options.keep whether what is computed of the real images is kept
   */
  async score(
    metrics: readonly SixMetric[],
    real: ImageSet,
    fake: ImageSet,
    context: SetContext,
    options: {
      batchSize: number;
      features: boolean;
      keep: boolean;
      intervals?: Intervals | undefined;
    },
    results: Results,
  ): Promise<void> {
    const needed = metrics.some(({ fake }) => fake === "features"), { intervals } = options;
    const values = new Map(metrics.map((metric) => [metric, [] as number[]]));
    const networks = new Map<SixSpace, Identity>();
    for (const six of SIX_SPACES) networks.set(six, await this.network(six));
    const sets = [real, fake], unknown = unknownOfSix(sixNeeded(metrics, ...sets), sets);
    const others = othersOfSix(this.encoders, sets).length + unknown.length > 0;
    const from = { from: "six", ...others ? { protocol: "tok" as const } : {} } as const;
    const groups = intervals !== undefined;
    for (const six of SIX_SPACES) {
      let views: readonly [InceptionView, InceptionView] | undefined;
      await results.add(async () => {
        const a = await this.#view(six, real, { ...options, features: needed || options.features }),
          scores: Record<string, number> = {};
        const b = await this.#view(six, fake, { ...options, features: needed, groups, keep: false });
        for (const metric of metrics) {
          const [value] = Object.values(await metric.compute(a, b, context)) as [number];
          values.get(metric)?.push(value);
          scores[keyIn(six, metric)] = value;
        }
        views = [a, b];
        return scores;
      }, () => ({ ...from, space: six.space, network: networks.get(six) as Identity }));
      if (!intervals || !views) continue;
      const [a, b] = views,
        reported = (all: Scores) =>
          Object.fromEntries(Object.entries(all).map(([key, value]) => [keyIn(six, { key }), value]));
      await results.add(async () => {
        await intervals.repeatSets(metrics, a, b, { seed: context.seed, reported });
        return {};
      });
    }
    for (const [metric, all] of values) {
      const { name, mean } = metric;
      if (all.length < SIX_SPACES.length) continue;
      intervals?.combine(name, SIX_SPACES.map((six) => keyIn(six, metric)), mean);
      const fingerprint = fingerprintOf(...[...networks.values()].map(({ fingerprint }) => fingerprint));
      const own = { ...from, network: { name: "the six networks", fingerprint } } as const;
      await results.add(() => ({ [name]: mean(all) }), () => own);
    }
  }

  /** What was computed of images, by space. */
  computed(images: InputSource): ReadonlyMap<string, InceptionView> {
    return this.#views.get(images) ?? new Map();
  }

  /**
   * Moments or features of a set in a space, stored or computed.
   * @param options.features whether features are needed, and not moments only
   * @param options.groups whether features are kept if they can be computed
   */
  async #view(
    six: SixSpace,
    set: ImageSet,
    options: { batchSize: number; features: boolean; groups?: boolean; keep: boolean },
  ): Promise<InceptionView> {
    const { keep, groups = false } = options, known = set.spaces?.[six.space] ?? {};
    const given = six.space === "inception_fdr6" ? this.inception !== undefined : this.encoders.has(six);
    const features = options.features || groups && given && set.images !== undefined && !known.moments;
    if (features ? known.features : known.moments ?? known.features) return known;
    const images = set.images as InputSource, kept = this.#views.get(images)?.get(six.space);
    if (kept && (!features || kept.features)) return kept;
    const view = { ...await this.#extract(six, set.name, images, { ...options, features }), ...known };
    if (keep) {
      const views = this.#views.get(images) ?? new Map();
      this.#views.set(images, views.set(six.space, view));
    }
    return view;
  }

  async #extract(
    six: SixSpace,
    name: string,
    images: InputSource,
    { batchSize, features }: { batchSize: number; features: boolean },
  ): Promise<InceptionView> {
    const n = images.length, sizes = new Sizes(), encoder = this.encoders.get(six);
    const progress = this.log.progress(`${six.network} (${name})`, n, "images");
    if (!encoder) {
      const kinds = [features ? "features" : "moments"] as const;
      const extractor = await InceptionFeatures.open(this.inception as Inception, {
        ...{ size: INCEPTION_SIDE, batchSize: Math.min(batchSize, n), input: "fdr6", floats: true },
        kinds,
        cache: { features: this.features, view: INCEPTION_VIEW },
      });
      return await extractor.extract(inputs(images, INCEPTION_VIEW, sizes), progress.update).finally(
        () => {
          progress.end();
          extractor.destroy();
        },
      );
    }
    const space = six.space as FormName;
    const extractor = await EncoderFeatures.open(encoder, { batchSize, n, space, cache: this.features });
    try {
      if (!features) return { moments: await extractor.moments(images, sizes, progress.update) };
      return { features: (await extractor.extract(images, sizes)).features };
    } finally {
      progress.end();
      extractor.destroy();
    }
  }
}
