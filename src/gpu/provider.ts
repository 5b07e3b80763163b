// The implementations of WebGPU: Deno's own (wgpu), and Dawn from an npm package that is loaded only when it is asked for. What
// differs between them is here: how an adapter is found, which features are requested, how reads wait, how errors read. Dawn's
// package is imported from its folder in Deno's npm cache: an import of `npm:webgpu` would enter deno.lock, and each install
// downloads what is there; and a compiled executable has no npm packages but the embedded ones.

import { UsageError } from "../errors.ts";
import { pollRarely } from "./polling.ts";
import { isSoftware } from "./software/prepare.ts";

export const PROVIDERS = ["deno", "dawn"] as const;
export type ProviderName = typeof PROVIDERS[number];

/** A shape of subgroup matrices: [M, K] times [K, N]. */
export interface MatrixShape {
  /** Type of the operands, such as "f16". */
  componentType: string;
  resultComponentType: string;
  M: number;
  N: number;
  K: number;
}

export interface Provider {
  readonly name: ProviderName;
  /** The implementation and its version. */
  readonly title: string;
  /** What follows the name of an adapter. */
  readonly suffix: string;
  /** Features that a device is requested with where the adapter lists them. */
  readonly features: readonly string[];
  /** Features that a device may be granted although the adapter does not list them. */
  readonly unlisted: readonly string[];
  /** Whether the bytes are there when mapAsync() returns, long before its promise settles; see readback.ts. */
  readonly mapsAtOnce: boolean;
  /** The adapter with the most performance, or the software one; undefined if none answers. */
  adapter(cpu: boolean): Promise<GPUAdapter | undefined>;
  /** What a compiler is given of a kernel's text. */
  wgsl(text: string): string;
  /** The message of an error, without the implementation's call stack. */
  message(error: { readonly message: string }): string;
}

/**
 * The implementation that `name`, else the environment variable TOK_GPU selects; Deno's own by default.
 * @param find the folder of Dawn's package
 * @throws UsageError where there is no such implementation, or Dawn's package is missing or cannot be loaded
 */
export async function openProvider(
  name: string | undefined = Deno.env.get("TOK_GPU"),
  find: () => string | undefined = dawnFolder,
): Promise<Provider> {
  if (!name || name === "deno") return OWN;
  if (name === "dawn") return loaded ??= await loadDawn(find());
  throw new UsageError(
    `Cannot use the WebGPU implementation "${name}"; TOK_GPU is one of ${PROVIDERS.join(", ")}`,
  );
}

/** Shapes of subgroup matrices that an adapter has; none without the feature. */
export function matrixShapes(adapter: GPUAdapter): MatrixShape[] {
  const { subgroupMatrixConfigs = [] } = adapter.info as { subgroupMatrixConfigs?: Iterable<MatrixShape> };
  return [...subgroupMatrixConfigs].map(({ componentType, resultComponentType, M, N, K }) => (
    { componentType, resultComponentType, M, N, K }
  ));
}

const OWN: Provider = {
  name: "deno",
  title: `Deno ${Deno.version.deno} (wgpu)`,
  suffix: "",
  features: ["shader-f16", "timestamp-query"],
  unlisted: ["subgroups"], // Deno 2.9 hides what is not in its version of WebGPU, and grants it
  mapsAtOnce: Deno.version.deno.startsWith("2.9."),
  adapter: async (cpu) => await navigator.gpu.requestAdapter(preference(cpu)) ?? undefined,
  // naga knows subgroup operations, but not the directive.
  wgsl: (text) => text.replace(/^enable subgroups;\n/gm, ""),
  message: ({ message }) => message,
};

const preference = (cpu: boolean): GPURequestAdapterOptions =>
  cpu ? { forceFallbackAdapter: true } : { powerPreference: "high-performance" };

/** Name and version of Dawn's package. */
const DAWN = "webgpu", DAWN_VERSION = "0.6.2";

/** Downloads Dawn's package. Without --no-lock, deno.lock would name it, and each install would download it. */
export const INSTALL_DAWN = `deno cache --no-lock npm:${DAWN}@${DAWN_VERSION}`;

