// An encoder's features of images of any size, each image resized and cropped as the encoder's preprocessor_config.json says:
// one row an image for metrics, in one of several spaces, and all tokens and pooled features as a file.

import { UsageError } from "../errors.ts";
import { capture } from "../gpu/program.ts";
import { inputs, type InputSource, type Sizes, type View } from "../data/network_input.ts";
import { type Preprocessor, resized, sideOf } from "../data/preprocess.ts";
import { RowsWriter } from "../formats/safetensors.ts";
import { fits, type VitConfig, type VitOutput } from "../models/vit.ts";
import type { PoolingHead } from "../models/vit_pooling.ts";
import { state } from "../nn/layers.ts";
import { div, sqrt, square } from "../ops/math.ts";
import { mean, sum } from "../ops/reduce.ts";
import { noGrad } from "../tensor/autograd.ts";
import { input, type Tensor } from "../tensor/tensor.ts";
import { type EncoderConfig, encoderNetwork, type EncoderSource } from "../zoo/encoders.ts";
import { collect, type ImageProgram, imageProgram, inferBatches, type LabelledFeatures } from "./batched.ts";

/**
 * What serves as the features of an image.
 * - patches: mean of the patch tokens
 * - embedding: CLIP's projected embedding or SigLIP's attention pooling, of encoders without a head the CLS token, else the
 *   mean of the patch tokens; as a unit vector
 * - cls: CLS token
 * - pooled: the output of the pooling head: CLIP's projection, SigLIP's attention pooling, ConvNeXt's norm of the mean
 * - dinov2: CLS token as dgm-eval computes it: the image stretched to 224 x 224 by Pillow's bicubic filter, ImageNet's mean and
 *   standard deviation, positions interpolated by the offset 0.1 of the authors' code
 * - dinov2_torch: the same as EDM2 computes it: stretched in floating point, as torch's interpolate with antialias
 */
export type EncoderSpace = "patches" | "embedding" | "cls" | "pooled" | "dinov2" | "dinov2_torch";

/** Preprocessing of spaces that have their own. */
export const PREPROCESSORS: Readonly<Partial<Record<EncoderSpace, Preprocessor>>> = {
  dinov2: stretchedTo(224, false),
  dinov2_torch: stretchedTo(224, true),
};

/** By a bicubic filter with antialias, ImageNet's mean and standard deviation. */
function stretchedTo(side: number, exact: boolean): Preprocessor {
  return {
    resize: { height: side, width: side },
    filter: "bicubic",
    exact,
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
  };
}

/** The encoder with the preprocessing and the interpolation of positions of a space. */
function encoderIn(
  space: EncoderSpace,
  encoder: EncoderSource<EncoderConfig>,
): { config: EncoderConfig; preprocessor: Preprocessor } {
  const { config, preprocessor } = encoder;
  const own = PREPROCESSORS[space];
  if (own && config.model_type !== "convnextv2") {
    return { config: { ...config, interpolate_offset: 0.1 }, preprocessor: own };
  }
  return { config, preprocessor: squares(preprocessor, config) };
}

function rowsIn(
  space: EncoderSpace,
  output: VitOutput,
  head?: PoolingHead,
) {
  const { patches, cls } = output;
  if (space === "patches") return mean(patches, [1]);
  if (space.startsWith("dinov2") || space === "cls") return cls as Tensor;
  if (space === "pooled") return (head as PoolingHead).forward(output);
  const y = head ? head.forward(output) : cls ?? mean(patches, [1]);
  return div(y, sqrt(sum(square(y), [-1], { keepDims: true })));
}

/** An encoder's features, one row an image. */
export class EncoderFeatures {
  private constructor(
    private readonly networks: object,
    private readonly program: ImageProgram<"y">,
    readonly view: View,
    /** Of the weights, as EncoderSource.load() returns it. */
    readonly fingerprint: string,
  ) {}

  /**
   * @param options.n number of images it will run on
   * @param options.space what serves as the features ["patches"]
   * @param options.square side to which images are resized and cropped before the encoder's preprocessing
   */
  static async open(
    encoder: EncoderSource<EncoderConfig>,
    options: { batchSize: number; n: number; square?: number | undefined; space?: EncoderSpace },
  ): Promise<EncoderFeatures> {
    const { batchSize, n, square, space = "patches" } = options;
    const { config, preprocessor } = encoderIn(space, encoder), network = encoderNetwork(config);
    const networks: { network: object; head?: PoolingHead | undefined } = { network };
    try {
      const fingerprint = await encoder.load(network), size = sideOf(preprocessor) as number;
      const head = networks.head = space === "embedding" || space === "pooled"
        ? await encoder.head()
        : undefined;
      if (space === "pooled" && !head) {
        throw new UsageError(
          `Cannot pool the features of "${encoder.path}": its file has no pooling head; give the complete checkpoint`,
        );
      }
      const program = await imageProgram(
        "features",
        (x) => ({ y: rowsIn(space, network.forward(x), head) }),
        { batchSize, size, n, floats: true },
      );
      const view: View = { square, network: { kind: "encoder", preprocessor } };
      return new EncoderFeatures(networks, program, view, fingerprint);
    } catch (error) {
      free(networks);
      throw error;
    }
  }

  /** Features of an image. */
  get columns(): number {
    return this.program.outputs.y.dim(-1);
  }

  /** @param sizes counts the sizes of the images */
  extract(images: InputSource, sizes?: Sizes): Promise<LabelledFeatures> {
    return collect(this.program, "y", inputs(images, this.view, sizes));
  }

  destroy(): void {
    this.program.destroy();
    free(this.networks);
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
  await encoder.load(network);
  const head = await encoder.head();
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
