// The options of guidance: what they become, which are refused, the models that they need, and how pictures record them.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { sampleConfig } from "../../src/cli/config.ts";
import { resolveOptions } from "../../src/cli/flags.ts";
import { guidanceText } from "../../src/cli/guidance.ts";
import { sweepConfig } from "../../src/cli/sweep_config.ts";
import { UsageError } from "../../src/errors.ts";
import { cellsOf, distinct, optionsOf } from "../../src/experiment/sweep.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { Initializer } from "../../src/nn/init.ts";
import { saveState } from "../../src/nn/layers.ts";
import { guidanceOptions } from "../../src/sampling/guidance.ts";
import { samplingOptions } from "../../src/sampling/sampler.ts";
import { checkSampling } from "../../src/sampling/sampler_options.ts";
import { openGuide } from "../../src/zoo/guide.ts";
import { type DiffusionModel, type ModelConfig, openDit, saveDit } from "../../src/zoo/runs.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder, run } from "../helpers/commands.ts";
import { fixturePath } from "../helpers/published.ts";

/** The smallest DiT. */
const dit = (options: Partial<ModelConfig["dit"]> = {}) =>
  new Dit(ditConfig.parse({
    ...{ input_size: 2, in_channels: 4, hidden_size: 16, depth: 2, num_heads: 2, num_classes: 2 },
    ...options,
  }));

const parsed = (line: string) =>
  resolveOptions(sampleConfig, line.split(" ").filter(Boolean), { command: "sample" });

Deno.test("the options of a command become those of the guidance", () => {
  const of = (line: string) => samplingOptions(parsed(line).config, dit());
  const { guide: none, ...standard } = guidanceOptions(parsed("").config);
  assertEquals(none, undefined);
  assertEquals(standard, {
    ...{ cfg: 4, cfgInterval: [0.1, 1], cfgChannels: undefined, schedule: { name: "constant", power: 2 } },
    ...{ rescale: 0, zeroStar: undefined, apg: undefined, internal: undefined },
  });
  assertEquals(of("--cfg-channels 3 --cfg-interval 0.2,0.8").cfgChannels, 3);
  assertEquals(of("--cfg-channels 3 --cfg-interval 0.2,0.8").cfgInterval, [0.2, 0.8]);
  assertEquals(of("--cfg-schedule power --cfg-power 3").schedule, { name: "power", power: 3 });
  assertEquals(of("--cfg-rescale 0.7").rescale, 0.7);
  assertEquals(of("--cfg-zero").zeroStar, { init: 0.04 });
  assertEquals(of("--cfg-zero --zero-init 0.1").zeroStar, { init: 0.1 });
  assertEquals(of("--cfg-zero --cfg 1").zeroStar, undefined);
  assertEquals(of("--cfg-zero --apg").zeroStar, undefined);
  assertEquals(of("--apg --cfg 1").apg, undefined);
  assertEquals(of("--apg --apg-momentum -0.5 --sampler dopri5").apg?.momentum, 0);
  assertEquals(of("--apg").apg, { eta: 0, norm: Infinity, momentum: 0 });
  assertEquals(of("--apg --apg-eta 0.5 --apg-norm 5 --apg-momentum -0.75").apg, {
    eta: 0.5,
    norm: 5,
    momentum: -0.75,
  });
  for (const sampler of ["dopri5", "dpm++2m", "unipc", "sde", "euler-stochastic"]) {
    assertEquals(of(`--cfg-zero --sampler ${sampler}`).zeroStar, { init: 0 });
  }
  assertEquals(of("--guide x").guide?.weight, 1.5);
  assertEquals(of("--guide x --guide-weight 2").guide?.weight, 2);
  assertEquals(of("--ig 1.4").internal, { weight: 1.4, interval: [0, 1] });
  assertEquals(of("--ig 1.4 --ig-interval 0,0.9").internal, { weight: 1.4, interval: [0, 0.9] });
  assertEquals(
    guidanceText(parsed("--cfg 3 --cfg-schedule cosine --apg --cfg-rescale 0.5 --guide x --ig 1.4").config),
    "guidance 3, cosine, APG, rescaled 0.5, autoguidance 1.5, internal guidance 1.4",
  );
  assertEquals(guidanceText(parsed("--cfg-zero").config), "guidance 4, CFG-Zero*");
});

