// An encoder's features of images of any size, each image resized and cropped as the encoder's preprocessor_config.json says:
// one row an image for metrics, in one of several spaces, and all tokens and pooled features as a file.

import { UsageError } from "../errors.ts";
import { capture } from "../gpu/program.ts";
import { inputs, type InputSource, type Sizes, type View } from "../data/network_input.ts";
import { type Preprocessor, resized, sideOf } from "../data/preprocess.ts";
import { RowsWriter } from "../formats/safetensors.ts";
import { fits, type VitConfig, type VitOutput } from "../models/vit.ts";
import { FAMILIES } from "../models/vit_families.ts";
import type { PoolingHead } from "../models/vit_pooling.ts";
import { state } from "../nn/layers.ts";
import { div, sqrt, square } from "../ops/math.ts";
import { mean, sum } from "../ops/reduce.ts";
import { noGrad } from "../tensor/autograd.ts";
import { input, type Tensor } from "../tensor/tensor.ts";
import { type EncoderConfig, encoderNetwork, type EncoderSource } from "../zoo/encoders.ts";
import { inferCached } from "./cached_inference.ts";
import type { CacheSpace, FeatureCache } from "./feature_cache.ts";
import { type Features, type Gaussian, Moments } from "./moments.ts";
import { collect, type ImageProgram, imageProgram, inferBatches, type LabelledFeatures } from "./batched.ts";

/**
 * What serves as the features of an image.
 * - patches: mean of the patch tokens
 * - embedding: CLIP's projected embedding or SigLIP's attention pooling, of encoders without a head the CLS token, else the
 *   mean of the patch tokens; as a unit vector
 * - cls: CLS token
 * - pooled: the output of the pooling head: CLIP's projection, SigLIP's attention pooling, ConvNeXt's norm of the mean
 * - those of {@link FORMS}: with preprocessing of their own, whatever the encoder's says
 */
export type EncoderSpace = "patches" | "embedding" | "cls" | "pooled" | FormName;
export type FormName =
  | "dinov2"
  | "dinov2_torch"
  | "convnextv2_224"
  | "dinov2_256"
  | "mae_224"
  | "siglip2_224"
  | "clip_256";

/** How a published evaluator computes features. */
export interface Form {
  pooling: "patches" | "cls" | "pooled";
  /** Side to which images are stretched by a bicubic filter with antialias, in floating point or as bytes. */
  side: number;
  exact: boolean;
  mean: readonly number[];
  std: readonly number[];
  /** Crop before that. */
  square?: number;
  crop?: "adm";
  /** What the evaluator's code of the network has in place of the configuration. */
  config?: Partial<VitConfig>;
}

const IMAGENET = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
const DINOV2 = { pooling: "cls", side: 224, ...IMAGENET, config: { interpolate_offset: 0.1 } } as const;
const FDR6 = { square: 256, crop: "adm", exact: true, ...IMAGENET } as const;
/** timm's code: positions are interpolated with antialias. */
const TIMM = { interpolate_offset: 0, interpolate_antialias: true };

/**
 * - dinov2: dgm-eval: stretched by Pillow's filter on bytes, positions interpolated by the offset 0.1 of the authors' code
 * - dinov2_torch: EDM2: the same in floating point, as torch's interpolate with antialias
 * - the others: FD-loss's FDr6, by timm's code. Sides that are no multiple of the patch are padded with zeros. MAE's norms have an
 *   epsilon of 1e-6. CLIP runs with GELU, though it was trained with QuickGELU: timm's vit_large_patch14_clip_224.openai does so
 */
export const FORMS: Readonly<Record<FormName, Form>> = {
  dinov2: { ...DINOV2, exact: false },
  dinov2_torch: { ...DINOV2, exact: true },
  convnextv2_224: { ...FDR6, pooling: "patches", side: 224 },
  dinov2_256: { ...FDR6, pooling: "cls", side: 256, config: TIMM },
  mae_224: { ...FDR6, pooling: "cls", side: 224, config: { ...TIMM, layer_norm_eps: 1e-6 } },
  siglip2_224: {
    ...FDR6,
    pooling: "pooled",
    side: 224,
    mean: [0.5, 0.5, 0.5],
    std: [0.5, 0.5, 0.5],
    config: TIMM,
  },
  clip_256: {
    ...FDR6,
    pooling: "cls",
    side: 256,
    mean: [0.48145466, 0.4578275, 0.40821073],
    std: [0.26862954, 0.26130258, 0.27577711],
    config: { ...TIMM, hidden_act: "gelu" },
  },
};

