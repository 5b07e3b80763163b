// Evaluation of two sets of images (samples of a model, or files): leaves out the metrics that the images
// do not allow, opens the networks, extracts features once each, and computes the selected metrics of table.ts from them.
// Each image enters a network as the network's own protocol says, whatever the sizes of the others.

import { described, inputs, type InputSource, Sizes, type View } from "../data/network_input.ts";
import { UsageError } from "../errors.ts";
import type { Provenance } from "../formats/provenance.ts";
import type { Log } from "../run/log.ts";
import { type Inception, INCEPTION_SIDE, SAMPLING } from "../models/inception.ts";
import type { EncoderConfig, EncoderSource } from "../zoo/encoders.ts";
import type { LabelledFeatures } from "./batched.ts";
import { cautionOfFew, cautionsOf, holdsJpegs, JPEG, PARTIAL } from "./cautions.ts";
import { EncoderFeatures, type EncoderSpace, placeOf } from "./encoder_features.ts";
import { FeatureCache } from "./feature_cache.ts";
import {
  type ImageSet,
  obstacle,
  saveComputed,
  serves,
  type SetFacts,
  sixNeeded,
  stored,
  writePairs,
} from "./image_set.ts";
import { encoderIngredients, type OwnIngredients, setIngredients } from "./ingredients.ts";
import {
  accuraciesOf,
  type ComputedFeatures,
  kept,
  type Learning,
  learning,
  type ProbeImages,
  type SetOptions,
} from "./evaluation_options.ts";
import { type FeatureKind, INCEPTION_OUTPUT, InceptionFeatures, type InceptionView } from "./inception.ts";
import { cautionOfSix, missingOfSix, sixEncoders } from "./six_networks.ts";
import { SixSpaces } from "./six_spaces.ts";
import { SetNetworks } from "./set_networks.ts";
import { cautionsOfProtocol } from "./protocols.ts";
import type { Results, Selection } from "./selection.ts";
import type { EncoderMetric, InceptionMetric, SetContext } from "./metric.ts";

/**
 * Two sets of images with the networks to compare them, opened before the images of a model are sampled. What is computed of
 * the real and the training images is kept, so that several sets can be scored against them.
 */
export class SetEvaluation implements Disposable {
  /** The extractor that is open: one at a time, each has its own copy of the weights. */
  #open: { space: EncoderSpace; features: EncoderFeatures } | undefined;
  readonly #encoderViews = new Map<EncoderSpace, View>();
  readonly #features: ComputedFeatures;
  readonly #views = new Map<InputSource, InceptionView>();
  /** Of the real sets by space: the moments that a metric computes of them are kept there. */
  readonly #real = new Map<string, { set: ImageSet; view: InceptionView }>();
  readonly #networks: SetNetworks;
  #learnt: { real: InputSource; train: InputSource; context: Learning } | undefined;
  /** Lines that were logged: each is said once. */
  readonly #said = new Set<string>();

  private constructor(
    private readonly selection: Selection,
    private readonly options: SetOptions,
    private readonly inception: Inception | undefined,
    private readonly encoder: EncoderSource<EncoderConfig> | undefined,
    private readonly six: SixSpaces | undefined,
    private readonly cache: FeatureCache | undefined,
    private readonly log: Log,
  ) {
    this.#features = options.computed ?? new Map();
    this.#networks = new SetNetworks(selection, options, inception, encoder, six);
  }

