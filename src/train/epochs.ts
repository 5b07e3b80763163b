// `--epochs`: steps by passes over the images.

import type { AlignConfig } from "../cli/config.ts";
import type { Origin } from "../cli/flags.ts";
import { UsageError } from "../errors.ts";
import type { Log } from "../run/log.ts";

/** The training set of ImageNet-1k (ILSVRC 2012), which a dry run without data is planned for. */
export const IMAGENET = { images: 1_281_167, classes: 1000 };

/**
 * @param options.repeats whether generated images are a fixed number
 * @throws UsageError where both --epochs and --steps are set, other than by a preset or default, and where images never repeat
 */
export function checkEpochs(
  c: { epochs?: unknown; data?: string | undefined; dryRun: boolean },
  { steps = "default" }: Readonly<Record<string, Origin>> = {},
  { repeats }: { repeats: boolean } = { repeats: false },
): void {
  if (c.epochs === undefined) return;
  if (steps === "command line" || steps === "config file") {
    throw new UsageError(`Cannot use --epochs and --steps at once: give one of them`);
  }
  if (c.data === undefined && !c.dryRun && !repeats) {
    throw new UsageError(`Cannot use --epochs without --data: generated images never repeat; use --steps`);
  }
}

/** Steps of `epochs` passes over `images` (undefined: ImageNet's) in batches of `batch`; logs them. */
export function stepsOfEpochs(
  epochs: readonly number[],
  images: number | undefined,
  batch: number,
  log: Log,
): number[] {
  const n = images ?? IMAGENET.images, set = images === undefined ? " (ImageNet's, without --data)" : "";
  const steps = epochs.map((count) => Math.max(1, Math.ceil(count * n / batch)));
  if (epochs.length) {
    log.line(
      `epochs: ${epochs} of ${n.toLocaleString("en-US")} images${set} in batches of ${batch}: ${steps} steps`,
    );
  }
  return steps;
}

/** Steps of the stages of an alignment. @param images number of training images; undefined: ImageNet's */
export function stepsOfStages(c: AlignConfig, images: number | undefined, log: Log): number[] {
  const { epochs } = c;
  if (epochs === undefined) return c.steps;
  const each = c.steps.map((_, stage) => epochs[stage] ?? epochs[0] as number);
  return stepsOfEpochs(each, images, c.batchSize * c.accumulate, log);
}