Deno.test("a sweep varies all options of guidance, and computes no cell twice for those without effect", () => {
  const { config } = resolveOptions(
    sweepConfig,
    "--cfg 1,3 --apg off,on --apg-eta 0,0.5 --guide none,a --guide-weight 1.5,2 --ig-interval 0-1,0-0.9"
      .split(" "),
    { command: "sweep" },
  );
  const cells = cellsOf(config), model = dit();
  // 1 of cfg 1, and 1 + 2 of cfg 3 with and without APG, times 1 without a guide and 2 weights with one.
  assertEquals([cells.length, distinct(cells).length], [64, 4 * 3]);
  const guides = new Map([["a", { dit: model }]]);
  for (const cell of cells) {
    const { apg, guide } = optionsOf(cell, { config, guides });
    const { options } = cell;
    assertEquals(apg?.eta, options.apg && options.cfg !== 1 ? options.apgEta : undefined);
    assertEquals(guide, options.guide === "a" ? { model, weight: options.guideWeight } : undefined);
  }
});

Deno.test("guidance options that are wrong or have no effect are refused in one line", () => {
  const wrong: [line: string, message: string][] = [
    [
      "--cfg 1 --cfg-interval 0,1",
      "Cannot use --cfg-interval: --cfg 1 turns guidance off, and there is no --guide; choose another --cfg, add --guide, or leave " +
      "--cfg-interval out",
    ],
    ["--cfg 1 --cfg-channels 3", "--cfg-channels: --cfg 1 turns guidance off, and there is no --guide"],
    [
      "--cfg 1 --cfg-schedule linear",
      "--cfg-schedule: --cfg 1 turns guidance off; choose another --cfg, or leave --cfg-schedule out",
    ],
    ["--cfg-power 2", "--cfg-power: it needs --cfg-schedule power; add it, or leave --cfg-power out"],
    ["--cfg-schedule linear --cfg-power 2", "--cfg-power: it needs --cfg-schedule power"],
    ["--cfg 1 --cfg-rescale 0.5", "--cfg-rescale: --cfg 1 turns guidance off, and there is no --guide"],
    ["--cfg 1 --cfg-zero", "--cfg-zero: --cfg 1 turns guidance off"],
    [
      "--apg --cfg-zero",
      "--cfg-zero: --apg is another form of guidance; drop --apg, or leave --cfg-zero out",
    ],
    ["--zero-init 0.1", "--zero-init: it needs --cfg-zero"],
    ["--apg --cfg 1", "--apg: --cfg 1 turns guidance off"],
    ["--apg-eta 0.5", "--apg-eta: it needs --apg; add it, or leave --apg-eta out"],
    ["--apg-norm 5", "--apg-norm: it needs --apg"],
    ["--apg-momentum -0.5", "--apg-momentum: it needs --apg"],
    ["--guide-weight 2", "--guide-weight: it needs --guide; add it, or leave --guide-weight out"],
    ["--apg --apg-momentum -0.5 --sampler dopri5", "--apg-momentum: --sampler dopri5 chooses its own steps"],
    ["--cfg-zero --zero-init 0.1 --sampler dopri5", "--zero-init: --sampler dopri5 chooses its own steps"],
    ...["dpm++2m", "unipc", "sde", "euler-stochastic"].map((sampler): [string, string] => [
      `--cfg-zero --zero-init 0.1 --sampler ${sampler}`,
      "--zero-init: it needs --sampler euler, heun, midpoint or rk4; add it, or leave --zero-init out",
    ]),
    [
      "--ig-interval 0,0.9",
      "--ig-interval: --ig 1 turns internal guidance off; choose another --ig, or leave --ig-interval out",
    ],
    ["--cfg-schedule cosin", "--cfg-schedule cosin: give one of constant, linear"],
    ["--cfg-schedule cosin", "; did you mean cosine?"],
    ["--cfg-interval 0.8,0.2", "--cfg-interval 0.8,0.2: give the smaller time first"],
    ["--ig-interval 1,0", "--ig-interval 1,0: give the smaller time first"],
    ["--cfg-power -1", "--cfg-power -1"],
    ["--cfg-rescale 1.5", "--cfg-rescale 1.5"],
    ["--zero-init 1", "--zero-init 1"],
    ["--apg-momentum 1", "--apg-momentum 1"],
    ["--apg-norm 0", "--apg-norm 0"],
  ];
  for (const [line, message] of wrong) {
    const error = assertThrows(
      () => {
        const { config, origins } = parsed(line);
        checkSampling(config, origins);
      },
      UsageError,
      message,
    );
    assert(!error.message.includes("\n"), line);
  }
  for (
    const line of [
      "",
      "--cfg 1",
      "--cfg 1 --guide x --cfg-interval 0,1 --cfg-rescale 0.5",
      "--cfg 1 --ig 1.4",
    ]
  ) {
    const { config, origins } = parsed(line);
    checkSampling(config, origins);
  }
});

