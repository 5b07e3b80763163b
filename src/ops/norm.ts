// Layer, RMS, group and batch norm with gradients for input, weight and bias. Statistics are kept from the forward pass.

import groupSource from "../../kernels/group_norm.wgsl" with { type: "text" };
import largeGroups from "../../kernels/group_norm_large.wgsl" with { type: "text" };
import smallGroups from "../../kernels/group_norm_small.wgsl" with { type: "text" };
import source from "../../kernels/norm.wgsl" with { type: "text" };
import { differentiable, noGrad } from "../tensor/autograd.ts";
import { copy } from "../gpu/memory.ts";
import { launch } from "../gpu/bind.ts";
import { device } from "../gpu/device.ts";
import { iterationsOfSum, partsOf } from "../gpu/iterations.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { nominalImages, within } from "../gpu/scope.ts";
import { check, empty, emptyActivation, type Tensor, viewAs } from "../tensor/tensor.ts";
import { add, div, mul, shift, sqrt, sub } from "./math.ts";
import { pointwise } from "./pointwise.ts";
import { sumChunks } from "./reduce.ts";
import { byWidth, groupSize, rowKernel, rowsPrelude, sharing } from "./row_kernel.ts";

/** (x - mean) / sqrt(var + eps) * weight + bias over the last axis; weight (ones) and bias (zeros) [C]. */
export function layerNorm(x: Tensor, weight?: Tensor, bias?: Tensor, eps = 1e-6): Tensor {
  return rowNorm(x, weight, bias, eps, false);
}

/** x / sqrt(mean(x^2) + eps) * weight over the last axis; weight [C], ones when absent. */
export function rmsNorm(x: Tensor, weight?: Tensor, eps = 1e-6): Tensor {
  return rowNorm(x, weight, undefined, eps, true);
}

/** Rows per thread for the gradients of weight and bias; up to `maxRows`, so that there are at most `most` partial sums. */
const CHUNK = { rows: { cpu: 512, gpu: 32 }, most: 512, maxRows: 1024 };

function rowNorm(x: Tensor, w: Tensor | undefined, b: Tensor | undefined, eps: number, rms: boolean): Tensor {
  const C = x.dim(-1), R = x.size / C;
  const affine = [w, b].filter((t) => t !== undefined);
  check(
    affine.every((t) => t.shape.join() === `${C}`) && (w !== undefined || !b),
    "normalise rows",
    "weight and bias must be [C], and a bias needs a weight",
    x,
    ...affine,
  );
  const y = emptyActivation(x.shape), stats = empty([R, 2], "f32", "statistics");
  const constants = { RMS: rms ? 1 : 0 };
  const forward = rowKernel(source, "norm", R, C, 2, constants);
  const chunks = Math.max(
    Math.min(CHUNK.most, Math.ceil(R / CHUNK.rows[device().profile])),
    Math.ceil(R / CHUNK.maxRows),
  );
  const params = { rows: R, size: forward.size, eps, chunks, chunk: Math.ceil(R / chunks) };
  forward.launch({ x, w: w ?? 1, b: b ?? 0, y, stats }, params, {
    flops: 8 * x.size,
    fusion: { stores: ["y"] },
  });
  return differentiable(y, [x, ...affine], (dy) => {
    const dx = emptyActivation(x.shape);
    const backward = rowKernel(source, "norm_backward_x", R, C, 2, constants);
    backward.launch({ x, w: w ?? 1, dy, stats, dx }, params, {
      flops: 12 * x.size,
      fusion: { stores: ["dx"] },
    });
    if (!w) return [dx];
    const dw = empty([chunks, C], "f32", "reduction"), db = empty([chunks, C], "f32", "reduction");
    const WG = groupSize();
    launch(
      kernel(backward.source, "norm_backward_weight", { WG }),
      { x, dy, stats, dw, db },
      params,
      fold(Math.ceil(chunks * Math.ceil(forward.size / 4) / WG)),
      { flops: 5 * x.size, iterations: iterationsOfSum(params.chunk) },
    );
    return b ? [dx, sumChunks(dw, 1), sumChunks(db, 1)] : [dx, sumChunks(dw, 1)];
  });
}

