// Launching pointwise kernels: shapes are broadcast, each input's way of indexing is found, and the launch carries
// what is needed to merge it with a neighbour (gpu/fuse.ts). No gradients here; see math.ts.

import {
  type Access,
  POINTWISE_UNROLL,
  POINTWISE_WG,
  type PointwiseSpec,
  pointwiseWgsl,
} from "../../kernels/pointwise.ts";
import { ShapeError } from "../errors.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { activation, type Shape, sizeOf, type Tensor } from "../tensor.ts";
import type { Fusion } from "../gpu/fuse.ts";
import type { Bindable } from "../gpu/storage.ts";

interface Input {
  storage: Bindable;
  access: Access;
  /** Values of the parameters r<k> or p<k>_0..3. */
  params: readonly number[];
}

/** A pointwise launch before its text is printed: what fusion merges. */
interface Recipe {
  inputs: readonly Input[];
  scalars: readonly number[];
  body: readonly string[];
  width: 1 | 4;
  shape: Shape;
  dims: readonly number[];
}

/**
 * y = body(x0, x1, ...; s0, s1, ...) elementwise over the broadcast shape of the inputs.
 * @param body WGSL expressions t0, t1, ...; the last is the result; `T` is the vector type
 * @param shape of the result, where it is larger than what the inputs broadcast to
 * @throws ShapeError when the shapes cannot be broadcast
 */
export function pointwise(
  body: readonly string[],
  inputs: readonly Tensor[],
  scalars: readonly number[] = [],
  shape: Shape = broadcastShape(inputs.map((x) => x.shape)),
): Tensor {
  const y = activation(shape);
  pointwiseInto(y, body, inputs, scalars);
  return y;
}

/** The same into an existing tensor, whose shape must be the broadcast one. */
export function pointwiseInto(
  y: Tensor,
  body: readonly string[],
  inputs: readonly Tensor[],
  scalars: readonly number[] = [],
): void {
  const { dims, strides } = coalesce(y.shape, inputs.map((x) => x.shape));
  const inner = dims[3] as number;
  const width = y.size % 4 === 0 && inputs.every((_, k) => {
      const s = strides[k] as readonly number[];
      return isScalar(s) || isSame(s, dims) || inner % 4 === 0;
    })
    ? 4
    : 1;
  const recipe: Recipe = {
    inputs: inputs.map((x, k) => {
      const s = strides[k] as readonly number[];
      return { storage: x, ...accessOf(s, dims, width) };
    }),
    scalars,
    body,
    width,
    shape: y.shape,
    dims: dims.map((n, d) => d === 3 ? n / (inner % width === 0 ? width : 1) : n),
  };
  launch(recipe, y);
}

/** NumPy's rule: trailing axes are aligned, sizes must be equal or 1. */
export function broadcastShape(shapes: readonly Shape[]): Shape {
  const rank = Math.max(0, ...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, i) => {
    const sizes = new Set(shapes.map((s) => s[s.length - rank + i] ?? 1));
    sizes.delete(1);
    if (sizes.size > 1) {
      throw new ShapeError(
        `Cannot broadcast: the shapes are ${shapes.map((s) => `[${s.join(", ")}]`).join(" and ")}`,
      );
    }
    return [...sizes][0] ?? 1;
  });
}

/** Merges neighbouring axes that all inputs treat alike, down to at most four. */
function coalesce(shape: Shape, inputs: readonly Shape[]): { dims: number[]; strides: number[][] } {
  const dims: number[] = [];
  const strides: number[][] = inputs.map(() => []);
  const next = inputs.map(() => 1);
  const broadcast: boolean[][] = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const n = shape[axis] as number;
    if (n === 1) continue;
    const flags = inputs.map((s) => (s[s.length - shape.length + axis] ?? 1) === 1);
    const same = broadcast[0]?.every((f, k) => f === flags[k]);
    if (same) dims[0] = (dims[0] as number) * n;
    else {
      dims.unshift(n);
      broadcast.unshift(flags);
      inputs.forEach((_, k) => strides[k]?.unshift(flags[k] ? 0 : next[k] as number));
    }
    inputs.forEach((_, k) => {
      if (!flags[k]) next[k] = (next[k] as number) * n;
    });
  }
  if (dims.length > 4) {
    throw new ShapeError(`Cannot broadcast to [${shape}]: more than four groups of axes differ`);
  }
  while (dims.length < 4) {
    dims.unshift(1);
    strides.forEach((s) => s.unshift(0));
  }
  return { dims, strides };
}

const isScalar = (s: readonly number[]) => s.every((n) => n === 0);

function isSame(s: readonly number[], dims: readonly number[]): boolean {
  let expected = 1;
  for (let d = 3; d >= 0; d--) {
    if (dims[d] !== 1 && s[d] !== expected) return false;
    expected *= dims[d] as number;
  }
  return true;
}

