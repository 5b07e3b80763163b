// The memory of tensors. A Storage is an intermediate, whose place in a pool a plan decides, or persistent: it keeps its own
// buffer across programs (parameters, moments, inputs, results). A persistent storage may be placed inside a larger one, so that
// all parameters of a set are one flat buffer and the optimizer is one launch.

import { GpuError } from "../errors.ts";
import { device, release } from "./device.ts";
import { readBuffer } from "./readback.ts";

/** The purpose of a storage; `program.plan` reports bytes by category. */
export type Category =
  | "parameters"
  | "gradients"
  | "optimizer"
  | "state"
  | "inputs"
  | "outputs"
  | "activations";

/** Where a program keeps a storage: in the buffer of a persistent storage or of an output, or in slot `slot` of its pool. */
export interface Place {
  root: Storage;
  offset: number;
  /** -1 outside the pool. */
  slot: number;
}

/** Anything with a storage, which kernels can bind. */
export interface Bindable {
  readonly storage: Storage;
}

export type HostArray = Float32Array | Uint32Array | Int32Array | Uint16Array;

export interface StorageOptions {
  category?: Category;
  label?: string;
  /** Holds fp16, two in a u32; see accessors.ts. */
  half?: boolean;
  /** Keeps its buffer across programs; filled by `init`, or with zeros. */
  persistent?: boolean;
  init?: () => HostArray;
}

let ids = 0;

export class Storage {
  readonly id = ids++;
  readonly category: Category;
  readonly label: string;
  readonly persistent: boolean;
  readonly half: boolean;
  #init: (() => HostArray) | undefined;
  #buffer: GPUBuffer | undefined;
  #parent: Storage | undefined;
  #offset = 0;
  #children: Storage[] = [];

  constructor(readonly bytes: number, options: StorageOptions = {}) {
    this.category = options.category ?? "activations";
    this.label = options.label ?? this.category;
    this.persistent = options.persistent ?? false;
    this.half = options.half ?? false;
    this.#init = options.init;
  }

  /** Number of elements, of 4 bytes or, in fp16, of 2. */
  get elements(): number {
    return this.bytes / (this.half ? 2 : 4);
  }

  /** The storage that owns the buffer; this one begins at `offset` in it. */
  get root(): Storage {
    return this.#parent ?? this;
  }

  get offset(): number {
    return this.#offset;
  }

  /** The physical buffer of a materialised persistent storage. */
  get buffer(): GPUBuffer {
    const buffer = this.root.#buffer;
    if (!buffer) throw new GpuError(`Cannot use "${this.label}": it has no buffer yet`);
    return buffer;
  }

  get materialised(): boolean {
    return this.root.#buffer !== undefined;
  }

  /** Makes this storage a part of `parent`, which has no buffer yet. */
  place(parent: Storage, offset: number): void {
    if (this.#buffer || this.#parent || parent.#parent || parent.#buffer) {
      throw new GpuError(`Cannot place "${this.label}" in "${parent.label}": one of them is already in use`);
    }
    this.#parent = parent;
    this.#offset = offset;
    parent.#children.push(this);
  }

  /** Allocates the buffer of a persistent storage and writes its first contents, unless it has them. */
  async materialise(): Promise<void> {
    const root = this.root;
    if (root.#buffer) return;
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    root.#buffer = await device().createBuffer(root.bytes, usage, root.label);
    for (const part of [root, ...root.#children]) {
      if (part.#init) write(part, part.#init());
      part.#init = undefined;
    }
  }

  /** Sets the function that makes the first contents when the buffer is allocated. */
  initialise(init: () => HostArray): void {
    if (this.materialised) write(this, init());
    else this.#init = init;
  }

  /** Drops the first contents, for a storage that is written as soon as it has a buffer. */
  forgetInit(): void {
    this.#init = undefined;
  }

  /** Copies host data over the whole storage. Before it has a buffer, the data becomes its first contents. */
  write(data: HostArray): void {
    if (data.byteLength !== this.bytes) {
      throw new GpuError(
        `Cannot write "${this.label}": it holds ${this.bytes} bytes, got ${data.byteLength}`,
      );
    }
    if (this.materialised) write(this, data);
    else this.#init = () => data;
  }

  /** Reads the storage back, or `bytes` of it from `offset`. Waits for the device: never call it inside a step. */
  async read({ offset = 0, bytes = this.bytes } = {}): Promise<ArrayBuffer> {
    await this.materialise();
    return await readBuffer(this.buffer, this.#offset + offset, bytes);
  }

  destroy(): void {
    const { root } = this;
    if (root.#buffer) release(root.#buffer);
    root.#buffer = undefined;
  }
}

/** Bytes of one upload: the driver keeps a copy of written data until it is submitted. */
const PART = 4 * 1024 * 1024;
/** Bytes written since the last submission. */
let staged = 0;

function write(storage: Storage, data: HostArray): void {
  const { buffer, offset } = storage;
  const { queue } = device().gpu;
  let bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
  if (bytes.length % 4) {
    const padded = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
    padded.set(bytes);
    bytes = padded;
  }
  for (let at = 0; at < bytes.length; at += PART) {
    const part = bytes.subarray(at, at + PART);
    queue.writeBuffer(buffer, offset + at, part);
    if ((staged += part.length) < PART) continue;
    queue.submit([]);
    staged = 0;
  }
}
