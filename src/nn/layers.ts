// Layers, and the functions on any module: list its tensors by path, load, save. A module is a plain object whose fields are
// tensors or modules; the path of a tensor is its key in a checkpoint, unless the module has a `fileName` for it. Files keep
// PyTorch's layouts; only this file permutes.

import { GpuError, UsageError } from "../errors.ts";
import type { Storage } from "../gpu/storage.ts";
import { notFinite } from "../formats/finite.ts";
import { unreadNote, type UnreadObject } from "../formats/tensors.ts";
import { conv2d, type ConvOptions } from "../ops/conv.ts";
import { depthwiseConv2d } from "../ops/depthwise.ts";
import { linear } from "../ops/matmul.ts";
import { batchNorm, groupNorm, layerNorm, rmsNorm } from "../ops/norm.ts";
import { parameter, type Shape, sizeOf, Tensor, variable } from "../tensor/tensor.ts";

const zeros = (shape: Shape, label: string) => parameter(shape, () => new Float32Array(sizeOf(shape)), label);

/** y = x W^T + b; weight [Cout, Cin]. */
export class Linear {
  readonly weight: Tensor;
  readonly bias?: Tensor;

  constructor(readonly inFeatures: number, readonly outFeatures: number, bias = true) {
    this.weight = zeros([outFeatures, inFeatures], "linear.weight");
    if (bias) this.bias = zeros([outFeatures], "linear.bias");
  }

  forward(x: Tensor, options?: Parameters<typeof linear>[3]): Tensor {
    return linear(x, this.weight, this.bias, options);
  }
}

/** Convolution over [B,H,W,Cin]; weight [Cout,KH,KW,Cin] here, [Cout,Cin,KH,KW] in files. */
export class Conv2d {
  readonly weight: Tensor;
  readonly bias?: Tensor;

  constructor(
    readonly inChannels: number,
    readonly outChannels: number,
    /** Side, or [height, width]. */
    readonly kernelSize: number | readonly [number, number],
    readonly options: ConvOptions = {},
    bias = true,
  ) {
    const [KH, KW] = typeof kernelSize === "number" ? [kernelSize, kernelSize] : kernelSize;
    this.weight = zeros([outChannels, KH, KW, inChannels], "conv.weight");
    channelsLast.add(this.weight);
    if (bias) this.bias = zeros([outChannels], "conv.bias");
  }

  forward(x: Tensor): Tensor {
    return conv2d(x, this.weight, this.bias, this.options);
  }
}

/** Convolution of each channel of [B,H,W,C] by its own kernel; weight [C,K,K,1] here, [C,1,K,K] in files. */
export class DepthwiseConv2d {
  readonly weight: Tensor;
  readonly bias: Tensor;

  constructor(channels: number, kernelSize: number, readonly padding = 0) {
    this.weight = zeros([channels, kernelSize, kernelSize, 1], "conv.weight");
    channelsLast.add(this.weight);
    this.bias = zeros([channels], "conv.bias");
  }

  forward(x: Tensor): Tensor {
    return depthwiseConv2d(x, this.weight, this.bias, this.padding);
  }
}

export class LayerNorm {
  readonly weight: Tensor;
  readonly bias: Tensor;

  constructor(features: number, readonly eps = 1e-6) {
    this.weight = zeros([features], "norm.weight");
    this.bias = zeros([features], "norm.bias");
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, this.eps);
  }
}

export class RmsNorm {
  readonly weight: Tensor;

  constructor(features: number, readonly eps = 1e-6) {
    this.weight = zeros([features], "norm.weight");
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.eps);
  }
}

export class GroupNorm {
  readonly weight: Tensor;
  readonly bias: Tensor;

  constructor(readonly groups: number, channels: number, readonly eps = 1e-6) {
    this.weight = zeros([channels], "norm.weight");
    this.bias = zeros([channels], "norm.bias");
  }

  forward(x: Tensor, options: { silu?: boolean } = {}): Tensor {
    return groupNorm(x, this.groups, this.weight, this.bias, this.eps, options);
  }
}

/** `train`: batch statistics, running ones updated in place; `frozen`: batch statistics only; `eval`: running statistics. */
export type StatisticsMode = "train" | "frozen" | "eval";

export class BatchNorm2d {
  readonly weight: Tensor;
  readonly bias: Tensor;
  readonly running_mean: Tensor;
  readonly running_var: Tensor;

  constructor(features: number, readonly eps = 1e-5, readonly momentum = 0.1) {
    this.weight = zeros([features], "norm.weight");
    this.bias = zeros([features], "norm.bias");
    this.running_mean = variable([features], { label: "running_mean" });
    this.running_var = variable([features], {
      label: "running_var",
      init: () => new Float32Array(features).fill(1),
    });
  }

