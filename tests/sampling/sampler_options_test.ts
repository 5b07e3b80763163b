// What holds for every sampler: the same bits in any batch, counted evaluations, grids, and refused options.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Interrupted, UsageError } from "../../src/errors.ts";
import { device } from "../../src/gpu/device.ts";
import { endIf } from "../../src/interruption.ts";
import type { Denoiser } from "../../src/models/denoiser.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import type { ImageTokenizer } from "../../src/models/tokenizer.ts";
import { Initializer } from "../../src/nn/init.ts";
import { slice } from "../../src/ops/layout.ts";
import { pointwise } from "../../src/ops/pointwise.ts";
import { normal } from "../../src/philox.ts";
import { encodeImage } from "../../src/sampling/editing.ts";
import { generate } from "../../src/sampling/generate.ts";
import { checkSampling } from "../../src/sampling/sampler_options.ts";
import type { SamplerName } from "../../src/sampling/samplers.ts";
import { timeGrid } from "../../src/sampling/times.ts";
import { drawTrajectory } from "../../src/sampling/trajectory.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { parseCommandLine } from "../../tasks/run.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder, run } from "../helpers/commands.ts";
import { C, DEFAULTS, lambda, network, S, sampled, SIZE } from "../helpers/flows.ts";
import { fixturePath } from "../helpers/published.ts";

/** Evaluations of the velocity in a step. */
const PER_STEP: [SamplerName, number][] = [
  ["euler", 1],
  ["heun", 2],
  ["midpoint", 2],
  ["rk4", 4],
  ["dpm++2m", 1],
  ["unipc", 1],
  ["sde", 1],
  ["euler-stochastic", 1],
];

Deno.test("every sampler gives an image the same bits in batches of 1 and 3, and counts its evaluations", async () => {
  await testDevice();
  const dit = new Dit(ditConfig.parse({
    input_size: S,
    in_channels: C,
    hidden_size: 16,
    depth: 1,
    num_heads: 2,
    num_classes: 3,
  }));
  const init = new Initializer(3);
  dit.init(init);
  for (const { adaLN_modulation } of [...dit.blocks, dit.final_layer]) {
    init.normal(adaLN_modulation[1].weight, 0.3);
  }
  init.normal(dit.final_layer.linear.weight, 0.3);
  const options = { steps: 4, cfg: 2, cfgInterval: [0.3, 0.8], rtol: 0.1, atol: 0.1 } as const;
  for (const [sampler, perStep] of [...PER_STEP, ["dopri5", 0] as const]) {
    const three = await sampled(dit, { ...options, sampler, batchSize: 3 });
    const one = await sampled(dit, { ...options, sampler }, 1);
    assertEquals(one.x, three.x.slice(SIZE, 2 * SIZE), sampler);
    assertEquals(one.evaluations[0], three.evaluations[1], sampler);
    // Two of the four steps are guided, and take two passes.
    if (perStep > 0) assertEquals(three.evaluations, [6 * perStep, 6 * perStep, 6 * perStep], sampler);
  }
});

Deno.test("spacings run from 0 to 1: uniform in time, and in log-SNR, to which a shift adds a constant", () => {
  assertEquals(timeGrid(4, 0.3, "uniform"), [0, 0.25, 0.5, 0.75, 1]);
  const times = timeGrid(6, 1, "log-snr"), inner = times.slice(1, -1).map(lambda);
  assertEquals([times[0], times[6]], [0, 1]);
  for (const [i, value] of inner.entries()) {
    assert(Math.abs(value - Math.log(999) * ((i + 1) / 3 - 1)) < 1e-12, `${inner}`);
  }
  const shifted = timeGrid(6, 0.3), plain = timeGrid(6, 1);
  for (let i = 1; i < 6; i++) {
    const difference = lambda(shifted[i] as number) - lambda(plain[i] as number);
    assert(Math.abs(difference - Math.log(0.3)) < 1e-12);
  }
});

