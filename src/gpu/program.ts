// capture -> plan -> replay. A program is a function of fixed shapes, recorded once as a list of launches and replayed thousands
// of times: pipelines, bind groups and memory are prepared before the first run, and a run is one command buffer and one
// submit. There is no eager mode.

import { GpuError } from "../errors.ts";
import { throwIfStopped } from "../interruption.ts";
import { addRun, debugLevel, printPlan, printWgsl } from "./debug.ts";
import { device, release } from "./device.ts";
import { precompile } from "./software/precompile.ts";
import type { Kernel } from "./kernel.ts";
import type { Launch } from "./launch.ts";
import { largestBinding, makePlan, packParams, type Plan } from "./plan.ts";
import { hasTimestamps, type KernelTime, type Step, timesByKernel, timeSteps } from "./profile.ts";
import { Staging } from "./software/staging.ts";
import { readBuffer } from "./readback.ts";
import { MANY_RUNS, type Recording, scope, within } from "./scope.ts";
import type { Bindable, HostArray, Place, Storage } from "./storage.ts";

/** A captured function, planned and ready to be prepared and run. */
export class Program<I extends Record<string, Bindable>, O extends Record<string, Bindable>> {
  #steps: Step[] | undefined;
  #pool: GPUBuffer[] = [];
  #owned: GPUBuffer[] = [];
  #outputs = new Map<Storage, GPUBuffer>();
  readonly #staging: Staging;
  #destroyed = false;

  constructor(
    readonly label: string,
    readonly inputs: I,
    readonly outputs: O,
    readonly plan: Plan,
    private readonly constants: readonly Storage[] = [],
  ) {
    this.#staging = new Staging(plan.places);
  }

  /**
   * Allocates memory, compiles pipelines and makes bind groups, once; if that fails, destroys the program.
   * @param progress kernels compiled, of how many
   */
  async prepare(progress?: (done: number, total: number) => void): Promise<this> {
    try {
      return await this.#prepare(progress);
    } catch (error) {
      this.destroy();
      throw error;
    }
  }

  async #prepare(progress?: (done: number, total: number) => void): Promise<this> {
    if (this.#steps) return this;
    if (this.#destroyed) {
      throw new GpuError(`Cannot prepare "${this.label}": it was destroyed; capture it again`);
    }
    const { plan } = this;
    const largest = largestBinding(plan), limit = device().limits.maxStorageBufferBindingSize;
    if (largest && largest.bytes > limit) {
      throw new GpuError(
        `Cannot prepare "${this.label}": "${largest.label}" needs ${largest.bytes} bytes, the adapter binds at most ` +
          `${limit}; use a smaller batch or image size`,
      );
    }
    for (const input of Object.values(this.inputs)) await input.storage.materialise();
    const pipelines = await makePipelines(plan.launches, progress);
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    for (const [i, bytes] of plan.slots.entries()) {
      this.#pool.push(await device().createBuffer(bytes, usage, `${this.label} pool ${i}`));
    }
    for (const { root, slot } of plan.places.values()) {
      if (slot >= 0 || this.#outputs.has(root)) continue;
      if (root.persistent) await root.materialise();
      else this.#outputs.set(root, await device().createBuffer(root.bytes, usage, root.label));
    }
    await this.#staging.allocate(plan.launches, this.label);
    const params = await this.#writeParams();
    if (debugLevel() >= 2) await device().idle(); // so that runs can be timed
    this.#steps = await device().scoped(
      `bind the buffers of "${this.label}"`,
      () =>
        plan.launches.map((launch, i) => {
          const pipeline = pipelines.get(launch.kernel) as GPUComputePipeline;
          return this.#step(launch, pipeline, params.buffer, params.offsets[i] ?? 0);
        }),
    );
    return this;
  }

