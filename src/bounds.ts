// The largest sizes that are accepted, by kind, wherever they come from: an option, a config.json, or the names of tensors.
// All are beyond every published model. They are checked before anything is built, so that a damaged or hostile file ends
// in a line and not in hours or gigabytes.

import { z } from "zod";

export const BOUNDS = {
  layers: 1000,
  levels: 32,
  channels: 65_536,
  heads: 4096,
  tokens: 4096,
  classes: 1_000_000,
  pixels: 16_384,
  /** Cells along a side of a grid of latents or patches. */
  cells: 4096,
  batch: 65_536,
  images: 100_000_000,
  /** Bytes of a batch of images in f32. */
  batchBytes: 2 ** 33,
  /** Numbers of a table of positions. */
  positions: 2 ** 24,
  /** Tensors of a file. */
  tensors: 100_000,
  /** Arrays of an .npz file, whose headers are all read. */
  arrays: 1000,
  /** Objects and lists of JSON inside each other. */
  nesting: 100,
  /** Values of a JSON text: numbers, texts, lists and objects. */
  values: 2_000_000,
} as const;

/** What is counted, in messages. */
const WORDS = {
  layers: "layers",
  levels: "levels",
  channels: "channels",
  heads: "heads",
  tokens: "tokens",
  classes: "classes",
  pixels: "pixels",
  cells: "cells along a side",
  batch: "at a time",
  images: "images",
} as const;
export type Countable = keyof typeof WORDS;

const limit = (what: Countable) => ({
  error: `at most ${BOUNDS[what].toLocaleString("en-US")} ${WORDS[what]} are supported`,
});

/** A whole number from 1 to the bound of its kind; of no kind, to 2^53. */
export function count(what?: Countable): z.ZodNumber {
  const positive = z.number().int().positive();
  return what ? positive.max(BOUNDS[what], limit(what)) : positive;
}

/** The same from 0 on. */
export function countOrNone(what: Countable): z.ZodNumber {
  return z.number().int().nonnegative().max(BOUNDS[what], limit(what));
}

/** Whether a table of positions has a size that is supported. */
export const fitsPositions = (side: number, channels: number): boolean =>
  side * side * channels <= BOUNDS.positions;

export const POSITIONS_ERROR = {
  error: `a table of more than ${
    BOUNDS.positions.toLocaleString("en-US")
  } numbers for its positions is not supported`,
};
