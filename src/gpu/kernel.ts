// A kernel: an entry point of a kernel text (kernel_text.ts) with its arrays in the forms of a launch, and its pipeline. Arrays
// and scalars are passed by the names that the text declares. Pipelines are built when a program is prepared, so that
// recording never waits for the driver.

import { GpuError } from "../errors.ts";
import { type ArrayForm, isStored, textureFormat } from "./accessors.ts";
import { device } from "./device.ts";
import { hasOpenLoop } from "./iterations.ts";
import { type KernelText, parseKernel, printWgsl, type Reach, reachOf } from "./kernel_text.ts";

export interface Binding {
  readonly name: string;
  readonly index: number;
  readonly access: "read" | "read_write";
  /** Format of the texture that it is read as and that a copy of the buffer is staged in; see software/staging.ts. */
  readonly texture: GPUTextureFormat | undefined;
}

/** Made by {@link kernel}, which caches. */
export class Kernel {
  readonly label: string;
  /** The arrays that have buffers. */
  readonly bindings: readonly Binding[];
  /** Whether a loop has a length that the text does not fix. */
  readonly hasOpenLoop: boolean;
  readonly wgsl: string;
  readonly #variants = new Map<string, Kernel>();
  #pipeline: { gpu: GPUDevice; pipeline: GPUComputePipeline } | undefined;

  constructor(
    readonly text: KernelText,
    readonly reach: Reach,
    readonly entry: string,
    readonly constants: Readonly<Record<string, number>>,
    /** The arrays that are not buffers of their element type. */
    readonly forms: ReadonlyMap<string, ArrayForm> = new Map(),
  ) {
    const constantsText = Object.entries(constants).map(([k, v]) => ` ${k}=${v}`).join("");
    const formsText = [...forms].map(([name, form]) => ` ${name}:${form}`).join("");
    this.label = entry + constantsText + formsText;
    const fixed = [...text.declarations.matchAll(/\b(?:const|override)\s+(\w+)/g)].map((m) => m[1] ?? "");
    this.hasOpenLoop = hasOpenLoop(reach.functions.join("\n"), new Set(fixed));
    this.wgsl = printWgsl(text, reach, (name) => this.formOf(name));
    this.bindings = reach.arrays.filter(({ name }) => typeof this.formOf(name) !== "number").map((array) => ({
      name: array.name,
      index: text.arrays.indexOf(array),
      access: isStored(array, reach.called) ? "read_write" : "read",
      texture: textureFormat(array, this.formOf(array.name)),
    }));
  }

  formOf(name: string): ArrayForm {
    return this.forms.get(name) ?? "buffer";
  }

  get hasParams(): boolean {
    return this.reach.usesParams;
  }

  get paramsIndex(): number {
    return this.text.arrays.length;
  }

  /** The same kernel with other forms of its arrays. */
  withForms(forms: ReadonlyMap<string, ArrayForm>): Kernel {
    const key = [...forms].join();
    if (key === [...this.forms].join()) return this;
    let made = this.#variants.get(key);
    if (!made) {
      this.#variants.set(key, made = new Kernel(this.text, this.reach, this.entry, this.constants, forms));
    }
    return made;
  }

  /** Whether the open device has the pipeline. */
  get compiled(): boolean {
    return this.#pipeline?.gpu === device().gpu;
  }

