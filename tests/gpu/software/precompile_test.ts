// Precompilation: a second device compiles some pipelines of a program first.

import { assert, assertEquals } from "@std/assert";
import { device } from "../../../src/gpu/device.ts";
import { capture, makePipelines } from "../../../src/gpu/program.ts";
import { matmul } from "../../../src/ops/matmul.ts";
import { softmax } from "../../../src/ops/softmax.ts";
import { input } from "../../../src/tensor/tensor.ts";
import { testDevice } from "../../helpers/check.ts";

Deno.test("every kernel is compiled once, and all are counted", async () => {
  await testDevice("cpu");
  const { plan } = capture("t", { a: input([40, 24]), b: input([24, 40]) }, ({ a, b }) => {
    const y = matmul(a, b);
    return { y, p: softmax(matmul(y, a)), q: matmul(a, y, { transposeA: true, transposeB: true }) };
  });
  const kernels = new Set(plan.launches.map(({ kernel }) => kernel));
  const { counters, memory } = device(), live = memory.live;
  const before = counters.pipelines, fresh = [...kernels].filter(({ compiled }) => !compiled).length;
  const seen: number[] = [];
  const pipelines = await makePipelines(plan.launches, (done, total) => {
    assertEquals(total, kernels.size);
    seen.push(done);
  });
  assertEquals(new Set(pipelines.keys()), kernels);
  assertEquals(seen, Array.from(kernels, (_, i) => i + 1));
  assertEquals(counters.pipelines - before, fresh);
  assert([...kernels].every(({ compiled }) => compiled));
  assertEquals(memory.live, live, "nothing of a program's memory");
  await makePipelines(plan.launches);
  assertEquals(counters.pipelines - before, fresh);
});