  /** Uploads the given inputs and replays the program. Does not wait for the device. */
  run(data: { [K in keyof I]?: HostArray } = {}): void {
    for (const [name, array] of Object.entries(data)) {
      const input = this.inputs[name];
      if (!input) throw new GpuError(`Cannot run "${this.label}": it has no input "${name}"`);
      input.storage.write(array as HostArray);
    }
    if (debugLevel() >= 2) addRun(this.label, this.plan.launches, timeSteps(this.#ready()));
    else device().submit(this.#encode());
  }

  /** Replays the program `times` in one submission, to time kernels without the cost of submissions. */
  repeat(times: number): void {
    device().submit(this.#encode(times));
  }

  /** Reads an output (or any persistent storage) after the last run. Waits for the device. */
  async read(what: Bindable): Promise<Float32Array> {
    const bytes = await this.readBytes(what);
    return what.storage.half ? Float32Array.from(new Float16Array(bytes)) : new Float32Array(bytes);
  }

  async readBytes({ storage }: Bindable): Promise<ArrayBuffer> {
    const place = this.plan.places.get(storage), buffer = place && this.#outputs.get(place.root);
    if (place && buffer) return await readBuffer(buffer, place.offset, storage.bytes);
    return await storage.read();
  }

  /** Runs the program and times each kernel, longest first. @param timestamps false: by waiting for each launch */
  async profile(timestamps = hasTimestamps()): Promise<KernelTime[]> {
    const steps = this.#ready();
    await device().idle();
    return timesByKernel(this.plan.launches, await timeSteps(steps, timestamps));
  }

  /** Frees what the program owns, with its inputs and constants; other persistent storages stay. */
  destroy(): void {
    this.#destroyed = true;
    for (const buffer of [...this.#pool, ...this.#owned, ...this.#outputs.values()]) release(buffer);
    this.#pool = [];
    this.#owned = [];
    this.#outputs.clear();
    this.#staging.destroy();
    this.#steps = undefined;
    for (const constant of this.constants) constant.destroy();
    for (const input of Object.values(this.inputs)) {
      if (input.storage.category === "inputs") input.storage.destroy();
    }
  }

  [Symbol.dispose](): void {
    this.destroy();
  }

  #ready(): Step[] {
    if (!this.#steps) throw new GpuError(`Cannot run "${this.label}": prepare() was not called`);
    return this.#steps;
  }

  #encode(times = 1): GPUCommandBuffer {
    const encoder = device().gpu.createCommandEncoder({ label: this.label });
    let pass: GPUComputePassEncoder | undefined;
    let pipeline: GPUComputePipeline | undefined;
    const steps = this.#ready();
    for (let i = 0; i < times * steps.length; i++) {
      const step = steps[i % steps.length] as Step;
      if (step.copies.length) { // copies run between passes
        pass?.end();
        pass = pipeline = undefined;
        for (const copy of step.copies) encoder.copyBufferToTexture(...copy);
      }
      pass ??= encoder.beginComputePass();
      if (step.pipeline !== pipeline) pass.setPipeline(pipeline = step.pipeline);
      pass.setBindGroup(0, step.group);
      pass.dispatchWorkgroups(...step.grid);
    }
    pass?.end();
    return encoder.finish();
  }

  /** All launches' parameters in one uniform buffer, and the offset of each launch in it. */
  async #writeParams(): Promise<{ buffer: GPUBuffer | undefined; offsets: readonly number[] }> {
    const { bytes, offsets } = packParams(this.plan.launches);
    if (bytes.length === 0) return { buffer: undefined, offsets };
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    const buffer = await device().createBuffer(bytes.length, usage, `${this.label} parameters`);
    device().gpu.queue.writeBuffer(buffer, 0, bytes);
    this.#owned.push(buffer);
    return { buffer, offsets };
  }

  #step(launch: Launch, pipeline: GPUComputePipeline, params: GPUBuffer | undefined, offset: number): Step {
    const { kernel, storages, grid } = launch;
    const { copies, views } = this.#staging.stage(launch, (place) => this.#bufferOf(place));
    const entries: GPUBindGroupEntry[] = kernel.bindings.map(({ index }, i) => {
      const storage = storages[i] as Storage, view = views.get(index);
      if (view) return { binding: index, resource: view };
      const place = this.plan.places.get(storage) as Place, buffer = this.#bufferOf(place);
      // Rounded up because a kernel may see the bytes as vec4; every physical buffer is a multiple of 16.
      const size = Math.min(Math.ceil(storage.bytes / 16) * 16, buffer.size - place.offset);
      return { binding: index, resource: { buffer, offset: place.offset, size } };
    });
    if (params && launch.params) {
      const size = launch.params.byteLength;
      entries.push({ binding: kernel.paramsIndex, resource: { buffer: params, offset, size } });
    }
    device().counters.bindGroups++;
    const group = device().gpu.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    return { pipeline, group, grid, copies };
  }

  #bufferOf({ slot, root }: Place): GPUBuffer {
    return slot >= 0 ? this.#pool[slot] as GPUBuffer : this.#outputs.get(root) ?? root.buffer;
  }
}

/** The pipelines of all kernels of `launches`. @throws Interrupted when the command is to stop */
export async function makePipelines(
  launches: readonly Launch[],
  progress?: (done: number, total: number) => void,
): Promise<Map<Kernel, GPUComputePipeline>> {
  const kernels = new Set(launches.map(({ kernel }) => kernel));
  const pipelines = new Map<Kernel, GPUComputePipeline>();
  const make = async (kernel: Kernel) => {
    throwIfStopped();
    const pipeline = await kernel.pipeline();
    pipelines.set(kernel, pipeline);
    progress?.(pipelines.size, kernels.size);
    return pipeline;
  };
  if (device().facts.software) await precompile(launches, make);
  for (const kernel of kernels) if (!pipelines.has(kernel)) await make(kernel);
  return pipelines;
}

/**
 * Runs `fn` once, recording the launches of every op that it calls, and plans them.
 * @param inputs tensors that `fn` reads and `run` uploads
 * @param fn records the program and returns what may be read afterwards
 * @param options.runs number of runs to expect (1,000): a program of few runs gets kernels that compile faster. Results do not
 * depend on it
 * @param options.batchInvariant the results of an image have the same bits in a batch of any size (false); the batch must be the
 * first axis of every tensor
 */
export function capture<I extends Record<string, Bindable>, O extends Record<string, Bindable>>(
  label: string,
  inputs: I,
  fn: (inputs: I) => O,
  { runs = MANY_RUNS, batchInvariant = false }: { runs?: number; batchInvariant?: boolean } = {},
): Program<I, O> {
  if (scope().recording) throw new GpuError(`Cannot capture "${label}": another capture is under way`);
  const recording: Recording = { launches: [], constants: [] };
  return within({ runs, batchInvariant }, () => {
    const outputs = within({ recording }, () => fn(inputs));
    const plan = makePlan(recording.launches, Object.values(outputs).map((o) => o.storage));
    if (debugLevel() >= 1) printPlan(label, plan);
    if (debugLevel() >= 3) printWgsl(plan.launches);
    return new Program(label, inputs, outputs, plan, recording.constants);
  });
}
