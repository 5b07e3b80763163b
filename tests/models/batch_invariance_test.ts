// Batch invariance: outputs of an image have the same bits in batches of 1, 3 and 8, with any other images. The models are
// wide enough for split-K GEMMs with few rows, which could change bits.

import { assert, assertEquals } from "@std/assert";
import { noGrad } from "../../src/tensor/autograd.ts";
import { capture, type Program } from "../../src/gpu/program.ts";
import { tokenizerProgram } from "../../src/metrics/tokenizer.ts";
import { infer } from "../../src/metrics/batched.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { openLatents } from "../../src/formats/latents.ts";
import { Autoencoder, autoencoderConfig } from "../../src/models/autoencoder.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { parameters } from "../../src/nn/layers.ts";
import { attention } from "../../src/ops/attention.ts";
import { linear } from "../../src/ops/matmul.ts";
import { groupNorm } from "../../src/ops/norm.ts";
import { mean } from "../../src/ops/reduce.ts";
import { constant, input, type Tensor } from "../../src/tensor/tensor.ts";
import { encodeTo } from "../../src/train/encode_latents.ts";
import { generate } from "../../src/sampling/generate.ts";
import { PROFILES, randomArray, testDevice } from "../helpers/check.ts";

const BATCHES = [1, 3, 8];
const IMAGES = 8; // the last batch of 3 is not full

/** Whether a program cuts K into parts. */
const splits = ({ plan }: Pick<Program<Record<string, Tensor>, Record<string, Tensor>>, "plan">) =>
  plan.launches.some(({ kernel, params }) =>
    kernel.entry === "gemm" && (kernel.unpack(params).splits ?? 1) > 1
  );

/** Index of the first number that differs, -1 where none does. */
function firstDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assertEquals(a.length, b.length);
  return Array.prototype.findIndex.call(a, (value, i) => !Object.is(value, b[i]));
}

const weights = (shape: readonly number[]) =>
  constant(randomArray(shape.reduce((a, b) => a * b, 1), 11), shape, "weights");

/** Weights of about one over the root of the inputs, none of them zero, so that every layer counts. */
async function fill(module: object): Promise<void> {
  let seed = 1;
  for (const tensor of parameters(module).values()) {
    await tensor.storage.materialise();
    const spread = tensor.rank > 1 ? (tensor.size / tensor.dim(0)) ** -0.5 : 0.5;
    tensor.storage.write(randomArray(tensor.size, seed++).map((v) => v * spread));
  }
}

/** A convolutional autoencoder with attention, and one whose encoder is a transformer. */
const decoder = {
  ch: 32,
  ch_mult: [1, 1],
  num_res_blocks: 0,
  attn_resolutions: [],
  resolution: 8,
  z_channels: 8,
  groups: 4,
};
const convolutional = () =>
  new Autoencoder(autoencoderConfig.parse({ image_size: 8, embed_dim: 8, encoder: decoder, decoder }));
const transformer = () =>
  new Tokenizer(tokenizerConfig.parse({
    image_size: 8,
    encoder: {
      model_type: "dinov2",
      hidden_size: 256,
      num_hidden_layers: 1,
      num_attention_heads: 4,
      patch_size: 2,
      image_size: 4, // not the images', so that positions are interpolated
    },
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
    adapter_hidden: 64,
    decoder,
  }));

