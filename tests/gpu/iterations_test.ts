// The bound on a thread's loop iterations: every kernel with a loop declares its iterations, and counting them on the device
// verifies it. A kernel that nothing here launches fails the last test.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { GpuError } from "../../src/errors.ts";
import { hasOpenLoop, iterationsOfSum, MAX_ITERATIONS, partsOf } from "../../src/gpu/iterations.ts";
import { launch } from "../../src/gpu/bind.ts";
import { kernel } from "../../src/gpu/kernel.ts";
import { parseKernel, replaceAccessors } from "../../src/gpu/kernel_text.ts";
import type { Launch } from "../../src/gpu/launch.ts";
import { capture } from "../../src/gpu/program.ts";
import type { Storage } from "../../src/gpu/storage.ts";
import { adamw, hyperVariable, progressVariable, record } from "../../src/ops/adamw.ts";
import { attention } from "../../src/ops/attention.ts";
import { multiplyAdds } from "../../src/bench/peak_kernel.ts";
import { conv2d } from "../../src/ops/conv.ts";
import { depthwiseConv2d } from "../../src/ops/depthwise.ts";
import { embedding } from "../../src/ops/embedding.ts";
import { scale } from "../../src/ops/math.ts";
import { linear } from "../../src/ops/matmul.ts";
import { modulate } from "../../src/ops/modulate.ts";
import { groupNorm, layerNorm } from "../../src/ops/norm.ts";
import { averagePool, maxPool } from "../../src/ops/pool.ts";
import { sum } from "../../src/ops/reduce.ts";
import { crossEntropy, softmax } from "../../src/ops/softmax.ts";
import { constant, empty, input, type Tensor, variable } from "../../src/tensor/tensor.ts";
import { PROFILES, testDevice } from "../helpers/check.ts";

/** Iterations of loops whose length the text fixes, which launches do not count: unrolled vectors, trees of sums. */
const FIXED = 64;

/** The kernel of a launch, and in addition the largest number of loop iterations of a thread, in `iterations_seen[0]`. */
function counting({ kernel: { text, entry, constants } }: Launch) {
  const functions = new Map([...text.functions].map(([name, body]) => [name, withCounters(body)]));
  const [head = "", attributes = "", parameters = ""] =
    new RegExp(`(@compute\\s*@workgroup_size\\(.*\\))\\s*fn ${entry}\\(([^{]*)\\)\\s*\\{`)
      .exec(functions.get(entry) ?? "") ?? [];
  assert(head, `the entry point ${entry} is found`);
  const names = [...parameters.matchAll(/(\w+)\s*:/g)].map((m) => m[1]);
  functions.set(
    `${entry}_itself`,
    functions.get(entry)!.replace(
      head,
      `fn ${entry}_itself(${parameters.replace(/@builtin\(\w+\)\s*/g, "")}) {`,
    ),
  );
  functions.set(
    entry,
    `${attributes} fn ${entry}(${parameters}) {
    ${entry}_itself(${names.join(", ")});
    atomicMax(&iterations_seen[0], iterations_taken);
  }`,
  );
  const counters = "var<storage> iterations_seen: array<atomic<u32>>; var<private> iterations_taken: u32;";
  return kernel(
    replaceAccessors({ ...text, functions }, new Set(), [parseKernel(counters)]),
    entry,
    { ...constants },
  );
}

/** A piece of WGSL whose loops count their iterations. */
function withCounters(text: string): string {
  let counted = "", at = 0;
  for (const { 0: word, index } of text.matchAll(/\b(?:for|while|loop)\b\s*/g)) {
    let brace = index + word.length;
    for (let depth = 0; depth > 0 || text[brace] !== "{"; brace++) {
      depth += text[brace] === "(" ? 1 : text[brace] === ")" ? -1 : 0;
    }
    counted += `${text.slice(at, brace + 1)} iterations_taken += 1u;`;
    at = brace + 1;
  }
  return counted + text.slice(at);
}

interface Case {
  inputs: Record<string, readonly number[]>;
  fn: (inputs: Record<string, Tensor>) => Tensor;
  /** Its matmuls are counted, too: they compile for seconds, and some cases would only repeat others. */
  gemms?: boolean;
}

const op = (fn: (...x: Tensor[]) => Tensor, ...shapes: (readonly number[])[]): Case => ({
  inputs: Object.fromEntries(shapes.map((s, i) => [`x${i}`, s])),
  fn: (x) => fn(...Object.values(x)),
});

