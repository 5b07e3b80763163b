// Every model against its official implementation on random weights: outputs and all gradients. The metadata of each
// fixture says how it was made.

import { assert, assertEquals } from "@std/assert";
import { Decoder, decoderConfig } from "../../src/models/decoder.ts";
import { PatchDiscriminator } from "../../src/models/discriminator.ts";
import { countDit, Dit, DIT_SIZES, ditConfig } from "../../src/models/dit.ts";
import { Vit, vitConfig } from "../../src/models/vit.ts";
import { countParameters, loadState, parameters, saveState, type TensorSource } from "../../src/nn/layers.ts";
import { readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { PROFILES, relativeError, testDevice } from "../helpers/check.ts";
import { compare, nchw, nhwc, open } from "../helpers/compare.ts";

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
    );
  });

  Deno.test(`PatchDiscriminator equals PatchGAN in training, gradients and running statistics too (${profile} kernels)`, async () => {
    await testDevice(profile);
    const file = await open("patchgan");
    const discriminator = new PatchDiscriminator({ ndf: 8, n_layers: 3 });
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

Deno.test("a saved and loaded model has the same bits, and the error of a wrong file names every wrong key", async () => {
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
    return [name, millions(countDit(dit))];
  });
  assertEquals(Object.fromEntries(sizes), {
    ...{ "S/1": 32.99, "B/1": 130.56, "L/1": 458.15, "XL/1": 675.26, "1p0B/1": 1029.4, "1p6B/1": 1631.77 },
    ...{ "S/2": 32.99, "B/2": 130.56, "L/2": 458.15, "XL/2": 675.26, "1p0B/2": 1029.4, "1p6B/2": 1631.77 },
  });
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
