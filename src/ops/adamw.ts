// AdamW on flat sets of parameters, one launch a set, with loss scaling and skipped steps; see kernels/adamw.wgsl.

import source from "../../kernels/adamw.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { check, empty, type Tensor, variable } from "../tensor/tensor.ts";
import { pointwise } from "./pointwise.ts";
import { sumOfSquares } from "./reduce.ts";
import { reshape, slice } from "./layout.ts";

/** Hyper-parameters; they may change each step without a new capture. */
export interface Hyper {
  lr: number;
  beta1: number;
  beta2: number;
  eps: number;
  weightDecay: number;
  /** Largest global norm of the gradients; 0 for no clipping. */
  clip: number;
  /** Decay of the moving average of the weights. */
  emaDecay: number;
  /** Momentum (0) and learning rate (0) of sets that Muon updates. */
  momentum?: number;
  muonLr?: number;
}

/** The variable that holds {@link packHyper}'s numbers on the device. */
export function hyperVariable(): Tensor {
  return variable([9], { label: "hyper-parameters" });
}

export function packHyper(h: Hyper): Float32Array {
  const { momentum = 0, muonLr = 0 } = h;
  return new Float32Array([
    h.lr,
    h.beta1,
    h.beta2,
    h.eps,
    h.weightDecay,
    h.clip,
    h.emaDecay,
    momentum,
    muonLr,
  ]);
}

/** Flat tensors of one layout, all [n] with n a multiple of 4. */
export interface FlatSet {
  parameters: Tensor;
  gradients: Tensor;
  m: Tensor;
  v: Tensor;
  ema?: Tensor | undefined;
  /** Working copy of the parameters, fp16. */
  working?: Tensor | undefined;
  /** Factor of the learning rate. */
  lrFactor: number;
}

/** What the launches of a step share. */
export interface StepTensors {
  hyper: Tensor;
  progress: Tensor;
  /** Squared global norm of the gradients, still multiplied by the loss scale. */
  gradientNorm2: Tensor;
  /** The same; not finite if the step is to be skipped. */
  norm2: Tensor;
  fault: Tensor | undefined;
}

/** Another update than AdamW's, of other sets in the same step. */
export interface UpdateRule {
  /** Records what makes `norm2` infinite where the update would not be finite. */
  check(step: StepTensors): void;
  /** Records the update, which does nothing where `norm2` is not finite. */
  apply(step: StepTensors): void;
}

/** Initial loss scale of fp16 training. */
const FIRST_SCALE = 65536;

/**
 * What {@link adamw} counts, f32 [4]: steps applied, steps skipped, the loss scale, and the steps in a row that were applied
 * since it changed or (negative) skipped.
 * @param scaled whether gradients are multiplied by a loss scale, because activations are fp16
 */
export function progressVariable(scaled: boolean): Tensor {
  const init = () => new Float32Array([0, 0, scaled ? FIRST_SCALE : 1, 0]);
  return variable([4], { category: "optimizer", label: "progress of the optimizer", init });
}

/** The loss scale of {@link progressVariable} as a scalar. */
export function lossScale(progress: Tensor): Tensor {
  return reshape(slice(progress, 0, 2, 3), []);
}

/**
 * sums += values, unless the step is skipped.
 * @param values f32, of the size of `sums`
 * @param norm2 what {@link adamw} returned
 */
export function record(values: Tensor, sums: Tensor, norm2: Tensor): void {
  check(values.size === sums.size, "accumulate the reported values", "the sizes differ", values, sums);
  launch(kernel(source, "record"), { values, sums, norm2 }, { size: sums.size, factor: 1 }, [1], {
    iterations: Math.ceil(sums.size / 64),
  });
}

