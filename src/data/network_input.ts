// Inputs of the networks behind scores: each image is resized and cropped by the network's own protocol, independently of the
// sizes of the others. Sizes are counted for the report.

import { toFloat } from "../image/image.ts";
import { interpolate, type Sampling } from "../image/interpolate.ts";
import { type Pixels, preprocess, type Preprocessor, targetOf } from "./preprocess.ts";
import { centerOf, resizeRows, resizeRowsSingle, type Size, type Target } from "../image/resize.ts";
import { fullImage, type Image, type Rows, rowsOf } from "../image/rows.ts";
import { croppedSquare, targetOfCrop } from "./crops.ts";
import type { ImageSource, NetworkInputs } from "./image_source.ts";

/** How an image becomes a network's input; plain data for worker threads. */
export interface View {
  /** First: resize the shorter side to this length (bicubic) and keep the central square. */
  square?: number | undefined;
  /** How the square is made: one resize, or ADM's crop. ["center"] */
  crop?: "center" | "adm" | undefined;
  /** Then: the network's own preprocessing; the image or square as it is when absent. */
  network?: NetworkInput;
}

export type NetworkInput =
  /** Stretched to a square of this side, in -1..1. */
  | { kind: "stretched"; side: number; sampling: Sampling | "pillow" }
  /** As an encoder's preprocessor_config.json says. */
  | { kind: "encoder"; preprocessor: Preprocessor };

/** A source that also makes inputs for networks. */
export interface InputSource extends ImageSource {
  /** Image `i` as the view says, with its original size. */
  input(i: number, view: View): Promise<Pixels>;
  /** Hash of the bytes of image `i`; undefined where another image takes its place, or images are generated. */
  digest?(i: number): Promise<string | undefined>;
}

/** The resized rectangle that a view keeps of an image, before a network stretches it; undefined: all of it. */
export function targetOfView({ square, crop = "center", network }: View, original: Size): Target | undefined {
  if (square !== undefined) return targetOfCrop(crop, original, square);
  return network?.kind === "encoder" ? targetOf(network.preprocessor, original) : undefined;
}

/**
 * The input that an image becomes.
 * @param original size that the image has in its file, where the rows are of reduced size
 * @throws UsageError when the encoder's crop is larger than the resized image
 */
export async function inputOf(rows: Rows, view: View, original: Size = rows): Promise<Pixels> {
  const { square, crop = "center", network } = view,
    size = { width: original.width, height: original.height };
  const target = targetOfView(view, original);
  if (network?.kind === "encoder" && square === undefined) {
    return { ...await preprocess(rows, network.preprocessor, target), original: size };
  }
  const kept = square !== undefined
    ? await croppedSquare(rows, crop, square, original)
    : target
    ? await resizeRows(rows, target)
    : await fullImage(rows);
  if (network?.kind === "encoder") {
    return { ...await preprocess(rowsOf(kept), network.preprocessor), original: size };
  }
  const { width, height } = network ? { width: network.side, height: network.side } : kept;
  const data = network ? await stretched(kept, width, network.sampling) : toFloat(kept.data);
  return { width, height, data, original: size };
}

/** An image as a square, in -1..1. */
async function stretched(
  image: Image,
  side: number,
  sampling: Sampling | "pillow",
): Promise<Float32Array<ArrayBuffer>> {
  if (sampling !== "pillow") return interpolate(image, side, side, sampling);
  const target = centerOf({ width: side, height: side }, side, side);
  const data = await resizeRowsSingle(rowsOf(image), target, "bicubic");
  return data.map((v) => Math.min(255, Math.max(0, v)) / 127.5 - 1);
}