  forward(x: Tensor, mode: StatisticsMode): Tensor {
    const { eps, momentum, running_mean: mean, running_var: variance } = this;
    return batchNorm(x, this.weight, this.bias, {
      eps,
      training: mode === "eval" ? { mean, variance } : true,
      ...mode === "train" ? { running: { mean, variance, momentum } } : {},
    });
  }
}

/** Weights that are channels-last here and [Cout,Cin,KH,KW] in files. */
const channelsLast = new WeakSet<Tensor>();

/** A module that mirrors a published one: its tensors go by their published names instead of their paths. */
export interface Published {
  /** The name in files of the tensor at a path inside the module. */
  fileName(path: string): string;
}

/** Every tensor of a model by its path (or published name), in field order: parameters and statistics. */
export function state(module: object): Map<string, Tensor> {
  const found = new Map<string, Tensor>();
  for (const [key, value] of Object.entries(module)) {
    if (value instanceof Tensor) found.set(key, value);
    else if (typeof value === "object" && value !== null && !ArrayBuffer.isView(value) && key !== "config") {
      for (const [path, tensor] of state(value)) found.set(`${key}.${path}`, tensor);
    }
  }
  if (!("fileName" in module)) return found;
  return new Map([...found].map(([path, t]) => [(module as Published).fileName(path), t]));
}

/** The trainable tensors of a model by path. */
export function parameters(module: object): Map<string, Tensor> {
  return new Map([...state(module)].filter(([, t]) => t.storage.category === "parameters"));
}

/** Number of trainable scalars. */
export function countParameters(module: object): number {
  return [...parameters(module).values()].reduce((n, t) => n + t.size, 0);
}

/** Where `loadState` gets tensors from: an open safetensors file or folder, or a map in memory. */
export interface TensorSource {
  readonly name: string;
  readonly shapes: ReadonlyMap<string, Shape>;
  /** Elements of a tensor. @param into the start of a buffer that may be filled and returned */
  read(key: string, into?: Float32Array<ArrayBuffer>): Promise<Float32Array>;
  /** Other objects in the file, which are not read. */
  readonly unread?: ReadonlyMap<string, UnreadObject>;
}

interface LoadOptions {
  /** Prefix of the module's keys in the source. */
  prefix?: string;
  /** Keys that the module does not need. */
  ignore?: RegExp;
}

/** What keeps `module` from being filled from `source`, one phrase for each missing, unexpected and misshapen key. */
export function loadProblems(
  module: object,
  source: Pick<TensorSource, "shapes">,
  { prefix = "", ignore }: LoadOptions = {},
): string[] {
  const own = state(module), problems: string[] = [];
  for (const [path, tensor] of own) {
    const shape = source.shapes.get(prefix + path);
    const expected = fileShape(tensor);
    if (!shape) problems.push(`missing "${prefix + path}"`);
    else if (shape.join() !== expected.join()) {
      problems.push(`"${prefix + path}" is [${shape.join(", ")}] instead of [${expected.join(", ")}]`);
    }
  }
  for (const key of source.shapes.keys()) {
    const mine = key.startsWith(prefix) && own.has(key.slice(prefix.length));
    if (!mine && !ignore?.test(key) && key.startsWith(prefix)) problems.push(`unexpected "${key}"`);
  }
  return problems;
}

/**
 * Fills every tensor of `module` from `source`, strictly.
 * @throws UsageError listing missing, unexpected and misshapen keys, or naming a tensor that is not finite
 */
export async function loadState(
  module: object,
  source: TensorSource,
  options: LoadOptions = {},
): Promise<void> {
  const own = state(module), { prefix = "" } = options, problems = loadProblems(module, source, options);
  if (problems.length) {
    const shown = problems.slice(0, 8).join(", ");
    const more = problems.length > 8 ? ` and ${problems.length - 8} more` : "";
    throw new UsageError(`Cannot load "${source.name}": ${shown}${more}${unreadNote(source.unread)}`);
  }
  // One tensor at a time onto the device, through one array, so that the host never holds more than the largest.
  const tensors = [...own.values()];
  for (const { storage } of tensors) storage.forgetInit();
  const room = new Float32Array(Math.max(0, ...tensors.map(({ size }) => size)));
  for (const [path, tensor] of own) {
    await tensor.storage.materialise();
    const data = await source.read(prefix + path, room.subarray(0, tensor.size));
    const fault = notFinite(data);
    if (fault !== undefined) {
      throw new UsageError(
        `Cannot load "${source.name}": "${
          prefix + path
        }" holds ${fault}; its training diverged or the file is ` +
          `damaged, use another one`,
      );
    }
    tensor.storage.write(fromFile(tensor, data));
  }
}