/**
 * Group norm over [B,H,W,C] (any axes between the first and the last), statistics over pixels and C / groups channels.
 * @param silu applies x * sigmoid(x) behind it, in the same launch
 */
export function groupNorm(
  x: Tensor,
  groups: number,
  weight: Tensor,
  bias: Tensor,
  eps = 1e-6,
  { silu = false }: { silu?: boolean } = {},
): Tensor {
  const B = x.dim(0), C = x.dim(-1);
  check(x.rank >= 2, "normalise groups", "x must be [B, ..., C]", x);
  check(C % groups === 0, "normalise groups", `${C} channels are no multiple of ${groups} groups`, x);
  return grouped(x, B, groups, weight, bias, eps, silu).y;
}

/** Options of {@link batchNorm}. */
export interface BatchNormOptions {
  eps?: number;
  /** Statistics of this batch, or given ones. */
  training: true | { mean: Tensor; variance: Tensor };
  /** Updated in place while training: running = (1 - momentum) running + momentum batch (unbiased variance). */
  running?: { mean: Tensor; variance: Tensor; momentum: number };
}

/** Batch norm over all axes but the last. */
export function batchNorm(x: Tensor, weight: Tensor, bias: Tensor, options: BatchNormOptions): Tensor {
  const { eps = 1e-5, training, running } = options;
  const C = x.dim(-1), n = x.size / C;
  const given = [...training === true ? [] : [training], ...running ? [running] : []];
  const statistics = given.flatMap(({ mean, variance }) => [mean, variance]);
  check(
    statistics.every((t) => t.shape.join() === `${C}`),
    "normalise a batch",
    "statistics must be [C]",
    x,
    ...statistics,
  );
  if (training !== true) {
    const { mean, variance } = training;
    const deviation = within({ precision: "f32" }, () => sqrt(shift(variance, eps)));
    return add(mul(div(sub(x, mean), deviation), weight), bias);
  }
  const { y, mean, r } = grouped(x, 1, C, weight, bias, eps, false);
  if (running) {
    const m = running.momentum;
    noGrad(() =>
      within({ precision: "f32" }, () => {
        copy(pointwise(["x0 * s0 + x1 * s1"], [running.mean, viewAs(mean, [C])], [1 - m, m]), running.mean);
        const unbiased = m * n / Math.max(1, n - 1);
        const update = ["x0 * s0 + max(1.0 / (x1 * x1) - s2, T(0.0)) * s1"];
        copy(pointwise(update, [running.variance, viewAs(r, [C])], [1 - m, unbiased, eps]), running.variance);
      })
    );
  }
  return y;
}

/** Images over which one thread sums the gradients of weight and bias. */
const SLICE = 1024;

/** Pixels per thread of the elementwise kernels of a group norm. */
const PIXELS = 8;

/** On a CPU, with at least `groups` groups of at most `vectors` vec4s, one thread per group beats two launches. */
const SMALL = { groups: 32, vectors: 1024 };

