// Jobs of the worker threads: what to load of an image, as plain data, the function that does it, and its result or error. It
// gives the same bits on any thread.

import { UsageError } from "../errors.ts";
import { type Decoded, type Image, withImage } from "../image/image.ts";
import type { ImageMemory, SharedMemory } from "../image/memory.ts";
import { type Crop, croppedSquare, targetOfCrop } from "./crops.ts";
import { inputOf, targetOfView, type View } from "./network_input.ts";
import type { ImageFile, PageValue } from "./entries.ts";
import { parquetValues } from "../formats/parquet.ts";
import type { Pixels } from "./preprocess.ts";
import type { Size, Target } from "../image/resize.ts";
import { rowsOf } from "../image/rows.ts";
import { drawShape } from "./toy_shapes.ts";

export type Job =
  | Square
  | Shape
  /** A file or a part of one, a generated image, or pixels at hand, as a network sees them. */
  | { kind: "input"; image: ImageFile | Shape | Image; view: View };

/** A file or a part of one, or pixels at hand, as a square of side `size`, as bytes. */
interface Square {
  kind: "square";
  image: ImageFile | Image;
  size: number;
  /** ["center"] */
  crop?: Crop | undefined;
}

/** What a job gives: bytes, or a network's floats. */
export type PixelsOf<J extends Job> = J extends Square | Shape ? Pixels<Uint8Array<ArrayBuffer>> : Pixels;
type AnyPixels = PixelsOf<Job>;

/** A generated image, as bytes. */
interface Shape {
  kind: "shape";
  seed: number;
  index: number;
  size: number;
}

export interface Request {
  id: number;
  job: Job;
  memory: SharedMemory;
}

/** The result of a request: pixels, or the error. */
export type Reply = { id: number; pixels: AnyPixels } | { id: number; failure: Failure };

export interface Failure {
  /** Whether it was a UsageError. */
  usage: boolean;
  message: string;
}

/** Runs a job. @throws UsageError if its file cannot be read, decoded or cropped */
export async function perform(job: Job, memory: ImageMemory): Promise<AnyPixels> {
  switch (job.kind) {
    case "square": {
      const { image, size, crop = "center" } = job;
      if (isPixels(image)) return await croppedSquare(rowsOf(image), crop, size);
      const target = (original: Size) => targetOfCrop(crop, original, size);
      return await fromFile(image, memory, target, async (rows) => {
        const { width, height } = rows.original;
        return { ...await croppedSquare(rows, crop, size, rows.original), original: { width, height } };
      });
    }
    case "shape":
      return shapeOf(job);
    case "input": {
      const { image, view } = job;
      if (isPixels(image)) return await inputOf(rowsOf(image), view);
      if (typeof image === "object" && "kind" in image) return await inputOf(rowsOf(shapeOf(image)), view);
      const target = (original: Size) => targetOfView(view, original);
      return await fromFile(image, memory, target, (rows) => inputOf(rows, view, rows.original));
    }
  }
}

const isPixels = (image: ImageFile | Shape | Image): image is Image =>
  typeof image === "object" && "data" in image;

function shapeOf({ seed, index, size }: Shape): Image {
  return { width: size, height: size, data: drawShape(seed, index, size) };
}

/** @param target the part of an image that is used; undefined: all of it */
async function fromFile<P extends AnyPixels>(
  file: ImageFile,
  memory: ImageMemory,
  target: (original: Size) => Target | undefined,
  make: (rows: Decoded) => Promise<P>,
): Promise<P> {
  const image = typeof file === "object" && "page" in file ? imageValue(file) : file;
  return await withImage(image, { memory, enough: (original) => target(original)?.size }, async (rows) => {
    const pixels = await make(rows);
    return rows.notes.length > 0 ? { ...pixels, notes: rows.notes } : pixels;
  });
}

/** Bytes of Parquet pages that a thread keeps; at least the latest page. */
const KEPT_BYTES = 1 << 27;

/** The latest pages, oldest first: images that are read in order share them. */
const pages = new Map<string, { values: ReturnType<typeof parquetValues>; bytes: number }>();

/** A value of a Parquet page. @throws UsageError if the page is damaged, or has no such value */
export function imageValue(
  { path, name, layout, page, index }: PageValue,
): { name: string; bytes: Uint8Array<ArrayBuffer> } {
  const key = `${path} ${page.offset}`, size = page.dictionarySize + page.size;
  const found = pages.get(key) ?? { values: parquetValues(path, layout, page), bytes: size };
  pages.delete(key);
  pages.set(key, found);
  let all = pages.values().reduce((sum, { bytes }) => sum + bytes, 0);
  for (const [oldest, { bytes }] of pages) {
    if (all <= KEPT_BYTES || oldest === key) break;
    pages.delete(oldest);
    all -= bytes;
  }
  const bytes = found.values[index];
  if (!bytes) {
    throw new UsageError(`Cannot read the image "${name}": it is null; remove the row, or embed its file`);
  }
  return { name, bytes };
}

export function failureOf(error: unknown): Failure {
  return {
    usage: error instanceof UsageError,
    message: error instanceof Error ? error.message : String(error),
  };
}

/** The error of a worker, with its class and message. */
export function errorOf({ usage, message }: Failure): Error {
  return usage ? new UsageError(message) : new Error(message);
}
