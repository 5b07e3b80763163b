// tok align --recipe: which options a baseline has, what its runs leave, and that every command opens it.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { type AlignConfig, alignConfig } from "../../src/cli/config.ts";
import { resolveConfig } from "../../src/cli/flags.ts";
import { UsageError } from "../../src/errors.ts";
import { openSafetensors } from "../../src/formats/safetensors.ts";
import { checkOptions, stagesOf } from "../../src/train/align_config.ts";
import { ALIGN_RECIPES } from "../../src/train/align_recipes.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { Vit } from "../../src/models/vit.ts";
import { saveState } from "../../src/nn/layers.ts";
import { ALIGN_PRESETS } from "../../src/cli/presets.ts";
import { testDevice } from "../helpers/check.ts";
import { parseCommandLine } from "../../tasks/run.ts";
import { inFolder, killAt, run, writeImages } from "../helpers/commands.ts";

const parsed = (...args: string[]) =>
  resolveConfig(alignConfig, args, {
    command: "align",
    presets: ALIGN_PRESETS,
    recipes: ALIGN_RECIPES,
  }) as AlignConfig;
const NAMES = Object.keys(ALIGN_RECIPES) as AlignConfig["recipe"][];
const BASELINES = NAMES.slice(1);

Deno.test("aligntok is the default recipe and changes no option; a baseline has one stage with the steps of all", () => {
  assertEquals(parsed(), parsed("--recipe", "aligntok"));
  assertEquals(stagesOf(parsed(), true).map(({ name, steps }) => [name, steps]), [
    ["latent", 120],
    ["perceptual", 500],
    ["refine", 110],
  ]);
  for (const recipe of BASELINES) {
    const stages = stagesOf(parsed("--recipe", recipe), true), frozen = recipe === "rae";
    const [{ name, train, steps, lr, ganStart, ema, losses } = stages[0] as never] = stages;
    assertEquals(stages.length, 1);
    assertEquals(name, frozen ? "decoder" : "joint");
    assertEquals(train, frozen ? ["decoder"] : ["encoder", "adapter", "decoder"]);
    assertEquals([steps, lr], [730, frozen ? 2e-3 : 1e-3]);
    assertEquals(ganStart, 120 + 500 + 85);
    assertEquals(ema, frozen ? 0.98 : 0);
    assertEquals(losses.semantic, 0);
    assertEquals(losses.vf, recipe.startsWith("va-") ? 0.1 : 0);
    assertEquals((losses.kl ?? 0) > 0, !frozen);
  }
  // LDM's KL weight of sums, as one of means: k C / (3 factor^2).
  assert(Math.abs(parsed("--recipe", "vae").wKl / (1e-6 * 16 / (3 * 64)) - 1) < 1e-12);
  const large = parsed("--preset", "dinov2-l-f16d32", "--recipe", "va-vae");
  assertEquals([large.steps, large.lr, large.ganStart, large.encoderLr], [[125000], [1e-4], [5001], 1]);
});