  /** The compiled pipeline. @throws GpuError with the WGSL line when the text does not compile. */
  async pipeline(): Promise<GPUComputePipeline> {
    const { gpu, counters } = device();
    if (this.#pipeline?.gpu === gpu) return this.#pipeline.pipeline;
    counters.pipelines++;
    try {
      const pipeline = await device().scoped(`compile kernel "${this.label}"`, () => this.build(gpu));
      this.#pipeline = { gpu, pipeline };
      return pipeline;
    } catch (error) {
      throw error instanceof GpuError ? new GpuError(withLine(error.message, this.wgsl)) : error;
    }
  }

  /** A pipeline on any device. */
  build(gpu: GPUDevice): GPUComputePipeline {
    const entries: GPUBindGroupLayoutEntry[] = this.bindings.map(({ index, access, texture }) => ({
      binding: index,
      visibility: GPUShaderStage.COMPUTE,
      ...texture
        ? { storageTexture: { access: "read-only", format: texture } }
        : { buffer: { type: access === "read" ? "read-only-storage" : "storage" } },
    }));
    if (this.hasParams) {
      entries.push({
        binding: this.paramsIndex,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: "uniform" },
      });
    }
    const { label } = this;
    const layout = gpu.createPipelineLayout({
      bindGroupLayouts: [gpu.createBindGroupLayout({ entries, label })],
    });
    const module = gpu.createShaderModule({ code: device().provider.wgsl(this.wgsl), label });
    return gpu.createComputePipeline({
      layout,
      compute: { module, entryPoint: this.entry, constants: { ...this.constants } },
      label,
    });
  }

  /** Packed parameters by name. */
  unpack(params: Uint8Array<ArrayBuffer> | undefined): Record<string, number> {
    if (!params) return {};
    const bytes = new DataView(params.buffer, params.byteOffset);
    return Object.fromEntries(this.text.params.map(({ name, type }, i) => {
      const at = 4 * i;
      const value = type === "f32"
        ? bytes.getFloat32(at, true)
        : type === "u32"
        ? bytes.getUint32(at, true)
        : bytes.getInt32(at, true);
      return [name, value];
    }));
  }

  /** Parameters by name as the bytes of `struct Params`. */
  pack(values: Readonly<Record<string, number>>): Uint8Array<ArrayBuffer> | undefined {
    const unknown = Object.keys(values).filter((name) => !this.text.params.some((p) => p.name === name));
    if (unknown.length) {
      throw new GpuError(
        `Cannot launch "${this.label}": unknown parameters ${unknown.map((name) => `"${name}"`).join(", ")}`,
      );
    }
    if (!this.hasParams) return undefined;
    const bytes = new DataView(new ArrayBuffer(Math.ceil(this.text.params.length / 4) * 16));
    this.text.params.forEach(({ name, type }, i) => {
      const value = values[name];
      if (value === undefined) {
        throw new GpuError(`Cannot launch "${this.label}": parameter "${name}" is missing`);
      }
      if (type === "f32") bytes.setFloat32(4 * i, value, true);
      else if (!Number.isInteger(value) || value < (type === "u32" ? 0 : -(2 ** 31)) || value >= 2 ** 32) {
        throw new GpuError(`Cannot launch "${this.label}": parameter "${name}" is ${value}, not a ${type}`);
      } else if (type === "u32") bytes.setUint32(4 * i, value, true);
      else bytes.setInt32(4 * i, value, true);
    });
    return new Uint8Array(bytes.buffer);
  }
}

const kernels = new Map<string, Kernel>();

/** The kernel `entry` of a source with `override` constants fixed; the same arguments give the same object. */
export function kernel(source: string, entry: string, constants: Record<string, number> = {}): Kernel {
  const key = `${entry}\0${JSON.stringify(constants)}\0${source}`;
  let made = kernels.get(key);
  if (!made) {
    const text = parseKernel(source);
    kernels.set(key, made = new Kernel(text, reachOf(text, entry), entry, constants));
  }
  return made;
}

/** Folds a number of workgroups into x and y so that neither passes the device's limit: index = y * gridX + x. */
export function fold(groups: number): [number, number] {
  const limit = device().limits.maxComputeWorkgroupsPerDimension;
  if (groups <= limit) return [Math.max(1, groups), 1];
  const y = Math.ceil(groups / limit);
  return [Math.ceil(groups / y), y];
}

/** Adds the offending WGSL lines to a compile error that names a line. */
function withLine(message: string, wgsl: string): string {
  const line = /(?:wgsl:|:)(\d+):\d+/.exec(message)?.[1];
  if (!line || message.includes("│")) return message;
  const n = Number(line);
  const near = wgsl.split("\n").slice(Math.max(0, n - 2), n + 1).map((l, i) =>
    `  ${Math.max(1, n - 1) + i} | ${l}`
  );
  return `${message}\n${near.join("\n")}`;
}
