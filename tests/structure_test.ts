// The layout of the project, enforced: which way imports point, who may touch the device, how long a file may be.

import { assertEquals } from "@std/assert";
import { fromFileUrl, join, relative } from "@std/path";

const TOP = fromFileUrl(new URL("..", import.meta.url));

function files(folder: string, extension: RegExp): string[] {
  return [...Deno.readDirSync(join(TOP, folder))].flatMap(({ name, isDirectory }) => {
    const path = join(folder, name);
    if (isDirectory) return name === "fixtures" || name === "node_modules" ? [] : files(path, extension);
    return extension.test(name) ? [path] : [];
  }).sort();
}

const read = (path: string) => Deno.readTextFileSync(join(TOP, path));
const SOURCES = [
  "main.ts",
  "mod.ts",
  ...["src", "tasks", "kernels", "tests"].flatMap((f) => files(f, /\.ts$/)),
]
  .filter((path) => !path.endsWith(".d.ts"));
const WGSL = files("kernels", /\.wgsl$/);

/** Paths that a file imports, relative to the top. */
function imports(path: string): string[] {
  return [...read(path).matchAll(/^(?:import|export)[^;]*?from\s+"(\.[^"]+)"/gm)]
    .map((m) => relative(TOP, join(TOP, path, "..", m[1] as string)));
}

/** The layers, lowest first; a file may import its own layer and lower ones. */
const LAYERS: [RegExp, number][] = [
  [/^src\/(bounds|errors|interruption|philox)\.ts$|^kernels\/|^src\/types\//, 0],
  [/^src\/gpu\//, 1],
  [/^src\/tensor\//, 2],
  [/^src\/(formats|image)\//, 3],
  [/^src\/(data|run)\//, 5],
  [/^src\/ops\//, 5],
  [/^src\/nn\//, 6],
  [/^src\/models\//, 7],
  [/^src\/bench\//, 7],
  [/^src\/zoo\//, 8],
  [/^src\/cli\/(config|eval_config|sweep_config|presets|grades|explain)\.ts$|^src\/(metrics|train)\//, 9],
  [/^src\/cli\//, 4],
  [/^src\/(sampling|experiment)\//, 10],
  [/^tasks\//, 11],
  [/^(main|mod)\.ts$|^deno\.json$/, 12],
];
const layer = (path: string) => LAYERS.find(([pattern]) => pattern.test(path))?.[1] ?? NaN;
const product = SOURCES.filter((path) => !path.startsWith("tests/"));

Deno.test("imports point downwards only", () => {
  const wrong = product.flatMap((path) =>
    imports(path).filter((to) => !(layer(to) <= layer(path)) && to !== "deno.json").map((to) =>
      `${path} -> ${to}`
    )
  );
  assertEquals(wrong, []);
});

Deno.test("there are no import cycles", () => {
  const cycles: string[] = [];
  const state = new Map<string, "open" | "done">();
  const visit = (path: string, trail: string[]) => {
    if (state.get(path) === "done" || !path.endsWith(".ts")) return;
    if (state.get(path) === "open") {
      return void cycles.push([...trail.slice(trail.indexOf(path)), path].join(" -> "));
    }
    state.set(path, "open");
    for (const to of imports(path)) visit(to, [...trail, path]);
    state.set(path, "done");
  };
  for (const path of product) visit(path, []);
  assertEquals(cycles, []);
});

Deno.test("only src/gpu uses GPUDevice", () => {
  assertEquals(product.filter((p) => !p.startsWith("src/gpu/") && /\bGPUDevice\b/.test(read(p))), []);
});

Deno.test("only ops and the engine's own memory import kernels", () => {
  const wrong = product.filter((path) =>
    !/^(src\/ops\/|src\/bench\/peak_kernel\.ts|src\/gpu\/(memory|elementwise)\.ts|kernels\/)/.test(path) &&
    imports(path).some((to) => to.startsWith("kernels/"))
  );
  assertEquals(wrong, []);
});

Deno.test("only main.ts and development scripts read the command line or exit", () => {
  const wrong = product.filter((p) =>
    p !== "main.ts" && !p.startsWith("tasks/dev/") && /Deno\.(args|exit)\b/.test(read(p))
  );
  assertEquals(wrong, []);
});

Deno.test("no file is longer than 400 lines, or called utils or index", () => {
  assertEquals([...SOURCES, ...WGSL].filter((path) => read(path).split("\n").length > 401), []);
  assertEquals(SOURCES.filter((path) => /\/(utils|index)\.ts$/.test(path)), []);
});

Deno.test("a command is at most 150 lines, and captures no program", () => {
  const tasks = SOURCES.filter((path) => /^tasks\/[^/]+$/.test(path));
  assertEquals(tasks.filter((path) => read(path).split("\n").length > 151), []);
  assertEquals(tasks.filter((path) => /\b(capture|noGrad)\(/.test(read(path))), []);
});

Deno.test("every file begins with a header that says what it owns", () => {
  assertEquals([...SOURCES, ...WGSL].filter((path) => !/^(\/\/ |\/\*\*)/.test(read(path))), []);
});

Deno.test("only tests in a process of their own change or measure what belongs to the process", () => {
  // Spelled in pieces, so that this file does not find itself.
  const shared = new RegExp(
    "Deno\\.(chdir|memoryUsage|umask|env\\.(set|delete))\\(|\\bspr" + "ead\\(|\\btask" + "set\\b",
  );
  const wrong = SOURCES.filter((path) =>
    path.startsWith("tests/") && shared.test(read(path)) &&
    !imports(path).includes("tests/helpers/own_process.ts")
  );
  assertEquals(wrong, []);
});

Deno.test("a compiled program includes the files that are opened by path", () => {
  const included = [...read("deno.json").matchAll(/--include (\S+)/g)].map((m) => m[1] as string);
  const opened = product.filter((path) => !path.startsWith("tasks/dev/")).flatMap((path) =>
    [...read(path).matchAll(/new URL\("([^"]+)", import\.meta\.url\)/g)].map((m) =>
      relative(TOP, join(TOP, path, "..", m[1] as string))
    )
  );
  assertEquals(
    ["src/data/decode_worker.ts", "src/metrics/moments_worker.ts", "tasks/thread.ts"].filter((path) =>
      !opened.includes(path)
    ),
    [],
  );
  assertEquals(opened.filter((path) => !included.some((i) => path === i || path.startsWith(`${i}/`))), []);
});

Deno.test("the top level holds the listed entries and no other", () => {
  const allowed = new Set([
    ".ci",
    ".git",
    ".gitignore",
    "LICENSE",
    "README.md",
    "deno.json",
    "deno.lock",
    "kernels",
    "main.ts",
    "mod.ts",
    "src",
    "tasks",
    "tests",
    // left by runs and builds, and ignored by git
    "runs",
    ".gl",
    "node_modules",
    "dist",
    "tok",
  ]);
  assertEquals([...Deno.readDirSync(TOP)].map(({ name }) => name).filter((name) => !allowed.has(name)), []);
});

Deno.test("there are no TODOs and no machine paths", () => {
  // Spelled in pieces, so that this file does not find itself.
  const left = new RegExp(
    ["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"].map((w) => `\\b${w}\\b`).join("|"),
  );
  const machine = new RegExp(["/ro" + "ot/", "/wo" + "rk/", "//regis" + "try\\."].join("|"));
  const all = [...SOURCES, ...WGSL, "README.md", "deno.json"];
  assertEquals(all.filter((path) => left.test(read(path)) || machine.test(read(path))), []);
});