Deno.test("a guide of other latents or classes, and --ig without an inner head, are refused in one line", () =>
  inFolder(async (folder) => {
    await testDevice();
    const tokenizer = { name: "runs/a", fingerprint: "1", latents: "2", places: [] };
    const standard = {
      tokenizer: "runs/a",
      classes: ["disc", "square"],
      latent_mean: [0, 0, 0, 1],
      latent_std: [1, 1, 1, 2],
      made_from: { tokenizer, latents: {} },
    };
    const save = async (
      name: string,
      options: Partial<ModelConfig["dit"]>,
      changes: Partial<ModelConfig>,
    ) => {
      const model = dit(options);
      model.init(new Initializer(0));
      await saveDit(join(folder, name), model, { dit: model.config, ...standard, ...changes });
      return join(folder, name);
    };
    const model = await openDit(await save("model", {}, {}));
    const refused = async (path: string, message: string, of: DiffusionModel = model) => {
      const error = await assertRejects(() => openGuide(of, { guide: path }), UsageError, message);
      assert(error.message.startsWith(`Cannot guide "${of.identity.name}" by "${path}": `), error.message);
      assert(
        !error.message.includes("\n") &&
          error.message.endsWith("; name a model of the same latents, classes and prediction"),
      );
    };
    await refused(
      await save("side", { input_size: 3 }, {}),
      "its latents are 3 x 3 x 4, those of the model 2 x 2 x 4",
    );
    await refused(await save("channels", { in_channels: 5 }, {}), "its latents are 2 x 2 x 5");
    await refused(await save("classes", { num_classes: 3 }, {}), "it has 3 classes, the model 2");
    await refused(
      await save("names", {}, { classes: ["disc", "ring"] }),
      'its class 1 is "ring", that of the model "square"',
    );
    await refused(
      await save("latents", {}, { made_from: { tokenizer: { ...tokenizer, latents: "3" }, latents: {} } }),
      'it works on latents of the tokenizer "runs/a" (3), the model on those of "runs/a" (2)',
    );
    await refused(
      await save("data", {}, { prediction: "data" }),
      "it predicts the data, the model the velocity",
    );
    const shifted = { latent_mean: [0, 0, 0, 1.2] }, wide = { latent_std: [1.1, 1, 1, 2] };
    await refused(await save("mean", {}, shifted), "channel 3 of its latents was normalised differently");
    await refused(await save("std", {}, wide), "channel 0 of its latents was normalised differently");
    // Another size fits, and so do small differences of the statistics and a model that does not say what it was made from.
    for (
      const [name, options, changes] of [
        ["smaller", { hidden_size: 8, depth: 1 }, { latent_mean: [0.01, 0, 0, 1] }],
        ["published", {}, { classes: ["0", "1"], made_from: undefined, latent_std: undefined }],
      ] as const
    ) {
      const path = await save(name, options, changes as unknown as Partial<ModelConfig>);
      assertEquals((await openGuide(model, { guide: path }))?.identity.name, path);
    }
    const said: string[] = [], published = join(folder, "published.safetensors");
    const tensors = [...await saveState(new Dit({ ...model.config.dit, learn_sigma: true }))];
    await writeSafetensors(published, tensors);
    await openGuide({ ...model, config: { ...model.config, made_from: undefined } }, {
      guide: published,
      say: (line) => said.push(line),
    });
    assertEquals([said.length, said[0]?.startsWith(`"${published}" is read as SiT's`)], [1, true]);
    assertEquals(await openGuide(model, { cfgChannels: 4 }), undefined);
    const more = await assertRejects(() => openGuide(model, { cfgChannels: 5 }), UsageError);
    assertEquals(
      more.message,
      `Cannot use --cfg-channels 5 with "${model.identity.name}": its latents have 4 channels; choose at most 4, or all`,
    );
    assertEquals(await openGuide(model, {}), undefined);
    const error = await assertRejects(() => openGuide(model, { ig: 1.4 }), UsageError);
    assertEquals(
      error.message,
      `Cannot use --ig 1.4 with "${model.identity.name}": it has no inner head; train a model with "tok train-dit ` +
        `--inner-head N", or leave --ig out`,
    );
    assertEquals(
      await openGuide(await openDit(await save("inner", { inner_head: 1 }, {})), { ig: 1.4 }),
      undefined,
    );
  }));

