// A kernel: an entry point of a WGSL text, and its pipeline. The text is the single source of truth: `@binding` names and
// `struct Params` are read from it, and buffers and scalars are passed by name. Pipelines are built when a program is
// prepared, so that recording never waits for the driver.

import { GpuError } from "../errors.ts";
import { device } from "./device.ts";
import { withFp16 } from "./fp16.ts";
import { hasOpenLoop } from "./iterations.ts";

export interface Binding {
  name: string;
  index: number;
  access: "read" | "read_write";
  /** Format of the texture that it is read as and that a copy of the buffer is staged in; see staging.ts. */
  texture: GPUTextureFormat | undefined;
  /** Sees words, whatever they hold. */
  words: boolean;
  /** Numbers of an element: 1, 2 or 4; 0 for what holds no f32. */
  width: number;
}

type Param = { name: string; type: "u32" | "i32" | "f32" };

/** An entry point of a WGSL text with its overrides fixed. Made by {@link kernel}, which caches. */
export class Kernel {
  readonly bindings: readonly Binding[];
  readonly label: string;
  readonly #params: readonly Param[];
  readonly #paramsIndex: number;
  /** The WGSL without its comments. */
  readonly text: string;
  /** The kernel with fp32 storages that this one was made from, or itself. */
  readonly fp32: Kernel;
  /** The first binding number that the text leaves free. */
  readonly freeBinding: number;
  /** Whether its loops have lengths that the text does not fix. */
  readonly hasOpenLoop: boolean;
  readonly #fp16Variants = new Map<string, Kernel>();
  #pipeline: { gpu: GPUDevice; pipeline: GPUComputePipeline } | undefined;

  constructor(
    readonly source: string,
    readonly entry: string,
    readonly constants: Readonly<Record<string, number>>,
    /** Bindings of fp16 storages. */
    readonly fp16: readonly string[] = [],
    fp32?: Kernel,
  ) {
    this.fp32 = fp32 ?? this;
    const constantsText = Object.entries(constants).map(([k, v]) => ` ${k}=${v}`).join("");
    this.label = entry + constantsText + (fp16.length ? ` f16(${fp16})` : "");
    const text = this.text = stripComments(source);
    const { used, functions } = reachableFrom(text, entry);
    const fixed = [...text.matchAll(/\b(?:const|override)\s+(\w+)/g)].map((m) => m[1] ?? "");
    this.hasOpenLoop = hasOpenLoop(functions, new Set(fixed));
    const all = [...text.matchAll(
      /@group\(0\)\s*@binding\((\d+)\)\s*var(?:<(storage|uniform)(?:,\s*(read_write|read))?>)?\s*(\w+)\s*:\s*([^;]+)/g,
    )];
    this.freeBinding = 1 + Math.max(-1, ...all.map((m) => Number(m[1])));
    const aliases = new Map([...text.matchAll(/\balias\s+(\w+)\s*=\s*([^;]+);/g)].map((m) => [m[1], m[2]]));
    this.bindings = all
      .filter((m) => m[2] !== "uniform" && used.has(m[4] ?? ""))
      .map((m) => ({
        name: m[4] ?? "",
        index: Number(m[1]),
        access: m[3] === "read_write" ? "read_write" : "read",
        texture: /texture_storage_2d<(\w+)/.exec(m[5] ?? "")?.[1] as GPUTextureFormat | undefined,
        words: /\bu32\b/.test(m[5] ?? ""),
        width: widthOf((m[5] ?? "").replace(/\w+/g, (word) => aliases.get(word) ?? word)),
      }));
    const uniform = all.find((m) => m[2] === "uniform" && used.has(m[4] ?? ""));
    this.#paramsIndex = uniform ? Number(uniform[1]) : -1;
    this.#params = uniform ? parseParams(text, entry) : [];
  }

  get hasParams(): boolean {
    return this.#paramsIndex >= 0;
  }

  get paramsIndex(): number {
    return this.#paramsIndex;
  }

