// The one open WebGPU device: choice of adapter, limits, kernel profile, error scopes, device loss. Other layers reach it through
// `device()`. Every limit of the adapter is requested: the WebGPU defaults (128 MiB bindings) are far too small here.

import { GpuError, OutOfMemoryError, UsageError } from "../errors.ts";
import {
  type MatrixShape,
  matrixShapes,
  openProvider,
  type Provider,
  type ProviderName,
} from "./provider.ts";
import {
  type CompilerTraits,
  compilerTraits,
  isSoftware,
  pinned,
  prepareDrivers,
} from "./software/prepare.ts";

/** Which variants of kernels run: `cpu` on software adapters, `gpu` elsewhere. */
export type Profile = "cpu" | "gpu";

export interface AdapterFacts {
  vendor: string;
  architecture: string;
  description: string;
  /** The card by name or number, through Dawn, whose description tells the driver only. */
  device?: string;
  software: boolean;
  /** Smallest subgroup size; on a software adapter, the SIMD width of the processor. 0 if unknown. */
  simdWidth: number;
  /** Largest subgroup size, 0 if unknown. */
  subgroupMaxSize: number;
  /** Shapes of subgroup matrices. */
  matrices: MatrixShape[];
  features: string[];
}

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupsPerDimension",
  "maxTextureDimension2D",
  "minStorageBufferOffsetAlignment",
  "minUniformBufferOffsetAlignment",
] as const;

/** The device memory that counts a resource; a resource that is not here was released. */
const owners = new WeakMap<GPUBuffer | GPUTexture, { memory: Device["memory"]; bytes: number }>();

/** Bytes of the buffer that holds `bytes`: kernels may read it as vec4. */
export function bufferBytes(bytes: number): number {
  return Math.max(16, Math.ceil(bytes / 16) * 16);
}

/** Destroys a buffer or texture and subtracts it from its device's memory. */
export function release(resource: GPUBuffer | GPUTexture): void {
  const owner = owners.get(resource);
  if (owner) owner.memory.live -= owner.bytes;
  owners.delete(resource);
  resource.destroy();
}

/** An open device. Made by {@link openDevice}; reached through {@link device}. */
export class Device {
  /** Numbers of objects created since the device was opened; tests check that steps create none. */
  readonly counters = { buffers: 0, bindGroups: 0, pipelines: 0, submits: 0 };
  /** Bytes of the buffers and textures on the device: now, and at most since `peak` was last set. */
  readonly memory = { live: 0, peak: 0 };
  /** Why the device was lost, once it is. */
  lost: string | undefined;
  /** Whether GEMMs may read operands as textures (software/staging.ts); tests compare both ways. */
  staging = true;
  /**
   * Consecutive threads that are in one subgroup whatever its size, where reductions of the gpu profile may use it; 0 for none. Set
   * by ops/subgroups.ts; tests compare both ways.
   */
  subgroups = 0;
  /** What GEMMs of the cpu profile are written for; tests compare the ways. */
  compiler: CompilerTraits;
  /** Whether launches are fused (fusion.ts); tests compare both ways. */
  fusing = true;
  #uncaptured: string[] = [];
  /** The buffer that {@link idle} maps. */
  #probe: GPUBuffer | undefined;

  /** @param profile may be switched between captures: tests run every op in both */
  constructor(
    readonly gpu: GPUDevice,
    readonly facts: AdapterFacts,
    public profile: Profile,
    readonly provider: Provider,
  ) {
    this.compiler = compilerTraits(facts.description);
    gpu.addEventListener("uncapturederror", (event) => {
      event.preventDefault();
      this.#uncaptured.push(provider.message((event as GPUUncapturedErrorEvent).error));
    });
    // Older runtimes have no `lost` promise.
    gpu.lost?.then((info) => this.lost = `${info.reason}: ${info.message}`);
  }

  /** Invocations of a workgroup that fills one SIMD vector of the processor, for kernels of the cpu profile. */
  get simdWidth(): number {
    return this.facts.software && this.facts.simdWidth || 8;
  }

  get limits(): GPUSupportedLimits {
    return this.gpu.limits;
  }

  /** Whether the device was granted a feature, such as "subgroups". */
  has(feature: string): boolean {
    return this.gpu.features.has(feature);
  }

  /** Creates a buffer of `bytes` (rounded up to 16) under an error scope; throws GpuError when refused. */
  async createBuffer(bytes: number, usage: number, label: string): Promise<GPUBuffer> {
    const size = bufferBytes(bytes);
    if (size > this.limits.maxBufferSize) {
      throw new GpuError(
        `Cannot allocate "${label}": it needs ${size} bytes, the adapter allows ${this.limits.maxBufferSize} a buffer`,
      );
    }
    this.counters.buffers++;
    const buffer = await this.scoped(
      `allocate ${size} bytes for "${label}"`,
      () => this.gpu.createBuffer({ size, usage, label }),
    );
    return this.own(buffer, size);
  }

  /** Counts a new resource of `bytes`; {@link release} subtracts it. */
  own<T extends GPUBuffer | GPUTexture>(resource: T, bytes: number): T {
    owners.set(resource, { memory: this.memory, bytes });
    this.memory.live += bytes;
    this.memory.peak = Math.max(this.memory.peak, this.memory.live);
    return resource;
  }

