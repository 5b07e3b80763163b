// What tok reports on a machine without a proper adapter: the reason and the command that fixes it.

import { assertEquals, assertMatch } from "@std/assert";
import type { AdapterFacts } from "../../src/gpu/device.ts";
import { diagnose, noAdapter } from "../../src/gpu/diagnose.ts";

const LLVMPIPE: AdapterFacts = {
  vendor: "",
  architecture: "",
  description: "llvmpipe",
  software: true,
  simdWidth: 8,
  subgroupMaxSize: 8,
  matrices: [],
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
  Deno.test("diagnose() distinguishes an adapter through OpenGL from one with Vulkan", () => {
    withRoot([LOADER], (root) => assertMatch(problems(LLVMPIPE, root), /^there is no Vulkan .*OpenGL/));
  });

  Deno.test("diagnose() finds a GPU whose driver is not visible, as in a container without graphics libraries", () => {
    withRoot([LOADER, LAVAPIPE, "/dev/nvidiactl"], (root) => {
      assertMatch(problems(LLVMPIPE, root), /NVIDIA GPU is plugged in.*only llvmpipe answers/);
    });
    withRoot([LOADER, LAVAPIPE, "/dev/dri/renderD128"], (root) => {
      assertMatch(problems(LLVMPIPE, root), /^a GPU is plugged in, but only llvmpipe answers$/);
    });
  });

  Deno.test("diagnose() finds a missing driver that an environment variable names", () => {
    withRoot([LOADER, LAVAPIPE], (root) => {
      for (const variable of ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"]) {
        assertEquals(diagnose(LLVMPIPE, root, { [variable]: "/nowhere.json" }), [{
          problem: `${variable} names "/nowhere.json", which is not there, so llvmpipe answers`,
          remedy: `unset ${variable}`,
        }]);
      }
      // The loader takes the first of them and does not look at the second.
      const both = { VK_DRIVER_FILES: LAVAPIPE, VK_ICD_FILENAMES: "/nowhere.json" };
      assertEquals(diagnose(LLVMPIPE, root, both), []);
    });
  });

  const NVIDIA = "/usr/share/vulkan/icd.d/nvidia_icd.json", LIBRARY = "libGLX_nvidia.so.0";
  const manifest = (library: string) =>
    JSON.stringify({ ICD: { library_path: library, api_version: "1.3.0" } });
  const lost = {
    problem:
      `the driver's library ${LIBRARY}, which "${NVIDIA}" names, cannot be loaded, so llvmpipe answers`,
    remedy:
      "in a container: start it with -e NVIDIA_DRIVER_CAPABILITIES=all; else install the driver's libraries " +
      "(libnvidia-gl)",
  };

  Deno.test("diagnose() reports a driver library that cannot be loaded instead of advising to install the driver", () => {
    withRoot([LOADER, LAVAPIPE, NVIDIA, "/dev/nvidiactl"], (root) => {
      Deno.writeTextFileSync(root + NVIDIA, manifest(LIBRARY));
      assertEquals(diagnose(LLVMPIPE, root, {}, () => false), [lost]);
      assertMatch(
        diagnose(LLVMPIPE, root, {}, () => true).map(({ problem }) => problem).join(),
        /^a GPU is plugged in, but only llvmpipe answers$/,
      );
      // A GPU that answers needs no other driver.
      assertEquals(diagnose({ ...LLVMPIPE, software: false }, root, {}, () => false), []);
    });
  });

  Deno.test("diagnose() finds a mounted NVIDIA driver that nothing looks for, or that lacks libraries of OpenGL", () => {
    const folder = "/usr/local/nvidia/share/vulkan/icd.d", mounted = `${folder}/nvidia_icd.json`;
    withRoot([LOADER, "/etc/vulkan/icd.d/other.json", mounted, "/dev/nvidiactl"], (root) => {
      Deno.writeTextFileSync(root + mounted, manifest(LIBRARY));
      assertEquals(diagnose(undefined, root, {}, () => true).map(({ remedy }) => remedy), [
        `export VK_DRIVER_FILES=${mounted}`,
      ]);
      const found = diagnose(undefined, root, { VK_DRIVER_FILES: mounted }, (name) => name !== "libEGL.so.1");
      assertEquals(found, [{
        problem: "NVIDIA's Vulkan driver needs libEGL.so.1, which cannot be loaded",
        remedy: "apt-get install -y libegl1 libglx0",
      }]);
    });
  });

  Deno.test("diagnose() finds the library of a manifest in an environment variable, also without a GPU", () => {
    withRoot([LOADER, LAVAPIPE, NVIDIA], (root) => {
      Deno.writeTextFileSync(root + NVIDIA, manifest(LIBRARY));
      assertEquals(diagnose(LLVMPIPE, root, { VK_ICD_FILENAMES: NVIDIA }, () => false), [
        { ...lost, remedy: `${lost.remedy}; or unset VK_ICD_FILENAMES` },
      ]);
      // Nobody asked for NVIDIA's driver, and there is no such GPU.
      assertEquals(diagnose(LLVMPIPE, root, {}, () => false), []);
      const asked: string[] = [];
      Deno.writeTextFileSync(root + NVIDIA, manifest("../lib/driver.so"));
      diagnose(LLVMPIPE, root, { VK_ICD_FILENAMES: NVIDIA }, (library) => asked.push(library) > 0);
      assertEquals(asked, ["/usr/share/vulkan/icd.d/../lib/driver.so"]);
    });
  });

  Deno.test("diagnose() asks the dynamic linker", () => {
    withRoot([LOADER, NVIDIA], (root) => {
      const problem = (library: string) => {
        Deno.writeTextFileSync(root + NVIDIA, manifest(library));
        return problems(LLVMPIPE, root, { VK_ICD_FILENAMES: NVIDIA });
      };
      assertMatch(problem("libno_such_driver.so.0"), /libno_such_driver.so.0.*cannot be loaded/);
      assertEquals(problem("libc.so.6"), "");
    });
  });
}

Deno.test("where no adapter answers, the error names what is missing, else what to do about the implementation", () => {
  const deno = { name: "deno", suffix: "" } as const,
    dawn = { name: "dawn", suffix: " through Dawn" } as const;
  const missing = [{ problem: "there is no Vulkan loader", remedy: "apt-get install -y libvulkan1" }];
  for (
    const [provider, findings, expected] of [
      [
        deno,
        missing,
        "Cannot find any WebGPU adapter: there is no Vulkan loader; apt-get install -y libvulkan1",
      ],
      [deno, [], "Cannot find any WebGPU adapter: no driver answers; install a Vulkan driver"],
      [
        dawn,
        [],
        "Cannot find any WebGPU adapter through Dawn: it refuses old drivers; do without --gpu dawn, or update the driver",
      ],
    ] as const
  ) assertEquals(noAdapter(provider, findings).message, expected);
});