/** The preprocessing of a form for patches of side `P`. */
export function preprocessorOfForm({ side, exact, mean, std }: Form, P: number): Preprocessor {
  const padded = P * Math.ceil(side / P);
  return {
    resize: { height: side, width: side },
    filter: "bicubic",
    exact,
    ...padded === side ? {} : { padded },
    mean,
    std,
  };
}

/** CMMD's input of CLIP, as its authors' code: the image stretched by torch's bicubic filter without antialias, not clamped. */
export function inputOfCmmd({ mean, std, ...own }: Preprocessor): Preprocessor {
  const side = sideOf({ mean, std, ...own }) as number;
  return { resize: { height: side, width: side }, filter: "bicubic-sampled", exact: true, mean, std };
}

/** The encoder with the preprocessing and the configuration of a space. */
function encoderIn(
  space: EncoderSpace,
  { config, preprocessor }: EncoderSource<EncoderConfig>,
  square: number | undefined,
): { config: EncoderConfig; view: View & { network: { preprocessor: Preprocessor } } } {
  if (!(space in FORMS)) {
    const own = squares(preprocessor, config), clip = config.model_type === "clip_vision_model";
    const input = space === "embedding" && clip ? inputOfCmmd(own) : own;
    return { config, view: { square, network: { kind: "encoder", preprocessor: input } } };
  }
  const form = FORMS[space as FormName];
  const own = preprocessorOfForm(form, config.patch_size);
  return {
    config: config.model_type === "convnextv2" ? config : { ...config, ...form.config },
    view: { square: form.square ?? square, crop: form.crop, network: { kind: "encoder", preprocessor: own } },
  };
}

function rowsIn(
  space: EncoderSpace,
  output: VitOutput,
  head?: PoolingHead,
) {
  const { patches, cls } = output, pooling = space in FORMS ? FORMS[space as FormName].pooling : space;
  if (pooling === "patches") return mean(patches, [1]);
  if (pooling === "cls") return cls as Tensor;
  if (pooling === "pooled") return (head as PoolingHead).forward(output);
  const y = head ? head.forward(output) : cls ?? mean(patches, [1]);
  return div(y, sqrt(sum(square(y), [-1], { keepDims: true })));
}

/** What serves as the embedding of an encoder without CLIP's projection. */
function substituteOf(
  { path, config: { model_type: type } }: EncoderSource<EncoderConfig>,
  head?: PoolingHead,
): string | undefined {
  if (head && type === "clip_vision_model") return undefined;
  const token = head
    ? "the output of the pooling head"
    : type !== "convnextv2" && FAMILIES[type].cls
    ? "the CLS token"
    : "the mean of the patch tokens";
  return `cmmd: ${token} of "${path}" serves as the embedding; published figures are of ` +
    `openai/clip-vit-large-patch14-336`;
}

/** What images are prepared for, in messages. */
export function placeOf(space: EncoderSpace): string {
  const places: Partial<Record<EncoderSpace, string>> = {
    patches: "the encoder",
    embedding: "the encoder's embeddings",
    cls: "the encoder's CLS token",
    pooled: "the encoder's pooled features",
    dinov2: "DINOv2 as dgm-eval does",
    dinov2_torch: "DINOv2 as EDM2 does",
  };
  return places[space] ?? `the space ${space} of FDr6`;
}

/** Whether a space is of the output of the pooling head. */
export const readsHead = (space: EncoderSpace): boolean =>
  space === "embedding" || space === "pooled" || space === "siglip2_224";

/** An encoder's features, one row an image. */
export class EncoderFeatures {
  private constructor(
    private readonly networks: object,
    private readonly program: ImageProgram<"y">,
    private readonly cache: CacheSpace<"y"> | undefined,
    readonly view: View,
    /** Of the weights, as EncoderSource.load() returns it. */
    readonly fingerprint: string,
    /** Of the space of embeddings, for people: what serves, unless that is CLIP's projected embedding. */
    readonly substitute: string | undefined,
  ) {}

