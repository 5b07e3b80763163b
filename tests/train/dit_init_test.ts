// train-dit --init and --unconditional: every kind of file, another number of classes, what does not fit; and sampling without
// classes.

import { assert, assertEquals, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { trainDitConfig } from "../../src/cli/config.ts";
import { UsageError } from "../../src/errors.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { capture } from "../../src/gpu/program.ts";
import type { Denoiser } from "../../src/models/denoiser.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Initializer } from "../../src/nn/init.ts";
import { saveState, snapshot } from "../../src/nn/layers.ts";
import { openCheckpoint, saveCheckpoint } from "../../src/run/checkpoint.ts";
import { planOf } from "../../src/sampling/plan.ts";
import { checkResumable } from "../../src/train/diffusion.ts";
import { diffusionRecipe, ditOf } from "../../src/train/dit_training.ts";
import { noGrad } from "../../src/tensor/autograd.ts";
import { constant } from "../../src/tensor/tensor.ts";
import { StoredLatents } from "../../src/train/latent_source.ts";
import { initialiseDit } from "../../src/train/initial_weights.ts";
import { openInitialDit } from "../../src/zoo/initial_weights.ts";
import { openDit, saveDit } from "../../src/zoo/runs.ts";
import { randomArray, testDevice } from "../helpers/check.ts";
import { inFolder, quietLog, run } from "../helpers/commands.ts";
import { shapesOf, writeFormula } from "../helpers/formula.ts";
import { fixturePath } from "../helpers/published.ts";

const TABLE = "y_embedder.embedding_table.weight", WIDTH = 24;

/** A small DiT of a run before its first step. */
async function before(options: { seed?: number; use_qknorm?: boolean }, classes: number) {
  await testDevice();
  const config = trainDitConfig.parse({ batchSize: 1 }), { seed = 0, ...architecture } = options;
  const dit = new Dit(ditConfig.parse({
    ...{ input_size: 2, in_channels: 8, hidden_size: WIDTH, depth: 2, num_heads: 2, num_classes: classes },
    ...architecture,
  }));
  const recipe = diffusionRecipe(config, dit, new StoredLatents([8, 2, 2], undefined, config));
  dit.init(new Initializer(seed));
  await recipe.set.materialise();
  return { dit, recipe };
}

const tensors = async (dit: Dit) =>
  new Map((await saveState(dit)).map(({ name, data }) => [name, data.slice()]));

/** One with weights that no initialisation makes. */
async function trained(classes: number) {
  const made = await before({ seed: 7 }, classes), { final_layer, y_embedder } = made.dit;
  for (const { storage, size } of [final_layer.linear.weight, y_embedder.embedding_table.weight]) {
    storage.write(randomArray(size, size) as Float32Array<ArrayBuffer>);
  }
  return made;
}

/** Initialises from `path`. @returns the tensors before and after, and what was said */
async function initialised(path: string, classes: number) {
  const { dit } = await before({}, classes), was = await tensors(dit), { log, lines } = quietLog();
  using from = await openInitialDit(path);
  const { initialisation } = await initialiseDit(dit, from, log, { prediction: "velocity", read: true });
  assertEquals((initialisation as { name: string }).name, path);
  return { was, is: await tensors(dit), lines };
}

Deno.test("--init takes all weights of a run, its best, a checkpoint and a published file", async () => {
  await inFolder(async (folder) => {
    const { dit, recipe } = await trained(3), all = await tensors(dit), best = join(folder, "best");
    for (const run of [folder, best]) await saveDit(run, dit, { dit: dit.config, classes: ["a", "b", "c"] });
    const published = join(folder, "published.safetensors");
    await writeSafetensors(published, (await saveState(dit)).map((t) => ({ ...t, name: `ema.${t.name}` })));
    const checkpoint = await saveCheckpoint(folder, 3, await snapshot(recipe.state()), {});
    for (const path of [folder, join(folder, "model"), best, published, checkpoint]) {
      const { was, is, lines } = await initialised(path, 3);
      assertEquals(is, all, path);
      assertNotEquals(was, all);
      assertEquals(lines, [`init: ${path}`]);
    }
  });
});

Deno.test("--init with other classes makes the label table anew but for its last row, and says so", async () => {
  await inFolder(async (folder) => {
    const { dit } = await trained(3), all = await tensors(dit), none = all.get(TABLE)?.slice(-WIDTH);
    await saveDit(folder, dit, { dit: dit.config, classes: ["a", "b", "c"] });
    for (const [classes, text] of [[5, "5 classes"], [1, "1 class"], [0, "0 classes"]] as const) {
      const { was, is, lines } = await initialised(folder, classes), table = is.get(TABLE);
      assertEquals(table?.length, (classes + 1) * WIDTH);
      assertEquals(table?.slice(0, -WIDTH), was.get(TABLE)?.slice(0, -WIDTH), "new rows");
      assertEquals(table?.slice(-WIDTH), none, 'the row "no class"');
      for (const map of [is, all]) map.delete(TABLE);
      assertEquals(is, all);
      assertEquals(lines, [
        `init: ${folder}; class embeddings re-initialised: the file has 3 classes, this run ${text} ("no class" is kept)`,
      ]);
    }
  });
});

Deno.test("--init lists every key that does not fit, also in a dry run, and refuses what is no diffusion model", async () => {
  const published = fixturePath("lightningdit_tiny.pt"), { log } = quietLog();
  const { dit } = await before({ use_qknorm: true }, 3);
  const initialise = async (path: string, read = true) => {
    using from = await openInitialDit(path);
    await initialiseDit(dit, from, log, { prediction: "velocity", read });
  };
  for (const read of [true, false]) {
    const error = await assertRejects(() => initialise(published, read), UsageError);
    for (
      const part of [
        `Cannot initialise from "${published}": `,
        'missing "blocks.0.attn.q_norm.weight"',
        '"blocks.0.mlp.w12.weight" is [',
        'missing "blocks.1.mlp.w3.bias"',
        `"${TABLE}" is [`,
      ]
    ) {
      assert(error.message.includes(part), `${part}: ${error.message}`);
    }
  }
  const refused = (path: string, message: string) =>
    assertRejects(() => initialise(path), UsageError, message);
  await refused(fixturePath("vavae_tiny.pt"), 'it has no "x_embedder.proj.weight"; name a diffusion model');
  await refused("nowhere", "there is no such path; name a finished run");
  await refused(fixturePath("data"), "it holds no diffusion model; name a finished run");
});

const SIT = { use_swiglu: false, use_rmsnorm: false, use_rope: false, patch_size: 2 } as const;
const STATE = { input_size: 4, in_channels: 4, hidden_size: 16, depth: 1, num_heads: 2, num_classes: 3 };
/** Its velocity at some latents, times and classes. */
async function velocity(dit: Denoiser): Promise<Float32Array> {
  const values = (n: number, seed: number) => Float32Array.from(randomArray(n, seed));
  const program = await capture("velocity", {}, () =>
    noGrad(() => ({
      v: dit.forward(
        constant(values(128, 1), [2, 4, 4, 4]),
        constant(Float32Array.of(0.2, 0.7), [2]),
        constant(Uint32Array.of(1, 3), [2]),
      ),
    }))).prepare();
  program.run();
  const v = (await program.read(program.outputs.v)).slice();
  program.destroy();
  return v;
}

Deno.test("--init gives files of REPA and SiT the velocities that sampling from them has, and says how it reads them", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const path = join(folder, "sit.safetensors");
    const cases = [
      [
        { learn_sigma: true },
        {},
        "read as SiT's, which predicts a velocity, without the variance that it also makes",
      ],
      [{}, { "projectors.0.0.weight": [3, 16] }, "its time is reversed, and so is this model's"],
    ] as const;
    for (const [options, more, note] of cases) {
      const file = new Dit(ditConfig.parse({ ...STATE, ...SIT, ...options, use_rope: true }));
      await writeFormula(path, new Map([...shapesOf(file), ...Object.entries<readonly number[]>(more)]));
      const expected = await velocity((await openDit(path)).dit);
      using from = await openInitialDit(path);
      const c = trainDitConfig.parse({ mlp: "plain", norm: "layer" });
      const { config } = ditOf(c, [4, 4, 4], 3, from.parametrization.reversed);
      const dit = new Dit({ ...config, ...STATE, patch_size: 2 }), { log, lines } = quietLog();
      dit.init(new Initializer(0));
      await initialiseDit(dit, from, log, { prediction: "velocity", read: true });
      assertEquals(await velocity(dit), expected);
      assertEquals(lines, [`init: ${path}; ${note}`]);
    }
  });
});

