// Why a machine has no adapter, or only a software one, and the command that mends it. The usual reasons on headless boxes:
// no Vulkan loader, no driver manifest, a container without the graphics capability, no permission on the device files.

import { UsageError } from "../errors.ts";
import { type AdapterFacts, adapterFacts, prepareDrivers } from "./device.ts";

export interface Finding {
  problem: string;
  remedy: string;
}

/** What can be asked for: the best adapter and the software one, where they answer. */
export async function adapters(): Promise<
  { best?: AdapterFacts & { limits: Record<string, number> }; software?: AdapterFacts }
> {
  prepareDrivers();
  const best = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  const software = await navigator.gpu.requestAdapter({ forceFallbackAdapter: true });
  const {
    maxBufferSize,
    maxStorageBufferBindingSize,
    maxComputeWorkgroupStorageSize,
    maxComputeInvocationsPerWorkgroup,
  } = best?.limits ?? {};
  const limits = {
    maxBufferSize,
    maxStorageBufferBindingSize,
    maxComputeWorkgroupStorageSize,
    maxComputeInvocationsPerWorkgroup,
  };
  return {
    ...(best ? { best: { ...adapterFacts(best), limits: limits as Record<string, number> } } : {}),
    ...(software ? { software: adapterFacts(software) } : {}),
  };
}

/** The error for a machine without an adapter: the first thing that is missing, and the command that mends it. */
export function noAdapter(): UsageError {
  const [first] = diagnose(undefined);
  const { problem, remedy } = first ?? { problem: "no driver answers", remedy: "install a Vulkan driver" };
  return new UsageError(`Cannot find any WebGPU adapter: ${problem}; ${remedy}`);
}

/** Looks at the machine, most basic things first. `root` is another root folder, for tests. */
export function diagnose(
  adapter: AdapterFacts | undefined,
  root = "",
  environment: Record<string, string | undefined> = Deno.env.toObject(),
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
  const manifests = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"].flatMap(list).filter((name) =>
    name.endsWith(".json")
  );
  const named = environment.VK_DRIVER_FILES ?? environment.VK_ICD_FILENAMES;
  if (named !== undefined) {
    for (const file of named.split(":")) {
      try {
        Deno.statSync(root + file);
      } catch {
        found.push({
          problem: `VK_DRIVER_FILES names "${file}", which is not there`,
          remedy: "unset VK_DRIVER_FILES",
        });
      }
    }
  } else if (!manifests.length) {
    found.push({
      problem: "there is no Vulkan driver manifest" +
        (adapter ? `, so ${adapter.description} answers through OpenGL, which is many times slower` : ""),
      remedy: "apt-get install -y libvulkan1 mesa-vulkan-drivers",
    });
  }
  if (nvidia && !manifests.some((name) => name.includes("nvidia"))) {
    found.push({
      problem: "an NVIDIA GPU is plugged in, but its Vulkan driver is not visible here",
      remedy:
        "in a container: start it with -e NVIDIA_DRIVER_CAPABILITIES=all; else install the driver's graphics part (libnvidia-gl)",
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
  if (adapter?.software && (nvidia || render.length)) {
    found.push({
      problem: `a GPU is plugged in, but only ${adapter.description} answers`,
      remedy: "install the GPU's Vulkan driver; mesa-vulkan-drivers serves AMD and Intel",
    });
  }
  return found;
}
