// train-dit --ema posthoc: the tracked averages and their snapshots during a training, resuming, and the commands that rebuild others.

import { assert, assertEquals, assertMatch, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { trainDitConfig } from "../../src/cli/config.ts";
import { UsageError } from "../../src/errors.ts";
import { openSafetensors } from "../../src/formats/safetensors.ts";
import { device } from "../../src/gpu/device.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Initializer } from "../../src/nn/init.ts";
import { parameters, restore, saveState, snapshot } from "../../src/nn/layers.ts";
import { normal } from "../../src/philox.ts";
import { gammaOf, rebuiltEma } from "../../src/run/power_ema.ts";
import { StoredLatents } from "../../src/train/latent_source.ts";
import { checkDitOptions, diffusionRecipe, snapshotsLine } from "../../src/train/dit_training.ts";
import { openDit, saveDit } from "../../src/zoo/runs.ts";
import { relativeError, testDevice } from "../helpers/check.ts";
import { inFolder, run } from "../helpers/commands.ts";

const SIZES = { input_size: 2, in_channels: 4, hidden_size: 16, depth: 1, num_heads: 2, num_classes: 3 };
const [BATCH, STEPS] = [2, 10];
const OPTIONS = trainDitConfig.parse({
  ema: "posthoc",
  emaEvery: 2,
  steps: STEPS,
  batchSize: BATCH,
  lr: 0.02,
  warmup: 1,
});

function begin(folder: string) {
  const dit = new Dit(ditConfig.parse(SIZES));
  dit.init(new Initializer(0));
  const { in_channels: C, input_size: S } = dit.config,
    source = new StoredLatents([C, S, S], undefined, OPTIONS);
  return { dit, recipe: diffusionRecipe(OPTIONS, dit, source, folder) };
}

/** Runs the steps `from` to `to` - 1. @param after gets the trained weights after each */
async function train(
  { dit, recipe }: ReturnType<typeof begin>,
  [from, to]: readonly [number, number],
  after: (weights: Map<string, Float32Array>) => void = () => {},
): Promise<void> {
  for (let n = from; n < to; n++) {
    await recipe.step(n, {
      x: Float32Array.from(normal(5, 1, BATCH * 16, n)),
      labels: Uint32Array.of(0, n % 3),
    });
    const { buffers } = device().counters;
    await recipe.afterStep(n + 1);
    assertEquals(device().counters.buffers, buffers, "a snapshot needs no memory of the device");
    const trained = parameters(dit), saved = (await saveState(dit)).filter(({ name }) => trained.has(name));
    after(new Map(saved.map(({ name, data }) => [name, data.slice()])));
  }
}

const snapshotsIn = (folder: string) =>
  [...Deno.readDirSync(join(folder, "ema"))].map(({ name }) => name).sort();

Deno.test("ten steps with --ema posthoc: rebuilt averages equal directly tracked ones, resuming keeps every bit, and commands use them", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const whole = begin(folder);
    await whole.recipe.prepare(0);
    const widths = [0.05, 0.07, 0.1], direct = widths.map(() => new Map<string, Float64Array>());
    let t = 0, half: Awaited<ReturnType<typeof snapshot>> = [];
    await train(whole, [0, STEPS], (weights) => {
      t++;
      widths.forEach((width, w) => {
        const part = 1 - (1 - 1 / t) ** (gammaOf(width) + 1);
        for (const [name, data] of weights) {
          const ema = direct[w]?.get(name) ?? new Float64Array(data.length);
          direct[w]?.set(name, ema.map((x, i) => x + part * ((data[i] as number) - x)));
        }
      });
    });
    assertEquals(
      snapshotsIn(folder),
      [2, 4, 6, 8, 10].map((n) => `step_${String(n).padStart(8, "0")}.safetensors`),
    );
    const weights = await saveState(whole.dit);
    await whole.recipe.finish();
    await saveDit(folder, whole.dit, { dit: whole.dit.config, classes: ["a", "b", "c"] });
    const result = await saveState(whole.dit);
    for (const [w, width] of widths.entries()) {
      const average = await rebuiltEma(folder, width);
      assert(average.error < 1e-6, `the profile of ${width} is met to ${average.error}`);
      for (const [name, expected] of direct[w] as Map<string, Float64Array>) {
        const off = relativeError(await average.read(name), expected, 1e-2);
        assert(off < 1e-4, `${width}, ${name}: ${off}`);
        if (width !== 0.1) continue;
        const own = result.find((tensor) => tensor.name === name)?.data as Float32Array;
        assert(relativeError(own, expected, 1e-2) < 1e-4, `the result is the average of 0.1: ${name}`);
      }
      average.close();
    }
    assertNotEquals(result.map(({ data }) => data), weights.map(({ data }) => data));

    // Resumed from step 4, later snapshots are removed first, and made again with the same bytes.
    const first = Deno.readFileSync(join(folder, "ema", "step_00000010.safetensors"));
    const other = begin(folder);
    await other.recipe.prepare(0);
    assertEquals(snapshotsIn(folder), []);
    await train(other, [0, 4]);
    half = (await snapshot(other.recipe.state())).map((tensor) => ({ ...tensor, data: tensor.data.slice() }));
    const resumed = begin(folder);
    await restore(resumed.recipe.state(), {
      name: "saved",
      shapes: new Map(half.map(({ name, shape }) => [name, shape])),
      read: (key) => Promise.resolve(half.find(({ name }) => name === key)?.data as Float32Array),
    });
    await resumed.recipe.prepare(4);
    await train(resumed, [4, STEPS]);
    assertEquals(Deno.readFileSync(join(folder, "ema", "step_00000010.safetensors")), first);
    assertEquals(snapshotsIn(folder).length, 5);

    // The commands.
    const said: string[] = [], opened = await openDit(folder, { ema: 0.07, say: (line) => said.push(line) });
    assertMatch(
      said[0] ?? "",
      /^weights: power-function average of sigma_rel 0.07, rebuilt from 5 snapshots/,
    );
    assertNotEquals(opened.identity.fingerprint, (await openDit(folder)).identity.fingerprint);
    const file = join(folder, "rebuilt.safetensors"), model = join(folder, "rebuilt");
    const { lines, result: listed } = await run("inspect", folder, "--ema", "0.07", "--out", file);
    assertEquals([listed.ema, lines.filter((line) => line.startsWith("  after ")).length], [0.07, 5]);
    await run("inspect", folder, "--ema", "0.07", "--out", model);
    assertEquals((await openDit(model)).identity.fingerprint, opened.identity.fingerprint);
    const written = await openSafetensors(file);
    for (const { name, data } of await saveState(opened.dit)) assertEquals(await written.read(name), data);
    written.close();
    for (
      const [args, message] of [
        [["--out", file], "it needs --ema; add it, or convert"],
        [["--ema", "0.07", "--convert", file], "--ema needs a run"],
        [["--ema", "0.07", "--out", model], "it holds a model or a run already"],
        [["--ema", "1.5"], "--ema"],
      ] as const
    ) {
      await assertRejects(() => run("inspect", folder, ...args), UsageError, message);
    }
    for (const from of [model, file]) {
      const sample = () => run("sample", "--model", from, "--ema", "0.07", "--out", join(folder, "samples"));
      await assertRejects(sample, UsageError, `of the weights of "${from}": there are no snapshots`);
    }
    for (const { recipe } of [whole, other, resumed]) recipe.destroy();
  });
});

Deno.test("a run says what its snapshots need, by default twenty, and --ema-every needs --ema posthoc", () => {
  const line = snapshotsLine({ ...OPTIONS, steps: 900, emaEvery: undefined }, 1e6) ?? "";
  assertMatch(line, /^--ema posthoc: 20 snapshots .* one every 45 steps: 160(\.0)? MB of disk space in all/);
  assertEquals(snapshotsLine({ ...OPTIONS, ema: 0.99, emaEvery: undefined }, 1e6), undefined);
  const given = { emaEvery: "command line" } as const;
  checkDitOptions(OPTIONS, given);
  assertThrows(() => checkDitOptions({ ...OPTIONS, ema: 0.99 }, given), UsageError, "Cannot use --ema-every");
});