Deno.test("--init refuses weights whose outputs mean something else, and a run records the direction of its time", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const made = new Dit(ditConfig.parse({ ...STATE, depth: 3, inner_head: 1 }));
    made.init(new Initializer(0));
    await saveDit(folder, made, { dit: made.config, prediction: "data", classes: ["a", "b", "c"] });
    const options = { seed: 0, prediction: "data", innerHead: 2, headWidth: 0 };
    const checkpoint = (step: number, more: object) =>
      saveCheckpoint(folder, step, [{
        name: "model.x_embedder.proj.weight",
        shape: [1],
        data: new Float32Array(1),
      }], { ...options, ...more });
    const before = await checkpoint(1, {}), reversed = await checkpoint(2, { reversed_time: true });
    const { log } = quietLog(), dit = new Dit(ditConfig.parse({ ...STATE, depth: 3, inner_head: 2 }));
    for (
      const [path, prediction, message] of [
        [
          folder,
          "velocity",
          "its network predicts the data, and --prediction is velocity; use --prediction data",
        ],
        [before, "velocity", "its network predicts the data"],
        [folder, "data", "its inner head follows block 1, and --inner-head is 2; use --inner-head 1"],
        [before, "data", '"x_embedder.proj.weight" is [1]'],
      ] as const
    ) {
      using from = await openInitialDit(path);
      await assertRejects(
        () => initialiseDit(dit, from, log, { prediction, read: false }),
        UsageError,
        `Cannot initialise from "${path}": ${message}`,
      );
    }
    using from = await openInitialDit(reversed);
    assertEquals(from.parametrization, { reversed: true, prediction: "data", innerHead: 2 });
    for (const [path, now, was] of [[reversed, false, "reversed"], [before, true, "not reversed"]] as const) {
      const resumed = await openCheckpoint(path), config = { ...dit.config, reversed_time: now };
      resumed.file.close();
      const check = (config: typeof dit.config) =>
        checkResumable({ ...resumed, elsewhere: true }, config, trainDitConfig.parse({}), log);
      check({ ...config, reversed_time: !now });
      assertThrows(
        () => check(config),
        UsageError,
        `the time of its network is ${was}, and that of this run's is${
          now ? "" : " not"
        }; give the --init that`,
      );
    }
  });
});

