// What can be asked for of an image, as plain data that goes to a worker and back: which pixels to make, how to say that
// it failed, and the one function that does it. It makes the same bits on whatever thread it runs.

import { UsageError } from "../errors.ts";
import { type Image, readImage, toBytes, toFloat } from "./image.ts";
import { inputOf, type View } from "./inputs.ts";
import { type Pixels, preprocess, type Preprocessor } from "./preprocess.ts";
import { resizeAndCrop } from "./resize.ts";
import { drawShape } from "./shapes.ts";

export type Job =
  /** A file: shorter side to `size`, central square, pixels in [-1,1]. */
  | { kind: "square"; path: string; size: number }
  /** A file as an encoder sees it. */
  | { kind: "encoder"; path: string; preprocessor: Preprocessor }
  /** A generated image, pixels in [-1,1]. */
  | Shape
  /** A file, a generated image, or pixels at hand, as a network sees them. */
  | { kind: "input"; image: string | Shape | Image; view: View };

interface Shape {
  kind: "shape";
  seed: number;
  index: number;
  size: number;
}

export interface Request {
  id: number;
  job: Job;
}

/** What became of a request: its pixels, or what was thrown. */
export type Reply = { id: number; pixels: Pixels } | { id: number; failure: Failure };

export interface Failure {
  /** Whether it was a UsageError. */
  usage: boolean;
  message: string;
}

/** Makes the pixels of a job. @throws UsageError when its file cannot be read, decoded or cropped */
export async function perform(job: Job): Promise<Pixels> {
  switch (job.kind) {
    case "square": {
      const { path, size } = job;
      return { width: size, height: size, data: toFloat(resizeAndCrop(await readImage(path), size).data) };
    }
    case "encoder":
      return preprocess(await readImage(job.path), job.preprocessor);
    case "shape":
      return { width: job.size, height: job.size, data: drawShape(job.seed, job.index, job.size) };
    case "input":
      return inputOf(await bytesOf(job.image), job.view);
  }
}

async function bytesOf(image: string | Shape | Image): Promise<Image> {
  if (typeof image === "string") return await readImage(image);
  if (!("kind" in image)) return image;
  const { seed, index, size } = image;
  return { width: size, height: size, data: toBytes(drawShape(seed, index, size)) };
}

export function failureOf(error: unknown): Failure {
  return {
    usage: error instanceof UsageError,
    message: error instanceof Error ? error.message : String(error),
  };
}

/** The error that a worker met, of the same class and with the same text. */
export function errorOf({ usage, message }: Failure): Error {
  return usage ? new UsageError(message) : new Error(message);
}