/** What a view does to the size of an image, for people. */
export function described({ square, crop, network }: View): string {
  const steps: string[] = [];
  const cropped = (shorter: number, { width, height }: { width: number; height: number }) =>
    `its shorter side resized to ${shorter} and the central ${width} x ${height} kept`;
  if (square !== undefined) {
    const by = crop === "adm" ? " as ADM does" : "";
    steps.push(cropped(square, { width: square, height: square }) + by);
  }
  if (network?.kind === "stretched") steps.push(`its sides stretched to ${network.side} x ${network.side}`);
  if (network?.kind === "encoder") {
    const { resize, crop, filter, padded } = network.preprocessor;
    const by = filter === "bicubic-sampled" ? " without antialias" : "";
    if (resize && "height" in resize) {
      steps.push(`its sides stretched to ${resize.width} x ${resize.height}${by}`);
    }
    if (resize && "shorter" in resize) {
      steps.push(crop ? cropped(resize.shorter, crop) : `its shorter side resized to ${resize.shorter}`);
    } else if (crop) steps.push(`the central ${crop.width} x ${crop.height} kept`);
    if (padded !== undefined) steps.push(`zeros added up to ${padded} x ${padded}`);
  }
  return [...new Set(steps)].join(", then "); // the same step again changes nothing
}

/** How many images there are of each size. */
export class Sizes {
  readonly #counts = new Map<string, number>();
  readonly #counted = new Set<number>(); // the last batch is filled up with its last image

  /** Counts image `i`, once. */
  add(i: number, { width, height }: Size): void {
    if (this.#counted.has(i)) return;
    this.#counted.add(i);
    const key = `${width} x ${height}`;
    this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
  }

  /** Whether all images have the size of those of another set. */
  equals(other: Sizes): boolean {
    const [a, b] = [this.#counts, other.#counts];
    return a.size === 1 && b.size === 1 && [...a.keys()][0] === [...b.keys()][0];
  }

  /** Whether images are of another size than a square of this side. */
  differ(side: number): boolean {
    return [...this.#counts.keys()].some((key) => key !== `${side} x ${side}`);
  }

  /** "12 images of 64 x 64 pixels", the most frequent size first. */
  toString(): string {
    const sizes = [...this.#counts].sort(([x, a], [y, b]) => b - a || (x < y ? -1 : 1)),
      named = sizes.slice(0, 3);
    const others = sizes.slice(3), rest = others.reduce((sum, [, n]) => sum + n, 0);
    const text = named.map(([size, n], i) => `${n}${i ? "" : ` image${n === 1 ? "" : "s"}`} of ${size}`);
    if (rest) text.push(`${rest} of ${others.length} other sizes`);
    return text.join(", ");
  }
}

/** Square network inputs of a source. @param sizes counts the original sizes, each image once */
export function inputs(source: InputSource, view: View, sizes?: Sizes): IdentifiedInputs {
  const latest = new Map<number, Size>();
  return {
    digest: (i) => source.digest?.(i) ?? Promise.resolve(undefined),
    sizeOf: (i) => latest.get(i),
    count: (i, size) => sizes?.add(i, size),
    length: source.length,
    classes: source.classes,
    parallel: source.parallel ?? 0,
    label: (i) => source.label(i),
    name: (i) => source.name(i),
    floats: async (i, size) => {
      const { width, height, data, original, notes } = await source.input(i, view);
      if (width !== size || height !== size) {
        throw new Error(`image ${i} became ${width} x ${height}, not ${size} x ${size}`);
      }
      if (original) {
        sizes?.add(i, original);
        if (notes?.some(({ kind }) => kind === "reduced")) latest.delete(i);
        else latest.set(i, original);
        if (latest.size > MAX_SIZES) latest.delete(latest.keys().next().value as number);
      }
      return data;
    },
  };
}

/** Sizes that a source remembers: more than those of images that are loaded at the same time. */
const MAX_SIZES = 4096;

/** Inputs of images that are known by the hash of their bytes. */
export interface IdentifiedInputs extends NetworkInputs {
  /** As {@link InputSource.digest}. */
  digest(i: number): Promise<string | undefined>;
  /** Size in its file of an image that was loaded lately; undefined if it was decoded at reduced size, as its memory allowed. */
  sizeOf(i: number): Size | undefined;
  /** Counts an image that was not loaded. */
  count(i: number, size: Size): void;
}