Deno.test("options override a recipe; one that the recipe does not have, or the wrong number of values, is an error", () => {
  const c = parsed(
    "--recipe",
    "va-vae",
    "--steps",
    "9",
    "--w-vf",
    "0.3",
    "--vf-margins",
    "0.4,0.1",
    "--w-kl",
    "0.2",
  );
  assertEquals([c.steps, c.wVf, c.vfMargins, c.wKl], [[9], 0.3, [0.4, 0.1], 0.2]);
  for (
    const [line, reason] of [
      ["--recipe vae --w-semantic 1", "it has no semantic loss"],
      ["--recipe vae --stages 1", "it has one stage"],
      ["--recipe vae --adapter-hidden 8", "it has no adapter"],
      ["--recipe vae --vf-margins 0,0", "it has no vision foundation loss"],
      ["--recipe rae --latent-channels 8", "its latent has the channels of the encoder"],
      ["--recipe rae --w-kl 1", "its latent is a point"],
      ["--recipe va-vae-vit --encoder-blocks 1", "its encoder is a vision transformer"],
      ["--w-vf 0.1", "it has no vision foundation loss"],
    ] as const
  ) {
    const option = /--(?!recipe)\S+/.exec(line)?.[0];
    assertThrows(() => parsed(...line.split(" ")), UsageError, `Cannot use ${option} with --recipe `);
    assertThrows(
      () => parsed(...line.split(" ")),
      UsageError,
      `: ${reason}; choose another --recipe, or leave ${option} out`,
    );
  }
  assertThrows(() => parsed("--recipe", "gan"), UsageError, "Cannot use --recipe gan");
  const stages = (...args: string[]) => () => stagesOf(parsed(...args), true);
  assertThrows(stages("--recipe", "vae", "--steps", "1,2,3"), UsageError, "give one value");
  assertThrows(stages("--steps", "5"), UsageError, "give one for each of the 3 stages");
});

Deno.test("an option on the command line that has no effect is an error; the same from a preset is not", () => {
  for (
    const line of [
      ...["--lora-alpha 4", "--w-semantic 0 --semantic-loss cosine", "--w-semantic 0 --semantic-at before"],
      ...[
        "--gan none --gan-loss vanilla",
        "--gan none --gan-lr 1e-3",
        "--gan dino --discriminator-channels 8",
      ],
      ...["--gan dino --discriminator-layers 1", "--lr-schedule constant --lr-end 0.5"],
      "--recipe va-vae --w-vf 0 --vf-margins 0,0",
      ...["--stages 1 --w-semantic 1", "--stages 1,3 --semantic-loss cosine", "--stages 2 --noise-tau 0.5"],
      ...["--stages 3 --encoder-lr 0.5", "--stages 3 --adapter-lr 2", "--perceptual none --w-perceptual 1"],
      ...[
        "--gan none --w-gan 1",
        "--gan none --gan-start 5",
        "--w-gan 0 --gan-warmup 5",
        "--w-gan 0 --diffaug color",
      ],
      ...["--gan none --diffaug color", "--gan-encoder facebook/dino-vits8"],
      "--recipe vae --perceptual none --encoder facebook/dinov2-base",
    ]
  ) {
    const { config, origins } = parseCommandLine(["align", ...line.split(" ")]);
    const option = /(--\S+) \S+$/.exec(line)?.[1];
    assertThrows(() => checkOptions(config, origins), UsageError, `Cannot use ${option}: `);
  }
  const preset = ["--preset", "dinov2-l-f16d32", "--gan", "dino", "--lr-schedule", "constant", "--dry-run"];
  const { config, origins } = parseCommandLine(["align", ...preset]);
  checkOptions(config, origins);
});

const SMALL = (folder: string) => [
  ...["--data", join(folder, "images"), "--image-size", "16", "--held-out", "2", "--batch-size", "2"],
  ...["--latent-channels", "4", "--decoder-channels", "8", "--log-every", "1", "--gan-start", "1"],
];

