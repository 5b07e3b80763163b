// From WGSL text to launches. The text is the single source of truth: the loader reads `@binding` names and
// `struct Params` from it, callers pass buffers and scalars by name, and a wrong name throws at once.
// Pipelines are built later, when a plan is prepared, so that recording never waits for the driver.

import { GpuError } from "../errors.ts";
import { device } from "./device.ts";
import type { Fusion } from "./fusion.ts";
import { withFp16 } from "./fp16.ts";
import { hasOpenLoop, MAX_ITERATIONS } from "./iterations.ts";
import type { Bindable, Storage } from "./storage.ts";

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

export interface LaunchOptions {
  /** Floating-point operations of this launch, for plans and benchmarks. */
  flops?: number;
  /**
   * Loop iterations of one thread, at most: those of all its loops together. Kernels need it whose loops have lengths that the
   * text does not fix. See iterations.ts.
   */
  iterations?: number;
  /** What the launch lets be merged with it (fusion.ts). */
  fusion?: Fusion | undefined;
}

type Param = { name: string; type: "u32" | "i32" | "f32" };

/** How often a program runs unless its capture says otherwise: training. */
export const MANY_RUNS = 1000;

/**
 * Where launches go, how often what is being recorded will run, and whether its results must not depend on the batch size;
 * program.ts sets it while it records.
 */
export const sink: { record: ((launch: Launch) => void) | undefined; runs: number; batchInvariant: boolean } =
  {
    record: undefined,
    runs: MANY_RUNS,
    batchInvariant: false,
  };

/** Images that batch-invariant programs are cut up for: about the default batch of every command. */
const NOMINAL_IMAGES = 32;

/**
 * The batch size that choices which change bits go by (how K or a sum is split): the real one, or always the same one in
 * batch-invariant programs.
 */
export function nominalImages(images: number): number {
  return sink.batchInvariant ? NOMINAL_IMAGES : images;
}

/** An entry point of a WGSL text with its overrides fixed. Made by {@link kernel}, which caches. */
export class Kernel {
  readonly bindings: readonly Binding[];
  readonly label: string;
  readonly #params: readonly Param[];
  readonly #paramsIndex: number;
  /** The WGSL without its comments. */
  readonly text: string;
  /** The kernel that this one is for storages of halves, or itself. */
  readonly plain: Kernel;
  /** The first binding number that the text leaves free. */
  readonly freeBinding: number;
  /** Whether its loops have lengths that the text does not fix. */
  readonly hasOpenLoop: boolean;
  readonly #forHalves = new Map<string, Kernel>();
  #pipeline: { gpu: GPUDevice; pipeline: GPUComputePipeline } | undefined;

  constructor(
    readonly source: string,
    readonly entry: string,
    readonly constants: Readonly<Record<string, number>>,
    /** Storage bindings that hold halves. */
    readonly halves: readonly string[] = [],
    plain?: Kernel,
  ) {
    this.plain = plain ?? this;
    const constantsText = Object.entries(constants).map(([k, v]) => ` ${k}=${v}`).join("");
    this.label = entry + constantsText + (halves.length ? ` f16(${halves})` : "");
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

  /**
   * Records one dispatch into the program that is being captured.
   * @param buffers every storage binding of the entry point, by name
   * @param params every field of `struct Params`, by name
   * @param grid workgroups in x, y, z (at most 65,535 each; see {@link fold})
   */
  launch(
    buffers: Readonly<Record<string, Bindable>>,
    params: Readonly<Record<string, number>>,
    grid: readonly [number, number?, number?],
    options: LaunchOptions = {},
  ): void {
    if (!sink.record) {
      throw new GpuError(
        `Cannot launch "${this.label}": nothing is being captured; wrap the call in capture()`,
      );
    }
    const expected = new Set(this.bindings.map((b) => b.name));
    const unknown = Object.keys(buffers).filter((name) => !expected.has(name));
    if (unknown.length) {
      throw new GpuError(`Cannot launch "${this.label}": unknown buffers ${quoted(unknown)}`);
    }
    const storages = this.bindings.map(({ name }) => {
      const buffer = buffers[name];
      if (!buffer) throw new GpuError(`Cannot launch "${this.label}": buffer "${name}" is missing`);
      return buffer.storage;
    });
    const [x, y = 1, z = 1] = grid;
    const limit = device().limits.maxComputeWorkgroupsPerDimension;
    if (![x, y, z].every((n) => Number.isInteger(n) && n >= 1 && n <= limit)) {
      throw new GpuError(`Cannot launch "${this.label}": the grid [${x}, ${y}, ${z}] is outside 1..${limit}`);
    }
    const { flops = 0, iterations = this.hasOpenLoop ? undefined : 0, fusion } = options;
    if (iterations === undefined || !(iterations <= MAX_ITERATIONS)) {
      const found = iterations === undefined
        ? "it has a loop whose length its text does not fix, and the launch does not say how many iterations a thread runs"
        : `a thread would run ${iterations.toLocaleString("en")} loop iterations, and ${
          MAX_ITERATIONS.toLocaleString("en")
        } are the most; split the work`;
      throw new GpuError(`Cannot launch "${this.label}": ${found}`);
    }
    sink.record({
      kernel: this.#withHalves(
        this.bindings.flatMap(({ name, words }, i) => storages[i]?.half && !words ? [name] : []),
      ),
      storages,
      params: this.#pack(params),
      grid: [x, y, z],
      flops,
      iterations,
      fusion,
    });
  }

  /** The same kernel for storages of halves behind the bindings `names`. */
  #withHalves(names: readonly string[]): Kernel {
    if (names.length === 0) return this;
    const key = names.join();
    let made = this.#forHalves.get(key);
    if (!made) {
      made = new Kernel(withFp16(this.text, names), this.entry, this.constants, names, this);
      this.#forHalves.set(key, made);
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

  #pack(values: Readonly<Record<string, number>>): Uint8Array<ArrayBuffer> | undefined {
    const unknown = Object.keys(values).filter((name) => !this.#params.some((p) => p.name === name));
    if (unknown.length) {
      throw new GpuError(`Cannot launch "${this.label}": unknown parameters ${quoted(unknown)}`);
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

function quoted(names: string[]): string {
  return names.map((name) => `"${name}"`).join(", ");
}
