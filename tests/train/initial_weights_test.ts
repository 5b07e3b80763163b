// tok align --init: every kind of file, into every kind of tokenizer; what does not fit; what the losses then compare with.

import { assert, assertEquals, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { type AlignConfig, alignConfig } from "../../src/cli/config.ts";
import { resolveConfig } from "../../src/cli/flags.ts";
import { UsageError } from "../../src/errors.ts";
import { makeFolder } from "../../src/formats/files.ts";
import { openModel } from "../../src/formats/shards.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { writePng } from "../../src/image/image.ts";
import { Initializer } from "../../src/nn/init.ts";
import { type SavedTensor, saveState, snapshot, state } from "../../src/nn/layers.ts";
import { checkpointPath, saveCheckpoint } from "../../src/run/checkpoint.ts";
import { checkOptions } from "../../src/train/align_config.ts";
import { alignmentOf, initModels, loadEncoder, recipeTokenizer } from "../../src/train/align_models.ts";
import { ALIGN_RECIPES } from "../../src/train/align_recipes.ts";
import type { Alignment } from "../../src/train/alignment.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { discriminatorOf } from "../../src/train/discriminators.ts";
import { initialise } from "../../src/train/initial_weights.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { openTokenizer, saveTokenizer } from "../../src/zoo/runs.ts";
import { randomArray, testDevice } from "../helpers/check.ts";
import { inFolder, quietLog, run } from "../helpers/commands.ts";
import { fixturePath, made, rename, writeDiffusers } from "../helpers/published.ts";

const SIZES = {
  "image-size": "16",
  "latent-channels": "4",
  "decoder-channels": "8",
  "decoder-multiples": "1,2",
  "discriminator-channels": "4",
};
/** A command line: the sizes, with other options and other values. */
const line = (...args: string[]) =>
  Object.entries(SIZES).flatMap(([name, value]) =>
    args.includes(`--${name}`) || (name.startsWith("discriminator") && args.includes("none"))
      ? []
      : [`--${name}`, value]
  ).concat(args);

const parsed = (...args: string[]) =>
  resolveConfig(alignConfig, line(...args), { command: "align", recipes: ALIGN_RECIPES }) as AlignConfig;

/** The models of a run before its first step. */
async function models(c: AlignConfig) {
  await testDevice();
  const encoder = await openEncoder(),
    init = new Initializer(c.seed),
    tokenizer = recipeTokenizer(c, encoder);
  const alignment = alignmentOf(c, tokenizer, encoder, discriminatorOf(c, encoder), undefined);
  initModels(alignment, init);
  await loadEncoder(c, alignment, encoder, init);
  return { alignment, tokenizer };
}

/** All tensors of the tokenizer and the discriminator in the layout of files, by name. */
async function tensors({ tokenizer, discriminator }: Alignment): Promise<Map<string, SavedTensor>> {
  const all = await saveState({ ...tokenizer, ...discriminator ? { discriminator } : {}, config: undefined });
  return new Map(all.map((tensor) => [tensor.name, tensor]));
}

/** Weights that no initialisation makes, encoder included. */
async function trained(recipe: string): Promise<Awaited<ReturnType<typeof models>>> {
  const made = await models(parsed("--seed", "7", "--recipe", recipe));
  for (const [i, tensor] of [...state(made.tokenizer).values()].entries()) {
    await tensor.storage.materialise();
    tensor.storage.write(randomArray(tensor.size, i + 1).map((v) => 0.1 * v) as Float32Array<ArrayBuffer>);
  }
  await made.tokenizer.setStatistics(new Float32Array(4), new Float32Array(4).fill(1));
  return made;
}

const WORDS: Record<string, RegExp> = {
  encoder: /^encoder\./,
  adapter: /^(adapter|quant_conv)\./,
  decoder: /^(decoder|post_quant_conv)\./,
  discriminator: /^discriminator\./,
};

/** Initialises from `path`: the tensors of `parts` are those of `expected`, all others as they were. @returns the log line */
async function initialises(
  path: string,
  parts: string[],
  expected: ReadonlyMap<string, Pick<SavedTensor, "data">>,
  ...args: string[]
): Promise<string> {
  const c = parsed("--init", path, ...args),
    { alignment } = await models(c),
    before = await tensors(alignment);
  const { log, lines } = quietLog(), identity = await initialise(alignment, c, log);
  let compared = 0;
  for (const [name, { data }] of await tensors(alignment)) {
    const isPart = parts.some((part) => WORDS[part]?.test(name));
    assertEquals(data, (isPart ? expected : before).get(name)?.data, `${path}: ${name}`);
    if (isPart) compared++;
  }
  assert(compared >= 2 * parts.length);
  assertEquals(Object.keys(identity), ["initialisation"]);
  assertEquals(lines.length, 1);
  assert(lines[0]?.startsWith(`init: ${parts.join(", ")} from ${path}`), lines[0]);
  return lines[0] as string;
}

Deno.test("--init takes the parts that a run, a checkpoint or a file of tensors has", async () => {
  await inFolder(async (folder) => {
    const { alignment, tokenizer } = await trained("aligntok"), all = await tensors(alignment);
    if (!("adapter" in tokenizer)) throw new Error("no adapter");
    await saveTokenizer(folder, tokenizer);
    const three = ["encoder", "adapter", "decoder"], four = [...three, "discriminator"];
    await initialises(folder, three, all);
    await initialises(join(folder, "tokenizer"), three, all);
    assert(
      (await initialises(folder, ["decoder"], all, "--init-parts", "decoder")).endsWith(
        "(it also has: encoder, adapter)",
      ),
    );

    // A checkpoint has tensors in the layout of the device.
    const checkpoint = await saveCheckpoint(folder, 3, await snapshot(alignment.state()), {});
    await initialises(checkpoint, four, all);
    await initialises(checkpoint, three, all, "--gan", "none");

    const file = join(folder, "part.safetensors");
    for (const parts of [["adapter"], ["discriminator"], ["decoder", "discriminator"]]) {
      await writeSafetensors(
        file,
        [...all.values()].filter(({ name }) => parts.some((part) => WORDS[part]?.test(name))),
      );
      await initialises(file, parts, all);
    }
  });
});

Deno.test("--init takes a published autoencoder: all of it into a convolutional baseline, else its decoder", async () => {
  await inFolder(async (folder) => {
    // LDM's layout: a wrapper, the discriminator among the losses, other networks.
    const { alignment } = await trained("vae"),
      all = await tensors(alignment),
      file = join(folder, "ldm.safetensors");
    const ldm = [...all.values()].filter(({ name }) => !name.startsWith("latent_")).map((tensor) => ({
      ...tensor,
      name: `state_dict.${tensor.name.replace(/^discriminator/, "loss.discriminator")}`,
    }));
    const extra = {
      name: "state_dict.loss.perceptual_loss.lin0.weight",
      shape: [1],
      data: new Float32Array(1),
    };
    const counter = { ...extra, name: "state_dict.loss.discriminator.main.3.num_batches_tracked" };
    await writeSafetensors(file, [...ldm, extra, counter]);
    const line = await initialises(file, ["decoder", "discriminator"], all);
    assert(line.endsWith("(it also has: encoder, adapter)"), line);
    for (const recipe of ["vae", "va-vae"]) {
      const parts = ["encoder", "adapter", "decoder", "discriminator"];
      await initialises(file, parts, all, "--recipe", recipe);
    }

    // diffusers, without the 1x1 convolutions around the latent: identities.
    const { config, weights } = await made("autoencoder_diffusers");
    const bare = rename(weights, (key) => key.includes("quant_conv") ? undefined : key);
    const path = await writeDiffusers(join(folder, "vae"), bare, {
      ...config,
      use_quant_conv: false,
      use_post_quant_conv: false,
    });
    const expected = new Map<string, Pick<SavedTensor, "data">>([
      ...(await saveState(await openTokenizer(path))).map((tensor) => [tensor.name, tensor] as const),
      ["post_quant_conv.weight", { data: Float32Array.from({ length: 16 }, (_, i) => i % 5 === 0 ? 1 : 0) }],
      ["post_quant_conv.bias", { data: new Float32Array(4) }],
    ]);
    const sizes = ["--decoder-channels", "32", "--decoder-groups", "16"];
    await initialises(
      path,
      ["decoder"],
      expected,
      ...sizes,
      "--decoder-blocks",
      "1",
      "--decoder-attention",
      "8",
    );
  });
});

Deno.test("every key of --init that does not fit is in one line; what holds no part is refused", async () => {
  await inFolder(async (folder) => {
    const { alignment, tokenizer } = await trained("aligntok");
    await saveTokenizer(folder, tokenizer as never);
    const refusal = async (path: string, ...args: string[]) => {
      const c = parsed("--init", path, ...args),
        { alignment } = await models(c),
        before = await tensors(alignment);
      const { message } = await assertRejects(() => initialise(alignment, c, quietLog().log), UsageError);
      assert(message.startsWith("Cannot ") && !message.includes("\n"), message);
      assertEquals(await tensors(alignment), before);
      assertEquals(
        (await assertRejects(() => initialise(alignment, c, undefined), UsageError)).message,
        message,
      );
      return message;
    };
    // Another width of the decoder: as many keys as shapes that differ, counted here.
    const wide = ["--decoder-channels", "16"], own = await tensors(alignment);
    const other = await tensors((await models(parsed(...wide))).alignment);
    const wrong = [...other.values()].filter(({ name, shape }) => `${own.get(name)?.shape}` !== `${shape}`)
      .filter(({ name }) => !name.startsWith("discriminator"));
    assert(wrong.length > 20);
    const message = await refusal(folder, ...wide);
    for (const { name } of wrong) assert(message.includes(`"${name}" is [`), `${name}: ${message}`);
    assertEquals(message.split(" instead of [").length - 1, wrong.length);
    assert(message.includes('"decoder.conv_out.weight" is [3, 8, 3, 3] instead of [3, 16, 3, 3]'), message);

    // Missing, unexpected and misshapen at once.
    const file = join(folder, "file.safetensors"),
      adapter = [...own.values()].filter(({ name }) => /^adapter/.test(name));
    const [first, ...others] = adapter as [SavedTensor, ...SavedTensor[]];
    await writeSafetensors(file, [...others, { ...first, name: "adaptor.fc1.weight" }]);
    assert(
      (await refusal(file)).includes(`missing "${first.name}", unexpected "adaptor.fc1.weight"; choose`),
    );
    await writeSafetensors(file, [first, ...others.map((t) => ({ ...t, data: t.data.map(() => NaN) }))]);
    const { alignment: untouched } = await models(parsed());
    await assertRejects(
      () => initialise(untouched, parsed("--init", file), quietLog().log),
      UsageError,
      "holds NaN",
    );

    for (
      const [path, reason, ...args] of [
        [join(folder, "nowhere.pt"), "there is no such path"],
        [join(folder, "checkpoints"), "there is no such path"],
        [fixturePath("dinov2.safetensors"), "it has no such part of this tokenizer (its first tensor is"],
        [folder, "Cannot initialise discriminator from", "--init-parts", "decoder,discriminator"],
        [file, "Cannot initialise encoder from", "--init-parts", "encoder"],
        [folder, "Cannot initialise adapter from", "--init-parts", "adapter", "--recipe", "vae"],
      ] as const
    ) {
      assert((await refusal(path, ...args)).includes(reason), reason);
    }
    assertThrows(
      () => checkOptions(parsed("--init-parts", "decoder"), { initParts: "command line" }),
      UsageError,
      "Cannot use --init-parts: it needs --init",
    );
  });
});

/** Non-square images. */
async function photos(folder: string): Promise<string> {
  makeFolder(folder);
  for (let i = 0; i < 8; i++) {
    const data = Uint8Array.from(randomArray(24 * 33 * 3, i + 1), (v) => 128 + 80 * v);
    await writePng(join(folder, `${i}.png`), { width: 24, height: 33, data });
  }
  return folder;
}

const rows = (out: string) =>
  Deno.readTextFileSync(join(out, "log.jsonl")).trim().split("\n").map((row) => JSON.parse(row))
    .filter(({ event }) => event === "step") as Record<string, number>[];

Deno.test("a run begins with --init's weights, and its losses compare with them", async () => {
  await inFolder(async (folder) => {
    const data = await photos(join(folder, "photos")),
      { tokenizer } = await trained("aligntok"),
      first = join(folder, "first");
    await saveTokenizer(first, tokenizer as never);
    const options = [
      "--init",
      first,
      "--data",
      data,
      "--held-out",
      "2",
      "--batch-size",
      "2",
      "--log-every",
      "1",
    ];
    const align = (out: string, ...args: string[]) =>
      run("align", ...line(...options, "--gan", "none", "--out", join(folder, out), ...args));
    const { lines } = await align("same", "--steps", "1,1,1", "--lr", "0,0,0", "--ema", "0");
    assert(lines.includes(`init: encoder, adapter, decoder from ${first}`), lines.join("\n"));
    // Without a learning rate the result is what it began with; the semantic loss is 0 against it.
    const begun = await openModel(join(first, "tokenizer")),
      result = await openModel(join(folder, "same/tokenizer"));
    for (const key of begun.shapes.keys()) {
      if (!key.startsWith("latent_")) assertEquals(await result.read(key), await begun.read(key), key);
    }
    begun.close();
    result.close();
    assertEquals(rows(join(folder, "same")).map(({ semantic }) => semantic), [0, 0, 0]);
    // Stage 2 alone: the anchor is the adapter that it begins with.
    await align("second", "--steps", "1,2,1", "--stages", "2");
    const [zero, some] = rows(join(folder, "second")).map(({ semantic }) => semantic as number) as [
      number,
      number,
    ];
    assertEquals(zero, 0);
    assert(some > 0);
  });
});

Deno.test("a run with --init and --crop random resumes to the same bits, and refuses other weights and crops", async () => {
  await inFolder(async (folder) => {
    const data = await photos(join(folder, "photos")), { tokenizer } = await trained("aligntok");
    // All before the first run, which opens another device.
    for (const name of ["first", "copy"]) await saveTokenizer(join(folder, name), tokenizer as never);
    (state(tokenizer).get("decoder.conv_out.bias") as Tensor).storage.write(Float32Array.of(1, 2, 3));
    await saveTokenizer(join(folder, "other"), tokenizer as never);
    const align = (init: string | undefined, crop: string, out: string, ...args: string[]) =>
      run(
        "align",
        ...line("--data", data, "--crop", crop, "--out", join(folder, out), "--gan", "none"),
        ...init === undefined ? [] : ["--init", join(folder, init)],
        ...["--held-out", "2", "--batch-size", "2", "--log-every", "1", "--save-every", "1", "--keep", "9"],
        ...["--steps", "2,1,1", ...args],
      );
    const weights = (out: string) => Deno.readFileSync(join(folder, out, "tokenizer/model.safetensors"));
    await align("first", "random", "whole");
    // As a run that was killed after its first step.
    await Deno.mkdir(join(folder, "killed/checkpoints"), { recursive: true });
    const checkpoint = (out: string) => checkpointPath(join(folder, out), 1);
    await Deno.copyFile(checkpoint("whole"), checkpoint("killed"));
    await assertRejects(
      () => align("first", "center", "killed", "--resume"),
      UsageError,
      '--crop was "random" and is "center"',
    );
    await assertRejects(() => align(undefined, "random", "killed", "--resume"), UsageError, "--init was");
    // Moved weights are the same weights.
    await align("copy", "random", "killed", "--resume", "--workers", "0");
    assertEquals(weights("killed"), weights("whole"));
    await align("first", "center", "center");
    assertNotEquals(rows(join(folder, "center"))[0]?.l1, rows(join(folder, "whole"))[0]?.l1);

    await assertRejects(
      () => align("other", "random", "killed", "--resume"),
      UsageError,
      "the initialisation was",
    );
  });
});