Deno.test("every command opens a convolutional baseline; a dry run of each recipe says what it needs", async () => {
  await inFolder(async (folder) => {
    await writeImages(join(folder, "images"), 6);
    const out = join(folder, "vae"), data = join(folder, "images");
    const { lines } = await run("align", "--recipe", "vae", "--steps", "2", "--out", out, ...SMALL(folder));
    assert(lines.some((line) => line.startsWith("stage 1 (joint): psnr")), lines.join("\n"));
    const config = JSON.parse(Deno.readTextFileSync(join(out, "tokenizer/config.json")));
    assertEquals([config.type, config.embed_dim, config.encoder.num_res_blocks], ["autoencoder", 4, 1]);
    const file = await openSafetensors(join(out, "tokenizer/model.safetensors"));
    for (
      const key of ["encoder.conv_out.weight", "quant_conv.weight", "decoder.conv_out.weight", "latent_std"]
    ) {
      assert(file.shapes.has(key), key);
    }
    assert(![...file.shapes.keys()].some((key) => key.startsWith("projection")));
    file.close();
    await run("inspect", out);
    const made = await run("reconstruct", "--tokenizer", out, "--input", data, "--out", join(folder, "r"));
    assertEquals(made.result.n, 6);
    await run("encode", "--tokenizer", out, "--data", data, "--out", join(folder, "z"));
    // What is wrong in the folder is refused, strictly.
    config.embed_dim = 8;
    Deno.writeTextFileSync(join(out, "tokenizer/config.json"), JSON.stringify(config));
    await assertRejects(
      () => run("reconstruct", "--tokenizer", out, "--input", data),
      UsageError,
      "Cannot load",
    );
    for (const recipe of BASELINES) {
      const { result } = await run(
        "align",
        "--recipe",
        recipe,
        "--dry-run",
        ...recipe === "rae" ? [] : SMALL(folder),
      );
      const { plans, parameters } = result as never as {
        plans: { name: string; flops: number }[];
        parameters: Record<string, number>;
      };
      assertEquals(plans.map(({ name }) => name), [recipe === "rae" ? "decoder" : "joint"]);
      assert((plans[0]?.flops ?? 0) > 1e6 && (parameters.encoder ?? 0) > 1e4, recipe);
    }
  });
});

Deno.test("rae keeps the encoder's weights but for the final norm, and va-vae-vit none of them", async () => {
  await testDevice();
  const source = await openEncoder(), vit = new Vit(source.config);
  await source.load(vit);
  const pretrained = new Map((await saveState(vit)).map(({ name, data }) => [`encoder.${name}`, data]));
  await inFolder(async (folder) => {
    await writeImages(join(folder, "images"), 6);
    for (const recipe of ["rae", "va-vae-vit"]) {
      const out = join(folder, recipe), options = SMALL(folder);
      if (recipe === "rae") options.splice(options.indexOf("--latent-channels"), 2);
      await run("align", "--recipe", recipe, "--steps", "1", "--out", out, ...options);
      const file = await openSafetensors(join(out, "tokenizer/model.safetensors"));
      for (const [key, weights] of pretrained) {
        const data = await file.read(key), norm = /^encoder\.(vit\.|dinov2\.)?layernorm\./.test(key);
        if (recipe === "rae" && !norm) assertEquals(data, weights, key);
        if (recipe === "rae" && norm) assertEquals([...new Set(data)], [key.endsWith("weight") ? 1 : 0], key);
        if (recipe !== "rae" && /(query|fc1)\.weight$/.test(key)) {
          const dot = data.reduce((sum, v, i) => sum + v * (weights[i] as number), 0);
          const norms = Math.hypot(...data) * Math.hypot(...weights);
          assert(Math.abs(dot) < 0.2 * norms, `${key} is still the pretrained one`);
        }
      }
      assertEquals([...file.shapes.keys()].some((key) => key.startsWith("adapter")), recipe !== "rae");
      file.close();
    }
  });
});

Deno.test("a run of va-vae that is killed resumes to the bits of the run that was never killed", async () => {
  await inFolder(async (folder) => {
    await writeImages(join(folder, "images"), 6);
    const args = (out: string): [string, ...string[]] => [
      "align",
      ...["--recipe", "va-vae", "--steps", "5", "--save-every", "2", "--accumulate", "2"],
      ...["--out", join(folder, out), ...SMALL(folder)],
    ];
    await killAt(3, join(folder, "killed"), ...args("killed"));
    await run(...args("whole"));
    await run(...args("killed"), "--resume");
    const [whole, killed] = ["whole", "killed"].map((out) =>
      Deno.readFileSync(join(folder, out, "tokenizer/model.safetensors"))
    );
    assertEquals(killed, whole);
  });
});