Deno.test("options that the sampler does not read, and tolerances of 0, are refused in one line", () => {
  const refused: [string, string][] = [
    ["--atol 1e-3", "Cannot use --atol: it needs --sampler dopri5; add it, or leave --atol out"],
    [
      "--sampler sde --rtol 1e-3",
      "Cannot use --rtol: it needs --sampler dopri5; add it, or leave --rtol out",
    ],
    [
      "--sampler dopri5 --steps 9",
      "Cannot use --steps: --sampler dopri5 chooses its own steps; choose another --sampler, or leave --steps out",
    ],
    ["--sampler dopri5 --shift 0.3", "Cannot use --shift: --sampler dopri5 chooses its own steps"],
    ["--sampler dopri5 --spacing uniform", "Cannot use --spacing: --sampler dopri5 chooses"],
    [
      "--spacing log-snr --shift 0.3",
      "Cannot use --shift: it needs --spacing shifted; add it, or leave --shift out",
    ],
    ["--diffusion-form sbdm", "Cannot use --diffusion-form: it needs --sampler sde"],
    ["--sampler euler-stochastic --last-step mean", "Cannot use --last-step: it needs --sampler sde"],
    ["--last-step-size 0.1", "Cannot use --last-step-size: it needs --sampler sde"],
    ["--sampler sde --steps 1", "Cannot sample with sde in 1 step"],
    ["--sampler dopri5 --atol 0", "Cannot use --atol 0"],
    ["--sampler dopri5 --rtol -1e-3", "Cannot use --rtol -0.001"],
    ["--sampler sde --last-step-size 1", "Cannot use --last-step-size 1"],
    ["--sampler leapfrog", "Cannot use --sampler leapfrog"],
  ];
  for (const command of ["sample", "eval"]) {
    for (const [args, message] of refused) {
      const error = assertThrows(() => {
        const { config, origins } = parseCommandLine([command, ...args.split(" ")]);
        checkSampling(config, origins);
      }, UsageError);
      assert(error.message.startsWith(message) && !error.message.includes("\n"), error.message);
    }
    const { config, origins } = parseCommandLine([command, "--sampler", "dopri5", "--atol", "1e-3"]);
    checkSampling(config, origins);
  }
});

const STATISTICS = { config: { latent_mean: [0, 0, 0, 0], latent_std: [1, 1, 1, 1] } };
/** A tokenizer whose pixels are the latents. */
const identity = { factor: 1, channels: C, decode: (z: Tensor) => z } as unknown as ImageTokenizer;

Deno.test("an image that nobody asked for does not fail the batch that it fills", async () => {
  await testDevice();
  const largest = (seed: number) => [0, 1, 2, 3].map((i) => Math.max(...normal(seed, 0, SIZE, 0, i)));
  // Image 3, which fills the second batch of two, has the largest noise: the velocity is NaN there alone.
  const seed = Array.from({ length: 100 }, (_, seed) => seed).find((seed) => {
    const [a = 0, b = 0, c = 0, d = 0] = largest(seed);
    return d > Math.max(a, b, c) + 0.5;
  }) as number;
  const limit = (largest(seed)[3] as number) - 0.25, dit = network(`0.01 * log(${limit} - x0)`);
  const options = { ...DEFAULTS, sampler: "dopri5", batchSize: 2, seed } as const;
  const made = await Array.fromAsync(
    generate({ dit, ...STATISTICS }, identity, { ...options, labels: [0, 1, 2] }),
  );
  assertEquals(made.map(({ index }) => index), [0, 1, 2]);
  await assertRejects(
    () => Array.fromAsync(generate({ dit, ...STATISTICS }, identity, { ...options, labels: [0, 1, 2, 0] })),
    UsageError,
    "Cannot generate image 3",
  );
});

Deno.test("what fails while it is prepared leaves nothing on the device", async () => {
  await testDevice();
  const { memory } = device(), before = memory.live, dit = network("x1 - x0");
  // More bytes than a binding: it fails in prepare(), after the sampler is ready.
  const decode = (z: Tensor) => pointwise(["x0"], [slice(z, 3, 0, 1)], [], [1, 2, 2, 2 ** 29]);
  const large = { factor: 1, channels: C, decode } as unknown as ImageTokenizer;
  const broken: Denoiser = { ...dit, forward: () => assert(false, "no velocity") as never };
  const options = { ...DEFAULTS, sampler: "euler", labels: [0] } as const;
  for (const [model, tokenizer] of [[dit, large], [broken, identity]] as const) {
    await assertRejects(() => Array.fromAsync(generate({ dit: model, ...STATISTICS }, tokenizer, options)));
    assertEquals(memory.live, before, "generate()");
    await assertRejects(() => drawTrajectory({ dit: model, ...STATISTICS } as never, tokenizer, options));
    assertEquals(memory.live, before, "drawTrajectory()");
  }
  // Interrupted while kernels compile, when the inputs have their buffers.
  using _stop = endIf(() => {
    throw new Interrupted();
  });
  const encoder = { ...identity, encode: (x: Tensor) => x } as unknown as ImageTokenizer;
  const statistics = { mean: [0, 0, 0], std: [1, 1, 1] };
  await assertRejects(() => encodeImage(encoder, new Uint8Array(2 * 2 * 3), statistics), Interrupted);
  assertEquals(memory.live, before, "encodeImage()");
});

Deno.test("tok sample prints the evaluations per image", () =>
  inFolder(async () => {
    const model = [
      "--model",
      fixturePath("lightningdit_tiny.pt"),
      "--tokenizer",
      fixturePath("vavae_tiny.pt"),
    ];
    const options = ["--num", "2", "--steps", "4", "--sampler", "heun", "--cfg-interval", "0.3,0.8"];
    const { lines, result } = await run("sample", ...model, ...options, "--classes", "7,2");
    assertEquals([result.nfe, result.nfe_max], [12, 12]);
    assert(lines.some((line) => line.includes("2 images, guidance 4, 12 NFE")), lines.join("\n"));
  }));
