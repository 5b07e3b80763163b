// Name and version of the Vulkan driver behind an adapter: WebGPU does not say them, and the same processor computes at different
// rates with different versions of Mesa. Asked of the Vulkan loader, which wgpu has loaded too; only Linux has it for certain.

import type { Provider } from "./provider.ts";
import { prepareDrivers } from "./software/prepare.ts";

const LOADER = {
  vkCreateInstance: { parameters: ["buffer", "pointer", "buffer"], result: "i32" },
  vkDestroyInstance: { parameters: ["pointer", "pointer"], result: "void" },
  vkEnumeratePhysicalDevices: { parameters: ["pointer", "buffer", "buffer"], result: "i32" },
  vkGetPhysicalDeviceProperties2: { parameters: ["pointer", "buffer"], result: "void" },
} as const;

/** VkStructureType. */
const INSTANCE_CREATE_INFO = 1,
  PROPERTIES_2 = 1000059001,
  DRIVER_PROPERTIES = 1000196000;
const VULKAN_1_2 = (1 << 22) | (2 << 12);
/** Bytes of VkPhysicalDeviceProperties2 (64-bit) and offset of its deviceName; the same of VkPhysicalDeviceDriverProperties. */
const PROPERTIES = { bytes: 840, name: 16 + 20 };
const DRIVER = { bytes: 536, name: 20, info: 276 };

/**
 * Driver and version ("llvmpipe, Mesa 22.3.6 (LLVM 15.0.6)") of the adapter; undefined where no Vulkan driver has that name.
 * @param suffix what the implementation of WebGPU appended to the name
 */
export function driverOf(
  { description }: { description: string },
  { suffix }: Pick<Provider, "suffix"> = { suffix: "" },
): string | undefined {
  if (Deno.build.os !== "linux") return undefined;
  prepareDrivers();
  let vulkan;
  try {
    vulkan = Deno.dlopen("libvulkan.so.1", LOADER);
  } catch {
    return undefined; // no loader, or no permission
  }
  try {
    const name = description.endsWith(suffix)
      ? description.slice(0, -suffix.length || undefined)
      : description;
    return drivers(vulkan.symbols).get(name);
  } finally {
    vulkan.close();
  }
}

/** Driver and version by the name of the device, and by the driver's own name. */
function drivers(vulkan: Deno.DynamicLibrary<typeof LOADER>["symbols"]): Map<string, string> {
  const found = new Map<string, string>();
  // VkInstanceCreateInfo, and the VkApplicationInfo (of type 0) that it points to.
  const create = struct(64 + 48, INSTANCE_CREATE_INFO);
  setPointer(create, 24, create, 64);
  create.setUint32(64 + 44, VULKAN_1_2, true);
  const handle = new BigUint64Array(1);
  if (vulkan.vkCreateInstance(create, null, handle) !== 0) return found;
  const instance = Deno.UnsafePointer.create(handle[0] as bigint), count = new Uint32Array([16]);
  const devices = new BigUint64Array(count[0] as number);
  if (vulkan.vkEnumeratePhysicalDevices(instance, count, devices) >= 0) {
    for (const device of devices.subarray(0, count[0])) {
      const properties = struct(PROPERTIES.bytes, PROPERTIES_2),
        driver = struct(DRIVER.bytes, DRIVER_PROPERTIES);
      setPointer(properties, 8, driver);
      vulkan.vkGetPhysicalDeviceProperties2(Deno.UnsafePointer.create(device), properties);
      const parts = [text(driver, DRIVER.name), text(driver, DRIVER.info)].filter(Boolean);
      if (!parts.length) continue;
      found.set(text(properties, PROPERTIES.name), parts.join(", "));
      found.set(parts.join(": "), parts.join(", ")); // what Dawn describes an adapter by
    }
  }
  vulkan.vkDestroyInstance(instance, null);
  return found;
}

/** A Vulkan struct of zeros but for its type. */
function struct(bytes: number, type: number): DataView<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(bytes));
  view.setUint32(0, type, true);
  return view;
}

function setPointer(view: DataView, offset: number, to: DataView<ArrayBuffer>, by = 0): void {
  const address = Deno.UnsafePointer.value(Deno.UnsafePointer.of(to));
  view.setBigUint64(offset, BigInt(address) + BigInt(by), true);
}

/** A string of at most 255 bytes that ends with a zero. */
function text(view: DataView<ArrayBuffer>, offset: number): string {
  const bytes = new Uint8Array(view.buffer, offset, 256), end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? 256 : end));
}
