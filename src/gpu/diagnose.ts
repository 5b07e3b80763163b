// Why a machine has no adapter or only a software one, and the command that fixes it. The usual reasons on headless machines: no
// Vulkan loader, no driver manifest or one whose library cannot be loaded, a container without the graphics capability, no
// permission on the device files.

import { UsageError } from "../errors.ts";
import { type AdapterFacts, adapterFacts, requestDevice } from "./device.ts";
import { dawnFolder, INSTALL_DAWN, isThere, openProvider, type Provider } from "./provider.ts";
import { prepareDrivers } from "./software/prepare.ts";

export interface Finding {
  problem: string;
  remedy: string;
}

const SHOWN_LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
] as const;

/** The high-performance adapter and the software one of an implementation of WebGPU, if they answer. */
export async function adapters(provider: Provider): Promise<
  {
    best?: AdapterFacts & { limits: Record<string, number>; subgroups: boolean };
    software?: AdapterFacts;
  }
> {
  prepareDrivers();
  const best = await provider.adapter(false);
  const software = best && adapterFacts(best, provider).software ? best : await provider.adapter(true);
  const limits = Object.fromEntries(SHOWN_LIMITS.map((name) => [name, best?.limits[name] as number]));
  return {
    ...(best
      ? {
        best: { ...adapterFacts(best, provider), limits, subgroups: await grantsSubgroups(best, provider) },
      }
      : {}),
    ...(software ? { software: adapterFacts(software, provider) } : {}),
  };
}

/** Whether a device of the adapter has subgroups: Deno's adapters do not list them. */
async function grantsSubgroups(adapter: GPUAdapter, provider: Provider): Promise<boolean> {
  const opened = await requestDevice(adapter, provider).catch(() => undefined);
  const granted = opened?.features.has("subgroups") ?? false;
  opened?.destroy();
  return granted;
}

/** Whether subgroups are granted, and how large they are, in words. */
export const subgroupsOf = (
  { subgroups, simdWidth: least, subgroupMaxSize: most }: AdapterFacts & { subgroups: boolean },
): string =>
  subgroups
    ? `granted, of ${
      least === most ? least : `${least} to ${most}`
    } threads: for reductions of the gpu kernels`
    : "not granted: reductions use workgroup memory";

/** What the implementation of WebGPU that was not selected has, in lines, and whether it would bring tensor cores. */
export async function otherProvider(selected: Provider, adapter: AdapterFacts): Promise<string[]> {
  const name = selected.name === "dawn" ? "deno" : "dawn";
  if (name === "dawn" && dawnFolder() === undefined) {
    const cores = adapter.software ? "" : `; it reaches tensor cores, where a GPU has them: ${INSTALL_DAWN}`;
    return [`Dawn, which is not installed${cores}`];
  }
  let provider: Provider, found: GPUAdapter | undefined;
  try {
    provider = await openProvider(name);
    found = await provider.adapter(false) ?? undefined;
  } catch (error) {
    // It is not the one in use: what is wrong with it ends no command.
    if (!(error instanceof UsageError)) throw error;
    return [error.message];
  }
  if (!found) return [`${provider.title}, which finds no adapter: Dawn refuses old drivers`];
  const facts = adapterFacts(found, provider),
    cores = facts.software ? "" : "the tensor cores of this GPU, by ";
  return [
    `${provider.title}: --gpu ${name}`,
    `  features  ${usedFeatures(facts)}`,
    ...facts.matrices.length ? [`  matrices  ${cores}${matricesOf(facts)}`] : [],
  ];
}

/** The features of an adapter that tok may use. */
export const usedFeatures = ({ features }: AdapterFacts): string =>
  features.filter((name) => /f16|timestamp|subgroup/.test(name)).join(", ") || "none that tok uses";

/** Shapes of subgroup matrices in words. */
export const matricesOf = ({ matrices }: AdapterFacts): string =>
  matrices.map(({ componentType, resultComponentType, M, N, K }) =>
    `${componentType} to ${resultComponentType} ${M}x${N}x${K}`
  ).join(", ") || "none";

/**
 * The error where an implementation of WebGPU finds no adapter: the first thing that is missing, and the command that fixes it.
 * @param findings of {@link diagnose}
 */
export function noAdapter(
  { name, suffix }: Pick<Provider, "name" | "suffix">,
  findings: readonly Finding[] = diagnose(undefined),
): UsageError {
  const { problem, remedy } = findings[0] ??
    (name === "dawn"
      ? { problem: "it refuses old drivers", remedy: "do without --gpu dawn, or update the driver" }
      : { problem: "no driver answers", remedy: "install a Vulkan driver" });
  return new UsageError(`Cannot find any WebGPU adapter${suffix}: ${problem}; ${remedy}`);
}

/** Folders in which the Vulkan loader looks for manifests. */
const MANIFESTS = [
  "/usr/share/vulkan/icd.d",
  "/etc/vulkan/icd.d",
  "/usr/local/share/vulkan/icd.d",
  "/usr/local/etc/vulkan/icd.d",
];

/** Where NVIDIA's container runtime mounts manifests; the loader does not look there. */
const UNSEARCHED = "/usr/local/nvidia/share/vulkan/icd.d";

/** Whether the dynamic linker loads a library; true if that cannot be tried. */
function loads(library: string): boolean {
  try {
    Deno.dlopen(library, {}).close();
    return true;
  } catch (error) {
    return error instanceof Deno.errors.NotCapable;
  }
}