Deno.test("pictures record their guidance: a folder goes on with the same alone", () =>
  inFolder(async (folder) => {
    const file = fixturePath("lightningdit_tiny.pt"), copy = join(folder, "guide.pt");
    const sample = (...args: string[]) =>
      run(
        "sample",
        ...["--model", file, "--tokenizer", fixturePath("vavae_tiny.pt"), "--classes", "7", "--num", "1"],
        ...["--steps", "2", "--cfg-interval", "0,1", ...args],
      );
    const picture = (out: string) => Deno.readFileSync(join(out, "000000.png")).toHex();
    const plain = join(folder, "plain"), other = join(folder, "other");
    await sample("--out", plain);
    const changes: [args: string[], message: string][] = [
      [["--cfg-schedule", "linear"], "--cfg-schedule was"],
      [["--cfg-rescale", "0.5"], "--cfg-rescale was"],
      [["--apg"], "--apg was"],
      [["--cfg-zero"], "--cfg-zero was"],
      [["--guide", file], "--guide"],
    ];
    for (const [args, message] of changes) {
      await assertRejects(() => sample(...args, "--out", plain), UsageError, message);
    }
    await assertRejects(() => sample("--ig", "1.4", "--out", plain), UsageError, "it has no inner head");
    const guided = ["--cfg-schedule", "linear", "--cfg-rescale", "0.5", "--guide", file, "--out", other];
    // The weight of the first step is 1; the guide is evaluated in both.
    assertEquals((await sample(...guided)).result.nfe, 2 + 3);
    assert(picture(other) !== picture(plain));
    await assertRejects(() => sample("--out", other), UsageError, "--cfg-schedule was");
    await Deno.copyFile(file, copy); // the guide is known by its weights
    await sample("--cfg-schedule", "linear", "--cfg-rescale", "0.5", "--guide", copy, "--out", other);
  }));

Deno.test("sample --ig guides a model by its inner head in one pass a step", () =>
  inFolder(async (folder) => {
    await testDevice();
    const { config: { dit: config } } = await openDit(fixturePath("lightningdit_tiny.pt"));
    const model = new Dit({ ...config, depth: 2, inner_head: 1 }), init = new Initializer(0);
    model.init(init);
    for (const head of [model.final_layer, model.final_layer_xr]) {
      if (head) init.normal(head.linear.weight, 0.3);
    }
    const classes = Array.from({ length: config.num_classes }, (_, k) => String(k));
    await saveDit(folder, model, { dit: model.config, classes });
    const sample = async (ig: string) => {
      const out = join(folder, ig), tokenizer = fixturePath("vavae_tiny.pt");
      const { lines, result } = await run(
        "sample",
        ...["--model", folder, "--tokenizer", tokenizer, "--classes", "7", "--num", "1", "--steps", "2"],
        ...["--cfg", "1", "--ig", ig, "--out", out],
      );
      return {
        said: lines.at(-1),
        nfe: result.nfe,
        picture: Deno.readFileSync(join(out, "000000.png")).toHex(),
      };
    };
    const plain = await sample("1"), guided = await sample("1.4");
    assertEquals([plain.nfe, guided.nfe], [2, 2]);
    assert(guided.said?.includes("guidance 1, internal guidance 1.4"), guided.said);
    assert(guided.picture !== plain.picture);
  }));
