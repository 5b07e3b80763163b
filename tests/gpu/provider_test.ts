// The implementations of WebGPU: which one opens, what it says when it cannot, and how a process ends that used it. The tests run
// with the one that TOK_GPU selects; tasks/dev/dawn.sh runs them with Dawn.

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { GpuError, OutOfMemoryError, UsageError } from "../../src/errors.ts";
import { device, requestDevice } from "../../src/gpu/device.ts";
import { adapters, subgroupsOf } from "../../src/gpu/diagnose.ts";
import { kernel } from "../../src/gpu/kernel.ts";
import { capture } from "../../src/gpu/program.ts";
import { dawnFolder, loadDawn, openProvider, PROVIDERS } from "../../src/gpu/provider.ts";
import { addInPlace } from "../../src/gpu/memory.ts";
import { readBuffer } from "../../src/gpu/readback.ts";
import { variable } from "../../src/tensor/tensor.ts";
import { testDevice } from "../helpers/check.ts";

const selected = Deno.env.get("TOK_GPU") ?? "deno", script = new URL("provider_process.ts", import.meta.url);
// --quiet: the error stream is tok's alone, without Deno's lines about what it downloads.
const tok = async (args: string[], env: Record<string, string> = {}) => {
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "-A", "--no-check", "--no-lock", ...args],
    env,
  }).output();
  return { code, text: new TextDecoder().decode(stderr).replace(/^Warning: max.*\n/gm, "") };
};

Deno.test("Deno's own WebGPU is the default; an unknown implementation is an error", async () => {
  assertEquals((await openProvider("")).name, "deno");
  assertEquals((await openProvider("deno")).name, "deno");
  assertEquals(PROVIDERS, ["deno", "dawn"]);
  await assertRejects(
    () => openProvider("wgpu"),
    UsageError,
    'implementation "wgpu"; TOK_GPU is one of deno, dawn',
  );
});

