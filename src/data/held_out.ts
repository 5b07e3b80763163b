// Which images are held out to score a tokenizer: a part of the training images, or others.

import { UsageError } from "../errors.ts";
import { type ImageSource, part, subset } from "./image_source.ts";

/** Minimum number of training images that a linear probe learns from. */
const PROBE_IMAGES = 500;

export interface Split {
  train: ImageSource;
  heldOut: ImageSource;
  /** Labelled training images for a linear probe; undefined where there are no classes. */
  probe: ImageSource | undefined;
}

/** Images below which a tokenizer learns its training images by heart, and a tenth is too few for a score. */
const MIN_IMAGES = 200;

/**
 * Holds out the first `most` images, at most a tenth.
 * @param warn called with a line where they are few
 * @throws UsageError if none is left
 */
export function splitOff(all: ImageSource, most: number, name: string, warn: (line: string) => void): Split {
  const n = Math.min(most, Math.max(1, Math.floor(all.length / 10)));
  const train = part(all, n, all.length), heldOut = part(all, 0, n);
  if (train.length === 0) throw new UsageError(`Cannot train on "${name}": one image is not enough`);
  if (all.length < MIN_IMAGES) {
    warn(
      `warning: "${name}" has few images: ${train.length} to train on, which a tokenizer learns by heart, and ${n} ` +
        "held out, whose scores say little; add some, or score those that it trains on by --val",
    );
  }
  return { train, heldOut, probe: undefined };
}

/**
 * Holds out at most `most` images of `validation`, evenly spaced. Both need the same classes, unless one has none.
 * @param names how the user called them
 * @throws UsageError for a class that only one of them has
 */
export function heldOutOf(
  train: ImageSource,
  validation: ImageSource,
  most: number,
  names: { train: string; validation: string },
): Split {
  const [a, b] = [train.classes, validation.classes];
  const labelled = a.length > 1 && b.length > 1;
  if (a.length > 0 && b.length > 0) {
    const missing = a.filter((name) => !b.includes(name)), unknown = b.filter((name) => !a.includes(name));
    const listed = (found: readonly string[]) =>
      found.slice(0, 3).map((name) => `"${name}"`).join(", ") +
      (found.length > 3 ? ` and ${found.length - 3} more` : "");
    if (missing.length) {
      throw new UsageError(
        `Cannot validate on "${names.validation}": it has no images of the class ${listed(missing)} of ` +
          `"${names.train}"; add some, or hold images out with --held-out alone`,
      );
    }
    if (unknown.length) {
      throw new UsageError(
        `Cannot validate on "${names.validation}": "${names.train}" has no class ${
          listed(unknown)
        }; remove it`,
      );
    }
  }
  // A label is an index into the classes of its own source.
  const indices = b.map((name) => a.indexOf(name));
  const labelledAlike = labelled
    ? {
      ...subset(validation, validation.length),
      classes: a,
      label: (i: number) => indices[validation.label(i)] as number,
    }
    : validation;
  const spread = (source: ImageSource, n: number) =>
    n >= source.length ? source : subset(source, n, (i) => Math.floor(i * source.length / n));
  const probeImages = Math.max(PROBE_IMAGES, 2 * a.length);
  return {
    train,
    heldOut: spread(labelledAlike, most),
    probe: labelled && train.length >= 2 * a.length ? spread(train, probeImages) : undefined,
  };
}