function accessOf(
  s: readonly number[],
  dims: readonly number[],
  width: number,
): { access: Access; params: number[] } {
  const [d0, d1, d2, d3] = dims as [number, number, number, number];
  if (isScalar(s)) return { access: "scalar", params: [] };
  if (isSame(s, dims)) return { access: "same", params: [] };
  const leading = s[0] === 0 && s[1] === 0;
  if (leading && s[2] === 0 && s[3] === 1) return { access: "row", params: [d3 / width] };
  const outer = isSame([0, s[0] as number, s[1] as number, s[2] as number], [1, d0, d1, d2]);
  if (s[3] === 0 && outer) return { access: "column", params: [d3 / width] };
  if (s[3] === 0) return { access: "splat", params: [...s.slice(0, 3), 0] };
  return { access: "vector", params: s.map((n, d) => d === 3 ? 1 : n / width) };
}

function launch(recipe: Recipe, y: Bindable): void {
  const { inputs, scalars, width, dims, shape } = recipe;
  const spec: PointwiseSpec = {
    accesses: inputs.map((x) => x.access),
    scalars: scalars.length,
    body: recipe.body,
    width,
  };
  const k = kernel(pointwiseWgsl(spec), "pointwise");
  const count = sizeOf(shape) / width;
  const params: Record<string, number> = { count };
  if (inputs.some(({ access }) => access === "vector" || access === "splat")) {
    for (const d of [1, 2, 3]) params[`d${d}`] = dims[d] as number;
  }
  inputs.forEach(({ access, params: values }, i) => {
    if (access === "row" || access === "column") params[`r${i}`] = values[0] as number;
    else values.forEach((v, d) => params[`p${i}_${d}`] = v);
  });
  scalars.forEach((s, i) => params[`s${i}`] = s);
  const buffers: Record<string, Bindable> = { y };
  inputs.forEach(({ storage }, i) => buffers[`in${i}`] = storage);
  const groups = fold(Math.ceil(count / (POINTWISE_WG * POINTWISE_UNROLL)));
  const flops = sizeOf(shape) * recipe.body.length;
  k.launch(buffers, params, groups, { flops, fusion: fusionOf(recipe, y) });
}

const MOST_INPUTS = 6;
const MOST_STEPS = 16;

/** How this launch takes a producer's expression into its own. */
function fusionOf(recipe: Recipe, y: Bindable): Fusion {
  return {
    recipe,
    absorb(producer, into) {
      const from = producer.fusion?.recipe as Recipe | undefined;
      if (!from || from.width !== recipe.width || sizeOf(from.shape) !== sizeOf(recipe.shape)) {
        return undefined;
      }
      const reads = recipe.inputs.filter(({ storage }) => storage.storage === into);
      if (reads.some(({ access }) => access !== "same")) return undefined;
      const general = (r: Recipe) => r.inputs.some(({ access }) => access === "vector" || access === "splat");
      if (general(from) && general(recipe) && from.dims.join() !== recipe.dims.join()) return undefined;
      const merged = merge(from, recipe, into);
      if (merged.inputs.length > MOST_INPUTS || merged.body.length > MOST_STEPS) return undefined;
      return () => launch(merged, y);
    },
  };
}

/** `consumer` with its reads of `into` replaced by `producer`'s expression. */
function merge(producer: Recipe, consumer: Recipe, into: unknown): Recipe {
  const inputs: Input[] = [];
  const place = (x: Input) => {
    const key = (i: Input) => `${i.access} ${i.params}`;
    const at = inputs.findIndex((i) => i.storage.storage === x.storage.storage && key(i) === key(x));
    return at >= 0 ? at : inputs.push(x) - 1;
  };
  const rename = (body: readonly string[], of: Record<string, string>) =>
    body.map((e) => e.replace(/\b[xst]\d+\b/g, (name) => of[name] ?? name));
  const names: Record<string, string> = {};
  producer.inputs.forEach((x, i) => names[`x${i}`] = `x${place(x)}`);
  const first = rename(producer.body, names);
  const result = `t${producer.body.length - 1}`;
  const later: Record<string, string> = {};
  consumer.inputs.forEach((x, i) => later[`x${i}`] = x.storage.storage === into ? result : `x${place(x)}`);
  consumer.scalars.forEach((_, i) => later[`s${i}`] = `s${i + producer.scalars.length}`);
  consumer.body.forEach((_, i) => later[`t${i}`] = `t${i + producer.body.length}`);
  const generalDims = producer.inputs.some(({ access }) => access === "vector" || access === "splat")
    ? producer.dims
    : consumer.dims;
  return {
    inputs,
    scalars: [...producer.scalars, ...consumer.scalars],
    body: [...first, ...rename(consumer.body, later)],
    width: consumer.width,
    shape: consumer.shape,
    dims: generalDims,
  };
}