Deno.test("deno.lock and the sources do not name Dawn's package, so that no install downloads it", () => {
  const top = new URL("../../", import.meta.url);
  assert(!/webgpu/.test(Deno.readTextFileSync(new URL("deno.lock", top))));
  for (const file of ["deno.json", "src/gpu/provider.ts"]) {
    assert(!/(import|from)[ (]*["'`](npm:)?webgpu/.test(Deno.readTextFileSync(new URL(file, top))), file);
  }
});

Deno.test("Dawn's package is found in TOK_DAWN or in Deno's npm cache on each system", () => {
  const home = Deno.makeTempDirSync();
  try {
    const inCache = (cache: string) => `${cache}/npm/registry/webgpu/0.6.2`;
    for (
      const [os, cache, environment] of [
        ["linux", `${home}/.cache/deno`, {}],
        ["linux", `${home}/xdg/deno`, { XDG_CACHE_HOME: `${home}/xdg` }],
        ["darwin", `${home}/Library/Caches/deno`, {}],
        ["windows", `${home}/local/deno`, { LOCALAPPDATA: `${home}/local` }],
        ["linux", `${home}/dir`, { DENO_DIR: `${home}/dir` }],
      ] as const
    ) {
      const found = () => dawnFolder({ HOME: home, ...environment }, os);
      assertEquals(found(), undefined, cache);
      Deno.mkdirSync(inCache(cache), { recursive: true });
      assertEquals(found(), undefined, "no module in it");
      Deno.writeTextFileSync(`${inCache(cache)}/index.js`, "");
      assertEquals(found(), inCache(cache));
      Deno.removeSync(cache, { recursive: true });
    }
    assertEquals(dawnFolder({ HOME: home, TOK_DAWN: "/a" }), "/a");
  } finally {
    Deno.removeSync(home, { recursive: true });
  }
});

Deno.test({
  name: "where Dawn's package is missing, the error says how to get it",
  ignore: selected === "dawn", // it is loaded
  fn: async () =>
    void await assertRejects(
      () => openProvider("dawn", () => undefined),
      UsageError,
      'Cannot use Dawn: npm:webgpu@0.6.2 is not in Deno\'s cache; run "deno cache --no-lock npm:webgpu@0.6.2", or set TOK_DAWN',
    ),
});

Deno.test("where Dawn's package cannot be loaded, --gpu dawn is one line and exit code 2", async () => {
  const main = new URL("../../main.ts", import.meta.url).pathname, empty = Deno.makeTempDirSync();
  try {
    const { code, text } = await tok([main, "doctor", "--gpu", "dawn"], { TOK_DAWN: empty, NO_COLOR: "1" });
    assertEquals(code, 2, text);
    assertMatch(text, /^tok: Cannot use Dawn: "[^"]*" cannot be loaded \(.*\); do without --gpu dawn\n$/);
  } finally {
    Deno.removeSync(empty);
  }
});

Deno.test("tok doctor goes on where the implementation that is not selected cannot be loaded", async () => {
  const main = new URL("../../main.ts", import.meta.url).pathname, empty = Deno.makeTempDirSync();
  try {
    const { code, text } = await tok([main, "doctor", "--gpu", "deno"], { TOK_DAWN: empty, NO_COLOR: "1" });
    assertEquals(code, 0, text);
    assertMatch(text, /^ +or +Cannot use Dawn: "[^"]*" cannot be loaded/m);
    assertMatch(text, /^tiles /m);
  } finally {
    Deno.removeSync(empty);
  }
});

Deno.test("Dawn gets the toggles of TOK_DAWN_TOGGLES, and --cpu another instance if the best adapter is a GPU", async () => {
  const folder = Deno.makeTempDirSync(), asked: string[][] = [];
  const create = (options: string[]) => {
    asked.push(options);
    const [name] = options.flatMap((option) => option.startsWith("adapter=") ? option.slice(8) : []);
    if (name === "llvmpipe") throw new Error("no suitable backends found");
    return { requestAdapter: () => Promise.resolve({ info: { description: name ?? "a GPU" } }) };
  };
  try {
    Object.assign(globalThis, { createForTest: create });
    Deno.writeTextFileSync(
      `${folder}/index.js`,
      "export const create = (options) => globalThis.createForTest(options);",
    );
    const { adapter, name } = await loadDawn(folder, "disable_robustness,skip_validation");
    assertEquals(name, "dawn");
    assertEquals((await adapter(false))?.info.description, "a GPU");
    const [first = []] = asked;
    assertEquals(first, [
      "enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia,disable_robustness,skip_validation",
      "disable-dawn-features=timestamp_quantization",
    ]);
    assertEquals((await adapter(true))?.info.description, "SwiftShader");
    assertEquals(asked.slice(2), ["llvmpipe", "SwiftShader"].map((name) => [...first, `adapter=${name}`]));
  } finally {
    Reflect.deleteProperty(globalThis, "createForTest");
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("no kernel mixes && and || without parentheses, which naga accepts and Dawn refuses", () => {
  const folder = new URL("../../kernels/", import.meta.url);
  const mixes = (text: string): boolean => {
    for (let inner = /\(([^()]*)\)/.exec(text); inner; inner = /\(([^()]*)\)/.exec(text)) {
      if (/&&/.test(inner[1] ?? "") && /\|\|/.test(inner[1] ?? "")) return true;
      text = text.replace(inner[0], "_");
    }
    return text.split(/[;{}]/).some((statement) => statement.includes("&&") && statement.includes("||"));
  };
  assert(
    mixes("if (f(1) && b || c) {}") && mixes("let x = a && b || c;") && !mixes("if ((a && b) || f(c)) {}"),
  );
  const files = [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) =>
    name.endsWith(".wgsl")
  );
  assert(files.length > 10);
  const texts = files.map((name) => Deno.readTextFileSync(new URL(name, folder)).replace(/\/\/.*/g, ""));
  assertEquals(files.filter((_, i) => mixes(texts[i] as string)), []);
});

Deno.test("subgroups are requested though Deno's adapters do not list them, and done without where that is refused", async () => {
  const provider = await openProvider("deno");
  for (const refuses of [false, true]) {
    const asked: string[][] = [];
    const adapter = {
      limits: {},
      features: new Set(["shader-f16", "float32-filterable"]),
      requestDevice({ requiredFeatures = [] }: { requiredFeatures?: string[] }) {
        asked.push(requiredFeatures);
        return refuses && requiredFeatures.includes("subgroups")
          ? Promise.reject(new TypeError("requiredFeatures must be a subset of the adapter features"))
          : Promise.resolve(requiredFeatures);
      },
    };
    const granted: unknown = await requestDevice(adapter as unknown as GPUAdapter, provider);
    assertEquals(granted, refuses ? ["shader-f16"] : ["shader-f16", "subgroups"]);
    assertEquals(asked.length, refuses ? 2 : 1);
  }
});

Deno.test("doctor says whether subgroups are granted, and of what size", async () => {
  const { provider, facts } = await testDevice(), { best } = await adapters(provider);
  assertEquals(best?.subgroups, device().has("subgroups"));
  const sized = { ...facts, simdWidth: 32, subgroupMaxSize: 32 };
  assertMatch(subgroupsOf({ ...sized, subgroups: true }), /^granted, of 32 threads/);
  assertMatch(
    subgroupsOf({ ...sized, subgroups: true, subgroupMaxSize: 64 }),
    /^granted, of 32 to 64 threads/,
  );
  assertMatch(subgroupsOf({ ...sized, subgroups: false }), /^not granted/);
});

Deno.test("a kernel's enable directives come first, and compile", async () => {
  const { provider } = await testDevice();
  const wgsl = kernel(
    "enable f16; enable subgroups;\nvar<storage> x: array<f32>;\n@compute @workgroup_size(8) fn main(id: Invocation) { store_x(id.thread, 1.0); }",
    "main",
  ).wgsl;
  assertMatch(wgsl, /^enable f16;\nenable subgroups;\n/);
  assertEquals(provider.wgsl(wgsl).startsWith("enable f16;\nenable subgroups;\n"), selected === "dawn");
  assert(provider.wgsl(wgsl).startsWith("enable f16;\n"));
});

Deno.test("the device has the features that its implementation asks for and the adapter lists", async () => {
  const { provider, facts, gpu } = await testDevice();
  assertEquals(provider.name, selected);
  for (const feature of provider.features) {
    assertEquals(device().has(feature), facts.features.includes(feature), feature);
    assertEquals(gpu.features.has(feature), device().has(feature));
  }
  assertEquals(facts.matrices.length > 0, device().has("chromium-experimental-subgroup-matrix"));
  assert(facts.subgroupMaxSize >= facts.simdWidth);
});

Deno.test("fp16 values are uploaded, and reads that overlap a run see it complete", async () => {
  await testDevice();
  const bits = new Uint16Array(new Float16Array([1, -2, 0.5, 65504, 2 ** -24, 0]).buffer);
  const half = variable([6], { dtype: "f16", init: () => bits });
  const sum = variable([300], { init: () => new Float32Array(300) });
  const one = variable([300], { init: () => new Float32Array(300).fill(1) });
  const program = await capture("t", {}, () => (addInPlace(one, sum), {})).prepare();
  const reads: Promise<ArrayBuffer>[] = [];
  for (let k = 0; k < 8; k++) { // the next run is submitted while a read is pending
    program.run();
    reads.push(readBuffer(sum.storage.buffer, 0, 1200));
  }
  const read = await Promise.all(reads);
  read.forEach((bytes, k) => assertEquals(new Float32Array(bytes), new Float32Array(300).fill(k + 1)));
  assertEquals(new Uint16Array(await half.storage.read()), bits);
  program.destroy();
  for (const { storage } of [half, sum, one]) storage.destroy();
});

/** Creates and destroys a buffer. */
const make = (size: number, usage: number) =>
  device().scoped("allocate", () => device().gpu.createBuffer({ size, usage }).destroy());

Deno.test("errors of compilation and validation are thrown without the implementation's call stack", async () => {
  await testDevice();
  const bad = "@compute @workgroup_size(1) fn main() { let x: u32 = 1.5; }";
  const build = () =>
    device().scoped(
      'compile kernel "x"',
      () =>
        device().gpu.createComputePipeline({
          layout: "auto",
          compute: { module: device().gpu.createShaderModule({ code: bad }) },
        }),
    );
  const compile = await assertRejects(build, GpuError, 'Cannot compile kernel "x": ');
  assertMatch(compile.message, /let x: u32 = 1\.5/);
  const invalid = await assertRejects(() => make(16, 0xffff), GpuError, "Cannot allocate: ");
  for (const { message } of [compile, invalid]) assert(!/While calling|\n +at /.test(message), message);
});

Deno.test({
  name: "an error of memory says what to do",
  ignore: selected !== "dawn", // Deno's own reports what the driver does, and llvmpipe gives memory that is not there
  async fn() {
    await testDevice();
    const full = await assertRejects(() => make(device().limits.maxBufferSize, 0x80), OutOfMemoryError);
    assertMatch(full.message, /^Cannot allocate: out of device memory \([^\n]*\); use a smaller batch/);
  },
});

Deno.test("a process that opens the device ten times and loses it says so, and ends like one that did not", async () => {
  const { code, text } = await tok([script.pathname]);
  assertEquals(text.trim().split("\n"), [
    ...Array.from({ length: 10 }, (_, i) => `sum ${10 * i}`),
    "reported: Cannot go on: the device reported an error",
    "lost: Cannot go on: the device was lost",
    "read: Cannot go on: the device was lost",
    "end",
  ]);
  assertEquals(code, 0);
});
