// The benchmark: every case can be planned, has a unique name and the FLOPs of its sizes, and wrong options are refused.
// Tests do not depend on measured times.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { GpuError } from "../../src/errors.ts";
import { device } from "../../src/gpu/device.ts";
import { kernelCases, largeGemm, titleOf } from "../../tasks/dev/bench/cases.ts";
import { kernelOf } from "../../tasks/dev/bench/kernels.ts";
import { divide, measure } from "../../tasks/dev/bench/measure.ts";
import { Report } from "../../tasks/dev/bench/report.ts";
import { steps } from "../../tasks/dev/bench/steps.ts";
import { testDevice } from "../helpers/check.ts";

const PEAKS = { fma: 1e3, copy: 1e3, copies: [{ bytes: 1, rate: 1e3 }], gemm: 1 };

Deno.test("every kernel case plans the FLOPs and bytes of its sizes, in both precisions", async () => {
  await testDevice();
  for (const precision of ["f32", "f16"] as const) {
    const cases = kernelCases(precision, true);
    assertEquals(new Set(cases.map(titleOf)).size, cases.length);
    for (const c of cases) {
      const { program: { plan }, bytes } = kernelOf(c);
      const size = c.precision === "f16" ? 2 : 4;
      if (c.op === "gemm") {
        const gemms = plan.launches.filter(({ kernel }) => kernel.entry === "gemm");
        assertEquals(gemms.reduce((n, l) => n + l.flops, 0), 2 * c.M * c.N * c.K, titleOf(c));
        assertEquals(bytes, size * (c.M * c.K + c.K * c.N + c.M * c.N), titleOf(c));
      } else if (c.op === "conv") {
        const gemms = plan.launches.filter(({ kernel }) => kernel.entry === "gemm");
        assertEquals(
          gemms.reduce((n, l) => n + l.flops, 0),
          2 * 9 * c.B * c.H * c.W * c.C * c.Co,
          titleOf(c),
        );
      } else assert(plan.flops > 0 && (bytes as number) > 0, titleOf(c));
    }
  }
});

Deno.test("every step of a transformer can be planned, in both precisions", async () => {
  await testDevice();
  for (const precision of ["f32", "f16"] as const) {
    const all = await steps(precision, true);
    assertEquals(new Set(all.map(({ name }) => name)).size, all.length);
    // fp16 cases fill working copies on the device, so that only the small ones are made here; and none of the large.
    const planned = (await steps(precision, false)).filter(({ op, name }) =>
      op !== "alignment" && (precision === "f32" || /tiny/.test(name))
    );
    for (const step of planned) {
      const { program, destroy } = await step.make();
      assert(program.plan.flops > 1e8 && program.plan.launches.length > 20, step.name);
      destroy();
    }
  }
});

Deno.test("a measured row agrees with its plan, and its time is per repetition", async () => {
  await testDevice();
  const { memory } = device(), before = memory.live;
  const c = { name: "g", precision: "f32", op: "gemm", layout: "NT", M: 16, N: 16, K: 16 } as const;
  const { row, made } = await measure(c.name, c.precision, () => kernelOf(c), PEAKS);
  assertEquals(row.measured, row.planned);
  assert(row.ms > 0 && row.share > 0 && row.share < 1 && row.launches === made.program.plan.launches.length);
  const square = kernelOf(largeGemm("f32", true, "cpu"));
  await square.program.prepare();
  const division = await divide(made.program, square.program);
  if (division) {
    assert(division.gemmShare > 0.5 && division.gemmShare <= 1);
    assert(division.ofBaseline > 0 && division.ofBaseline < 1, "16x16x16 is slower than the baseline GEMM");
  }
  square.destroy();
  made.destroy();
  assertEquals(memory.live, before);
});

Deno.test("a case that cannot be prepared is freed, and its error passed on", async () => {
  await testDevice();
  const { memory } = device(), before = memory.live;
  const c = { name: "g", precision: "f32", op: "gemm", layout: "NT", M: 16, N: 16, K: 16 } as const;
  const failing = () => {
    const made = kernelOf(c);
    made.program.repeat = () => {
      throw new GpuError("no more memory");
    };
    return made;
  };
  await assertRejects(() => measure(c.name, c.precision, failing, PEAKS), GpuError, "no more memory");
  assertEquals(memory.live, before);
});

Deno.test("the benchmark refuses unknown options and has a help text", async () => {
  const config = fromFileUrl(new URL("../../deno.json", import.meta.url));
  const run = (...args: string[]) => runScript("bench", args);
  const runScript = async (name: string, args: string[]) => {
    const script = fromFileUrl(new URL(`../../tasks/dev/${name}.ts`, import.meta.url));
    const all = ["run", "-A", "--no-check", "--config", config, script, ...args];
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args: all }).output();
    return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
  };
  const wrong = await run("--perrs");
  assertEquals([wrong.code, wrong.stdout], [2, ""]);
  assert(wrong.stderr.includes("did you mean --peers?"), wrong.stderr);
  assertEquals((await run("--precision", "f64")).code, 2);
  const none = await run("--only", "no such case", "--only", "nor this");
  assertEquals(none.code, 2);
  assert(none.stderr.includes(`"no such case" or "nor this"`), none.stderr);
  const help = await run("--help");
  assert(help.code === 0 && help.stdout.includes("--torch"));
  const comparison = await runScript("tensor_cores", ["--parts", "CUDA"]);
  assertEquals([comparison.code, comparison.stdout], [2, ""]);
  assert(comparison.stderr.includes('no part has "CUDA"'), comparison.stderr);
});

Deno.test("the benchmark names the adapter and its driver", () => {
  const lines: string[] = [], log = console.log;
  console.log = (line: string) => lines.push(line);
  try {
    const peaks = { fma: 1, copy: 2, copies: [], gemm: 3 };
    for (const driver of ["llvmpipe, Mesa 26.2.6", undefined]) {
      new Report("json").begin("some adapter", driver, "cpu", peaks);
      new Report("text").begin("some adapter", driver, "cpu", peaks);
    }
  } finally {
    console.log = log;
  }
  const [json, text, ...without] = lines as [string, string, string, string];
  assertEquals(JSON.parse(json).driver, "llvmpipe, Mesa 26.2.6");
  assert(text.startsWith("some adapter, driver llvmpipe, Mesa 26.2.6 (cpu kernels)"), text);
  assertEquals("driver" in JSON.parse(without[0]), false);
  assert(without[1].startsWith("some adapter (cpu kernels)"));
});