  /**
   * @param options.n number of images it will run on
   * @param options.space what serves as the features ["patches"]
   * @param options.cache keeps the features [none]
   * @param options.square side to which images are resized and cropped before the encoder's preprocessing
   */
  static async open(
    encoder: EncoderSource<EncoderConfig>,
    options: {
      batchSize: number;
      /** Number of images of all sets. */
      n: number;
      square?: number | undefined;
      space?: EncoderSpace;
      cache?: FeatureCache | undefined;
    },
  ): Promise<EncoderFeatures> {
    const { n, square, space = "patches" } = options, batchSize = Math.max(1, Math.min(options.batchSize, n));
    const { config, view } = encoderIn(space, encoder, square), network = encoderNetwork(config);
    const networks: { network: object; head?: PoolingHead | undefined } = { network };
    using opened = new DisposableStack();
    opened.defer(() => free(networks));
    const fingerprint = await encoder.load(network), size = sideOf(view.network.preprocessor) as number;
    const head = networks.head = readsHead(space) ? await encoder.head() : undefined;
    if (readsHead(space) && space !== "embedding" && !head) {
      throw new UsageError(
        `Cannot pool the features of "${encoder.path}": its file has no pooling head; give the complete checkpoint`,
      );
    }
    const program = await imageProgram(
      "features",
      (x) => ({ y: rowsIn(space, network.forward(x), head) }),
      { batchSize, size, n, floats: true },
    );
    const weights = [fingerprint, head ? await encoder.headFingerprint() ?? "" : "no head"];
    const key = [...weights, space, JSON.stringify(config), JSON.stringify(view)];
    opened.defer(() => program.destroy());
    const cache = await options.cache?.space(key, { y: program.outputs.y.dim(-1) });
    const serves = space === "embedding" ? substituteOf(encoder, head) : undefined;
    opened.move();
    return new EncoderFeatures(networks, program, cache, view, fingerprint, serves);
  }

  /** Features of an image. */
  get columns(): number {
    return this.program.outputs.y.dim(-1);
  }

  /** @param sizes counts the sizes of the images */
  extract(images: InputSource, sizes?: Sizes): Promise<LabelledFeatures> {
    const source = inputs(images, this.view, sizes);
    return collect(this.program, "y", source, inferCached(this.program, source, this.cache));
  }

  /** Mean and covariance of the features; no row is kept. */
  async moments(
    images: InputSource,
    sizes: Sizes,
    onProgress: (done: number) => void = () => {},
  ): Promise<Gaussian> {
    using moments = new Moments(this.columns);
    const source = inputs(images, this.view, sizes);
    for await (const { first, count, outputs } of inferCached(this.program, source, this.cache)) {
      await moments.add(outputs.y);
      onProgress(first + count);
    }
    return await moments.gaussian();
  }

  destroy(): void {
    this.program.destroy();
    free(this.networks);
  }
}

/** Patch tokens of some images [images * T, C], each resized and cropped to `square` first. */
export async function patchTokens(
  encoder: EncoderSource<EncoderConfig>,
  images: InputSource,
  chosen: readonly number[],
  square: number,
): Promise<Features> {
  const { config, view } = encoderIn("patches", encoder, square), network = encoderNetwork(config);
  try {
    await encoder.load(network);
    const size = sideOf(view.network.preprocessor) as number;
    const options = { batchSize: chosen.length, size, floats: true };
    const program = await imageProgram("patch tokens", (x) => ({ y: network.forward(x).patches }), options);
    const source = inputs(images, view);
    const few = {
      ...source,
      length: chosen.length,
      name: (i: number) => source.name(chosen[i] as number),
      label: (i: number) => source.label(chosen[i] as number),
      floats: (i: number, size: number) => source.floats(chosen[i] as number, size),
    };
    const { features: { data } } = await collect(program, "y", few).finally(() => program.destroy());
    const columns = program.outputs.y.dim(-1);
    return { data, rows: data.length / columns, columns };
  } finally {
    free(network);
  }
}

function free(networks: object): void {
  for (const { storage } of state(networks).values()) storage.destroy();
}