const gemm = (...of: Parameters<typeof op>): Case => ({ ...op(...of), gemms: true });

const CASES: Readonly<Record<string, Case>> = {
  "rows": op((x) => sum(x, [1]), [3, 40_000]),
  "rows of odd length": op((x) => sum(x, [1]), [3, 9_001]),
  "columns": op((x) => sum(x, [0]), [20_000, 8]),
  "columns of odd length": op((x) => sum(x, [0]), [9_000, 3]),
  "modulation": op(modulate, [2, 1500, 8], [2, 1, 16]),
  "layer norm": op((x, w, b) => layerNorm(x, w, b), [1030, 80], [80], [80]),
  "layer norm of rows too long for a thread": op((x) => layerNorm(x), [2, 30_001]),
  "group norm": op((x, w, b) => groupNorm(x, 2, w, b), [2, 6000, 8], [8], [8]),
  "group norm of channels that are no whole vectors": op(
    (x, w, b) => groupNorm(x, 3, w, b),
    [2, 900, 6],
    [6],
    [6],
  ),
  "group norm of many small groups": op((x, w, b) => groupNorm(x, 2, w, b), [40, 30, 16], [16], [16]),
  "softmax": op(softmax, [5, 500]),
  "softmax of rows too long for a thread": op(softmax, [2, 20_001]),
  "cross entropy": {
    inputs: { x: [9, 101] },
    fn: ({ x }) => crossEntropy(x as Tensor, constant(new Uint32Array(9).fill(3), [9])),
  },
  "attention": op(attention, [1, 40, 1, 4], [1, 81, 1, 4], [1, 81, 1, 4]),
  "linear": gemm((x, w, b) => linear(x, w, b), [600, 4], [4, 4], [4]),
  "linear of odd sizes": gemm((x, w, b) => linear(x, w, b), [301, 3], [3, 3], [3]),
  "convolution of few channels": gemm((x, w, b) => conv2d(x, w, b, { padding: 1 }), [1, 20, 20, 4], [
    4,
    3,
    3,
    4,
  ], [4]),
  "convolution": gemm((x, w) => conv2d(x, w, undefined, { padding: 1, stride: 2 }), [1, 9, 9, 40], [
    4,
    3,
    3,
    40,
  ]),
  "depthwise convolution": op((x, w, b) => depthwiseConv2d(x, w, b, 1), [1, 9, 9, 4], [4, 3, 3, 1], [4]),
  "embedding": {
    inputs: { table: [5, 3] },
    fn: ({ table }) => embedding(table as Tensor, constant(new Uint32Array(700).fill(2), [700])),
  },
  "average pooling": op((x) => averagePool(x, { kernel: 5, stride: 2, padding: 2 }), [1, 12, 12, 4]),
  "maximum pooling": op((x) => maxPool(x, { kernel: 5, stride: 2, padding: 2 }), [1, 12, 12, 4]),
  "elementwise": op((x) => scale(x, 2), [100_000]),
  "multiply-adds": op((x) => multiplyAdds(x, 2, 77), [256]),
  "reports of a step": {
    inputs: { values: [200] },
    fn: ({ values }) => {
      const sums = variable([200]);
      const progress = progressVariable(false), norm2 = constant(new Float32Array(1), []);
      record(
        values as Tensor,
        sums,
        adamw([], hyperVariable(), norm2, progress, { values: values as Tensor }),
      );
      return sums;
    },
  },
};

/** Entry points whose loops were counted, and that a text has. */
const launched = new Set<string>();