  /** The same kernel with fp16 storages behind the bindings `names`. */
  forFp16(names: readonly string[]): Kernel {
    if (names.length === 0) return this;
    const key = names.join();
    let made = this.#fp16Variants.get(key);
    if (!made) {
      made = new Kernel(withFp16(this.text, names), this.entry, this.constants, names, this);
      this.#fp16Variants.set(key, made);
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
      throw error instanceof GpuError ? new GpuError(withLine(error.message, this.source)) : error;
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
        binding: this.#paramsIndex,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: "uniform" },
      });
    }
    const { label } = this;
    const layout = gpu.createPipelineLayout({
      bindGroupLayouts: [gpu.createBindGroupLayout({ entries, label })],
    });
    const module = gpu.createShaderModule({ code: this.source, label });
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
    return Object.fromEntries(this.#params.map(({ name, type }, i) => {
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
    const unknown = Object.keys(values).filter((name) => !this.#params.some((p) => p.name === name));
    if (unknown.length) {
      throw new GpuError(
        `Cannot launch "${this.label}": unknown parameters ${unknown.map((name) => `"${name}"`).join(", ")}`,
      );
    }
    if (!this.hasParams) return undefined;
    const bytes = new DataView(new ArrayBuffer(Math.ceil(this.#params.length / 4) * 16));
    this.#params.forEach(({ name, type }, i) => {
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

/** The kernel `entry` of a WGSL `source` with `override` constants fixed; the same arguments give the same object. */
export function kernel(source: string, entry: string, constants: Record<string, number> = {}): Kernel {
  const key = `${entry}\0${JSON.stringify(constants)}\0${source}`;
  let made = kernels.get(key);
  if (!made) kernels.set(key, made = new Kernel(source, entry, constants));
  return made;
}

/** Folds a number of workgroups into x and y so that neither passes the device's limit: index = y * gridX + x. */
export function fold(groups: number): [number, number] {
  const limit = device().limits.maxComputeWorkgroupsPerDimension;
  if (groups <= limit) return [Math.max(1, groups), 1];
  const y = Math.ceil(groups / limit);
  return [Math.ceil(groups / y), y];
}

/** Of `array<vec4<f32>>` and its like. */
function widthOf(type: string): number {
  const element = /^\s*array<\s*(?:vec([24])<f32>|(f32))/.exec(type);
  return element ? Number(element[1] ?? 1) : 0;
}

function stripComments(source: string): string {
  return source.replace(/\/\/[^\n]*/g, "").replace(/\/\*[\s\S]*?\*\//g, "");
}

/** The entry point with the functions that it calls, however deep, and all identifiers in them. */
function reachableFrom(text: string, entry: string): { used: Set<string>; functions: string } {
  const functions = new Map<string, string>();
  for (const match of text.matchAll(/\bfn\s+(\w+)\s*\(/g)) {
    let at = text.indexOf("{", match.index);
    const from = match.index;
    for (let depth = 0; at < text.length; at++) {
      if (text[at] === "{") depth++;
      else if (text[at] === "}" && --depth === 0) break;
    }
    functions.set(match[1] ?? "", text.slice(from, at + 1));
  }
  if (!functions.has(entry)) {
    throw new GpuError(`Cannot load kernel "${entry}": the text has no such function`);
  }
  const used = new Set<string>();
  const queue = [entry];
  for (let name = queue.pop(); name !== undefined; name = queue.pop()) {
    for (const [word] of (functions.get(name) ?? "").matchAll(/(?<![.\w])[A-Za-z_]\w*/g)) {
      if (!used.has(word) && functions.has(word) && word !== name) queue.push(word);
      used.add(word);
    }
  }
  return {
    used,
    functions: [...functions].flatMap(([name, own]) => used.has(name) || name === entry ? own : []).join(
      "\n",
    ),
  };
}

function parseParams(text: string, entry: string): Param[] {
  const struct = /struct\s+Params\s*\{([^}]*)\}/.exec(text);
  if (!struct) throw new GpuError(`Cannot load kernel "${entry}": it has a uniform but no "struct Params"`);
  return (struct[1] ?? "").split(",").map((line) => line.trim()).filter(Boolean).map((line) => {
    const match = /^(\w+)\s*:\s*(u32|i32|f32)$/.exec(line);
    if (!match) throw new GpuError(`Cannot load kernel "${entry}": "${line}" in Params is not a scalar`);
    return { name: match[1] ?? "", type: match[2] as Param["type"] };
  });
}

/** Adds the offending WGSL lines to a compile error that names a line. */
function withLine(message: string, source: string): string {
  const line = /(?:wgsl:|:)(\d+):\d+/.exec(message)?.[1];
  if (!line || message.includes("│")) return message;
  const n = Number(line);
  const near = source.split("\n").slice(Math.max(0, n - 2), n + 1).map((l, i) =>
    `  ${Math.max(1, n - 1) + i} | ${l}`
  );
  return `${message}\n${near.join("\n")}`;
}
