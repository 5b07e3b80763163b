// When a training run says that tuning may help.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { adapterKey, rememberTiles } from "../../src/bench/gemm_tuning.ts";
import { measureMultiplyAdds } from "../../src/bench/peak.ts";
import { device } from "../../src/gpu/device.ts";
import type { Plan } from "../../src/gpu/plan.ts";
import { onlyTile } from "../../src/ops/gemm_tiles.ts";
import { TuningAdvice } from "../../src/train/tuning_advice.ts";
import { testDevice } from "../helpers/check.ts";

/** What is said about rows of 10 steps of `gflop` that took `seconds` each, on an adapter of 100 GFLOP/s; and the measurements. */
async function said(
  gflop: number,
  seconds: readonly number[],
  { path = "/none/tiles.json", dataWait = 0, planning = 0, fails = false } = {},
): Promise<{ texts: string[]; measured: number }> {
  let now = 0, measured = 0, planned = 0;
  const texts: string[] = [];
  const plan = () => {
    now += 1e3 * planning;
    assertEquals(++planned, 1, "a recipe is planned once");
    return { flops: gflop * 1e9 } as Plan;
  };
  const recipe = { plan };
  const measure = () => ++measured && fails ? Promise.reject(new Error("lost")) : Promise.resolve(100);
  const advice = new TuningAdvice((text) => texts.push(text), measure, () => now, path);
  for (const [i, time] of [0, ...seconds].entries()) {
    now += 1e3 * time;
    await advice.row(recipe, { step: 10 * (i + 1), data_wait: dataWait });
  }
  return { texts, measured };
}

await testDevice("cpu");
const { software } = device().facts;

const claim = "a run on an untuned software adapter says once that its steps are far below the multiply-adds";
Deno.test(claim, { ignore: !software }, async () => {
  await testDevice("cpu");
  const slow = await said(2, [11, 10, 12, 10, 10, 10]);
  assertEquals(slow.texts.length, 1);
  assertMatch(
    slow.texts[0] as string,
    /^steps run at 2\.0 GFLOP\/s, 2\.0 % of .* "tok doctor --tune" .* 30 s/,
  );
  assertEquals(slow.measured, 1);
  assertEquals((await said(2, [12, 7, 12])).texts, [], "one interval was fast enough");
  assertEquals((await said(2, [14, 14, 14], { dataWait: 0.5 })).texts, [], "the data were slow");
  assertEquals(await said(0.5, [11, 10, 12]), { texts: [], measured: 0 }, "launches decide in a small step");
  assertEquals(await said(2, [11, 10]), { texts: [], measured: 0 }, "too early");
  assertEquals(
    (await said(2, [11, 7.5, 12], { planning: 20 })).texts,
    [],
    "planning is no part of an interval",
  );
  assertEquals(
    await said(2, [11, 10, 12], { fails: true }),
    { texts: [], measured: 1 },
    "no peak, no advice",
  );
  const folder = Deno.makeTempDirSync(), path = join(folder, "tiles.json");
  try {
    rememberTiles(path, adapterKey(device().facts, "cpu"), onlyTile("cpu", [16, 16]));
    assertEquals(await said(2, [11, 10, 12], { path }), { texts: [], measured: 0 }, "tuned");
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
  await testDevice("gpu");
  assertEquals(await said(2, [11, 10, 12]), { texts: [], measured: 0 }, "other kernels");
  await testDevice("cpu");
  assert(await measureMultiplyAdds(3, 1, 1) > 0.1);
});
