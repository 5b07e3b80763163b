// Preprocessing of an encoder's images from preprocessor_config.json: resize, crop, (v / 255 - mean) / std. The file names a
// processor class of transformers, whose defaults apply; older files give a size as one number. Settings that would change
// pixels in an unsupported way are refused by name.

import { z } from "zod";
import { count } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { validated } from "../formats/files.ts";
import type { Note } from "../image/image.ts";
import {
  centerOf,
  type Filter,
  resizeRows,
  resizeRowsFloat,
  type Size,
  sizeOfShorterSide,
  type Target,
} from "../image/resize.ts";
import type { Rows } from "../image/rows.ts";

export interface Preprocessor {
  /** Resize the shorter side to `shorter`, or the image to `height` x `width`; undefined: no resize. */
  resize?: { shorter: number } | { height: number; width: number };
  /** Size of the center crop. */
  crop?: { height: number; width: number };
  filter: Filter;
  /** Resize in floating point instead of bytes. */
  exact: boolean;
  /** Zeros to the right and below after normalisation, up to squares of this side [none]. */
  padded?: number;
  /** Per channel, for pixels in 0..1. */
  mean: readonly number[];
  std: readonly number[];
}

const CLIP = {
  image_mean: [0.48145466, 0.4578275, 0.40821073],
  image_std: [0.26862954, 0.26130258, 0.27577711],
  size: { shortest_edge: 224 },
  crop_size: { height: 224, width: 224 },
  do_center_crop: true,
  resample: 3,
};
const HALF = { image_mean: [0.5, 0.5, 0.5], image_std: [0.5, 0.5, 0.5] };
const EXACT_224 = { size: { height: 224, width: 224 } };

/** Defaults of the processor classes, and the meaning of a size of one number. */
const CLASSES: Readonly<Record<string, { one: "shorter" | "square"; fields: Record<string, unknown> }>> = {
  BitImageProcessor: { one: "shorter", fields: CLIP },
  CLIPImageProcessor: { one: "shorter", fields: CLIP },
  SiglipImageProcessor: { one: "shorter", fields: { ...HALF, ...EXACT_224, resample: 3 } },
  ViTImageProcessor: { one: "square", fields: { ...HALF, ...EXACT_224, resample: 2 } },
  // A side below 384: the shorter side resized to side / crop_pct, then the center; else stretched.
  ConvNextImageProcessor: {
    one: "shorter",
    fields: {
      size: { shortest_edge: 384 },
      image_mean: [0.485, 0.456, 0.406],
      image_std: [0.229, 0.224, 0.225],
      resample: 2,
      crop_pct: 224 / 256,
    },
  },
  DINOv3ViTImageProcessor: {
    one: "square",
    fields: {
      ...EXACT_224,
      image_mean: [0.485, 0.456, 0.406],
      image_std: [0.229, 0.224, 0.225],
      resample: 2,
    },
  },
};

const side = count("pixels");
const rectangle = z.strictObject({ height: side, width: side });
const three = z.array(z.number()).length(3);
const off = z.literal(false, { error: "is not supported" }).optional();

const fields = z.object({
  do_resize: z.boolean().default(true),
  size: z.union([side, z.strictObject({ shortest_edge: side }), rectangle]),
  do_center_crop: z.boolean().default(false),
  crop_size: z.union([side, rectangle]).optional(),
  resample: z.number().int(),
  do_rescale: z.boolean().default(true),
  rescale_factor: z.number().positive().default(1 / 255),
  do_normalize: z.boolean().default(true),
  image_mean: three,
  image_std: three,
  do_pad: off,
  do_flip_channel_order: off,
  crop_pct: z.undefined({ error: "is not supported" }).optional(),
});

