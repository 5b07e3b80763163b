// The output of TOK_DEBUG, and that results do not depend on it.

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { hasTimestamps } from "../../src/gpu/profile.ts";
import { capture } from "../../src/gpu/program.ts";
import { matmul } from "../../src/ops/matmul.ts";
import { input } from "../../src/tensor/tensor.ts";
import { testDevice } from "../helpers/check.ts";

const SCRIPT = `
import { capture, closeDevice, input, matmul, openDevice, variable } from "./mod.ts";
import { addInPlace } from "./src/gpu/memory.ts";
await openDevice();
const sum = variable([16, 16]);
const program = await capture("debugged", { x: input([16, 16]) }, ({ x }) => {
  addInPlace(matmul(matmul(x, x), x), sum);
  return {};
}).prepare();
for (let i = 0; i < 3; i++) program.run({ x: Float32Array.from({ length: 256 }, (_, k) => (k + i) % 7) });
console.log((await program.read(sum)).join());
closeDevice();
`;

/** stdout and stderr of the script. */
async function run(level: string): Promise<{ out: string; err: string }> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", "-A", "--ext", "ts", "-"],
    env: { TOK_DEBUG: level },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const input = child.stdin.getWriter();
  await input.write(new TextEncoder().encode(SCRIPT));
  await input.close();
  const { code, stdout, stderr } = await child.output();
  const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)) as [string, string];
  assertEquals(code, 0, err);
  return { out, err: err.replace(/^Warning: max.*\n/gm, "") }; // Dawn's
}

Deno.test("TOK_DEBUG prints plans, kernel times and WGSL on stderr, and changes no result", async () => {
  const [off, plans, times, all] = [await run(""), await run("1"), await run("2"), await run("3")];
  assertEquals(off.err, "");
  assertEquals(off.out.split(",").length, 256);
  for (const { out } of [plans, times, all]) assertEquals(out, off.out);
  assertMatch(plans.err, /^tok: plan "debugged": 3 launches of 3 recorded, .* GFLOP, .* MiB\n/);
  assertMatch(plans.err, /^ {2}inputs +0\.00 MiB$/m);
  assert(!plans.err.includes("kernel"), plans.err);
  assertStringIncludes(times.err, 'tok: kernel times of "debugged": 3 runs');
  assertMatch(times.err, /^ +[\d.]+ +[\d.]+% +2 +[\d.]+ {2}gemm/m);
  assert(!times.err.includes("@compute"), times.err);
  assertEquals(all.err.match(/^tok: kernel "(gemm|add_in_place)/gm)?.length, 2); // each once
  assertStringIncludes(all.err, "@compute");
  assertStringIncludes(all.err, 'tok: kernel times of "debugged": 3 runs');
});

Deno.test("kernels are timed by timestamps, or by waiting for each launch", async () => {
  await testDevice();
  const program = await capture("t", { x: input([64, 64]) }, ({ x }) => ({ y: matmul(matmul(x, x), x) }))
    .prepare();
  for (const timestamps of new Set([hasTimestamps(), false])) {
    const [gemm, ...others] = await program.profile(timestamps);
    assertEquals(others, []);
    assertEquals([gemm?.launches, gemm?.flops], [2, 2 * 2 * 64 ** 3]);
    assert(gemm && gemm.milliseconds > 0 && gemm.milliseconds < 1000, `${gemm?.milliseconds}`);
  }
  program.destroy();
});
