// What the engine records, plans and replays: a launch is a kernel with its buffers, parameters and grid. Elementwise work is
// also kept as an expression, so that it can be fused with other launches.

import type { Kernel } from "./kernel.ts";
import type { Storage } from "./storage.ts";
import type { View } from "./strides.ts";

/** One dispatch: a kernel with its buffers (in binding order), its packed parameters and its grid. */
export interface Launch {
  readonly kernel: Kernel;
  readonly storages: readonly Storage[];
  readonly params: Uint8Array<ArrayBuffer> | undefined;
  readonly grid: readonly [number, number, number];
  readonly flops: number;
  readonly iterations: number;
  readonly fusion: Fusion | undefined;
}

/** Whether a launch writes the storage of a binding. */
export const isWritten = ({ kernel }: Launch, binding: number): boolean =>
  kernel.bindings[binding]?.access === "read_write";

/** Whether two storages share bytes of one buffer. */
export const overlap = (a: Pick<Storage, "root" | "offset" | "bytes">, b: Storage): boolean =>
  a.root === b.root && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;

/** How a launch can be fused with others; see fusion.ts. */
export interface Fusion {
  /** The elementwise work of a launch that does nothing else. */
  readonly expression?: Expression;
  /** Arrays whose elements it stores once each: these may get an epilogue. */
  readonly stores?: readonly string[];
  /** Arrays whose elements it reads about once each: these may get a prologue. */
  readonly loads?: readonly string[];
  /** The launch without its prologues and epilogues. */
  readonly core?: Launch;
  readonly fused?: FusedWork;
}

/** Prologues (in place of loads) and epilogues (in place of stores) of a launch, by the name of the array. */
export interface FusedWork {
  readonly loads: ReadonlyMap<string, Expression>;
  readonly stores: ReadonlyMap<string, Expression>;
}

/** Elementwise work over an index space: its inputs, its formulas and what it stores. */
export interface Expression {
  /** Elements of the index space. */
  readonly count: number;
  readonly inputs: readonly Operand[];
  readonly scalars: readonly number[];
  /** WGSL of t0, t1, ... over x0.., s0.. and earlier t's; `T` is the vector type. */
  readonly body: readonly string[];
  readonly outputs: readonly Output[];
  /** Type of the elements: f32 (also where storages are fp16), or u32 for a copy of any 4 bytes. */
  readonly element?: "f32" | "u32";
}

/** An input: elements of a storage, or (undefined) the value that the kernel with this epilogue computed. */
export interface Operand {
  readonly storage: Storage | undefined;
  readonly view: View;
}

/** A value of the expression (`x<k>` or `t<k>`) and where it is stored. */
export interface Output {
  readonly value: string;
  readonly storage: Storage;
  readonly view: View;
}