/** The library that a driver's manifest names; a path is relative to the manifest. */
function libraryOf(manifest: string, root: string): string | undefined {
  try {
    const path: unknown = JSON.parse(Deno.readTextFileSync(root + manifest))?.ICD?.library_path;
    if (typeof path !== "string" || path === "") return undefined;
    const folder = manifest.slice(0, manifest.lastIndexOf("/") + 1);
    return path.includes("/") && !path.startsWith("/") ? folder + path : path;
  } catch {
    return undefined;
  }
}

/**
 * Examines the machine, most basic things first.
 * @param root another root folder, for tests
 * @param canLoad whether the dynamic linker loads a library
 */
export function diagnose(
  adapter: AdapterFacts | undefined,
  root = "",
  environment: Record<string, string | undefined> = Deno.env.toObject(),
  canLoad: (library: string) => boolean = loads,
): Finding[] {
  if (Deno.build.os !== "linux") return [];
  const found: Finding[] = [];
  const list = (path: string) => {
    try {
      return [...Deno.readDirSync(root + path)].map(({ name }) => name);
    } catch {
      return [];
    }
  };
  const loaders = [
    "/usr/lib",
    "/usr/lib64",
    "/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/local/lib",
  ];
  if (!adapter && !loaders.some((folder) => list(folder).some((name) => name.startsWith("libvulkan.so")))) {
    found.push({ problem: "there is no Vulkan loader", remedy: "apt-get install -y libvulkan1" });
  }
  const nvidia = list("/dev").some((name) => /^nvidia(ctl|\d)/.test(name));
  const render = list("/dev/dri").filter((name) => name.startsWith("renderD"));
  const manifests = MANIFESTS.flatMap((folder) => list(folder).map((name) => `${folder}/${name}`))
    .filter((path) => path.endsWith(".json"));
  const answers = adapter ? `, so ${adapter.description} answers` : "";
  const variable = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].find((name) => environment[name] !== undefined);
  const named = variable === undefined ? [] : (environment[variable] ?? "").split(":").filter(Boolean);
  const absent = named.filter((path) => !isThere(root + path));
  for (const path of absent) {
    found.push({
      problem: `${variable} names "${path}", which is not there${answers}`,
      remedy: `unset ${variable}`,
    });
  }
  if (variable === undefined && !manifests.length) {
    found.push({
      problem: "there is no Vulkan driver manifest" +
        (adapter ? `, so ${adapter.description} answers through OpenGL, which is many times slower` : ""),
      remedy: "apt-get install -y libvulkan1 mesa-vulkan-drivers",
    });
  }
  // The drivers to check: those that the variable names, else those of a GPU that does not answer.
  const unanswered = !adapter || adapter.software;
  const expected = named.length
    ? named.filter((path) => !absent.includes(path))
    : manifests.filter((path) =>
      unanswered && (!adapter || (path.includes("nvidia") ? nvidia : render.length))
    );
  const broken = expected.flatMap((path) => {
    const library = libraryOf(path, root);
    return library !== undefined && !canLoad(library) ? [{ path, library }] : [];
  });
  for (const { path, library } of broken) {
    const install = library.includes("nvidia")
      ? "in a container: start it with -e NVIDIA_DRIVER_CAPABILITIES=all; else install the driver's libraries " +
        "(libnvidia-gl)"
      : "install the package that the manifest belongs to again";
    found.push({
      problem: `the driver's library ${library}, which "${path}" names, cannot be loaded${answers}`,
      remedy: named.length ? `${install}; or unset ${variable}` : install,
    });
  }
  const mounted = list(UNSEARCHED).find((name) => name.endsWith(".json"));
  const visible = [...manifests, ...named].some((name) => name.includes("nvidia"));
  if (nvidia && unanswered && !visible && mounted !== undefined) {
    found.push({
      problem:
        `an NVIDIA GPU is plugged in, but its Vulkan manifest is in ${UNSEARCHED}, where nothing looks for it`,
      remedy: `export VK_DRIVER_FILES=${UNSEARCHED}/${mounted}`,
    });
  } else if (nvidia && !visible) {
    found.push({
      problem: "an NVIDIA GPU is plugged in, but its Vulkan driver is not visible here",
      remedy:
        "in a container: start it with -e NVIDIA_DRIVER_CAPABILITIES=all; else install the driver's graphics part (libnvidia-gl)",
    });
  }
  // The driver loads without them, but then gives no Vulkan instance.
  const settled = !nvidia || !unanswered || !visible || broken.length;
  const lacking = settled ? [] : ["libEGL.so.1", "libGLX.so.0"].filter((library) => !canLoad(library));
  if (lacking.length) {
    found.push({
      problem: `NVIDIA's Vulkan driver needs ${lacking.join(" and ")}, which cannot be loaded${answers}`,
      remedy: "apt-get install -y libegl1 libglx0",
    });
  }
  for (const [folder, names] of [["/dev/dri", render], ["/dev", nvidia ? ["nvidiactl"] : []]] as const) {
    for (const name of names) {
      try {
        Deno.openSync(`${root}${folder}/${name}`, { read: true, write: true }).close();
      } catch (error) {
        if (error instanceof Deno.errors.PermissionDenied) {
          found.push({
            problem: `there is no permission on ${folder}/${name}`,
            remedy: "sudo usermod -aG render,video $USER, then log in again",
          });
        }
      }
    }
  }
  if (adapter?.software && (nvidia || render.length) && !broken.length && !absent.length) {
    found.push({
      problem: `a GPU is plugged in, but only ${adapter.description} answers`,
      remedy: "install the GPU's Vulkan driver; mesa-vulkan-drivers serves AMD and Intel",
    });
  }
  return found;
}