for (const profile of PROFILES) {
  const batches = profile === "cpu" ? BATCHES : [1, 8]; // each takes half a minute with gpu kernels on a CPU
  Deno.test(`samples have the same latents and bytes in batches of ${batches}, profile ${profile}`, async () => {
    await testDevice(profile);
    const dit = new Dit(ditConfig.parse({
      input_size: 4,
      in_channels: 8,
      hidden_size: 256,
      depth: 1,
      num_heads: 4,
      num_classes: 3,
    }));
    const tokenizer = convolutional();
    await fill(dit);
    await fill(tokenizer);
    const config = {
      dit: { ...dit.config },
      classes: ["a", "b", "c"],
      latent_mean: Array(8).fill(0.1),
      latent_std: Array(8).fill(1.3),
    };
    const drawn = [];
    for (const batchSize of batches) {
      const pixels: Float32Array[] = [], bytes: Uint8Array[] = [];
      const options = {
        batchSize,
        steps: 2,
        sampler: "euler",
        shift: 1,
        cfg: 3,
        cfgInterval: [0, 1],
        seed: 5,
        labels: Array.from({ length: IMAGES }, (_, i) => i % 3),
      } as const;
      for await (const made of generate({ dit, config }, tokenizer, options)) {
        pixels.push(made.pixels);
        bytes.push(made.image);
      }
      drawn.push({ pixels, bytes });
    }
    assert(drawn[0]?.pixels.every((p) => p.every(Number.isFinite)));
    const flat = drawn.map(({ pixels, bytes }) => [...pixels, ...bytes].flatMap((part) => [...part]));
    for (const other of flat.slice(1)) assertEquals(firstDifference(other, flat[0] as number[]), -1);
  });

  // With gpu kernels it takes half a minute on a CPU, and the ops below run with them.
  if (profile === "cpu") {
    Deno.test(`a DiT with a wide and an inner head is the same for one image and for eight`, async () => {
      await testDevice(profile);
      const dit = new Dit(ditConfig.parse({
        input_size: 4,
        patch_size: 2,
        in_channels: 8,
        hidden_size: 64,
        depth: 1,
        num_heads: 4,
        num_classes: 3,
        use_gembed: true,
        inner_head: 1,
        head: { hidden_size: 128, depth: 1, num_heads: 4 },
      }));
      await fill(dit);
      dit.t_embedder.W?.storage.write(randomArray(256, 9));
      const size = 4 * 4 * 8, data = randomArray(IMAGES * size, 7);
      const run = async (B: number) => {
        const inputs = { x: input([B, 4, 4, 8]), t: input([B]), y: input([B], "u32") };
        const program = await capture("test", inputs, ({ x, t, y }) =>
          noGrad(() => {
            const { velocity, inner } = dit.outputs(x, t, y);
            return { velocity, inner: inner as Tensor };
          }), { batchInvariant: true }).prepare();
        program.run({
          x: data.subarray(0, B * size),
          t: Float32Array.from({ length: B }, (_, i) => i / IMAGES),
          y: Uint32Array.from({ length: B }, (_, i) => i % 4),
        });
        const { velocity, inner } = program.outputs;
        const read = [await program.read(velocity), await program.read(inner)];
        program.destroy();
        return read.flatMap((part) => [...part.subarray(0, size)]);
      };
      const one = await run(1);
      assert(one.every(Number.isFinite) && new Set(one).size > size);
      assertEquals(firstDifference(await run(IMAGES), one), -1);
    });
  }

  for (const [name, make] of [["convolutional", convolutional], ["transformer", transformer]] as const) {
    Deno.test(`latents and reconstructions of a ${name} tokenizer are the same in batches of ${BATCHES}, profile ${profile}`, async () => {
      await testDevice(profile);
      const tokenizer = make(), source = new Shapes(IMAGES, 3);
      await fill(tokenizer);
      const results = [];
      for (const batchSize of BATCHES) {
        const program = await tokenizerProgram(tokenizer, batchSize, 8, IMAGES);
        if (profile === "gpu") assert(splits(program), "K is split");
        const y: Float32Array[] = [];
        for await (const { outputs } of infer(program, source)) y.push(outputs.y);
        program.destroy();
        const folder = Deno.makeTempDirSync();
        await encodeTo(folder, tokenizer, source, { size: 8, batchSize, mirrored: true });
        const latents = await openLatents(folder);
        const z = [];
        for (let i = 0; i < IMAGES; i++) z.push(await latents.latent(i), await latents.latent(i, true));
        latents.close();
        Deno.removeSync(folder, { recursive: true });
        results.push([...y, ...z].flatMap((part) => [...part]));
      }
      for (const other of results.slice(1)) assertEquals(firstDifference(other, results[0] as number[]), -1);
    });
  }

  const OPS: [string, number[], (x: Tensor) => Tensor][] = [
    ["a linear layer of deep K", [4, 1024], (x) => linear(x, weights([24, 1024]))],
    ["a linear layer of one output", [1, 1024], (x) => linear(x, weights([1, 1024]))],
    ["attention over few tokens", [24, 4, 64], (x) => attention(x, x, x)],
    ["attention over many tokens", [528, 1, 8], (x) => attention(x, x, x)],
    ["group norm of small groups", [40, 8], (x) => groupNorm(x, 4, weights([8]), weights([8]))],
    ["group norm of large groups", [3000, 16], (x) => groupNorm(x, 2, weights([16]), weights([16]))],
    ["a mean over pixels", [1500, 12], (x) => mean(x, [1])],
    ["a mean over everything but images", [1500, 3], (x) => mean(x, [1, 2])],
    ["a mean over channels", [2, 2048], (x) => mean(x, [-1])],
  ];
  // What a GPU cuts up for eight images in another way than for one is large.
  const LARGE_OPS: typeof OPS = [
    ["a linear layer of deep K and many rows", [256, 4096], (x) => linear(x, weights([16, 4096]))],
    ["group norm of many channels", [4096, 256], (x) => groupNorm(x, 4, weights([256]), weights([256]))],
    ["a mean over a million numbers", [300_000, 4], (x) => mean(x, [1, 2])],
  ];
  for (const [name, shape, fn] of profile === "gpu" ? [...OPS, ...LARGE_OPS] : OPS) {
    Deno.test(`${name} is the same for one image and for eight, profile ${profile}`, async () => {
      await testDevice(profile);
      const size = shape.reduce((a, b) => a * b, 1), data = randomArray(8 * size, 7);
      const run = async (B: number) => {
        const x = input([B, ...shape]);
        const program = await capture("test", { x }, ({ x }) => noGrad(() => ({ y: fn(x) })), {
          batchInvariant: true,
        }).prepare();
        program.run({ x: data.subarray(0, B * size) });
        const y = await program.read(program.outputs.y);
        program.destroy();
        return y;
      };
      const one = await run(1), eight = await run(8);
      assertEquals(firstDifference(one, eight.subarray(0, one.length)), -1);
    });
  }
}
