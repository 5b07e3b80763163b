// Pipelines of a program, compiled before its first run. A software adapter compiles a kernel when it is first dispatched,
// on its queue's thread, up to seconds each, while the other cores stand still. So what is left to compile is shared with a
// second device: dispatches of no workgroups compile and do nothing, each queue has a thread of its own, and the driver's
// disk cache brings to the first device what the second one compiled. Nothing is shared until a kernel proves to be slow:
// what the cache holds from an earlier run takes no time.

import { isHeld, throwIfStopped } from "../../interruption.ts";
import { anotherGpu, device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import type { Launch } from "../launch.ts";
import { TEXELS } from "./staging.ts";

/** Characters of a text from which it is worth finding out how long it takes: those of matrix products. */
const LONG = 8000;
/** Milliseconds of a kernel that was not in the driver's cache; what is there takes a tenth. */
const SLOW = 120;
/**
 * Milliseconds of kernels that are compiled in one submission, about, where state waits to be saved: so long it cannot be.
 * Elsewhere the process can be ended at any time, and all of them go together, which takes a quarter less.
 */
const PIECE = 1500;
/** Characters that count for each kernel beside those of its text. */
const BASE = 1500;

/**
 * The pipelines of all kernels of `launches`.
 * @param progress called with the number of pipelines made and their total
 * @throws Interrupted when the command is to stop: what was compiled stays in the driver's cache
 */
export async function preparePipelines(
  launches: readonly Launch[],
  progress?: (done: number, total: number) => void,
): Promise<Map<Kernel, GPUComputePipeline>> {
  const uses = new Map<Kernel, Use>();
  for (const launch of launches) {
    const { kernel, params } = launch;
    const use = uses.get(kernel) ?? { kernel, launches: new Map() };
    uses.set(kernel, use);
    use.launches.set(`${params}`, launch);
  }
  const pipelines = new Map<Kernel, GPUComputePipeline>();
  const make = async ({ kernel }: Use) => {
    throwIfStopped();
    const pipeline = await kernel.pipeline();
    pipelines.set(kernel, pipeline);
    progress?.(pipelines.size, uses.size);
    return pipeline;
  };
  if (device().facts.software) {
    const fresh = [...uses.values()].filter(({ kernel }) => !kernel.compiled);
    await compile(fresh.sort((a, b) => length(b) - length(a)), make);
  }
  for (const use of uses.values()) if (!pipelines.has(use.kernel)) await make(use);
  return pipelines;
}

/** A kernel, and its launches with different parameters: Mesa may put the values of parameters into what it compiles. */
interface Use {
  kernel: Kernel;
  launches: Map<string, Launch>;
}

const length = ({ kernel }: Use) => kernel.text.length;

type Make = (use: Use) => Promise<GPUComputePipeline>;

/** Compiles kernels, the longest first, until one is slow; the rest is shared. */
async function compile(uses: readonly Use[], make: Make): Promise<void> {
  const own = new Compiler(device().gpu);
  try {
    for (let at = 0; at + 1 < uses.length; at++) {
      const use = uses[at] as Use;
      if (length(use) < LONG) return;
      own.add(use, await make(use));
      const began = performance.now();
      own.submit();
      const time = await device().idle() - began;
      if (time > SLOW) return await share(uses.slice(at + 1), own, make, time / (BASE + length(use)));
    }
  } finally {
    own.destroy();
  }
}

/** @param cost milliseconds for a character, about */
async function share(uses: readonly Use[], own: Compiler, make: Make, cost: number): Promise<void> {
  const mine: Use[] = [], others: Use[] = [];
  let balance = 0;
  for (const use of uses) { // compiling takes about as long as the text is long
    (balance <= 0 ? mine : others).push(use);
    balance += (balance <= 0 ? 1 : -1) * (BASE + length(use));
  }
  const gpu = await anotherGpu().catch(() => undefined);
  if (!gpu) return; // The first device compiles all of it, as it would have on its first run.
  // What fails there is met again on the first device, which says so.
  gpu.addEventListener("uncapturederror", (event) => event.preventDefault());
  const other = new Compiler(gpu);
  try {
    // A queue takes a second submission only when the first is done, so each gets one beforehand and one for the rest.
    for (const use of mine.splice(0, 2)) own.add(use, await make(use));
    own.submit();
    const most = isHeld() ? PIECE / cost : Infinity;
    const queues = [pieces(others, most), pieces(mine, most)] as const;
    while (queues.some((queue) => queue.length > 0)) {
      const [theirs = [], ours = []] = queues.map((queue) => queue.shift());
      for (const use of theirs) other.add(use, use.kernel.build(gpu));
      other.submit();
      for (const use of ours) own.add(use, await make(use));
      own.submit();
      throwIfStopped();
    }
    for (const use of others) await make(use);
    await gpu.queue.onSubmittedWorkDone();
    await device().idle();
  } finally {
    other.destroy();
    gpu.destroy();
  }
}

/** Kernels in groups of about so many characters. */
function pieces(uses: readonly Use[], most: number): Use[][] {
  const groups: Use[][] = [];
  let room = 0;
  for (const use of uses) {
    if (room <= 0) {
      groups.push([]);
      room = most;
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
  /** What the storage bindings see, by their place. */
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

  /** Starts on what was added. */
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

  /** Of a height that is no power of two, as all staging textures are: the driver would compile once more for them. */
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
