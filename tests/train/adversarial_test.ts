// The adversarial part of an alignment with the discriminator on frozen features: its warm-up, DiffAug, micro-batches, fp16,
// recomputation, skipped and resumed steps, its memory, and the options that describe it.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { type AlignConfig, alignConfig } from "../../src/cli/config.ts";
import { gather } from "../../src/data/image_source.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { UsageError } from "../../src/errors.ts";
import { DinoDiscriminator } from "../../src/models/dino_discriminator.ts";
import { Encoder } from "../../src/models/tokenizer.ts";
import { Vit } from "../../src/models/vit.ts";
import { restore, snapshot, state } from "../../src/nn/layers.ts";
import { AUGMENTATIONS } from "../../src/ops/diffaug.ts";
import { type Precision, readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { stagesOf } from "../../src/train/align_config.ts";
import type { AlignmentOptions } from "../../src/train/alignment.ts";
import { checkWarmup, openDiscriminator } from "../../src/train/discriminators.ts";
import { type Stage, StageRun } from "../../src/train/stage_run.ts";
import { EMBEDDED_ENCODER, openEncoder } from "../../src/zoo/encoders.ts";
import { alignment, HYPER, STAGES, TINY_ENCODER, TINY_OPTIONS } from "../helpers/alignment.ts";
import { testDevice } from "../helpers/check.ts";
import { quietLog } from "../helpers/commands.ts";

type Saved = Awaited<ReturnType<typeof snapshot>>;

/** Names of tensors that differ. */
const changed = (a: Saved, b: Saved) =>
  b.filter(({ data }, i) => data.some((v, k) => !Object.is(v, a[i]?.data[k]))).map(({ name }) => name);

const SEED = 3;

/** Stage 3 with a discriminator on the features of the frozen encoder. */
async function start(
  { stage = {}, precision = "f32", ...options }: Partial<AlignmentOptions> & {
    stage?: Partial<Stage>;
    precision?: Precision;
  } = {},
) {
  const a = await alignment(precision, {
    tiny: true,
    discriminator: (reference) => new DinoDiscriminator(reference as Encoder, 4),
  });
  const run = new StageRun(a, { ...STAGES.refine, ...stage }, {
    ...TINY_OPTIONS,
    augmentations: AUGMENTATIONS,
    ...options,
  });
  const { batchSize, accumulate, imageSize } = run.options;
  const { images } = await gather(new Shapes(8, 1), [...Array(batchSize * accumulate).keys()], imageSize);
  const all = new Map([...a.state(), ...run.state()]);
  const step = async (n: number, rates = { generator: 1e-3, discriminator: 1e-3 }) => {
    run.optimizer.set({ ...HYPER, lr: rates.generator });
    run.discriminatorOptimizer?.set({ ...HYPER, lr: rates.discriminator });
    (await run.program(n)).run({ x: images, ...run.randomInput(SEED, n) });
  };
  /** The metrics of the steps since the last call. */
  const metrics = async () => {
    const values = await readTensor(run.runningMetrics);
    run.runningMetrics.storage.write(new Float32Array(values.length));
    return Object.fromEntries(run.metrics.map((name, i) => [name, values[i] as number]));
  };
  return { a, run, all, step, metrics };
}

Deno.test("in its warm-up the discriminator trains, and the decoder's steps are those without it; then its loss counts", async () => {
  const warm = await start({ stage: { ganStart: 2, discriminatorStart: 1 } });
  const plain = await start({ stage: { losses: { ...STAGES.refine.losses, gan: 0 } } });
  const decoder = (saved: Saved) => saved.filter(({ name }) => name.startsWith("tokenizer."));
  const discriminator = (saved: Saved) => saved.filter(({ name }) => name.startsWith("discriminator."));
  let before = discriminator(await snapshot(warm.all));
  for (const [n, expected] of [[0, false], [1, true], [2, true]] as const) {
    await warm.step(n);
    await plain.step(n);
    const now = await snapshot(warm.all), other = await snapshot(plain.all), m = await warm.metrics();
    assertEquals(changed(before, discriminator(now)).length > 0, expected, `the discriminator in step ${n}`);
    assertEquals(m.discriminator !== 0, expected, `its loss in step ${n}`);
    assertEquals([m.gan !== 0, m.gan_weight !== 0], [n === 2, n === 2], `the adversarial loss in step ${n}`);
    assertEquals(changed(decoder(now), decoder(other)).length > 0, n === 2, `the decoder after step ${n}`);
    before = discriminator(now);
  }
  assertEquals((await warm.run.discriminatorOptimizer?.readProgress())?.applied, 2);
  for (const { run } of [warm, plain]) run.destroy();
});

Deno.test("frozen weights never change, a skipped step leaves the singular vectors as they are, and a resumed run has the same bits", async () => {
  const { a, run, all, step } = await start(), resumed = await start();
  const encoder = state(a.reference?.vit as Vit), frozen = await snapshot(encoder);
  const skipped = { generator: 1e-3, discriminator: Infinity };
  await step(0);
  const first = await snapshot(all);
  assert(
    first.some(({ name }) => /^discriminator\.heads\.1\.conv2\.u$/.test(name)),
    "they are in checkpoints",
  );
  await step(1, skipped);
  const names = changed(first, await snapshot(all)).filter((name) => !name.endsWith(".progress"));
  assertEquals(names.filter((name) => name.startsWith("discriminator.")), []);
  assert(names.some((name) => name.startsWith("tokenizer.decoder.")), "the generator goes on");
  await step(2);
  const last = await snapshot(all);
  // Of each head two vectors move; that of a logit has one element, which stays 1 but for rounding.
  const longer = last.filter(({ name, data }) => name.endsWith(".u") && data.length > 1).map(({ name }) =>
    name
  );
  assertEquals(changed(first, last).filter((name) => longer.includes(name)), longer);
  assertEquals(changed(frozen, await snapshot(encoder)), []);
  await restore(resumed.all, {
    name: "checkpoint",
    shapes: new Map(first.map(({ name, shape }) => [name, shape])),
    read: (key) => Promise.resolve(first.find(({ name }) => name === key)?.data as Float32Array),
  });
  await resumed.step(1, skipped);
  await resumed.step(2);
  assertEquals(changed(last, await snapshot(resumed.all)), []);
  for (const { run: begun } of [{ run }, resumed]) begun.destroy();
});

Deno.test("micro-batches, fp16 and recomputation give the losses of one batch; augmentations and the kind of loss change them", async () => {
  const REST = { generator: 0, discriminator: 0 };
  const measure = async (options: Parameters<typeof start>[0] = {}) => {
    const { a, run, step, metrics } = await start({ batchSize: 8, ...options });
    // Converged singular vectors do not move from pass to pass.
    for (const { conv1, conv2 } of (a.discriminator as DinoDiscriminator).heads) {
      for (const { conv, u } of [conv1, conv2]) await converge(conv.weight, u);
    }
    await step(1, REST);
    const found = await metrics();
    run.destroy();
    return found;
  };
  const one = await measure();
  const compare = async (options: Parameters<typeof start>[0], tolerance: number, least: number) => {
    const other = await measure(options), name = JSON.stringify(options);
    for (const [key, value] of Object.entries(one)) {
      // The adaptive weight of a micro-batch is its own.
      if (options?.accumulate && (key === "gan_weight" || key === "grad_norm2")) continue;
      const error = Math.abs((other[key] as number) - value) / Math.max(Math.abs(value), least);
      assert(error <= tolerance, `${key} with ${name}: ${other[key]} instead of ${value}`);
    }
  };
  await compare({ batchSize: 4, accumulate: 2, recompute: true }, 2e-4, 0.1);
  await compare({ precision: "f16" }, 3e-2, 0.01);
  const other = await measure({ ganLoss: "vanilla", augmentations: [] });
  // Logits near 0 cost about 1 by the hinge and log 2 by cross-entropy.
  assert(Math.abs((one.discriminator ?? 0) - 1) < 0.1, `hinge ${one.discriminator}`);
  assert(Math.abs((other.discriminator ?? 0) - Math.LN2) < 0.1, `vanilla ${other.discriminator}`);
  const difference = Math.abs((other.gan as number) - (one.gan as number));
  assert(difference > 1e-3, `gan without augmentations: ${other.gan} instead of ${one.gan}`);
});

/** Sets `u` to the left singular vector of the largest singular value of w [Cout, ...]. */
async function converge(w: Tensor, u: Tensor): Promise<void> {
  const data = await readTensor(w), rows = w.dim(0), K = data.length / rows;
  let left = await readTensor(u);
  for (let n = 0; n < 60; n++) {
    const right = new Float64Array(K);
    for (let r = 0; r < rows; r++) {
      for (let k = 0; k < K; k++) {
        right[k] = (right[k] as number) + (left[r] as number) * (data[r * K + k] as number);
      }
    }
    const next = left.map((_, r) => right.reduce((sum, v, k) => sum + v * (data[r * K + k] as number), 0));
    left = next.map((v) => v / Math.hypot(...next));
  }
  u.storage.write(left);
}

Deno.test("an encoder of the discriminator's own is planned, not trained, and not in checkpoints; the alignment's is shared", async () => {
  const half = [0.5, 0.5, 0.5], another = () => new Encoder(new Vit(TINY_ENCODER), half, half);
  const bytes = async (own: boolean) => {
    const a = await alignment("f32", {
      tiny: true,
      discriminator: (reference) => new DinoDiscriminator(own ? another() : reference as Encoder, 4),
    });
    const run = new StageRun(a, STAGES.refine, TINY_OPTIONS);
    const found = { keys: [...a.state().keys()], bytes: run.capture().plan.bytes.parameters };
    assertEquals(a.sets.discriminatorEncoder !== undefined, own);
    run.destroy();
    return found;
  };
  const shared = await bytes(false), own = await bytes(true);
  assertEquals(own.keys, shared.keys);
  const weights = [...state(new Vit(TINY_ENCODER)).values()].reduce((sum, { size }) => sum + 4 * size, 0);
  const more = own.bytes - shared.bytes;
  assert(weights <= more && more < 1.1 * weights, `${more} bytes more for an encoder of ${weights}`);
});

Deno.test("the options choose discriminator, encoder, augmentations and warm-up, and what does not fit is refused", async () => {
  await testDevice();
  const embedded = await openEncoder();
  const { log, lines } = quietLog();
  const config = (values: Partial<AlignConfig>) => alignConfig.parse(values);
  const opened: string[] = [];
  const open = (values: Partial<AlignConfig>) =>
    openDiscriminator(config(values), embedded, (spec) => (opened.push(spec), openEncoder(spec)), log);
  assertEquals((await open({})).augmentations, []);
  assertEquals((await open({ gan: "none" })).make, undefined);
  assertEquals((await open({ gan: "dino" })).augmentations, AUGMENTATIONS);
  assertEquals((await open({ gan: "dino", diffaug: ["none"] })).augmentations, []);
  assertEquals((await open({ diffaug: ["cutout", "color"] })).augmentations, ["color", "cutout"]);
  assertEquals(opened, []);
  const own = await open({ gan: "dino", ganEncoder: EMBEDDED_ENCODER });
  assertEquals(opened, [EMBEDDED_ENCODER]);
  const discriminator = own.make?.(undefined) as DinoDiscriminator;
  assertEquals([discriminator.side, discriminator.heads.length], [4, 4]);
  const from = await own.load(discriminator);
  assertEquals(Object.keys(from), ["encoder of the discriminator"]);
  assert(lines.some((line) => line.includes("features of the embedded encoder, frozen")), lines.join("\n"));
  const starts = stagesOf(config({ ganStart: ["off", 9, 85], ganWarmup: 5 }), true);
  assertEquals(starts.map((s) => s.discriminatorStart), [Infinity, 4, 80]);
  const refused: [Partial<AlignConfig>, string][] = [
    [{ gan: "dino", ganEncoder: "nowhere/at all" }, "Cannot find the encoder"],
  ];
  for (const [values, message] of refused) {
    const error = await assertRejects(() => open(values), UsageError);
    assert(error.message.includes(message) && !error.message.includes("\n"), error.message);
  }
  const early: [Partial<AlignConfig>, string][] = [
    [{ ganWarmup: 86 }, "the adversarial loss counts from step 85 of stage 3; use a smaller --gan-warmup"],
    [{ ganWarmup: 5, ganStart: ["off"] }, "no stage has the adversarial loss (--gan-start off)"],
  ];
  for (const [values, message] of early) assertThrows(() => checkWarmup(config(values)), UsageError, message);
  const dino = await open({ gan: "dino" });
  await assertRejects(
    async () => void await dino.make?.(undefined),
    UsageError,
    "--gan dino needs --gan-encoder",
  );
  for (
    const values of [{ diffaug: ["none", "color"] }, { diffaug: ["blur"] }, { ganLoss: "lsgan" }, {
      ganWarmup: -1,
    }]
  ) {
    assertEquals(alignConfig.safeParse(values).success, false, JSON.stringify(values));
  }
});