/** One tensor as it goes into a file. */
export interface SavedTensor {
  name: string;
  shape: Shape;
  data: Float32Array;
}

/** Elements of a tensor, in the layout of the device, as they go into a file. @throws GpuError for numbers that are not finite */
export function savedTensor(name: string, tensor: Tensor, data: Float32Array): SavedTensor {
  refuseToSave(name, data);
  return { name, shape: fileShape(tensor), data: toFile(tensor, data) };
}

/** Reads every tensor of `module` back, in the public layouts. Waits for the device. */
export async function saveState(module: object): Promise<SavedTensor[]> {
  const own = state(module);
  return (await snapshot(own)).map(({ name, data }) => {
    const tensor = own.get(name) as Tensor;
    return { name, shape: fileShape(tensor), data: toFile(tensor, data) };
  });
}

/** Reads named tensors back in the layout of the device, for a checkpoint. Waits for the device. */
export async function snapshot(tensors: ReadonlyMap<string, Tensor>): Promise<SavedTensor[]> {
  const roots = new Map<Storage, ArrayBuffer>();
  const saved: SavedTensor[] = [];
  for (const [name, { shape, size, storage }] of tensors) {
    let bytes = roots.get(storage.root);
    if (!bytes) roots.set(storage.root, bytes = await storage.root.read());
    const data = new Float32Array(bytes, storage.offset, size);
    refuseToSave(name, data);
    saved.push({ name, shape, data });
  }
  return saved;
}

/** @throws GpuError for numbers that are not finite: the file would replace a good one */
function refuseToSave(name: string, data: Float32Array): void {
  const fault = notFinite(data);
  if (fault !== undefined) {
    throw new GpuError(`Cannot save "${name}": it holds ${fault}; what was saved before stays as it is`);
  }
}

/** Writes a snapshot back. @throws UsageError when it does not have exactly these tensors */
export async function restore(tensors: ReadonlyMap<string, Tensor>, source: TensorSource): Promise<void> {
  const missing = [...tensors].filter(([key, t]) => source.shapes.get(key)?.join() !== t.shape.join()).map((
    [key],
  ) => key);
  const extra = [...source.shapes.keys()].filter((key) => !tensors.has(key));
  if (missing.length || extra.length) {
    throw new UsageError(
      `Cannot resume from "${source.name}": it is the checkpoint of another model or stage ` +
        `(${missing.length} tensors do not fit, the first is "${missing[0] ?? extra[0]}")`,
    );
  }
  for (const [key, tensor] of tensors) {
    await tensor.storage.materialise();
    const data = await source.read(key), fault = notFinite(data);
    if (fault !== undefined) {
      throw new UsageError(
        `Cannot resume from "${source.name}": "${key}" holds ${fault}; resume from the checkpoint before it`,
      );
    }
    tensor.storage.write(data);
  }
}

/** Shape of a tensor in a file. */
export function fileShape(tensor: Tensor): Shape {
  if (!channelsLast.has(tensor)) return tensor.shape;
  const [o, h, w, i] = tensor.shape as [number, number, number, number];
  return [o, i, h, w];
}

/** Tensors that {@link snapshot} wrote, in the layout of the device, as a file in the public layouts has them. */
export function inFileLayout(module: object, source: TensorSource): TensorSource {
  const own = state(module), moved = new Map([...own].filter(([, tensor]) => channelsLast.has(tensor)));
  const shapes = [...source.shapes].map(([key, shape]) => {
    const [o = 0, h = 0, w = 0, i = 0] = shape;
    return [key, moved.has(key) && shape.length === 4 ? [o, i, h, w] : shape] as const;
  });
  return {
    ...source,
    shapes: new Map(shapes),
    read: async (key, into) => {
      const data = await source.read(key, into), tensor = moved.get(key);
      return tensor ? toFile(tensor, data) : data;
    },
  };
}

function fromFile(tensor: Tensor, data: Float32Array): Float32Array {
  if (!channelsLast.has(tensor)) return data;
  const [O, H, W, I] = tensor.shape as [number, number, number, number];
  return exchange(data, O, I, H * W);
}

function toFile(tensor: Tensor, data: Float32Array): Float32Array {
  if (!channelsLast.has(tensor)) return data;
  const [O, H, W, I] = tensor.shape as [number, number, number, number];
  return exchange(data, O, H * W, I);
}

/** [outer, a, b] -> [outer, b, a] */
function exchange(data: Float32Array, outer: number, a: number, b: number): Float32Array {
  const out = new Float32Array(data.length);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < a; i++) {
      for (let j = 0; j < b; j++) out[(o * b + j) * a + i] = data[(o * a + i) * b + j] as number;
    }
  }
  return out;
}
