// What a training may choose about the latent and the encoder: Gaussian posteriors, noise, several layers, LoRA. Frozen modules do
// not change, the semantic loss begins at 0, and a checkpoint goes on to the same bits.

import { assert, assertEquals, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { alignConfig } from "../../src/cli/config.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { gather } from "../../src/data/image_source.ts";
import { UsageError } from "../../src/errors.ts";
import { capture } from "../../src/gpu/program.ts";
import { type Posterior, posteriorOf } from "../../src/models/posterior.ts";
import { Encoder } from "../../src/models/tokenizer.ts";
import { countParameters, type Linear, restore, snapshot, state } from "../../src/nn/layers.ts";
import { add, scale } from "../../src/ops/math.ts";
import { linear } from "../../src/ops/matmul.ts";
import { noGrad } from "../../src/tensor/autograd.ts";
import { input, readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { addLora, stagesOf, tokenizerOf } from "../../src/train/align_config.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { type Stage, StageRun } from "../../src/train/stage_run.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { openTokenizer } from "../../src/zoo/runs.ts";
import { alignment, HYPER, STAGES, TINY_OPTIONS } from "../helpers/alignment.ts";
import { evaluate, randomArray, relativeError, testDevice } from "../helpers/check.ts";
import { inFolder, run as tok } from "../helpers/commands.ts";

const LORA = { rank: 4, alpha: 8 };
/** Every choice at once. */
const EVERYTHING = { tiny: true, config: { double_z: true, encoder_layers: [1, 2] }, lora: LORA };

/** With the loss of a Gaussian posterior, and noise in stages 1 and 3. */
const gaussian = (stage: Stage): Stage => ({
  ...stage,
  losses: { ...stage.losses, kl: stage.name === "refine" ? 0 : 0.1 },
  noiseTau: stage.name === "perceptual" ? 0 : 0.5,
});

const images = async (n: number) =>
  (await gather(new Shapes(8, 1), [...Array(n).keys()], TINY_OPTIONS.imageSize)).images;

/** Runs the steps `from` to `to` - 1. @returns the metrics of each */
async function steps(run: StageRun, from: number, to: number, seed = 3): Promise<Record<string, number>[]> {
  const { batchSize, accumulate } = run.options, x = await images(batchSize * accumulate);
  const rows = [];
  for (let n = from; n < to; n++) {
    run.optimizer.set({ ...HYPER, lr: run.stage.lr });
    run.discriminatorOptimizer?.set({ ...HYPER, lr: 5e-4 });
    (await run.program(n)).run({ x, ...run.randomInput(seed, n) });
    const sums = await readTensor(run.runningMetrics);
    run.runningMetrics.storage.write(new Float32Array(sums.length));
    rows.push(Object.fromEntries(run.metrics.map((name, i) => [name, sums[i] as number])));
  }
  return rows;
}

/** Copies of tensors. */
const copies = async (tensors: ReadonlyMap<string, Tensor>) =>
  new Map((await snapshot(tensors)).map(({ name, data }) => [name, data.slice()]));

Deno.test("a stage trains its modules, freezes the others to the bit, and the semantic loss of stage 2 begins at exactly 0", async () => {
  for (const [variant, semanticAt] of [[{ tiny: true }, "after"], [EVERYTHING, "before"]] as const) {
    const a = await alignment("f32", variant), { sets } = a, all = variant === EVERYTHING;
    const adapted = new Set([...a.tokenizer.encoder.linears().values()].map(({ weight }) => weight));
    for (const stage of Object.values(STAGES)) {
      const run = new StageRun(a, all ? gaussian(stage) : stage, { ...TINY_OPTIONS, semanticAt });
      if (stage.ema > 0) await run.optimizer.startEma();
      const tensors = Object.entries(sets).flatMap(([set, { tensors }]) =>
        [...tensors].map(([name, tensor]) => ({ set, name, tensor }))
      );
      const values = () =>
        copies(new Map(tensors.map(({ set, name, tensor }) => [`${set}.${name}`, tensor])));
      const before = await values();
      const [first, second] = await steps(run, 0, 2);
      if (stage.name === "perceptual") {
        assertEquals(first?.semantic, 0, semanticAt);
        assert((second?.semantic ?? 0) > 0, "it does not stay 0");
      }
      await run.finish();
      const after = await values();
      const trained = new Set(stage.train.map((part) => a.trained(part).name));
      if (run.discriminatorOptimizer) trained.add("discriminator");
      for (const { set, name, tensor } of tensors) {
        const key = `${set}.${name}`, was = before.get(key);
        const merged = set === "encoder" && trained.has("lora") && adapted.has(tensor);
        if (!trained.has(set) && !merged) assertEquals(after.get(key), was, `${stage.name}: ${key}`);
        // Biases may have no gradient.
        else if (tensor.rank > 1 && !name.endsWith("mask_token")) {
          assertNotEquals(after.get(key), was, `${stage.name}: ${key}`);
        }
      }
      run.destroy();
      if (stage.name === "latent") await a.setAnchor();
    }
  }
});

Deno.test("noise is a function of seed and step, and only the decoder of stages 1 and 3 sees it", async () => {
  const a = await alignment("f32", { tiny: true });
  const [noisy, plain] = [1, 0].map((noiseTau) =>
    new StageRun(a, { ...STAGES.latent, lr: 0, noiseTau }, TINY_OPTIONS)
  ) as [StageRun, StageRun];
  const loss = async (run: StageRun, seed: number, n: number) => (await steps(run, n, n + 1, seed))[0]?.l1;
  const once = await loss(noisy, 3, 0);
  assertEquals(await loss(noisy, 3, 0), once);
  const others = [await loss(noisy, 3, 1), await loss(noisy, 4, 0), await loss(plain, 3, 0)];
  assertEquals(new Set([once, ...others]).size, 4);
  for (const run of [noisy, plain]) run.destroy();
  const c = alignConfig.parse({ noiseTau: 0.8, wKl: 0.1 });
  assertEquals(stagesOf(c, true).map(({ noiseTau }) => noiseTau), [0.8, 0, 0.8]);
  assertEquals(stagesOf(c, true).map(({ losses }) => losses.kl), [0.1, 0.1, 0]);
});

Deno.test("a training with every choice goes on from its checkpoint to the same bits, in fp16 with micro-batches", async () => {
  const stage = gaussian(STAGES.perceptual),
    options = { ...TINY_OPTIONS, batchSize: 1, accumulate: 2, recompute: true };
  const begin = async () => {
    const a = await alignment("f16", EVERYTHING), run = new StageRun(a, stage, options);
    return { a, run, state: () => new Map([...a.state(), ...run.state()]) };
  };
  const whole = await begin();
  await whole.run.optimizer.startEma();
  const rows = await steps(whole.run, 0, 2);
  assertEquals([rows[0]?.semantic, (rows[1]?.semantic ?? 0) > 0], [0, true], "the semantic loss begins at 0");
  const saved = await copies(whole.state());
  assert(
    [...saved.keys()].filter((key) => /^lora\..*\.[AB]$/.test(key)).length > 0,
    "a checkpoint has A and B",
  );
  const again = await begin();
  const shapes = new Map([...again.state()].map(([key, { shape }]) => [key, shape]));
  const read = (key: string) => Promise.resolve(saved.get(key) as Float32Array);
  await restore(again.state(), { name: "saved", shapes, read });
  for (const { run } of [whole, again]) {
    await steps(run, 2, 4);
    await run.finish();
  }
  assertEquals(await copies(again.state()), await copies(whole.state()));
  assertEquals((await whole.run.optimizer.readProgress()).skipped, 0);
  whole.run.destroy();
  again.run.destroy();
});

Deno.test("merged LoRA gives the outputs of the base and its update apart", async () => {
  const a = await alignment("f32", { tiny: true, lora: LORA });
  const merged = a.tokenizer.encoder.linears(), base = a.reference?.vit.linears();
  const updates = Object.entries(a.lora?.updates ?? {});
  for (const [i, [, { B }]] of updates.entries()) {
    await B.storage.materialise();
    B.storage.write(randomArray(B.size, i));
  }
  const inputs = Object.fromEntries(updates.map(([name, { A }]) => [name, input([5, A.dim(1)])]));
  const program = await capture("lora", inputs, (inputs) =>
    noGrad(() => {
      a.mergeLora();
      const outputs = updates.flatMap(([name, { A, B }]) => {
        const { weight, bias } = merged.get(name) as Linear, frozen = base?.get(name) as Linear;
        const x = inputs[name] as Tensor, before = linear(x, frozen.weight, bias);
        const update = scale(linear(linear(x, A), B), LORA.alpha / LORA.rank);
        return Object.entries({ merged: linear(x, weight, bias), apart: add(before, update), before })
          .map(([what, y]) => [`${name} ${what}`, y]);
      });
      return Object.fromEntries(outputs) as Record<string, Tensor>;
    })).prepare();
  program.run(
    Object.fromEntries(updates.map(([name], i) => [name, randomArray(inputs[name]?.size ?? 0, i)])),
  );
  const read = (key: string) => program.read(program.outputs[key] as Tensor);
  for (const [name] of updates) {
    const apart = await read(`${name} apart`);
    assert(relativeError(await read(`${name} merged`), apart) < 1e-5, name);
    assert(relativeError(await read(`${name} before`), apart) > 1e-3, `${name} has an update`);
  }
  assertEquals(updates.length, 12);
  program.destroy();
});

Deno.test("LoRA takes less memory than training all weights: no moments, and one weight's gradient at a time", async () => {
  const plans = [];
  for (const lora of [undefined, { rank: 2, alpha: 4 }]) {
    const a = await alignment("f32", { tiny: true, ...lora ? { lora } : {} });
    plans.push(new StageRun(a, STAGES.perceptual, TINY_OPTIONS).capture("none").plan.bytes);
  }
  const [all, low] = plans as [typeof plans[0], typeof plans[0]];
  const adapted = [...(await alignment("f32", { tiny: true })).tokenizer.encoder.linears().values()]
    .reduce((sum, { weight }) => sum + 4 * weight.size, 0);
  const { activations } = low, { optimizer, gradients } = low;
  assert(optimizer < all.optimizer - 1.5 * adapted, `${optimizer} of ${all.optimizer} bytes`);
  assert(gradients < all.gradients - 0.75 * adapted, `${gradients} of ${all.gradients} bytes`);
  assert(
    activations < all.activations + 0.25 * adapted,
    `${activations} after ${all.activations}, ${adapted}`,
  );
});

Deno.test("tok align with every choice makes a tokenizer that opens with its latent and its layers", async () => {
  await inFolder(async (folder) => {
    const out = join(folder, "run"), small = ["--image-size", "16", "--gan", "none", "--held-out", "4"];
    small.push(
      "--batch-size",
      "2",
      "--workers",
      "0",
      "--decoder-multiples",
      "1,1,1",
      "--decoder-channels",
      "4",
    );
    const choices = ["--w-kl", "0.01", "--noise-tau", "0.5", "--layers", "2,4", "--lora-rank", "2"];
    await tok("align", "--out", out, "--stages", "2,3", "--steps", "1,1,1", ...small, ...choices);
    const { config } = await openTokenizer(out) as unknown as { config: Record<string, unknown> };
    assertEquals([config.double_z, config.encoder_layers], [true, [2, 4]]);
  });
});

Deno.test("the last block alone is the default to the bit; one beyond the depth is refused", async () => {
  const a = await alignment("f32", { tiny: true }), { vit } = a.reference as Encoder, x = input([1, 8, 8, 3]);
  const of = (layers?: number[]) => new Encoder(vit, [0.5, 0.5, 0.5], [0.2, 0.2, 0.2], layers);
  const encoders = { plain: of(), last: of([2]), one: of([1]), sum: of([1, 2]) };
  const program = await capture("layers", { x }, ({ x }) =>
    noGrad(() => {
      const outputs = Object.entries(encoders).map(([name, encoder]) => [name, encoder.patches(x, 4)]);
      return Object.fromEntries(outputs) as Record<keyof typeof encoders, Tensor>;
    })).prepare();
  program.run({ x: randomArray(x.size, 1) });
  const { plain, last, one, sum } = program.outputs;
  const [p, l, o, s] = await Promise.all(
    [plain, last, one, sum].map((t) => program.read(t)),
  ) as Float32Array[];
  program.destroy();
  assertEquals(l, p);
  assertEquals(s, p?.map((v, i) => v + (o?.[i] as number)));
  assertThrows(
    () => of([2, 3]),
    UsageError,
    "Cannot sum the layers 2,3: the encoder has 2 blocks; choose from 1 to 2",
  );
});

Deno.test("a dry run counts LoRA's parameters, and wrong layers and ranks are one clear error", async () => {
  const dry = (...args: string[]) => tok("align", "--dry-run", "--steps", "1,1,1", ...args);
  const { result } = await dry("--lora-rank", "2", "--w-kl", "1", "--layers", "2,4", "--stages", "2");
  const a = await alignment("f32", { lora: { rank: 2, alpha: 2 } });
  assertEquals((result.parameters as Record<string, number>).lora, countParameters(a.lora as object));
  const refused: [string[], string][] = [
    [["--layers", "2,5"], "Cannot sum the layers 2,5: the encoder has 4 blocks"],
    [["--layers", "2,2"], "Cannot use --layers 2,2: name each layer once"],
    [["--layers", "0"], "Cannot use --layers 0"],
    [
      ["--lora-rank", "2", "--stages", "1,3"],
      "Cannot use --lora-rank 2: no stage trains a pretrained encoder",
    ],
    [["--w-kl", "-1"], "Cannot use --w-kl -1"],
    [["--noise-tau", "-1"], "Cannot use --noise-tau -1"],
    [["--noise-tau", "1", "--stages", "2"], "Cannot use --noise-tau: stages 1 and 3 alone have it"],
  ];
  for (const [args, message] of refused) await assertRejects(() => dry(...args), UsageError, message);
});

Deno.test("log-variances are clamped to -30..20", async () => {
  const m = { shape: [1, 1, 1, 6], data: Float32Array.of(1, 2, 3, -100, 0.5, 100) };
  const { mean, logvar } = await evaluate(
    { m },
    ({ m }) => posteriorOf(m as Tensor, 3) as Required<Posterior>,
  );
  assertEquals([[...mean], [...logvar]], [[1, 2, 3], [-30, 0.5, 20]]);
});

Deno.test("LoRA without a stage that trains the encoder is refused", async () => {
  await testDevice();
  const encoder = await openEncoder(), c = alignConfig.parse({ loraRank: 4, stages: [1, 3] });
  const a = new Alignment(tokenizerOf(c, encoder.config, encoder.preprocessor), undefined);
  assertThrows(
    () => addLora(a, c, stagesOf(c, false)),
    UsageError,
    "Cannot use --lora-rank 4: no stage trains",
  );
  addLora(a, { ...c, loraAlpha: 2 }, stagesOf({ ...c, stages: [2] }, false));
  assertEquals(a.lora?.config, { rank: 4, alpha: 2 });
  assertEquals([...state(a.lora?.updates as object).keys()].slice(0, 2), ["0.query.A", "0.query.B"]);
});
