// Upper bounds for sizes from options, config.json files and tensor names. All are above every published model. They are
// checked before anything is built, so that a damaged or hostile file ends with one line instead of hours or gigabytes.

import { z } from "zod";

export const BOUNDS = {
  layers: 1000,
  levels: 32,
  channels: 65_536,
  heads: 4096,
  tokens: 4096,
  classes: 1_000_000,
  pixels: 16_384,
  /** Side of a grid of latents or patches. */
  cells: 4096,
  batch: 65_536,
  images: 100_000_000,
  /** Bytes of a batch of images in fp32. */
  batchBytes: 2 ** 33,
  /** Elements of a position table. */
  positions: 2 ** 24,
  /** Tensors in a file. */
  tensors: 100_000,
  /** Arrays in an .npz file, whose headers are all read. */
  arrays: 1000,
  /** Nesting depth of JSON. */
  nesting: 100,
  /** Values in a JSON text: numbers, strings, arrays and objects. */
  values: 2_000_000,
} as const;

/** Units in messages. */
const UNITS = {
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
export type Countable = keyof typeof UNITS;

const limit = (what: Countable) => ({
  error: `at most ${BOUNDS[what].toLocaleString("en-US")} ${UNITS[what]} are supported`,
});

/** Integer from 1 to the bound of `what`, or to 2^53 without one. */
export function count(what?: Countable): z.ZodNumber {
  const positive = z.number().int().positive();
  return what ? positive.max(BOUNDS[what], limit(what)) : positive;
}

/** Integer from 0 to the bound of `what`. */
export function countOrNone(what: Countable): z.ZodNumber {
  return z.number().int().nonnegative().max(BOUNDS[what], limit(what));
}

/** Whether a position table of this size is supported. */
export const fitsPositions = (side: number, channels: number): boolean =>
  side * side * channels <= BOUNDS.positions;

export const POSITIONS_ERROR = {
  error: `position tables of more than ${
    BOUNDS.positions.toLocaleString("en-US")
  } elements are not supported`,
};