  /** Runs a synchronous `make` in validation and out-of-memory error scopes; throws what they caught as a GpuError. */
  async scoped<T>(action: string, make: () => T): Promise<T> {
    this.check();
    this.gpu.pushErrorScope("out-of-memory");
    this.gpu.pushErrorScope("validation");
    let made: T | undefined;
    let thrown: unknown;
    try {
      made = make();
    } catch (error) {
      thrown = error;
    }
    const validation = await this.gpu.popErrorScope();
    const memory = await this.gpu.popErrorScope();
    if (memory) {
      throw new OutOfMemoryError(
        `Cannot ${action}: out of device memory (${
          this.provider.message(memory)
        }); use a smaller batch, or --recompute ` +
          "where training",
      );
    }
    if (validation) throw new GpuError(`Cannot ${action}: ${this.provider.message(validation)}`);
    if (thrown) throw new GpuError(`Cannot ${action}: ${thrown instanceof Error ? thrown.message : thrown}`);
    return made as T;
  }

  /** Waits until all submitted work is done. @returns when it was: the first wait takes 10 ms more */
  async idle(): Promise<number> {
    this.check();
    if (!this.provider.mapsAtOnce) {
      await this.gpu.queue.onSubmittedWorkDone();
      const now = performance.now();
      this.check();
      return now;
    }
    const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
    const map = () => this.#probe?.mapAsync(GPUMapMode.READ); // returns once the device is idle
    if (!this.#probe) { // the device's own: no program's memory
      this.#probe = this.gpu.createBuffer({ size: 16, usage });
      await map();
      this.#probe.unmap();
    }
    map()?.catch(() => {}); // it is rejected by unmap()
    const now = performance.now();
    this.#probe.unmap();
    this.check();
    return now;
  }

  /** Submits one command buffer. @throws GpuError when the device was lost or reported an error before */
  submit(commands: GPUCommandBuffer): void {
    this.check();
    this.counters.submits++;
    this.gpu.queue.submit([commands]);
  }

  /** Throws when the device was lost or reported an error outside any scope. */
  check(): void {
    if (this.lost !== undefined) {
      throw new GpuError(`Cannot go on: the device was lost (${this.lost}); run again with --resume`);
    }
    const [first] = this.#uncaptured;
    if (first !== undefined) throw new GpuError(`Cannot go on: the device reported an error: ${first}`);
  }

  destroy(): void {
    this.gpu.destroy();
  }
}

let current: Device | undefined;

/**
 * Opens the adapter with the most performance, or the software one, with every limit that it has.
 * @param options.profile overrides the kernel profile that the adapter would get
 * @param options.gpu the implementation of WebGPU; the environment variable TOK_GPU by default, else Deno's own
 * @throws UsageError when no adapter answers, or the implementation cannot be loaded
 */
export async function openDevice(
  { cpu = false, profile, gpu: name }: { cpu?: boolean; profile?: Profile; gpu?: ProviderName | undefined } =
    {},
): Promise<Device> {
  const provider = await openProvider(name);
  const adapter = await requestAdapter(cpu, provider), facts = adapterFacts(adapter, provider);
  const request = () => requestDevice(adapter, provider);
  const gpu = await (facts.software ? pinned(request) : request());
  current = new Device(gpu, facts, profile ?? (facts.software ? "cpu" : "gpu"), provider);
  return current;
}

/** A device with every limit of the adapter, and the features that its implementation names. The caller destroys it. */
export async function requestDevice(
  adapter: GPUAdapter,
  { features, unlisted }: Provider,
): Promise<GPUDevice> {
  const requiredLimits: Record<string, number> = {};
  for (const name of LIMITS) requiredLimits[name] = adapter.limits[name];
  const listed = features.filter((name) => adapter.features.has(name));
  const request = (names: readonly string[]) =>
    adapter.requestDevice({ requiredLimits, requiredFeatures: names as GPUFeatureName[], label: "tok" });
  if (!unlisted.length) return await request(listed);
  return await request([...listed, ...unlisted]).catch(() => request(listed));
}

/** The open device. @throws GpuError when there is none yet. */
export function device(): Device {
  if (!current) throw new GpuError("Cannot use the device: none is open; call openDevice() first");
  return current;
}

/** Destroys the open device, if any. Programs and variables made on it are gone with it. */
export function closeDevice(): void {
  current?.destroy();
  current = undefined;
}

/** Facts about an adapter, for `doctor` and for the choice of profile. */
export function adapterFacts(
  adapter: GPUAdapter,
  { name, suffix }: Pick<Provider, "name" | "suffix">,
): AdapterFacts {
  const { vendor, architecture, description, device: id, subgroupMinSize, subgroupMaxSize } = adapter.info;
  return {
    vendor,
    architecture,
    description: (description || id) + suffix,
    ...(name === "dawn" ? { device: id } : {}),
    software: isSoftware(`${description} ${id} ${vendor}`),
    simdWidth: subgroupMinSize ?? 0,
    subgroupMaxSize: subgroupMaxSize ?? 0,
    matrices: matrixShapes(adapter),
    features: [...adapter.features],
  };
}

/** The adapter with the most performance, or the software one. @throws UsageError when none answers */
export async function requestAdapter(cpu: boolean, provider?: Provider): Promise<GPUAdapter> {
  prepareDrivers();
  const { adapter, suffix } = provider ?? await openProvider();
  const found = await adapter(cpu);
  if (!found) {
    throw new UsageError(
      `Cannot find ${
        cpu ? "a software" : "any"
      } WebGPU adapter${suffix}; run "tok doctor" to see what is missing`,
    );
  }
  return found;
}
