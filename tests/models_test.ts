// Every model against its official implementation on random weights: outputs and all gradients. How each fixture was
// made stands in its metadata.

import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { grad } from "../src/autograd.ts";
import { capture } from "../src/gpu/program.ts";
import { openSafetensors, type SafetensorsFile } from "../src/io/safetensors.ts";
import { Decoder, decoderConfig } from "../src/models/decoder.ts";
import { Discriminator } from "../src/models/discriminator.ts";
import { Dit, DIT_SIZES, ditConfig } from "../src/models/dit.ts";
import { Vit, vitConfig } from "../src/models/vit.ts";
import {
  countParameters,
  fileShape,
  loadState,
  parameters,
  ParameterSet,
  saveState,
  type TensorSource,
} from "../src/nn.ts";
import { mul } from "../src/ops/math.ts";
import { mean } from "../src/ops/reduce.ts";
import { concat, permute, reshape } from "../src/ops/shape.ts";
import { constant, input, readTensor, type Tensor } from "../src/tensor.ts";
import { PROFILES, relativeError, testDevice } from "./check.ts";

const open = (name: string) =>
  openSafetensors(fromFileUrl(new URL(`fixtures/${name}.safetensors`, import.meta.url)));

/** The keys below a prefix, as a source for loadState. */
function below(file: SafetensorsFile, prefix: string): TensorSource {
  const shapes = new Map(
    [...file.shapes].filter(([k]) => k.startsWith(prefix)).map(([k, s]) => [k.slice(prefix.length), s]),
  );
  return { name: file.name, shapes, read: (key) => file.read(prefix + key) };
}

/** [N,C,H,W] of a fixture as a channels-last input. */
const nhwc = (x: Tensor) => permute(x, [0, 2, 3, 1]);
const nchw = (x: Tensor) => permute(x, [0, 3, 1, 2]);

/**
 * Loads the fixture's weights, runs `forward` on its inputs and compares output and gradients.
 * @returns what `forward` gave besides, for further checks
 */
async function compare(
  name: string,
  output: string,
  model: object,
  inputs: readonly string[],
  forward: (...x: Tensor[]) => Tensor,
  tolerance = 1e-4,
): Promise<void> {
  const file = await open(name);
  try {
    new ParameterSet(name, model);
    await loadState(model, below(file, "weights."), { ignore: /^$/ });
    const own = parameters(model);
    const tensors: Record<string, Tensor> = {};
    const data: Record<string, Float32Array | Uint32Array> = {};
    for (const key of inputs) {
      const integers = file.tensors.get(key)?.dtype === "I32";
      tensors[key] = input(file.shapes.get(key) ?? [], integers ? "u32" : "f32", key);
      data[key] = integers ? Uint32Array.from(await file.readIntegers(key)) : await file.read(key);
    }
    const weight = constant(await file.read("loss.weight"), file.shapes.get("loss.weight") ?? []);
    const program = await capture(name, tensors, (t) => {
      const first = t[inputs[0] as string] as Tensor;
      first.requiresGrad = true;
      const y = forward(...inputs.map((key) => t[key] as Tensor));
      const wrt = [first, ...own.values()];
      const gradients = grad(mean(mul(y, weight)), wrt);
      return { y, ...Object.fromEntries(gradients.map((g, i) => [`g${i}`, g])) };
    }).prepare();
    program.run(data);
    const outputs = program.outputs as unknown as Record<string, Tensor>;
    const error = relativeError(await program.read(program.outputs.y), await file.read(output));
    assert(error < tolerance, `output: ${error}`);
    const keys = ["input", ...own.keys()];
    let compared = 0;
    for (const [i, key] of keys.entries()) {
      const tensor = [...own.values()][i - 1];
      let got = await program.read(outputs[`g${i}`] as Tensor);
      if (tensor && fileShape(tensor) !== tensor.shape) got = toFileOrder(got, tensor.shape);
      if (file.shapes.has(`gradients.${key}`)) {
        const expected = await file.read(`gradients.${key}`);
        const worst = relativeError(got, expected, 1e-4);
        assert(worst < 5 * tolerance, `gradient of ${key}: ${worst}`);
        compared++;
      } else if (file.shapes.has(`sampled.${key}`)) {
        const expected = await file.read(`sampled.${key}`);
        const sampled = Array.from(expected, (_, k) => got[Math.trunc(k * (got.length - 1) / 63)] as number);
        assert(relativeError(sampled, expected, 1e-4) < 5 * tolerance, `gradient of ${key}`);
        compared++;
      }
    }
    assert(compared >= own.size, `${compared} of ${own.size} gradients were compared`);
    program.destroy();
  } finally {
    file.close();
  }
}

/** [O,H,W,I] -> [O,I,H,W] */
function toFileOrder(data: Float32Array, shape: readonly number[]): Float32Array {
  const [O, H, W, I] = shape as [number, number, number, number], P = H * W;
  const out = new Float32Array(data.length);
  for (let o = 0; o < O; o++) {
    for (let p = 0; p < P; p++) {
      for (let i = 0; i < I; i++) out[(o * I + i) * P + p] = data[(o * P + p) * I + i] as number;
    }
  }
  return out;
}

