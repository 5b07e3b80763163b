// The autoencoder against its official implementations on formula weights: moments, images and all gradients, under LDM's
// and diffusers' names. The metadata of each fixture say how it was made.

import { assertEquals } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { capture } from "../../src/gpu/program.ts";
import { Autoencoder, AUTOENCODER_SIZES } from "../../src/models/autoencoder.ts";
import { autoencoderIn, inferAutoencoder } from "../../src/models/autoencoder_names.ts";
import { countParameters, loadState, parameters } from "../../src/nn/layers.ts";
import { add, mul } from "../../src/ops/math.ts";
import { mean } from "../../src/ops/reduce.ts";
import { slice } from "../../src/ops/layout.ts";
import { constant, input, type Tensor } from "../../src/tensor/tensor.ts";
import { PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";
import { assertClaim } from "../helpers/claims.ts";
import { gradientError, nchw, nhwc } from "../helpers/compare.ts";
import {
  fixture,
  formulaWeights,
  ldmKey,
  made,
  memoryStore,
  rename,
  type Weights,
} from "../helpers/published.ts";

const SIZE = 16;
const FIXTURES = { autoencoder_ldm: 32, autoencoder_diffusers: 16, autoencoder_diffusers_bare: 8 };

/** A model from a checkpoint in memory. */
async function open(weights: Weights, groups: number): Promise<Autoencoder> {
  const { source } = autoencoderIn(memoryStore(weights));
  const model = new Autoencoder(inferAutoencoder(source, { imageSize: SIZE, groups }));
  await loadState(model, source);
  return model;
}

for (const [name, groups] of Object.entries(FIXTURES)) {
  for (const profile of PROFILES) {
    Deno.test(`Autoencoder equals the official one (${name}, ${profile} kernels), gradients too`, async () => {
      await testDevice(profile);
      const file = await fixture(name);
      const shapes: Record<string, number[]> = JSON.parse(file.metadata.get("shapes") as string);
      const model = await open(formulaWeights(shapes), groups);
      const own = parameters(model);
      const momentsShape = file.shapes.get("moments") as number[];
      const weight = (shape: readonly number[], seed: number) =>
        constant(randomArray(shape.reduce((a, b) => a * b), seed), shape);
      const [wm, wy] = [weight(momentsShape, 902), weight([2, 3, SIZE, SIZE], 903)];
      const program = await capture(name, { x: input([2, 3, SIZE, SIZE], "f32", "x") }, ({ x }) => {
        x.requiresGrad = true;
        const m = model.moments(nhwc(x));
        const output = nchw(model.decode(slice(m, 3, 0, model.channels))), moments = nchw(m);
        const loss = add(mean(mul(moments, wm)), mean(mul(output, wy)));
        const gradients = grad(loss, [x, ...own.values()]);
        return { moments, output, ...Object.fromEntries(gradients.map((g, i) => [`g${i}`, g])) };
      }).prepare();
      program.run({ x: randomArray(2 * 3 * SIZE * SIZE, 901).map((v) => v / 1.5) });
      const outputs = program.outputs as unknown as Record<string, Tensor>;
      const worst = { output: 0, gradients: 0 };
      for (const key of ["moments", "output"]) {
        const error = relativeError(await program.read(outputs[key] as Tensor), await file.read(key));
        worst.output = Math.max(worst.output, error);
      }
      // The fixture's gradients under the model's own names, by the same map as the weights.
      const gradients: Weights = new Map();
      for (const [key, shape] of Object.entries(shapes)) {
        const stored = file.shapes.has(`gradients.${key}`) ? `gradients.${key}` : `sampled.${key}`;
        gradients.set(key, { shape, data: await file.read(stored) });
      }
      const { source } = autoencoderIn(memoryStore(gradients));
      const names = ["input", ...own.keys()];
      assertEquals(names.length - 1, gradients.size);
      for (const [i, key] of names.entries()) {
        const expected = i ? await source.read(key) : await file.read("gradients.input");
        const all = toFileOrder(await program.read(outputs[`g${i}`] as Tensor), own.get(key)?.shape);
        const got = all.length === expected.length
          ? all
          : expected.map((_, k) => all[Math.trunc(k * (all.length - 1) / 63)] as number);
        worst.gradients = Math.max(worst.gradients, gradientError(got, expected));
      }
      assertClaim(name, worst);
      program.destroy();
      file.close();
    });
  }
}

/** [O,H,W,I] -> [O,I,H,W] */
function toFileOrder(data: Float32Array, shape?: readonly number[]): Float32Array {
  if (shape?.length !== 4) return data;
  const [, H, W, I] = shape as [number, number, number, number], P = H * W;
  return Float32Array.from(data, (_, n) => {
    const o = Math.trunc(n / (I * P)), i = Math.trunc(n / P) % I, p = n % P;
    return data[(o * P + p) * I + i] as number;
  });
}

Deno.test("the architecture is inferred from the tensors, with attention of encoder and decoder and the quant convs", async () => {
  const inferred = async (name: keyof typeof FIXTURES) => {
    const { source, layout } = autoencoderIn(memoryStore((await made(name)).weights));
    return { layout, ...inferAutoencoder(source, { imageSize: SIZE, groups: FIXTURES[name] }) };
  };
  const ldm = await inferred("autoencoder_ldm");
  assertEquals(ldm.layout, "ldm");
  assertEquals([ldm.embed_dim, ldm.encoder.ch_mult, ldm.decoder.ch_mult], [6, [1, 2, 2], [1, 2, 2]]);
  assertEquals([ldm.encoder.attn_resolutions, ldm.decoder.attn_resolutions], [[8], [4]]);
  assertEquals([ldm.encoder.num_res_blocks, ldm.decoder.num_res_blocks, ldm.encoder.double_z], [1, 1, true]);
  const bare = await inferred("autoencoder_diffusers_bare");
  assertEquals(bare.layout, "diffusers");
  assertEquals([bare.quant_conv, bare.post_quant_conv, bare.decoder.mid_attention], [false, false, false]);
  assertEquals([bare.embed_dim, bare.encoder.num_res_blocks, bare.decoder.num_res_blocks], [8, 2, 2]);
});

Deno.test("every naming of diffusers and LDM gives the same weights, wrapped or not, next to any other tensors", async () => {
  await testDevice();
  const { weights } = await made("autoencoder_diffusers");
  const bits = async (variant: Weights) => {
    const { source } = autoencoderIn(memoryStore(variant));
    const own = [...source.shapes].sort(([a], [b]) => a < b ? -1 : 1);
    return await Promise.all(own.map(async ([key, shape]) => [key, shape, await source.read(key)]));
  };
  const expected = await bits(weights);
  const older = rename(
    weights,
    (key) =>
      key.replace("to_q.", "query.").replace("to_k.", "key.").replace("to_v.", "value.")
        .replace("to_out.0.", "proj_attn."),
  );
  const ldm = rename(weights, (key) => ldmKey(key, 2));
  const convolutions: Weights = new Map([...ldm].map(([key, { shape, data }]) => [key, {
    shape: shape.length === 2 ? [...shape, 1, 1] : shape,
    data,
  }]));
  const wrapped = rename(convolutions, (key) => `state_dict.first_stage_model.${key}`);
  const one = { shape: [1], data: new Float32Array(1) };
  for (
    const key of [
      "state_dict.model.diffusion_model.out.0.weight",
      "state_dict.first_stage_model.loss.logvar",
      "state_dict.first_stage_model.loss.discriminator.main.0.weight",
      "state_dict.model_ema.decay",
      "state_dict.first_stage_model.foundation_model.model.blocks.0.norm1.weight",
      "optimizer_states.0.state.0.exp_avg",
    ]
  ) wrapped.set(key, one);
  const parallel = rename(convolutions, (key) => `model.module.${key}`);
  for (const variant of [older, ldm, convolutions, wrapped, parallel]) {
    assertEquals(await bits(variant), expected);
  }
});

Deno.test("published autoencoders have their published numbers of parameters", async () => {
  await testDevice();
  const [vavae, sd] = [
    new Autoencoder(AUTOENCODER_SIZES.vavae),
    new Autoencoder(AUTOENCODER_SIZES["sd-vae"]),
  ];
  assertEquals(
    [vavae.encoder, vavae.decoder, vavae, sd.encoder, sd.decoder, sd].map(countParameters),
    [28413248, 41417603, 69836067, 34163592, 49490179, 83653863],
  );
  assertEquals([vavae.factor, vavae.channels, sd.factor, sd.channels], [16, 32, 8, 4]);
});