  /** Leaves out what the sets do not allow. @throws UsageError if no metric is left, or a network cannot be opened */
  static async open(
    selection: Selection,
    options: SetOptions,
    real: SetFacts,
    fake: SetFacts,
    log: Log,
  ): Promise<SetEvaluation> {
    selection.exclude((metric) => obstacle(metric, real, fake));
    selection.exclude((m) =>
      m.from === "encoder" && m.named && real.generated && "it needs the training images as --real"
    );
    const needed = sixNeeded(selection.from("six"), real, fake);
    const given = needed.length ? await options.six?.() : undefined;
    const encoders = sixEncoders(given?.encoders ?? []);
    selection.exclude((m) => m.from === "six" && missingOfSix(needed, encoders, given?.inception ?? false));
    selection.settle((line) => log.line(line));
    if (selection.from("six").length) {
      cautionOfSix(encoders, needed, [real, fake], options.protocol, log);
    }
    const byInception = selection.from("inception").length > 0 ||
      selection.from("six").length > 0 && needed.some(({ space }) => space === "inception_fdr6");
    const inception = byInception ? await options.inception() : undefined;
    const encoder = selection.from("encoder", "labels").length ? await options.encoder() : undefined;
    selection.exclude((metric) => metric.from === "encoder" && encoder && metric.excludes?.(encoder));
    selection.settle((line) => log.line(line)); // again: the encoder was not known before
    const save = options.saveStats ?? options.saveFeatures;
    if (save !== undefined && !real.images) {
      throw new UsageError(`Cannot write "${save}": "${real.name}" holds no images to compute features of`);
    }
    if (
      save !== undefined &&
      selection.from("inception", "encoder", "six").every(({ real }) => real === undefined)
    ) {
      throw new UsageError(
        `Cannot write "${save}": no selected metric uses features of the real images; add fid or fd-encoder to --metrics`,
      );
    }
    const { featureCache: folder } = options,
      cache = folder === undefined ? folder : new FeatureCache(folder);
    const six = selection.from("six").length
      ? new SixSpaces(encoders, inception, cache, log, [real.about, fake.about])
      : undefined;
    const evaluation = new SetEvaluation(selection, options, inception, encoder, six, cache, log);
    for (const set of [real, fake]) await evaluation.#networks.refuseOthers(set);
    evaluation.#networks.refuseDifferent(real, fake, (line) => log.line(line));
    return evaluation;
  }

  /** What the scores depend on: the networks of the selected metrics. */
  networks(): Promise<Provenance> {
    return this.#networks.all();
  }

