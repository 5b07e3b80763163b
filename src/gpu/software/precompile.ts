// Compiles a program's kernels before its first run. A software adapter compiles a kernel at its first dispatch, on its queue's
// thread, for up to seconds each, while the other cores are idle. So half of the kernels go to a second device: dispatches of
// zero workgroups compile and do nothing, each queue has its own thread, and the driver's disk cache passes the results to the
// first device. This starts only when a kernel is slow to compile, which it is not when the cache has it from an earlier run.

import { isHeld, throwIfStopped } from "../../interruption.ts";
import { device, requestAdapter, requestDevice } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import type { Launch } from "../launch.ts";
import { TEXELS } from "../accessors.ts";

/** Characters from which a text is timed: that of GEMMs. */
const LONG = 8000;
/** Milliseconds to compile a kernel that is not in the driver's cache; one that is takes a tenth. */
const SLOW = 120;
/** Milliseconds of compilation per submission while a command has state to save: a signal waits that long. */
const PIECE = 1500;
/** Cost of a kernel in addition to its text, in characters. */
const BASE = 1500;

/**
 * Compiles the kernels of `launches` that are not in the driver's cache; what it leaves out takes no time.
 * @param make makes and keeps the pipeline of a kernel
 * @throws Interrupted when the command is to stop: what was compiled stays in the driver's cache
 */
export async function precompile(launches: readonly Launch[], make: Make): Promise<void> {
  const uses = new Map<Kernel, Use>();
  for (const launch of launches) {
    const { kernel, params } = launch;
    if (kernel.compiled) continue;
    const use = uses.get(kernel) ?? { kernel, launches: new Map() };
    uses.set(kernel, use);
    use.launches.set(`${params}`, launch);
  }
  await compile([...uses.values()].sort((a, b) => length(b) - length(a)), make);
}

/** A kernel and its launches with different parameters: Mesa may specialize the code for their values. */
interface Use {
  kernel: Kernel;
  launches: Map<string, Launch>;
}

const length = ({ kernel }: Use) => kernel.wgsl.length;

type Make = (kernel: Kernel) => Promise<GPUComputePipeline>;

/** Compiles kernels, the longest first, until one is slow; the rest is shared with a second device. */
async function compile(uses: readonly Use[], make: Make): Promise<void> {
  const own = new Compiler(device().gpu);
  try {
    for (let at = 0; at + 1 < uses.length; at++) {
      const use = uses[at] as Use;
      if (length(use) < LONG) return;
      own.add(use, await make(use.kernel));
      const began = performance.now();
      own.submit();
      const time = await device().idle() - began;
      if (time > SLOW) return await share(uses.slice(at + 1), own, make, time / (BASE + length(use)));
    }
  } finally {
    own.destroy();
  }
}

/** @param cost milliseconds per character, about */
async function share(uses: readonly Use[], own: Compiler, make: Make, cost: number): Promise<void> {
  const mine: Use[] = [], others: Use[] = [];
  let balance = 0;
  for (const use of uses) { // compiling takes about as long as the text is long
    (balance <= 0 ? mine : others).push(use);
    balance += (balance <= 0 ? 1 : -1) * (BASE + length(use));
  }
  const { provider } = device();
  const gpu = await requestAdapter(true, provider).then((adapter) => requestDevice(adapter, provider))
    .catch(() => undefined);
  if (!gpu) return; // The first device compiles all of it, as it would have on its first run.
  // What fails there is met again on the first device, which says so.
  gpu.addEventListener("uncapturederror", (event) => event.preventDefault());
  const other = new Compiler(gpu);
  try {
    // A queue takes a second submission only when the first is done, so each gets one beforehand and one for the rest.
    for (const use of mine.splice(0, 2)) own.add(use, await make(use.kernel));
    own.submit();
    const max = isHeld() ? PIECE / cost : Infinity;
    const queues = [pieces(others, max), pieces(mine, max)] as const;
    while (queues.some((queue) => queue.length > 0)) {
      const [theirs = [], ours = []] = queues.map((queue) => queue.shift());
      for (const use of theirs) other.add(use, use.kernel.build(gpu));
      other.submit();
      for (const use of ours) own.add(use, await make(use.kernel));
      own.submit();
      throwIfStopped();
    }
    for (const use of others) await make(use.kernel);
    await gpu.queue.onSubmittedWorkDone();
    await device().idle();
  } finally {
    other.destroy();
    gpu.destroy();
  }
}

/** Kernels in groups of about `max` characters. */
function pieces(uses: readonly Use[], max: number): Use[][] {
  const groups: Use[][] = [];
  let room = 0;
  for (const use of uses) {
    if (room <= 0) {
      groups.push([]);
      room = max;
    }
    groups.at(-1)?.push(use);
    room -= BASE + length(use);
  }
  return groups;
}

/** Compiles the kernels of launches on one device by dispatching nothing. */
class Compiler {
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  /** Buffers of the storage bindings, by position. */
  readonly #buffers = new Map<number, GPUBuffer>();
  readonly #params: GPUBuffer[] = [];
  readonly #textures = new Map<GPUTextureFormat, GPUTexture>();

  constructor(private readonly gpu: GPUDevice) {}

  add({ kernel, launches }: Use, pipeline: GPUComputePipeline): void {
    this.#encoder ??= this.gpu.createCommandEncoder();
    this.#pass ??= this.#encoder.beginComputePass();
    this.#pass.setPipeline(pipeline);
    const layout = pipeline.getBindGroupLayout(0);
    for (const { params } of launches.values()) {
      const entries: GPUBindGroupEntry[] = kernel.bindings.map(({ index, texture }, i) => ({
        binding: index,
        resource: texture ? this.#view(texture) : { buffer: this.#buffer(i) },
      }));
      if (kernel.hasParams && params) {
        entries.push({ binding: kernel.paramsIndex, resource: { buffer: this.#filled(params) } });
      }
      this.#pass.setBindGroup(0, this.gpu.createBindGroup({ layout, entries }));
      this.#pass.dispatchWorkgroups(0);
    }
  }

  /** Starts to compile what was added. */
  submit(): void {
    this.#pass?.end();
    if (this.#encoder) this.gpu.queue.submit([this.#encoder.finish()]);
    this.#encoder = this.#pass = undefined;
  }

  destroy(): void {
    for (const resource of [...this.#buffers.values(), ...this.#params, ...this.#textures.values()]) {
      resource.destroy();
    }
  }

  #buffer(place: number): GPUBuffer {
    let buffer = this.#buffers.get(place);
    if (!buffer) {
      buffer = this.gpu.createBuffer({ size: 256, usage: GPUBufferUsage.STORAGE });
      this.#buffers.set(place, buffer);
    }
    return buffer;
  }

  #filled(params: Uint8Array<ArrayBuffer>): GPUBuffer {
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    const buffer = this.gpu.createBuffer({ size: params.length, usage });
    this.gpu.queue.writeBuffer(buffer, 0, params);
    this.#params.push(buffer);
    return buffer;
  }

  /** A texture whose height is not a power of two, as in staging.ts: the driver compiles a second variant for powers of two. */
  #view(format: GPUTextureFormat): GPUTextureView {
    let texture = this.#textures.get(format);
    if (!texture) {
      const usage = GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_DST;
      texture = this.gpu.createTexture({ size: [TEXELS, 3], format, usage });
      this.#textures.set(format, texture);
    }
    return texture.createView();
  }
}