for (const profile of PROFILES) {
  Deno.test(`no thread runs more loop iterations than its launch declares: ${profile} kernels`, async () => {
    await testDevice(profile);
    const counted = new Set<string>(), all: Tensor[] = [];
    for (const [name, { inputs, fn, gemms }] of Object.entries(CASES)) {
      const tensors = Object.fromEntries(Object.entries(inputs).map(([k, shape]) => [k, input(shape)]));
      for (const x of Object.values(tensors)) x.requiresGrad = true;
      const { plan } = capture(name, tensors, (x) => {
        const y = fn(x);
        const dys = y.node ? grad(y, Object.values(x)) : [];
        return { y, ...Object.fromEntries(dys.map((dy, i) => [`d${i}`, dy])) };
      });
      const found: { launch: Launch; seen: Tensor }[] = [];
      const program = capture(name, {}, () => {
        for (const planned of plan.launches) {
          const {
            kernel: { wgsl, entry, bindings, forms, hasOpenLoop },
            storages,
            params,
            grid,
            iterations,
          } = planned;
          if (!hasOpenLoop || (entry === "gemm" && !gemms) || counted.has(wgsl + entry + iterations)) {
            continue;
          }
          counted.add(wgsl + entry + iterations);
          // What is in the arrays does not matter: they are zeros.
          const zeros = new Map(storages.map((s) => [s, variable([s.elements])]));
          const absent = [...forms].filter((form): form is [string, number] => typeof form[1] === "number");
          const buffers = Object.fromEntries([
            ...bindings.map((b, i) => [b.name, zeros.get(storages[i] as Storage) as Tensor]),
            ...absent,
          ]);
          const seen = variable([1], { dtype: "u32" });
          launch(
            counting(planned),
            { ...buffers, iterations_seen: seen },
            planned.kernel.unpack(params),
            grid,
            {
              iterations,
            },
          );
          found.push({ launch: planned, seen });
          all.push(seen, ...zeros.values());
        }
        return {};
      });
      await program.prepare();
      program.run();
      for (const { launch: { kernel: { label, entry }, iterations }, seen } of found) {
        const [taken = 0] = new Uint32Array(await seen.storage.read());
        launched.add(entry);
        if (Deno.env.get("SHOW")) console.log(profile, name, label, iterations, taken);
        assert(taken > 0, `${name}: ${label} runs its loops`);
        assert(
          taken <= iterations + FIXED,
          `${name}: ${label} runs ${taken} iterations and says ${iterations}`,
        );
        assert(
          iterations <= 2 * taken + FIXED,
          `${name}: ${label} says ${iterations} iterations and runs ${taken}`,
        );
      }
      program.destroy();
    }
    for (const { storage } of all) storage.destroy();
  });
}

Deno.test("the tests above count the loops of every kernel", async () => {
  for await (const { name } of Deno.readDir("kernels")) {
    if (!name.endsWith(".wgsl")) continue;
    const text = (await Deno.readTextFile(`kernels/${name}`)).replace(/\/\/[^\n]*/g, "");
    for (const [, entry = ""] of text.matchAll(/@compute\s*@workgroup_size\([^)]*\)\s*fn\s+(\w+)/g)) {
      const prelude = await Promise.all(
        ["prelude_vec4", "prelude_rows"].map((p) => Deno.readTextFile(`kernels/${p}.wgsl`)),
      );
      const made = kernel(prelude.join("") + text, entry);
      assert(!made.hasOpenLoop || launched.has(entry), `the loops of ${entry} in ${name} are counted`);
    }
  }
  for (const entry of ["gemm", "pointwise", "multiply_adds"]) assert(launched.has(entry), entry);
});

Deno.test("a launch with missing or too large loop bounds is refused", () => {
  const text = `struct Params { n: u32 }
var<storage> y: array<f32>;
@compute @workgroup_size(1)
fn spin() { for (var i = 0u; i < params.n; i++) { store_y(i, 1.0); } }`;
  const spin = (options: { iterations?: number }) =>
    capture("spin", {}, () => {
      launch(kernel(text, "spin"), { y: empty([4]) }, { n: 4 }, [1], options);
      return {};
    });
  assertThrows(() => spin({}), GpuError, "does not say how many iterations");
  assertThrows(() => spin({ iterations: MAX_ITERATIONS + 1 }), GpuError, "16,385 loop iterations");
  spin({ iterations: MAX_ITERATIONS });
});

Deno.test("a loop is unbounded if its header names more than its variable and constants", () => {
  const constants = new Set(["THREADS"]);
  for (
    const [text, open] of [
      ["for (var i = 0u; i < 10u; i++) {}", false],
      ["for (var half = THREADS / 2u; half > 0u; half /= 2u) {}", false],
      ["for (var i = 0u; i < params.n; i++) {}", true],
      ["for (var i = begin; i < 10u; i++) {}", true],
      ["while (x) {}", true],
      ["loop { break; }", true],
    ] as const
  ) assertEquals(hasOpenLoop(text, constants), open, text);
});

Deno.test("a long loop is split into few parts, each within the bound of iterations per thread", () => {
  for (const n of [1, 12_288, 12_289, 65_535, 25e6, 1e9]) {
    for (const loops of [1, 2, 3]) {
      const parts = partsOf(n, loops);
      assert(loops * iterationsOfSum(Math.ceil(n / parts)) <= MAX_ITERATIONS);
      assert(parts === 1 || loops * n / (parts - 1) > MAX_ITERATIONS / 2);
    }
  }
});
