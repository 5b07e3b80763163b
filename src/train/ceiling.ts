// What an adapter can do at most: multiply-adds without memory, and a copy without arithmetic. The yardsticks that
// benchmarks and `tok doctor --bench` measure kernels against, always in the same run.

import { device } from "../gpu/device.ts";
import { capture, type Program } from "../gpu/program.ts";
import type { Bindable } from "../gpu/storage.ts";
import { matmul } from "../ops/matmul.ts";
import { pointwise } from "../ops/pointwise.ts";
import { input } from "../tensor.ts";

type Any = Program<Record<string, Bindable>, Record<string, Bindable>>;

/** Milliseconds of one run of a prepared program: the best of several batches, the cost of waiting taken off. */
export async function timeOf(program: Any, leastMs = 150, tries = 4): Promise<number> {
  const { queue } = device().gpu;
  const once = async (n: number) => {
    const began = performance.now();
    for (let i = 0; i < n; i++) program.run();
    await queue.onSubmittedWorkDone();
    return performance.now() - began;
  };
  await once(1);
  const single = Math.min(await once(1), await once(1), await once(1));
  const n = Math.min(400, Math.max(4, Math.ceil(leastMs / Math.max(0.05, single - 10))));
  let best = Infinity;
  for (let i = 0; i < tries; i++) best = Math.min(best, (await once(n + 1) - single) / n);
  return best;
}

/** GFLOP/s of a loop of multiply-adds in registers, GB/s of a large copy (read and write counted), GFLOP/s of a product. */
export async function measureCeiling(): Promise<{ fma: number; copy: number; gemm: number }> {
  const n = 1 << 18, chain = 256;
  const body = [`x0`, ...Array.from({ length: chain }, (_, i) => `fma(t${i}, T(0.999), T(0.001))`)];
  const x = input([n]);
  const arithmetic = await capture("fma", { x }, ({ x }) => ({ y: pointwise(body, [x]) })).prepare();
  const fma = 2 * n * chain / await timeOf(arithmetic) / 1e6;
  arithmetic.destroy();
  const large = input([1 << 23]);
  const moving = await capture("copy", { x: large }, ({ x }) => ({ y: pointwise(["x0"], [x]) })).prepare();
  const bandwidth = 2 * 4 * (1 << 23) / await timeOf(moving) / 1e6;
  moving.destroy();
  const S = device().profile === "cpu" ? 512 : 2048;
  const product = await capture(
    "product",
    { a: input([S, S]), b: input([S, S]) },
    ({ a, b }) => ({ y: matmul(a, b) }),
  ).prepare();
  const gemm = 2 * S ** 3 / await timeOf(product) / 1e6;
  product.destroy();
  return { fma, copy: bandwidth, gemm };
}