/** Experimental features need the first; NVIDIA's fp16 the second. */
const TOGGLES = ["allow_unsafe_apis", "vulkan_enable_f16_on_nvidia"];
/** Rounds timestamps to 100 us, as a browser must. */
const WITHOUT = ["timestamp_quantization"];

/** Parts of the names of software adapters; Dawn has no request for them. */
const SOFTWARE_NAMES = ["llvmpipe", "SwiftShader", "Basic Render"];

/** The package; `create` takes options such as "adapter=NAME" and the toggles of Dawn. */
interface Package {
  create(options: readonly string[]): GPU;
  /** The classes of WebGPU by name, and constants. */
  readonly globals?: Readonly<Record<string, unknown>>;
}

let loaded: Provider | undefined;
/** The process aborts if one of them is collected while something made from it is in use. */
const instances: GPU[] = [];

/** @param more toggles to enable, separated by commas, such as "disable_robustness": no bounds checks, for measurements */
export async function loadDawn(
  folder: string | undefined,
  more = Deno.env.get("TOK_DAWN_TOGGLES") ?? "",
): Promise<Provider> {
  const { create, globals = {} }: Package = await importDawn(folder);
  pollRarely(globals);
  const toggles = [...TOGGLES, ...more.split(",").filter(Boolean)];
  const request = async (...chosen: string[]): Promise<GPUAdapter | undefined> => {
    try {
      const instance = create([
        `enable-dawn-features=${toggles.join(",")}`,
        `disable-dawn-features=${WITHOUT.join(",")}`,
        ...chosen,
      ]);
      instances.push(instance);
      return await instance.requestAdapter(preference(false)) ?? undefined;
    } catch {
      return undefined; // no such adapter
    }
  };
  return {
    name: "dawn",
    title: `Dawn (npm:${DAWN}@${DAWN_VERSION})`,
    suffix: " through Dawn",
    features: ["shader-f16", "timestamp-query", "subgroups", "chromium-experimental-subgroup-matrix"],
    unlisted: [],
    mapsAtOnce: false,
    async adapter(cpu) {
      const best = await request();
      if (!cpu || !best || isSoftware(best.info.description)) return best;
      for (const name of SOFTWARE_NAMES) {
        const found = await request(`adapter=${name}`);
        if (found) return found;
      }
      return undefined;
    },
    wgsl: (text) => text,
    message: ({ message }) => message.split(/\n+ - While |\n+\s+at /)[0]?.trim() ?? message,
  };
}

async function importDawn(folder: string | undefined): Promise<Package> {
  if (folder === undefined) {
    throw new UsageError(
      `Cannot use Dawn: npm:${DAWN}@${DAWN_VERSION} is not in Deno's cache; run "${INSTALL_DAWN}", or set TOK_DAWN to ` +
        "the package's folder",
    );
  }
  try {
    const url = new URL(`file://${folder.replaceAll("\\", "/")}/index.js`).href;
    return await import(url);
  } catch (error) {
    const { message } = error as Error;
    throw new UsageError(`Cannot use Dawn: "${folder}" cannot be loaded (${message}); do without --gpu dawn`);
  }
}

/** The folder of Dawn's package: TOK_DAWN, or the one in Deno's npm cache; undefined if it is in neither. */
export function dawnFolder(
  environment: Readonly<Record<string, string | undefined>> = Deno.env.toObject(),
  os: string = Deno.build.os,
): string | undefined {
  const { TOK_DAWN, DENO_DIR, XDG_CACHE_HOME, LOCALAPPDATA, HOME = "" } = environment;
  if (TOK_DAWN) return TOK_DAWN;
  const caches = os === "windows"
    ? LOCALAPPDATA
    : os === "darwin"
    ? `${HOME}/Library/Caches`
    : XDG_CACHE_HOME || `${HOME}/.cache`;
  const packages = `${DENO_DIR || `${caches}/deno`}/npm`;
  try {
    for (const { name } of Deno.readDirSync(packages)) { // a folder for each registry
      const folder = `${packages}/${name}/${DAWN}/${DAWN_VERSION}`;
      if (isThere(`${folder}/index.js`)) return folder;
    }
  } catch {
    // Deno has no npm cache yet.
  }
  return undefined;
}

/** Whether a file or folder exists. */
export function isThere(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