for (const name of ["dinov2", "dinov2_registers"]) {
  for (const profile of PROFILES) {
    Deno.test(`Vit equals transformers' ${name} with interpolated positions, gradients too (${profile} kernels)`, async () => {
      await testDevice(profile);
      const file = await open(name);
      const config = vitConfig.parse(JSON.parse(file.metadata.get("config") as string));
      file.close();
      const vit = new Vit(config);
      await compare(name, "output.last_hidden_state", vit, ["input.pixel_values"], (x) => {
        const { patches, cls, registers } = vit.forward(nhwc(x));
        const B = x.dim(0), C = config.hidden_size;
        return concat([reshape(cls, [B, 1, C]), ...registers ? [registers] : [], patches], 1);
      });
    });
  }
}

for (const name of ["lightningdit", "lightningdit_qknorm"]) {
  for (const profile of PROFILES) {
    Deno.test(`Dit equals the official LightningDiT (${name}, ${profile} kernels), gradients too`, async () => {
      await testDevice(profile);
      const file = await open(name);
      const dit = new Dit(ditConfig.parse(JSON.parse(file.metadata.get("config") as string)));
      file.close();
      await compare(
        name,
        "output",
        dit,
        ["input.x", "input.t", "input.y"],
        (x, t, y) => nchw(dit.forward(nhwc(x), t, y)),
      );
    });
  }
}

for (const profile of PROFILES) {
  Deno.test(`Decoder equals VA-VAE's, gradients too (${profile} kernels)`, async () => {
    await testDevice(profile);
    const file = await open("vavae_decoder");
    const decoder = new Decoder(decoderConfig.parse(JSON.parse(file.metadata.get("config") as string)));
    file.close();
    await compare(
      "vavae_decoder",
      "output",
      decoder,
      ["input.z"],
      (z) => nchw(decoder.forward(nhwc(z))),
      2e-4,
    );
  });

  Deno.test(`Discriminator equals PatchGAN in training, gradients and running statistics too (${profile} kernels)`, async () => {
    await testDevice(profile);
    const file = await open("patchgan");
    const discriminator = new Discriminator({ ndf: 8, n_layers: 3 });
    const trainable = { ...discriminator, config: undefined };
    const statistics = new Map<string, Float32Array>();
    for (const key of file.shapes.keys()) {
      if (key.startsWith("after.")) statistics.set(key.slice(6), await file.read(key));
    }
    // The fixture holds the running statistics after the pass; before it they are 0 and 1, as new ones are.
    const model = {
      main: trainable.main.map((l) =>
        typeof l === "string" || !("running_mean" in l) ? l : { weight: l.weight, bias: l.bias }
      ),
    };
    file.close();
    await compare(
      "patchgan",
      "output",
      model,
      ["input.x"],
      (x) => nchw(discriminator.forward(nhwc(x), "train")),
      2e-4,
    );
    for (const [key, expected] of statistics) {
      const [, layer, field] = /^main\.(\d+)\.(running_\w+)$/.exec(key) as unknown as [
        string,
        string,
        "running_mean" | "running_var",
      ];
      const own = discriminator.main[Number(layer)] as unknown as Record<typeof field, Tensor>;
      assert(relativeError(await readTensor(own[field]), expected) < 1e-4, key);
    }
  });
}

Deno.test("a model that was saved and loaded again has the same bits, and wrong files name every wrong key", async () => {
  await testDevice();
  const config = vitConfig.parse({
    hidden_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    patch_size: 4,
    image_size: 8,
  });
  const [a, b] = [new Vit(config), new Vit(config)];
  for (const t of parameters(a).values()) {
    t.storage.write(Float32Array.from({ length: t.size }, (_, i) => Math.sin(i + t.size)));
  }
  const saved = await saveState(a);
  const source = (rows: typeof saved): TensorSource => ({
    name: "memory",
    shapes: new Map(rows.map((r) => [r.name, r.shape])),
    read: (key) => Promise.resolve(rows.find((r) => r.name === key)?.data as Float32Array),
  });
  await loadState(b, source(saved));
  assertEquals(await saveState(b), saved);
  let message = "";
  await loadState(b, source([...saved.slice(2), { name: "extra", shape: [1], data: new Float32Array(1) }]))
    .catch((e) => message = e.message);
  assert(
    message.includes(`missing "${saved[0]?.name}"`) && message.includes(`missing "${saved[1]?.name}"`) &&
      message.includes(`unexpected "extra"`),
    message,
  );
});

Deno.test("published sizes have their published numbers of parameters", async () => {
  await testDevice();
  const millions = (n: number) => Math.round(n / 1e4) / 100;
  const sizes = Object.entries(DIT_SIZES).map(([name, size]) => {
    const dit = new Dit(ditConfig.parse({ ...size, input_size: 16, in_channels: 32, num_classes: 1000 }));
    return [name, millions(countParameters(dit) + dit.pos_embed.size)];
  });
  assertEquals(Object.fromEntries(sizes), { "S/1": 32.99, "B/1": 130.56, "L/1": 458.15, "XL/1": 675.26 });
  assertEquals(millions(countParameters(new Decoder(decoderConfig.parse({})))), 41.42);
  const large = {
    hidden_size: 1024,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    patch_size: 14,
    image_size: 518,
  };
  assertEquals(millions(countParameters(new Vit(vitConfig.parse(large)))), 304.37);
});
