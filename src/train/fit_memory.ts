// `--memory`: the largest micro-batch whose steps fit, and the accumulation that keeps the batch. Plans of micro-batches of one
// image bound those of more: activations grow with the batch at most in proportion, parameters and optimizer not at all. So
// one plan of each recipe and one or two of the largest decide.

import { GpuError, UsageError } from "../errors.ts";
import { formatBytes, parseBytes } from "../formats/files.ts";
import { device } from "../gpu/device.ts";
import { largestBinding, type Plan } from "../gpu/plan.ts";
import type { Log } from "../run/log.ts";
import type { Precision } from "../tensor/tensor.ts";
import type { Recipe } from "./recipe.ts";

/** The options that decide the memory of a step. */
export interface Sized {
  /** Of a micro-batch. */
  batchSize: number;
  accumulate: number;
  precision: Precision;
  recompute: boolean;
  memory?: string | undefined;
  dryRun: boolean;
}

/** Recipes with other options, for their plans only. */
export type RecipesOf<C> = (c: C) => Promise<{ recipes: readonly Pick<Recipe, "plan" | "steps">[] }>;

/** The largest micro-batch of a precision, with or without recomputation. */
export interface Fit {
  precision: Precision;
  recompute: boolean;
  /** 0 if one image does not fit. */
  microBatch: number;
  /** Bytes that it needs, or that one image needs. */
  bytes: number;
  /** Floating-point operations of the complete run. */
  flops: number;
}

/**
 * The options with the largest micro-batch that fits into --memory; as they are without --memory. A dry run prints what fits with
 * and without fp16 and recomputation.
 * @throws UsageError where not even one image fits
 */
export async function fitMemory<C extends Sized>(c: C, log: Log, recipesOf: RecipesOf<C>): Promise<C> {
  const budget = c.memory === undefined ? undefined : parseBytes(c.memory);
  if (budget === undefined) return c;
  const batch = c.batchSize * c.accumulate;
  // What is planned only, for another machine perhaps, is not bound by this adapter.
  const limit = c.dryRun ? Infinity : device().limits.maxStorageBufferBindingSize;
  const variants: Pick<Sized, "precision" | "recompute">[] = (["f32", "f16"] as const).flatMap((precision) =>
    [false, true].map((recompute) => ({ precision, recompute }))
  );
  const asked = (v: typeof variants[number]) => v.precision === c.precision && v.recompute === c.recompute;
  const fits: Fit[] = [];
  for (const variant of c.dryRun ? variants : variants.filter(asked)) {
    const sized = (size: number) => ({ ...c, ...variant, ...sizeOf(c, size) });
    fits.push({
      ...variant,
      ...await largestMicroBatch(batch, { budget, limit }, (n) => recipesOf(sized(n))),
    });
  }
  if (c.dryRun) printFits(fits, c, budget, log);
  const own = fits.find(asked) as Fit;
  if (own.microBatch === 0) throw new UsageError(misfit(own, fits, c, budget));
  const size = sizeOf(c, own.microBatch);
  if (!c.dryRun) {
    log.line(`memory: ${optionsOf(own, c)} needs ${formatBytes(own.bytes)} of ${formatBytes(budget)}`);
  }
  return { ...c, ...size };
}

/** Sizes of a micro-batch of `size` images in the batch of `c`. */
function sizeOf(c: Sized, size: number): Pick<Sized, "batchSize" | "accumulate"> {
  return { batchSize: size, accumulate: c.batchSize * c.accumulate / size };
}

/** Where the estimate exceeds the budget by more, a larger micro-batch is not tried. */
const SLACK = 1.05;