/** Pillow's numbers of the filters. */
const FILTERS: Readonly<Record<number, Filter>> = { 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box" };

/**
 * Reads a preprocessor_config.json.
 * @param fallback processor class if the file names none
 * @param path path of the file, for messages
 * @throws UsageError for classes and settings that are not supported
 */
export function preprocessorOf(json: unknown, fallback: string, path: string): Preprocessor {
  const named = validated(
    z.looseObject({
      image_processor_type: z.string().optional(),
      feature_extractor_type: z.string().optional(),
    }),
    json,
    path,
  );
  const written = named.image_processor_type ?? named.feature_extractor_type ?? fallback;
  const type = written.replace(/(Fast|Pil)$/, "").replace(/FeatureExtractor$/, "ImageProcessor");
  const processor = CLASSES[type];
  if (!processor) {
    throw new UsageError(
      `Cannot use "${path}": the processor "${written}" is not supported; supported: ${
        Object.keys(CLASSES).join(", ")
      }`,
    );
  }
  const given = Object.fromEntries(Object.entries(named).filter(([, value]) => value !== null));
  const all = { ...processor.fields, ...given };
  const f = validated(fields, type === "ConvNextImageProcessor" ? cropped(all, path) : all, path);
  const filter = FILTERS[f.resample];
  if (!filter) {
    const supported = Object.entries(FILTERS).map(([n, name]) => `${n} (${name})`).join(", ");
    throw new UsageError(
      `Cannot use "${path}": the resample filter ${f.resample} is not supported; supported: ${supported}`,
    );
  }
  const square = (n: number) => ({ height: n, width: n });
  const size = typeof f.size !== "number"
    ? "shortest_edge" in f.size ? { shorter: f.size.shortest_edge } : f.size
    : processor.one === "square"
    ? square(f.size)
    : { shorter: f.size };
  const cropSize = typeof f.crop_size === "number" ? square(f.crop_size) : f.crop_size;
  if (f.do_center_crop && !cropSize) {
    throw new UsageError(`Cannot use "${path}": it asks for a crop without "crop_size"; add it`);
  }
  // Processors normalise v * factor; mean and std here refer to v / 255.
  const unit = 255 * (f.do_rescale ? f.rescale_factor : 1);
  return {
    ...(f.do_resize ? { resize: size } : {}),
    ...(f.do_center_crop && cropSize ? { crop: cropSize } : {}),
    filter,
    exact: type === "DINOv3ViTImageProcessor",
    mean: f.do_normalize ? f.image_mean.map((m) => m / unit) : [0, 0, 0],
    std: f.do_normalize ? f.image_std.map((s) => s / unit) : [1, 1, 1].map((s) => s / unit),
  };
}

/** Size and crop of a ConvNextImageProcessor by its `crop_pct`, in the terms of the other classes. */
function cropped(all: Record<string, unknown>, path: string): Record<string, unknown> {
  const given = z.looseObject({
    size: z.union([side, z.strictObject({ shortest_edge: side })]),
    crop_pct: z.number().positive().max(1),
  });
  const { size, crop_pct, ...rest } = validated(given, all, path);
  const edge = typeof size === "number" ? size : size.shortest_edge;
  if (edge >= 384) return { ...rest, size: { height: edge, width: edge } };
  return {
    ...rest,
    size: { shortest_edge: Math.trunc(edge / crop_pct) },
    crop_size: edge,
    do_center_crop: true,
  };
}

/** Replaces resize and crop: squares of side `n`, or no change of size. */
export function resized(p: Preprocessor, n: number | "native"): Preprocessor {
  const { resize, crop: _, ...rest } = p;
  if (n === "native") return rest;
  const square = { height: n, width: n };
  return resize && "height" in resize
    ? { ...rest, resize: square }
    : { ...rest, resize: { shorter: n }, crop: square };
}

/** Side of the output if it is square. */
export function sideOf({ resize, crop, padded }: Preprocessor): number | undefined {
  if (padded !== undefined) return padded;
  if (crop) return crop.height === crop.width ? crop.height : undefined;
  if (resize && "height" in resize) return resize.height === resize.width ? resize.height : undefined;
  return undefined;
}

/** Pixels, channels last. */
export interface Pixels<D = Float32Array<ArrayBuffer>> {
  width: number;
  height: number;
  /** `[height,width,3]` */
  data: D;
  /** Size of the source image, if it is counted. */
  original?: { width: number; height: number };
  /** Note for the user on how they were decoded. */
  notes?: readonly Note[];
}

/** Target size and crop of an image. @throws UsageError if the crop is larger than the resized image */
export function targetOf(p: Preprocessor, original: Size): Target {
  const size = !p.resize
    ? original
    : "height" in p.resize
    ? p.resize
    : sizeOfShorterSide(original, p.resize.shorter);
  const { width, height } = p.crop ?? size;
  if (height > size.height || width > size.width) {
    throw new UsageError(
      `Cannot crop ${width} x ${height} pixels: the resized image is ${size.width} x ${size.height}; ` +
        `give another --image-size`,
    );
  }
  return centerOf(size, width, height);
}

/** Prepares an image. @param target computed from the size in the file if the rows are of reduced size */
export async function preprocess(
  rows: Rows,
  p: Preprocessor,
  target: Target = targetOf(p, rows),
): Promise<Pixels> {
  const { width, height } = target;
  const data = p.exact
    ? await resizeRowsFloat(rows, target, p.filter)
    : (await resizeRows(rows, target, p.filter)).data;
  const W = p.padded ?? width, H = p.padded ?? height, out = new Float32Array(3 * W * H);
  for (let i = 0; i < data.length; i++) {
    const c = i % 3, at = i + Math.floor(i / (3 * width)) * 3 * (W - width);
    out[at] = ((data[i] as number) / 255 - (p.mean[c] as number)) / (p.std[c] as number);
  }
  return { width: W, height: H, data: out };
}