/** Group norm; batch norm is one image with a channel per group. @returns y, and mean and r = 1 / deviation [images, C] */
function grouped(
  x: Tensor,
  images: number,
  groups: number,
  w: Tensor,
  b: Tensor,
  eps: number,
  silu: boolean,
) {
  const C = x.dim(-1), pixels = x.size / C / images, channels = C / groups;
  check(
    w.shape.join() === `${C}` && b.shape.join() === `${C}`,
    "normalise groups",
    "weight and bias must be [C]",
    x,
    w,
    b,
  );
  const { source: text, width } = byWidth(rowsPrelude() + groupSource, C);
  const scalarText = byWidth(rowsPrelude() + groupSource + largeGroups, 1).source;
  const size = C / width, cpu = device().profile === "cpu";
  // Enough chunks of 8 pixels or more to occupy the adapter: `wanted` threads, each with a vector of a chunk.
  const wanted = cpu ? 512 : 131072, counted = nominalImages(images);
  const chunks = Math.max(
    partsOf(pixels),
    Math.min(Math.ceil(wanted / (counted * size)), Math.ceil(pixels / 8)),
  );
  const chunk = Math.ceil(pixels / chunks), slices = Math.ceil(images / SLICE);
  const slice = Math.ceil(images / slices);
  const params = { images, pixels, size, channels: C, groups, chunks, chunk, slices, slice, eps };
  const SILU = silu ? 1 : 0, WG = groupSize(), ROWS = device().simdWidth;
  const small = cpu && counted * groups >= SMALL.groups &&
    channels % width === 0 && x.size / (images * groups * width) <= SMALL.vectors;
  const overGroups = fold(Math.ceil(images * groups / ROWS));
  const overPartials = fold(Math.ceil(images * chunks * size / WG));
  const shared = sharing(chunks, 2 * channels), overRows = fold(Math.ceil(images * groups / shared.ROWS));
  const loops = 3 + 2 * Math.ceil(chunks / shared.THREADS); // of the statistics kernels, for each channel
  const columns = images * Math.ceil(pixels / PIXELS) * size;
  const partial = () => empty([images, chunks, C], "f32", "reduction");
  const iterations = small ? channels / width * (2 + iterationsOfSum(pixels)) : iterationsOfSum(chunk);

  const y = emptyActivation(x.shape);
  const [mean, r] = [0, 1].map(() => empty([images, C], "f32", "statistics")) as [Tensor, Tensor];
  const forward = { flops: 4 * x.size, iterations };
  if (small) {
    const moments = kernel(text + smallGroups, "group_moments", { ROWS });
    launch(moments, { x, mean, r }, params, overGroups, forward);
  } else {
    const part1 = partial(), part2 = partial();
    const partials = kernel(text + largeGroups, "group_partials", { WG });
    launch(partials, { x, part1, part2 }, params, overPartials, forward);
    const statistics = kernel(scalarText, "group_statistics", shared);
    launch(statistics, { x, part1, part2, mean, r }, params, overRows, { iterations: channels * loops });
  }
  const apply = kernel(text, "group_apply", { SILU, PIXELS });
  launch(apply, { x, w, b, mean, r, y }, params, fold(Math.ceil(columns / 64)), {
    flops: 4 * x.size,
    iterations: PIXELS,
    fusion: { stores: ["y"] },
  });
  differentiable(y, [x, w, b], (dy) => {
    const dx = emptyActivation(x.shape),
      [dw, db] = [0, 1].map(() => empty([slices, C], "f32", "gradient")) as [Tensor, Tensor];
    const known = { x, w, b, mean, r, dy }, group_sums = empty([4, images, C], "f32", "reduction");
    const backward = { flops: 8 * x.size, iterations };
    if (small) {
      const moments = kernel(text + smallGroups, "group_backward_moments", { SILU, ROWS });
      launch(moments, { ...known, group_sums }, params, overGroups, backward);
    } else {
      const parts = { part1: partial(), part2: partial(), part3: partial() };
      const partials = kernel(text + largeGroups, "group_backward_partials", { SILU, WG });
      launch(partials, { ...known, ...parts }, params, overPartials, backward);
      const statistics = kernel(scalarText, "group_backward_statistics", shared);
      launch(statistics, { w, ...parts, group_sums }, params, overRows, {
        iterations: channels * (loops + Math.log2(shared.THREADS)),
      });
    }
    launch(
      kernel(text, "group_backward_x", { SILU, PIXELS }),
      { ...known, group_sums, dx, dw, db },
      params,
      fold(Math.ceil((columns + slices * size) / 64)),
      { flops: 10 * x.size, iterations: PIXELS + slice, fusion: { stores: ["dx"] } },
    );
    return [dx, sumChunks(dw, 1), sumChunks(db, 1)];
  });
  return { y, mean, r };
}