/** @param recipesOf recipes with micro-batches of this size */
export async function largestMicroBatch(
  batch: number,
  { budget, limit }: { budget: number; limit: number },
  recipesOf: RecipesOf<number>,
): Promise<Pick<Fit, "microBatch" | "bytes" | "flops">> {
  const { recipes } = await recipesOf(1), one = recipes.map((recipe) => recipe.plan());
  const flops = one.reduce((sum, plan, i) => sum + plan.flops * (recipes[i]?.steps ?? 0), 0);
  /** Bytes if activations grow by `share` of what is in proportion; without accumulation there are no sums of gradients. */
  const bound = ({ totalBytes, bytes }: Plan, size: number, share = 1) =>
    totalBytes + (share * size - 1) * (bytes.activations + bytes.inputs) -
    (size === batch && batch > 1 ? bytes.gradients / 2 : 0);
  const worst = (size: number, share = 1) => Math.max(...one.map((plan) => bound(plan, size, share)));
  /** The share in the largest plan so far, for how far to go on. */
  let grown = 1;
  const usable = (plan: Plan) => plan.totalBytes <= budget && (largestBinding(plan)?.bytes ?? 0) <= limit;

  /** Bytes of the largest step; undefined if it does not fit. Recipes that fit by their bound are not planned. */
  const bytesAt = async (size: number): Promise<number | undefined> => {
    const all = size === 1 ? recipes : (await recipesOf(size)).recipes;
    let most = 0;
    for (const [i, recipe] of all.entries()) {
      const single = one[i] as Plan, atMost = bound(single, size);
      const known = atMost <= budget && atMost < worst(size) &&
        (largestBinding(single)?.bytes ?? 0) * size <= limit;
      if (known) continue;
      const plan = size === 1 ? single : planned(recipe);
      if (!plan || !usable(plan)) return undefined;
      if (plan.totalBytes <= most) continue;
      most = plan.totalBytes;
      grown = (plan.bytes.activations + plan.bytes.inputs) /
        (size * (single.bytes.activations + single.bytes.inputs));
    }
    return most;
  };
  const sizes = Array.from({ length: batch }, (_, i) => i + 1).filter((size) => batch % size === 0);
  let found: { microBatch: number; bytes: number } | undefined;
  const first = Math.max(0, sizes.findLastIndex((size) => worst(size) <= budget));
  let full = false;
  for (const [i, microBatch] of sizes.entries()) {
    if (i < first || i > first && worst(microBatch, grown) > SLACK * budget) continue;
    if (full && microBatch < batch) continue; // the complete batch is without sums of gradients
    const bytes = await bytesAt(microBatch);
    if (bytes === undefined) full = true;
    else found = { microBatch, bytes };
  }
  for (let i = first - 1; i >= 0 && !found; i--) {
    const microBatch = sizes[i] as number, bytes = await bytesAt(microBatch);
    if (bytes !== undefined) found = { microBatch, bytes };
  }
  return { ...found ?? { microBatch: 0, bytes: worst(1) }, flops };
}

/** Undefined where a tensor has more elements than a kernel can address. */
function planned(recipe: Pick<Recipe, "plan">): Plan | undefined {
  try {
    return recipe.plan();
  } catch (error) {
    if (error instanceof GpuError) return undefined;
    throw error;
  }
}

/** The options of a fit, as on the command line. */
function optionsOf({ microBatch, precision, recompute }: Fit, c: Sized): string {
  const { batchSize, accumulate } = sizeOf(c, microBatch);
  return [
    `--batch-size ${batchSize}`,
    `--accumulate ${accumulate}`,
    ...recompute ? ["--recompute"] : [],
    ...precision === "f16" ? ["--precision f16"] : [],
  ].join(" ");
}

function printFits(fits: readonly Fit[], c: Sized, budget: number, log: Log): void {
  const least = Math.min(...fits.map(({ flops }) => flops));
  log.begin();
  log.line(log.bold(`${formatBytes(budget)}, batches of ${c.batchSize * c.accumulate}:`));
  for (const fit of fits) {
    const needs = `${formatBytes(fit.bytes).padStart(9)}  ${(fit.flops / least).toFixed(2)} x FLOP`;
    log.line(
      `  ${fit.precision}${fit.recompute ? ", recompute" : ""}`.padEnd(18) +
        (fit.microBatch > 0
          ? `${needs}  ${optionsOf(fit, c)}`
          : `${needs}  does not fit, even with micro-batches of 1`),
    );
  }
}

function misfit(own: Fit, fits: readonly Fit[], c: Sized, budget: number): string {
  const other = fits.find(({ microBatch }) => microBatch > 0);
  const advice = other
    ? `use ${optionsOf(other, c)}`
    : c.dryRun
    ? "use a smaller model or image size"
    : "use --recompute or --precision f16; --dry-run lists what fits";
  return `Cannot fit micro-batches of 1, which need ${formatBytes(own.bytes)}, into --memory ${
    formatBytes(budget)
  }; ${advice}`;
}
