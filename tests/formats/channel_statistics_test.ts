// Per-channel statistics against two passes in f64, in both layouts and any number of batches.

import { assertAlmostEquals, assertEquals } from "@std/assert";
import { ChannelStatistics } from "../../src/formats/channel_statistics.ts";
import { normal } from "../../src/philox.ts";

Deno.test("channel statistics equal those of two passes, for any batches of values", () => {
  const C = 3, P = 40, N = 5;
  const last = normal(1, 0, N * P * C).map((v, i) => v * (i % C + 1) + 100); // [N, P, C]
  const first = last.map((_, i) => {
    const n = Math.floor(i / (C * P)), c = Math.floor(i / P) % C;
    return last[(n * P + i % P) * C + c] as number;
  }); // [N, C, P]
  const one = new ChannelStatistics(C), parts = new ChannelStatistics(C);
  one.add(last, 1);
  for (let n = 0; n < N; n++) parts.add(first.subarray(n * C * P, (n + 1) * C * P), P);
  assertEquals([...parts.mean, ...parts.std()], [...one.mean, ...one.std()]);
  for (let c = 0; c < C; c++) {
    const values = last.filter((_, i) => i % C === c),
      mean = values.reduce((a, b) => a + b, 0) / values.length;
    const squares = values.reduce((sum, v) => sum + (v - mean) ** 2, 0);
    assertAlmostEquals(one.mean[c] as number, mean, 1e-9);
    assertAlmostEquals(one.std()[c] as number, Math.sqrt(squares / (values.length - 1)), 1e-9);
  }
});
