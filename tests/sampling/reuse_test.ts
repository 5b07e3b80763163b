// Steps that reuse the tokens of the first half of the blocks: which steps do, and their velocities.

import { assert, assertAlmostEquals, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { sampleConfig } from "../../src/cli/config.ts";
import { isSchedule, keySteps } from "../../src/cli/key_steps.ts";
import { UsageError } from "../../src/errors.ts";
import { exists } from "../../src/formats/files.ts";
import { capture } from "../../src/gpu/program.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Initializer } from "../../src/nn/init.ts";
import { loadState } from "../../src/nn/layers.ts";
import { normal } from "../../src/philox.ts";
import { decidingOptions } from "../../src/sampling/job.ts";
import { planOf } from "../../src/sampling/plan.ts";
import { Sampler, type SamplingOptions } from "../../src/sampling/sampler.ts";
import { constant, readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { openDit, saveDit } from "../../src/zoo/runs.ts";
import { parseCommandLine } from "../../tasks/run.ts";
import { relativeError, testDevice } from "../helpers/check.ts";
import { inFolder, run } from "../helpers/commands.ts";
import { formulaSource, shapesOf } from "../helpers/formula.ts";
import { fixturePath } from "../helpers/published.ts";

const TINY = { input_size: 2, in_channels: 4, hidden_size: 16, depth: 3, num_heads: 2, num_classes: 3 };
const LABEL = 1, NONE = 3, SIZE = 16, BLOCK = 1;

async function tiny(more: object = {}): Promise<Dit> {
  await testDevice();
  const dit = new Dit(ditConfig.parse({ ...TINY, ...more }));
  await loadState(dit, formulaSource(shapesOf(dit)));
  return dit;
}

const OPTIONS: SamplingOptions = {
  ...{ batchSize: 1, steps: 4, sampler: "euler", shift: 1, seed: 5, cfg: 2, cfgInterval: [0, 1] },
};

async function sampled(dit: Dit, more: Partial<SamplingOptions>) {
  const sampler = await new Sampler(dit, { ...OPTIONS, ...more }).prepare();
  const x = await readTensor(await sampler.run(Uint32Array.of(LABEL), 0)), [nfe] = sampler.evaluations;
  sampler.destroy();
  return { x, nfe: nfe as number };
}

Deno.test("a schedule names key steps by distance, by share or one by one", () => {
  const steps = (schedule: string | undefined, count: number) =>
    keySteps(schedule, count).flatMap((key, i) => key ? [i] : []);
  assertEquals(steps("every 3", 8), [0, 3, 6]);
  assertEquals(steps("every-2", 5), [0, 2, 4]);
  assertEquals(steps("0,1,5", 6), [0, 1, 5]);
  assertEquals(steps("0-4", 6), [0, 4]);
  assertEquals(steps("0", 6), [0]);
  assertEquals(steps("0.5", 6), [0, 2, 4]);
  assertEquals(steps("0.01", 6), [0]);
  for (const all of ["1", "every 1", undefined]) assertEquals(steps(all, 3), [0, 1, 2]);
  const wrong = ["", "every 0", "every", "1,2", "0,2,2", "0,3,1", "1.5", "-1", "0.0", "some"];
  assertEquals(wrong.filter(isSchedule), []);
  assertThrows(
    () => keySteps("0,9", 9),
    UsageError,
    "Cannot use --reuse-encoder 0,9: it names step 9, but the steps are 0 to 8",
  );
  for (const schedule of ["1,2", "often"]) {
    const line = ["sample", "--reuse-encoder", schedule];
    assertThrows(
      () => parseCommandLine(line),
      UsageError,
      `Cannot use --reuse-encoder ${schedule}: give every-2`,
    );
  }
});

Deno.test("with key steps only the latents are the same bits, and the steps between run half of the network", async () => {
  const dit = await tiny(), full = await sampled(dit, {});
  for (const reuseEncoder of ["every 1", "1", "0,1,2,3"]) {
    assertEquals(await sampled(dit, { reuseEncoder }), full);
    const recorded = (options: object) => decidingOptions(sampleConfig.parse({ steps: 4, ...options }));
    assertEquals(recorded({ reuseEncoder }), recorded({})); // so that the files are the same bytes, too
  }
  const half = await sampled(dit, { reuseEncoder: "every 2" });
  const share = 1 - BLOCK / 3;
  assertEquals(full.nfe, 8);
  assertAlmostEquals(half.nfe, 2 * (2 + 2 * share));
  assert(half.x.some((v, i) => Math.abs(v - full.x[i]!) > 1e-3));
  // Where guidance begins the batch is another one: that step is a key step, too.
  const later = await sampled(dit, { reuseEncoder: "0", cfgInterval: [0.5, 1] });
  assertAlmostEquals(later.nfe, 1 + share + 2 * (1 + share));
});

/** One pass: the velocity, and the tokens after the first half of the blocks. */
async function pass(dit: Dit, x: Float32Array, t: number, y: number, tokens?: Float32Array) {
  const program = await capture("pass", {}, () => {
    const start = tokens && { block: BLOCK, tokens: constant(tokens.slice(), [1, 4, 16]) };
    const { velocity, features } = dit.outputs(
      constant(Float32Array.from(x), [1, 2, 2, 4]),
      constant(Float32Array.of(t), [1]),
      constant(Uint32Array.of(y), [1]),
      start ? { start } : { features: BLOCK },
    );
    return { velocity, ...features && { features } } as { velocity: Tensor; features: Tensor };
  }).prepare();
  program.run();
  const v = await program.read(program.outputs.velocity);
  const kept = tokens ?? await program.read(program.outputs.features);
  program.destroy();
  return { v, tokens: kept };
}

for (const sampler of ["euler", "heun"] as const) {
  Deno.test(`steps between key steps start from their tokens, of each branch and evaluation (${sampler})`, async () => {
    const dit = await tiny(), kept = new Map<string, Float32Array>();
    const key = [true, false, true, false], cfg = 2;
    /** Guided velocity of evaluation `k` of a step. */
    const velocity = async (x: Float32Array, t: number, k: number, isKey: boolean) => {
      const branch = async (y: number) => {
        const { v, tokens } = await pass(dit, x, t, y, isKey ? undefined : kept.get(`${k} ${y}`));
        kept.set(`${k} ${y}`, tokens);
        return v;
      };
      const c = await branch(LABEL), u = await branch(NONE);
      return u.map((v, i) => v + cfg * (c[i]! - v));
    };
    let x = normal(OPTIONS.seed, 0, SIZE);
    for (const [i, isKey] of key.entries()) {
      const t = i / 4, v = await velocity(x, t, 0, isKey);
      const after = x.map((value, j) => value + v[j]! / 4);
      if (sampler === "euler") x = after;
      else {
        const w = await velocity(after, t + 0.25, 1, isKey);
        x = x.map((value, j) => value + (v[j]! + w[j]!) / 8);
      }
    }
    const reused = await sampled(dit, { sampler, reuseEncoder: "every 2" });
    const largest = Math.max(...x.map(Math.abs));
    const error = Math.max(...x.map((v, i) => Math.abs(v - reused.x[i]!))) / largest;
    assert(error < 1e-5, `${error}`);
  });
}

Deno.test("the data prediction that is kept is that of the step's own velocity, with reused tokens and momentum", async () => {
  const dit = await tiny(), apg = { eta: 0, norm: Infinity, momentum: -0.5 };
  const options = { ...OPTIONS, apg, reuseEncoder: "every 2", keepPrediction: true };
  using sampler = await new Sampler(dit, options).prepare();
  const states: Float32Array[] = [normal(OPTIONS.seed, 0, SIZE)], data: Float32Array[] = [];
  await sampler.run(Uint32Array.of(LABEL), 0, {
    onStep: async (i) => {
      assertEquals(i, data.length);
      states.push(await readTensor(sampler.latents));
      data.push(await readTensor(sampler.prediction as Tensor));
    },
  });
  for (const [i, X] of data.entries()) {
    const [x, next] = [states[i], states[i + 1]] as [Float32Array, Float32Array];
    const expected = [...x].map((v, k) => v + (1 - i / 4) * 4 * (next[k]! - v));
    assert(relativeError(X, expected) < 1e-5, `step ${i}: ${relativeError(X, expected)}`);
  }
});

/** The steps of a plan for a tiny network. */
const planned = (more: object, options: Partial<SamplingOptions>) =>
  planOf(ditConfig.parse({ ...TINY, ...more }), { ...OPTIONS, ...options });

Deno.test("a pass between key steps counts as the share of the blocks that it runs, with those of a wide head", () => {
  const nfe = (more: object, options: Partial<SamplingOptions> = {}) =>
    planned(more, { cfg: 1, reuseEncoder: "every 2", ...options }).map(({ evaluations }) => evaluations);
  const half = 1 - 2 / 4, wide = 1 - 2 / 6, head = { hidden_size: 32, depth: 2, num_heads: 2 };
  assertEquals(nfe({ depth: 4 }), [1, half, 1, half]);
  assertEquals(nfe({ depth: 4, head }), [1, wide, 1, wide]);
  assertEquals(nfe({ depth: 4, head }, { sampler: "rk4", cfg: 2 }), [8, 8 * wide, 8, 8 * wide]);
  // A guide runs in full.
  const guide = { model: undefined as never, weight: 2 };
  assertEquals(nfe({ depth: 4 }, { guide }), [2, 1 + half, 2, 1 + half]);
});

Deno.test("adaptive steps, a network of one block and an inner head in the reused half are refused by the plan", async () => {
  const refused: [more: object, options: Partial<SamplingOptions>, message: string][] = [
    [{}, { sampler: "dopri5" }, "dopri5 chooses its own steps"],
    [{ depth: 1 }, {}, "the model has a single block; leave --reuse-encoder out"],
    [{}, { reuseEncoder: "0,4" }, "the steps are 0 to 3"],
    [
      { depth: 4, inner_head: 1 },
      { internal: { weight: 1.5, interval: [0, 1] } },
      "the inner head of the model reads block 1, and blocks 1 to 2 run in key steps only",
    ],
  ];
  for (const [more, options, message] of refused) {
    assertThrows(() => planned(more, { reuseEncoder: "every 2", ...options }), UsageError, message);
  }
  // Behind the reused half, or in complete steps alone, the inner head is evaluated.
  const internal = { weight: 1.5, interval: [0, 0.2] as const },
    dit = await tiny({ depth: 4, inner_head: 1 });
  assertEquals(planned({ depth: 4, inner_head: 3 }, { reuseEncoder: "0", internal }).length, 4);
  assertEquals((await sampled(dit, { reuseEncoder: "0,1,3", internal })).nfe, 7);
});

Deno.test("sample, eval and sweep refuse internal guidance in the reused half before they write anything", () =>
  inFolder(async (folder) => {
    await testDevice();
    const { config: { dit: config } } = await openDit(fixturePath("lightningdit_tiny.pt"));
    const dit = new Dit({ ...config, depth: 2, inner_head: 1 }), model = join(folder, "model");
    dit.init(new Initializer(0));
    const classes = Array.from({ length: config.num_classes }, (_, k) => String(k));
    const tokenizer = fixturePath("vavae_tiny.pt");
    await saveDit(model, dit, { dit: dit.config, classes, tokenizer });
    for (const command of ["sample", "eval", "sweep"]) {
      const out = join(folder, command), schedule = command === "sweep" ? "none,every-4" : "every 4";
      const options = ["--steps", "4", "--cfg", "1", "--ig", "1.5", "--reuse-encoder", schedule];
      await assertRejects(
        () => run(command, "--model", model, ...options, "--num", "2", "--out", out),
        UsageError,
        "the inner head of the model reads block 1, and blocks 1 to 1 run in key steps only",
      );
      assert(!exists(out), command);
    }
  }));
