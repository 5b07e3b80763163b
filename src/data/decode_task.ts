// Jobs of the worker threads: what to load of an image, as plain data, the function that does it, and its result or error. It
// gives the same bits on any thread.

import { UsageError } from "../errors.ts";
import { type Decoded, type Image, withImage } from "../image/image.ts";
import type { ImageMemory, SharedMemory } from "../image/memory.ts";
import { inputOf, targetOfView, type View } from "./network_input.ts";
import type { Pixels } from "./preprocess.ts";
import { resizeRows, type Size, squareOf, type Target } from "../image/resize.ts";
import { rowsOf } from "../image/rows.ts";
import { drawShape } from "./toy_shapes.ts";

export type Job =
  | Square
  | Shape
  /** A file, a generated image, or pixels at hand, as a network sees them. */
  | { kind: "input"; image: string | Shape | Image; view: View };

/** A file, or pixels at hand: shorter side to `size`, central square, as bytes. */
interface Square {
  kind: "square";
  image: string | Image;
  size: number;
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
      const { image } = job, target = (original: Size) => squareOf(original, job.size);
      if (typeof image !== "string") return await resizeRows(rowsOf(image), target(image));
      return await fromFile(image, memory, target, async (rows) => {
        const { width, height } = rows.original;
        return { ...await resizeRows(rows, target(rows.original)), original: { width, height } };
      });
    }
    case "shape":
      return shapeOf(job);
    case "input": {
      const { image, view } = job;
      if (typeof image !== "string") {
        return await inputOf(rowsOf("kind" in image ? shapeOf(image) : image), view);
      }
      const target = (original: Size) => targetOfView(view, original);
      return await fromFile(image, memory, target, (rows) => inputOf(rows, view, rows.original));
    }
  }
}

function shapeOf({ seed, index, size }: Shape): Image {
  return { width: size, height: size, data: drawShape(seed, index, size) };
}

/** @param target the part of an image that is used; undefined: all of it */
async function fromFile<P extends AnyPixels>(
  path: string,
  memory: ImageMemory,
  target: (original: Size) => Target | undefined,
  make: (rows: Decoded) => Promise<P>,
): Promise<P> {
  return await withImage(path, { memory, enough: (original) => target(original)?.size }, async (rows) => {
    const pixels = await make(rows);
    return rows.notes.length > 0 ? { ...pixels, notes: rows.notes } : pixels;
  });
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