/** The encoder's preprocessing if it makes squares of whole patches; else squares of the nearest such side. */
function squares(
  preprocessor: Preprocessor,
  config: Pick<VitConfig, "patch_size" | "image_size">,
): Preprocessor {
  const side = sideOf(preprocessor);
  if (side !== undefined && fits(side, config)) return preprocessor;
  const P = config.patch_size;
  return resized(preprocessor, P * Math.max(1, Math.round((side ?? config.image_size) / P)));
}

/**
 * Writes the encoder's tokens of all images: `patch_tokens` [N,T,C], if it has a CLS token, `cls_token` [N,C], and if its file
 * has a pooling head, `pooled` [N,D]. They go to the file batch by batch; a failure leaves no file.
 * @param options.preprocessor instead of the encoder's
 * @throws UsageError for images of different sizes, sizes that are no multiple of the patch, and tokens that are not finite
 */
export async function writeTokens(
  path: string,
  encoder: EncoderSource<EncoderConfig>,
  images: InputSource,
  options: { preprocessor: Preprocessor; batchSize: number; onProgress(done: number): void },
): Promise<{ N: number; T: number; C: number; cls: boolean; D?: number }> {
  const view: View = { network: { kind: "encoder", preprocessor: options.preprocessor } };
  const { width, height } = await images.input(0, view);
  const { patch_size: P, hidden_size: C } = encoder.config, N = images.length;
  if (![width, height].every((side) => fits(side, encoder.config))) {
    throw new UsageError(
      `Cannot encode ${width} x ${height} images: the sides must be multiples of the patch size ${P}; ` +
        `give another --image-size`,
    );
  }
  const network = encoderNetwork(encoder.config);
  const networks: { network: object; head?: PoolingHead | undefined } = { network };
  using loaded = new DisposableStack();
  loaded.defer(() => free(networks));
  await encoder.load(network);
  const head = networks.head = await encoder.head();
  const T = Math.floor(width / P) * Math.floor(height / P), B = Math.min(options.batchSize, N);
  const x = input([B, height, width, 3], "f32", "images");
  const program = await capture(
    "features",
    { x },
    ({ x }) =>
      noGrad((): { patches: Tensor; cls?: Tensor; pooled?: Tensor } => {
        const { patches, cls } = network.forward(x),
          pooled = head?.forward(cls ? { patches, cls } : { patches });
        return { patches, ...cls ? { cls } : {}, ...pooled ? { pooled } : {} };
      }),
    { batchInvariant: true },
  ).prepare();
  const { cls, pooled } = program.outputs;
  const load = async (first: number) => {
    const loading = Array.from({ length: Math.min(B, N - first) }, (_, i) => images.input(first + i, view));
    loading.forEach((image) => image.catch(() => {})); // the first failure in order is the one that is thrown
    const pixels = new Float32Array(x.size);
    for (const [i, pending] of loading.entries()) {
      const image = await pending;
      if (image.width !== width || image.height !== height) {
        throw new UsageError(
          `Cannot stack features: image ${first + i} is ${image.width} x ${image.height}, the first one ` +
            `${width} x ${height}; give --image-size`,
        );
      }
      pixels.set(image.data, i * image.data.length);
    }
    return { images: pixels, labels: new Uint32Array(B) };
  };
  const file = new RowsWriter(path, [
    { name: "patch_tokens", shape: [N, T, C] },
    ...(cls ? [{ name: "cls_token", shape: [N, C] }] : []),
    ...(head ? [{ name: "pooled", shape: [N, head.width] }] : []),
  ], { encoder: encoder.path });
  const batches = inferBatches(program as ImageProgram<"patches" | "cls" | "pooled">, load, {
    n: N,
    parallel: images.parallel ?? 0,
    nameOf: (i) => images.name(i),
  });
  try {
    for await (const { first, count, outputs } of batches) {
      file.add("patch_tokens", outputs.patches);
      if (cls) file.add("cls_token", outputs.cls);
      if (pooled) file.add("pooled", outputs.pooled);
      options.onProgress(first + count);
    }
    file.commit();
  } catch (error) {
    file.abort();
    throw error;
  } finally {
    program.destroy();
  }
  return { N, T, C, cls: cls !== undefined, ...head ? { D: head.width } : {} };
}