/** x = before where the step is skipped. @param norm2 what {@link adamw} returned */
export function restoreIfSkipped(x: Tensor, before: Tensor, norm2: Tensor): void {
  check(x.size === before.size, "restore a tensor", "the sizes differ", x, before);
  const params = { size: x.size, factor: 1 };
  launch(kernel(source, "restore"), { values: before, sums: x, norm2 }, params, fold(Math.ceil(x.size / 64)));
}

/** Why the latest skipped step was skipped, f32 [2]: 0 for none, or one of {@link FAULTS}; the index of the value. */
export function faultVariable(): Tensor {
  return variable([2], { label: "fault" });
}

/** What was not finite: a value that the step reports, a gradient, what the update would have written (or a weight beyond 1e6). */
export const FAULTS = { value: 1, gradient: 2, update: 3 } as const;

/** Sum of squares over all flats, as a scalar; not finite when any element is not. */
export function squaredNorm(flats: readonly Tensor[]): Tensor {
  return sumOfScalars(flats.map((f) => sumOfSquares(f)));
}

/** Sum of scalars, in order. */
export function sumOfScalars(scalars: readonly Tensor[]): Tensor {
  const [first, ...rest] = scalars;
  check(first !== undefined, "take a norm", "there is nothing to measure");
  return rest.reduce((a, b) => pointwise(["x0 + x1"], [a, b]), first);
}

/**
 * One step over all sets and those of other rules, skipped as a whole when `norm2`, one of `values` or a number that the update would write is not
 * finite. Where there are working copies, the loss scale then follows.
 * @param gradientNorm2 squared global norm of the gradients, still multiplied by the loss scale
 * @param progress of {@link progressVariable}
 * @param options.values f32 [n], what the step reports
 * @param options.rules updates of other sets; their gradients count in `gradientNorm2`
 * @param options.fault of {@link faultVariable}; absent: the cause is not kept
 * @returns `gradientNorm2`, or something that is not finite where the step is skipped
 */
export function adamw(
  sets: readonly FlatSet[],
  hyper: Tensor,
  gradientNorm2: Tensor,
  progress: Tensor,
  { values, fault, rules = [] }: {
    values?: Tensor | undefined;
    fault?: Tensor;
    rules?: readonly UpdateRule[];
  } = {},
): Tensor {
  const norm2 = empty([], "f32", "checked_norm2");
  launch(
    kernel(source, "check_values"),
    { norm2: gradientNorm2, values: values ?? 0, checked_norm2: norm2, fault: fault ?? 0 },
    { size: values?.size ?? 0, factor: 1 },
    [1],
    { iterations: values?.size ?? 0 },
  );
  for (const { parameters: p, gradients: g, m, v, lrFactor } of sets) {
    const size = p.size / 4;
    launch(
      kernel(source, "check_update"),
      { p, g, m, v, hyper, norm2: gradientNorm2, progress, checked_norm2: norm2, fault: fault ?? 0 },
      { size, factor: lrFactor },
      fold(Math.ceil(size / 256)),
    );
  }
  const step = { hyper, progress, gradientNorm2, norm2, fault };
  for (const rule of rules) rule.check(step);
  launch(kernel(source, "advance"), { norm2, progress }, {}, [1]);
  for (const { parameters: p, gradients: g, m, v, ema, working: work, lrFactor } of sets) {
    check(
      [g, m, v, ema ?? p, work ?? p].every((t) => t.shape.join() === p.shape.join()) && p.size % 4 === 0,
      "update parameters",
      "all flats of a set must be [n], n a multiple of 4",
      p,
      g,
      m,
      v,
    );
    const size = p.size / 4;
    launch(
      kernel(source, "adamw"),
      { p, g, m, v, hyper, norm2, progress, ema: ema ?? 0, work: work ?? 0 },
      { size, factor: lrFactor },
      fold(Math.ceil(size / 256)),
      { flops: 14 * p.size },
    );
  }
  for (const rule of rules) rule.apply(step);
  if (sets.some(({ working }) => working)) launch(kernel(source, "rescale"), { norm2, progress }, {}, [1]);
  return norm2;
}
