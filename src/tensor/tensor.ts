// A Tensor is a shape, a dtype and a storage. It is immutable to its users: ops make new tensors; only variables
// (parameters, moments, statistics) are updated in place, by the few ops that say so.

import { ShapeError } from "../errors.ts";
import { type Scope, scope } from "../gpu/scope.ts";
import { type Bindable, type HostArray, Storage, type StorageOptions } from "../gpu/storage.ts";

/** f16 is a storage format, two elements to a u32: arithmetic is in f32. Ops make f16 only where the last axis is a multiple of 4. */
export type DType = "f32" | "u32" | "i32" | "f16";

/** How activations are stored; see scope.ts. */
export type Precision = Scope["precision"];

export type Shape = readonly number[];

/** What made a tensor, for the backward pass; see autograd.ts. */
export interface Node {
  readonly id: number;
  readonly inputs: readonly Tensor[];
  readonly outputs: readonly Tensor[];
  /** The working precision of the forward pass, and so of the backward pass. */
  readonly precision: Precision;
  readonly backward: (...dys: (Tensor | undefined)[]) => readonly (Tensor | undefined)[];
  /** Its inputs are leaves, and its backward pass runs as soon as the gradients of its outputs are complete. */
  readonly eager?: boolean;
}

export class Tensor implements Bindable {
  /** Set by autograd when this tensor depends on one that requires gradients. */
  node: Node | undefined;

  constructor(
    readonly shape: Shape,
    readonly dtype: DType,
    readonly storage: Storage,
    /** A leaf whose gradient may be asked for. */
    public requiresGrad = false,
  ) {
    const size = sizeOf(shape);
    if (!shape.every((n) => Number.isInteger(n) && n > 0) || !Number.isSafeInteger(size)) {
      throw new ShapeError(`Cannot make a tensor: [${shape}] is not a shape`);
    }
    if (storage.elements !== size || storage.half !== (dtype === "f16")) {
      throw new ShapeError(
        `Cannot make a tensor: [${shape}] of ${dtype} does not fit ${storage.bytes} bytes`,
      );
    }
  }

  get size(): number {
    return sizeOf(this.shape);
  }

  get rank(): number {
    return this.shape.length;
  }

  /** Size of an axis; negative axes count from the end. @throws ShapeError when there is no such axis. */
  dim(axis: number): number {
    const n = this.shape.at(axis);
    if (n === undefined) throw new ShapeError(`Cannot take axis ${axis}: the shape is [${this.shape}]`);
    return n;
  }

  toString(): string {
    return `${this.dtype}[${this.shape}]`;
  }
}

/** Number of elements of a shape; 1 for a scalar. */
export function sizeOf(shape: Shape): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** An intermediate whose memory the plan decides. Its elements are undefined until an op writes all of them. */
export function empty(shape: Shape, dtype: DType = "f32", label = "activations"): Tensor {
  return new Tensor(shape, dtype, storageOf(shape, dtype, { label }));
}

/** Like {@link empty}, in the working precision: fp16 where scope().precision says so and the last axis is a multiple of 4. */
export function emptyActivation(shape: Shape, label = "activations"): Tensor {
  return empty(shape, scope().precision === "f16" && (shape.at(-1) ?? 1) % 4 === 0 ? "f16" : "f32", label);
}

/** fp16 copies of fp32 parameters. */
const fp16Copies = new WeakMap<Storage, Storage>();

/** Makes `copy` the fp16 copy of the parameter `weight`, which matmuls read where activations are fp16. */
export function setFp16Copy(weight: Tensor, copy: Storage): void {
  fp16Copies.set(weight.storage, copy);
}

/** The weight in the working precision: its fp16 copy where activations are fp16 and it has one. */
export function castWeight(weight: Tensor): Tensor {
  const copy = scope().precision === "f16" ? fp16Copies.get(weight.storage) : undefined;
  return copy ? new Tensor(weight.shape, "f16", copy) : weight;
}

function storageOf(shape: Shape, dtype: DType, options: StorageOptions): Storage {
  const half = dtype === "f16";
  return new Storage((half ? 2 : 4) * sizeOf(shape), { ...options, half });
}

/** A tensor that the host uploads before each run of a program. */
export function input(shape: Shape, dtype: DType = "f32", label = "input"): Tensor {
  return new Tensor(shape, dtype, storageOf(shape, dtype, { category: "inputs", persistent: true, label }));
}

/** A tensor that lives across programs and steps. @param options.init its first contents (zeros) */
export function variable(
  shape: Shape,
  options: Pick<StorageOptions, "label" | "category" | "init"> & { dtype?: DType; requiresGrad?: boolean } =
    {},
): Tensor {
  const { dtype = "f32", label = "variable", category = "state", init, requiresGrad = false } = options;
  const storage = storageOf(shape, dtype, { category, label, persistent: true, ...(init ? { init } : {}) });
  return new Tensor(shape, dtype, storage, requiresGrad);
}

/** A trainable tensor; `init` gives its first contents. */
export function parameter(shape: Shape, init: () => Float32Array, label = "parameter"): Tensor {
  return variable(shape, { init, label, category: "parameters", requiresGrad: true });
}

/** A table that never changes. Made inside capture(), it belongs to the program and is destroyed with it. */
export function constant(data: HostArray, shape: Shape, label = "constant"): Tensor {
  const dtype: DType = data instanceof Float32Array ? "f32" : data instanceof Int32Array ? "i32" : "u32";
  const table = variable(shape, { dtype, label, init: () => data });
  scope().recording?.constants.push(table.storage);
  return table;
}

/** The same elements under another shape of the same size: no copy, no gradient; reshape() has both. */
export function viewAs(x: Tensor, shape: Shape): Tensor {
  return new Tensor(shape, x.dtype, x.storage);
}

/** Reads a variable back. Waits for the device: never inside a step. */
export async function readTensor(x: Tensor): Promise<Float32Array> {
  if (x.dtype === "f16") return Float32Array.from(new Float16Array(await x.storage.read()));
  if (x.dtype !== "f32") throw new ShapeError(`Cannot read ${x} as f32`);
  return new Float32Array(await x.storage.read());
}

/** Throws a ShapeError unless `condition` holds; the message gets the tensors' shapes. */
export function check(
  condition: unknown,
  action: string,
  reason: string,
  ...tensors: Tensor[]
): asserts condition {
  if (condition) return;
  const shapes = tensors.map((t) => `[${t.shape.join(", ")}]`).join(" and ");
  throw new ShapeError(`Cannot ${action}: ${reason}${shapes ? `, got ${shapes}` : ""}`);
}

/** The axis as a number in 0..rank-1. */
export function axisOf(x: Tensor, axis: number, action: string): number {
  const a = axis < 0 ? axis + x.rank : axis;
  check(Number.isInteger(a) && a >= 0 && a < x.rank, action, `there is no axis ${axis}`, x);
  return a;
}
