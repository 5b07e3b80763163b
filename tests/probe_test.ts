// What tok says about a machine without a proper adapter: the reason and the command that mends it.

import { assertEquals, assertMatch } from "@std/assert";
import type { AdapterFacts } from "../src/gpu/device.ts";
import { diagnose } from "../src/gpu/probe.ts";

const LLVMPIPE: AdapterFacts = {
  vendor: "",
  architecture: "",
  description: "llvmpipe",
  software: true,
  lanes: 8,
  features: [],
};

/** A root folder with these (empty) files; gone after `body`. */
function withRoot(files: readonly string[], body: (root: string) => void) {
  const root = Deno.makeTempDirSync();
  try {
    for (const file of files) {
      Deno.mkdirSync(`${root}${file.slice(0, file.lastIndexOf("/"))}`, { recursive: true });
      Deno.writeTextFileSync(root + file, "");
    }
    body(root);
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
}

const LOADER = "/usr/lib/x86_64-linux-gnu/libvulkan.so.1";
const LAVAPIPE = "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json";
const problems = (adapter: AdapterFacts | undefined, root: string, environment = {}) =>
  diagnose(adapter, root, environment).map(({ problem }) => problem).join("; ");

const onLinux = Deno.build.os === "linux";

Deno.test("diagnose() names the missing loader, the missing driver, and what installs them", () => {
  withRoot([], (root) => {
    const found = diagnose(undefined, root, {});
    assertEquals(
      found.map(({ remedy }) => remedy),
      onLinux ? ["apt-get install -y libvulkan1", "apt-get install -y libvulkan1 mesa-vulkan-drivers"] : [],
    );
  });
});

Deno.test("diagnose() finds nothing wrong with a software adapter on a machine without a GPU", () => {
  withRoot([LOADER, LAVAPIPE], (root) => assertEquals(diagnose(LLVMPIPE, root, {}), []));
});

if (onLinux) {
  Deno.test("diagnose() tells an adapter that answers through OpenGL from one that has Vulkan", () => {
    withRoot([LOADER], (root) => assertMatch(problems(LLVMPIPE, root), /^there is no Vulkan .*OpenGL/));
  });

  Deno.test("diagnose() sees a GPU whose driver is invisible, as in a container without the graphics part", () => {
    withRoot([LOADER, LAVAPIPE, "/dev/nvidiactl"], (root) => {
      assertMatch(problems(LLVMPIPE, root), /NVIDIA GPU is plugged in.*only llvmpipe answers/);
    });
    withRoot([LOADER, LAVAPIPE, "/dev/dri/renderD128"], (root) => {
      assertMatch(problems(LLVMPIPE, root), /^a GPU is plugged in, but only llvmpipe answers$/);
    });
  });

  Deno.test("diagnose() finds a driver named in the environment that is not there", () => {
    withRoot([LOADER, LAVAPIPE], (root) => {
      const named = { VK_DRIVER_FILES: "/nowhere.json" };
      assertMatch(problems(undefined, root, named), /^VK_DRIVER_FILES names "\/nowhere.json"/);
    });
  });
}
