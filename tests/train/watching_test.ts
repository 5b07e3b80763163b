// Monitoring of long runs: gradient norms of each module, learning rates.

import { assert, assertEquals } from "@std/assert";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { gather } from "../../src/data/image_source.ts";
import { readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import type { Part } from "../../src/models/tokenizer.ts";
import { schedule } from "../../src/train/recipe.ts";
import { RUNNING_METRICS, StageRun } from "../../src/train/stage_run.ts";
import { alignment, HYPER, STAGES, TINY_OPTIONS } from "../helpers/alignment.ts";

/** Norm of the elements of all `flats`, in f64. */
async function normOf(flats: readonly Tensor[]): Promise<number> {
  let sum = 0;
  for (const flat of flats) for (const v of await readTensor(flat)) sum += v * v;
  return Math.sqrt(sum);
}

// Gradients of fewer images would overflow with the first loss scale.
for (
  const [precision, accumulate, batchSize, name] of [["f32", 2, 2, "perceptual"], [
    "f16",
    1,
    8,
    "latent",
  ]] as const
) {
  Deno.test(`the gradient norm of each module is that of its gradients before clipping (${precision}, ${accumulate} micro-batches)`, async () => {
    const a = await alignment(precision, { tiny: true }),
      options = { ...TINY_OPTIONS, batchSize, accumulate };
    const stage = { ...STAGES[name], losses: { ...STAGES[name].losses, gan: 0.1 } };
    const run = new StageRun(a, stage, options);
    const indices = [...Array(batchSize * accumulate).keys()];
    const { images } = await gather(new Shapes(8, 1), indices, options.imageSize);
    const program = await run.program(0);
    const scale = (await run.optimizer.readProgress()).lossScale;
    for (const optimizer of [run.optimizer, run.discriminatorOptimizer]) {
      optimizer?.set({ ...HYPER, clip: 1e-3, lr: 1e-3 });
    }
    program.run({ x: images });
    const norms = new Map(await run.optimizer.readNorms());
    assertEquals([...norms.keys()], [...stage.train]);
    const near = (got: number | undefined, expected: number) =>
      assert(expected > 0 && Math.abs((got as number) / expected - 1) < 1e-4, `${got}, not ${expected}`);
    for (const [name, norm] of norms) {
      near(norm, await normOf(a.sets[name as Part].gradients().flats) / scale);
    }
    const total2 = (await readTensor(run.runningMetrics))[RUNNING_METRICS.indexOf("grad_norm2")] as number;
    near([...norms.values()].reduce((sum, norm) => sum + norm ** 2, 0), total2);
    const [[label, norm] = []] = await run.discriminatorOptimizer?.readNorms() ?? [];
    assertEquals(label, "discriminator");
    near(norm, await normOf(a.sets.discriminator?.gradients().flats ?? []) / scale);
    const zero = stage.train.map(() => 0);
    assertEquals((await run.optimizer.readNorms()).map(([, sum]) => sum), zero, "cleared");
    // A skipped step adds nothing.
    run.optimizer.set({ ...HYPER, lr: Infinity });
    program.run({ x: images });
    assertEquals((await run.optimizer.readProgress()).skipped, 1);
    assertEquals((await run.optimizer.readNorms()).map(([, sum]) => sum), zero, "skipped");
    run.destroy();
  });
}

Deno.test("learning rates warm up, then decay linearly, along a cosine, or not at all", () => {
  const at = (lrSchedule: "linear" | "cosine" | "constant", n: number) =>
    schedule(n, 100, { warmup: 10, lrSchedule, lrEnd: 0.2 });
  const near = (a: number, b: number) => assert(Math.abs(a - b) < 1e-12, `${a}, not ${b}`);
  for (const kind of ["linear", "cosine", "constant"] as const) {
    const plain = schedule(4, 100, { warmup: 0, lrSchedule: kind, lrEnd: 0.2 });
    near(at(kind, 4), 0.5 * plain);
    near(schedule(0, 100, { warmup: 0, lrSchedule: kind, lrEnd: 0.2 }), 1);
  }
  near(at("linear", 50), 0.6);
  near(at("cosine", 50), 0.6);
  near(at("linear", 25), 0.8);
  near(at("cosine", 25), 0.2 + 0.8 * (1 + Math.SQRT1_2) / 2);
  near(at("cosine", 100), 0.2);
  near(at("linear", 100), 0.2);
  for (const n of [10, 50, 99]) near(at("constant", n), 1);
});