  /** Computes the selected metrics. */
  async score(real: ImageSet, fake: ImageSet, train: ProbeImages, results: Results): Promise<void> {
    const { encoder, inception, selection } = this, { intervals } = this.options;
    this.#caution(real, fake);
    if (encoder) {
      await results.add(async () => {
        await this.#byEncoder(encoder, real, fake, train, results);
        return {};
      });
    }
    if (this.six) {
      this[Symbol.dispose]();
      const { batchSize, seed, saveStats, saveFeatures } = this.options, show = () => Promise.resolve();
      const context = { seed, progress: this.log.progress.bind(this.log), show };
      const keep = {
        ...{ features: saveFeatures !== undefined, keep: (saveStats ?? saveFeatures) !== undefined },
        intervals,
      };
      await this.six.score(selection.from("six"), real, fake, context, { batchSize, ...keep }, results);
    }
    const metrics = selection.from("inception");
    if (inception && metrics.length > 0) {
      if (real.spatial && this.options.inceptionInput !== "adm") {
        this.log.warn(
          `the statistics in "${real.name}" are ADM's: --inception-input adm scores as its evaluator does`,
        );
      }
      await results.add(async () => {
        await this.#byInception(inception, metrics, real, fake, results);
        return {};
      });
    }
    if (this.cache) this.log.line(`${this.cache}`);
    const { scores } = results, n = setIngredients(fake).count;
    if (n !== undefined && Object.keys(scores).length > 0) scores[this.options.countKey ?? "n"] = n;
    const { images } = real;
    if (images && (this.options.saveStats ?? this.options.saveFeatures) !== undefined) {
      const inception = this.#views.get(images) ?? {},
        spaces = new Map<string, Partial<LabelledFeatures>>([
          ...this.#features.get(images) ?? [],
          ...this.six?.computed(images) ?? [],
        ]);
      const about = { ...await this.#networks.about(), [JPEG]: holdsJpegs(real) };
      await results.add(() => saveComputed({ inception, spaces, about }, this.options, this.log));
    }
  }

  async #byEncoder(
    encoder: EncoderSource<EncoderConfig>,
    real: ImageSet,
    fake: ImageSet,
    train: ProbeImages,
    results: Results,
  ): Promise<void> {
    const { batchSize, imageSize: square, seed } = this.options, { log, selection } = this;
    const n = train.images.length + (real.images?.length ?? 0) + (fake.images?.length ?? 0);
    const settings = { batchSize, n, square, cache: this.cache };
    const open = async (space: EncoderSpace) => {
      if (this.#open?.space !== space) this[Symbol.dispose]();
      this.#open ??= { space, features: await EncoderFeatures.open(encoder, { ...settings, space }) };
      this.#encoderViews.set(space, this.#open.features.view);
      return this.#open.features;
    };
    const realFeatures = real.images &&
      await kept(this.#features, real.images, () => Promise.resolve(new Map()));
    const memories = { real: realFeatures ?? new Map(), fake: new Map<EncoderSpace, LabelledFeatures>() },
      sets = { real, fake };
    const extract = async (space: EncoderSpace, report: Report, side: "real" | "fake") => {
      return await kept(memories[side], space, async () => {
        const features = await open(space);
        if (features.fingerprint === this.options.ownEncoder) this.#warn(PARTIAL);
        if (features.substitute) this.#once(features.substitute);
        const sizes = new Sizes(),
          extracted = await features.extract(sets[side].images as InputSource, sizes);
        report(sets[side], sizes, features.view);
        return extracted;
      });
    };
    const show: SetContext["show"] = (...args) => this.#show([real, fake], ...args);
    const metrics: EncoderMetric[] = selection.from("encoder"),
      network = { name: encoder.path, fingerprint: await encoder.fingerprint() };
    for (const space of new Set(metrics.map(({ space }) => space))) {
      const inSpace = metrics.filter((metric) => metric.space === space),
        report = this.#reporter(placeOf(space));
      const view = async (side: "real" | "fake"): Promise<InceptionView> => {
        const known = stored(sets[side], inSpace[0] as EncoderMetric);
        if (inSpace.every((metric) => serves(known, metric[side]))) return { ...known };
        return { ...known, features: (await extract(space, report, side)).features };
      };
      const before = this.#real.get(space), known = before?.set === real ? before.view : undefined;
      const a = known ?? await view("real"), b = await view("fake"), progress = log.progress.bind(log);
      this.#real.set(space, { set: real, view: a });
      const own = () => encoderIngredients("encoder", network, space, this.#encoderViews.get(space));
      for (const compute of new Set(inSpace.map(({ compute }) => compute))) {
        await results.add(async () => selection.reported(await compute(a, b, { seed, progress, show })), own);
      }
      await this.#withoutGroups(inSpace, a, b, results);
    }
    const labels = selection.from("labels");
    if (labels.length === 0 || !real.images || !fake.images) return;
    const report = this.#reporter(placeOf("patches"));
    const a = await extract("patches", report, "real"), b = await extract("patches", report, "fake");
    if (this.#learnt?.real !== real.images || this.#learnt.train !== train.images) {
      const learnt = await (await open("patches")).extract(train.images), warn = this.#warn.bind(this);
      const classes = train.images.classes.length, options = { classes, batchSize, split: train, warn };
      const context = learning({ train: learnt, test: a }, { ...options, progress: log.progress.bind(log) });
      this.#learnt = { real: real.images, train: train.images, context };
    }
    const context = { ...this.#learnt.context, fake: { ...b, images: fake.images, side: train.side } };
    const features = encoderIngredients("labels", network, "patches", this.#encoderViews.get("patches"));
    const nameIn = (images: InputSource) => (i: number) => images.name(i);
    const nameOf = { test: nameIn(real.images), fake: nameIn(fake.images) };
    for (const metric of labels) {
      const { input } = metric,
        own = (key: string): OwnIngredients =>
          input === undefined ? { ...features, ...context.ingredients(key) } : { from: "labels", input };
      await results.add(() => accuraciesOf(metric, context, nameOf, this.options.intervals), own);
    }
  }

  /** Writes a picture of pairs of images into the folder of the options. */
  async #show([real, fake]: [ImageSet, ImageSet], ...args: Parameters<SetContext["show"]>): Promise<void> {
    const line = await writePairs([real, fake], this.options, ...args);
    if (line !== undefined) this.log.line(line);
  }

  [Symbol.dispose](): void {
    this.#open?.features.destroy();
    this.#open = undefined;
  }

  async #byInception(
    inception: Inception,
    metrics: readonly InceptionMetric[],
    real: ImageSet,
    fake: ImageSet,
    results: Results,
  ): Promise<void> {
    const { inceptionInput: input, imageSize: square, seed } = this.options, { log } = this;
    const report = this.#reporter(`Inception as ${input} does`);
    const view: View = {
      square,
      network: { kind: "stretched", side: INCEPTION_SIDE, sampling: SAMPLING[input] },
    };
    const extract = async (set: ImageSet): Promise<InceptionView> => {
      const known = stored(set, { from: "inception" });
      const needed = metrics.map((metric) => set === fake ? metric.fake : metric.real);
      if (set === real && this.options.saveFeatures !== undefined) needed.push("features");
      const groups = set === fake && this.options.intervals !== undefined;
      const kinds = [...new Set(needed)].filter((kind) => kind !== undefined && !serves(known, kind));
      if (kinds.length === 0 || !set.images) return known;
      const n = set.images.length, batchSize = Math.min(this.options.batchSize, n);
      const extractor = await InceptionFeatures.open(inception, {
        size: INCEPTION_SIDE,
        batchSize,
        input,
        kinds: kinds as FeatureKind[],
        floats: true,
        groups,
        cache: { features: this.cache, view },
      });
      const progress = log.progress(`inception (${set.name})`, n, "images");
      const sizes = new Sizes(), source = inputs(set.images, view, sizes);
      const extracted = await extractor.extract(source, progress.update).finally(() => {
        progress.end();
        extractor.destroy();
      });
      report(set, sizes, view);
      return { ...extracted, ...known };
    };
    const a = real.images ? await kept(this.#views, real.images, () => extract(real)) : await extract(real);
    const b = await extract(fake), progress = log.progress.bind(log);
    for (const compute of new Set(metrics.map(({ compute }) => compute))) {
      const show: SetContext["show"] = (...args) => this.#show([real, fake], ...args);
      const { fake: kind } = metrics.find((metric) => metric.compute === compute) as InceptionMetric;
      const own: OwnIngredients = {
        from: "inception",
        space: INCEPTION_OUTPUT[kind],
        ...inception.identity && { network: inception.identity },
        input: `each has ${described(view)}, as ${input} does`,
      };
      await results.add(
        async () => this.selection.reported(await compute(a, b, { seed, progress, show })),
        () => own,
      );
    }
    await this.#withoutGroups(metrics, a, b, results);
  }

  /** Computes the metrics of one space again for their intervals, if they are requested. */
  async #withoutGroups(
    metrics: readonly (EncoderMetric | InceptionMetric)[],
    real: InceptionView,
    fake: InceptionView,
    results: Results,
  ): Promise<void> {
    const reported = this.selection.reported.bind(this.selection), { seed } = this.options;
    await results.add(async () => {
      await this.options.intervals?.repeatSets(metrics, real, fake, { seed, reported });
      return {};
    });
  }

  /** Warns of what makes the scores hard to compare with others. */
  #caution(real: ImageSet, fake: ImageSet): void {
    const metrics: { name: string }[] = this.selection.from("inception", "encoder", "six");
    if (metrics.length === 0) return;
    if (metrics.some(({ name }) => /^s?fid$|^fdr6$|^fd-(?!infinity)/.test(name))) {
      const counts = [real, fake].flatMap((set) => set.pooled ? [] : setIngredients(set).count ?? []);
      const few = counts.length > 0 && cautionOfFew(...counts);
      if (few) this.#warn(few);
    }
    const { protocol } = this.options, own = protocol ? cautionsOfProtocol(protocol, real, fake) : [];
    for (const text of [...cautionsOf(real, fake), ...own]) this.#warn(text);
  }

  /** Logs a line once. */
  #once(line: string): void {
    if (!this.#said.has(line)) this.log.line(line);
    this.#said.add(line);
  }

  /** Warns once. */
  #warn(text: string): void {
    if (!this.#said.has(text)) this.log.warn(text);
    this.#said.add(text);
  }

  /** Reports what happens to the images of each set, and notes that their sizes differ. */
  #reporter(network: string): Report {
    let first: Sizes | undefined;
    return ({ name }, sizes, view) => {
      const line = `"${name}": ${sizes}; for ${network}, each has ${described(view)}`;
      this.#once(line);
      if (first && view.square === undefined && !first.equals(sizes)) {
        this.log.line(
          "note: the images are not all of one size; --image-size N resizes and crops them to squares first",
        );
      }
      first ??= sizes;
    };
  }
}

/** Reports what happens to the images of a set. */
type Report = (set: { name: string }, sizes: Sizes, view: View) => void;