Deno.test("an unconditional model ignores labels, resumes to the same bits, and samples without classes and guidance", async () => {
  await inFolder(async (folder) => {
    const at = (name: string) => join(folder, name);
    const common = ["--tokenizer", fixturePath("vavae_tiny.pt"), "--image-size", "8", "--images", "8"];
    common.push("--batch-size", "2", "--log-every", "1", "--workers", "0", "--unconditional");
    const train = (out: string, ...args: string[]) =>
      run("train-dit", ...common, "--out", at(out), "--lr-schedule", "constant", ...args);
    await train("first", "--steps", "2");
    const { dit, config } = await openDit(at("first"));
    assertEquals([
      config.classes,
      dit.config.num_classes,
      (dit as Dit).y_embedder.embedding_table.weight.shape,
    ], [
      [],
      0,
      [1, 144],
    ]);
    await train("second", "--steps", "3", "--init", at("first"), "--save-every", "2");
    const model = () => Deno.readFileSync(at("second/model/model.safetensors")), whole = model();
    Deno.removeSync(at("second/checkpoints/step_00000003.safetensors"));
    const again = ["--steps", "3", "--save-every", "2", "--resume"];
    await assertRejects(() => train("second", ...again), UsageError, "--init was");
    await train("second", ...again, "--init", at("first"));
    assertEquals(model(), whole);

    const sample = (...args: string[]) =>
      run("sample", "--model", at("first"), "--num", "2", "--steps", "1", "--out", at("samples"), ...args);
    await sample();
    await sample("--cfg", "1");
    const edit = (...args: string[]) =>
      run("edit", "--model", at("first"), "--image", "x.png", "--out", at("edited"), ...args);
    for (
      const [command, option, value] of [
        [sample, "cfg", "2"],
        [sample, "classes", "0"],
        [sample, "cfg-schedule", "linear"],
        [edit, "class", "0"],
        [edit, "to", "disc"],
        [edit, "cfg", "3"],
      ] as const
    ) {
      await assertRejects(
        () => command(`--${option}`, value),
        UsageError,
        `Cannot use --${option} with "${at("first")}": it is an unconditional model`,
      );
    }
    // What asks for guidance without checking, such as --val-cfg of a config file, gets one pass a step.
    const options = { cfg: 4, cfgInterval: [0, 1], sampler: "euler", steps: 2, shift: 1 } as const;
    assertEquals(planOf(dit.config, options).map(({ evaluations }) => evaluations), [1, 1]);
    await assertRejects(
      () => train("third", "--label-dropout", "0.2"),
      UsageError,
      "Cannot use --label-dropout: an unconditional model has no labels to drop; drop --unconditional, or leave --label-dropout out",
    );
  });
});
