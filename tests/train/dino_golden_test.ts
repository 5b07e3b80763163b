// One step of the adversarial losses with the discriminator on frozen features equals an independent PyTorch computation in
// f64: both losses, the gradients of the heads and of the reconstruction, and the state of the spectral norms.
// tests/fixtures/make_dino_golden.py is the PyTorch side.

import { assert, assertEquals } from "@std/assert";
import { DinoDiscriminator } from "../../src/models/dino_discriminator.ts";
import { Encoder } from "../../src/models/tokenizer.ts";
import { Vit, vitConfig } from "../../src/models/vit.ts";
import { capture } from "../../src/gpu/program.ts";
import { loadState, parameters, saveState, state } from "../../src/nn/layers.ts";
import { augmentationNumbers, AUGMENTATIONS, diffAugment } from "../../src/ops/diffaug.ts";
import { permute } from "../../src/ops/layout.ts";
import { RandomState } from "../../src/ops/random.ts";
import type { Profile } from "../../src/gpu/device.ts";
import { detach, grad } from "../../src/tensor/autograd.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { discriminatorLoss, GAN_LOSSES, generatorLoss } from "../../src/train/losses.ts";
import { PROFILES, relativeError, testDevice } from "../helpers/check.ts";
import { open } from "../helpers/compare.ts";
import { formulaSource, shapesOf, units } from "../helpers/formula.ts";
import { compareFingerprint, fingerprint } from "../helpers/golden.ts";

const TOLERANCE = 1e-4;

for (const [i, loss] of GAN_LOSSES.entries()) {
  const profile = PROFILES[i] as Profile;
  Deno.test(`a step with the discriminator on frozen features equals PyTorch's, ${loss} loss, profile ${profile}`, async () => {
    await testDevice(profile);
    const file = await open("dino_golden"), c = JSON.parse(file.metadata.get("config") as string);
    const vit = new Vit(vitConfig.parse(c.encoder));
    const discriminator = new DinoDiscriminator(
      new Encoder(vit, c.image_mean, c.image_std),
      c.encoder.image_size / c.encoder.patch_size,
    );
    await loadState(vit, formulaSource(shapesOf(vit)));
    const frozen = await saveState(vit);
    const shape = [c.batch, c.size, c.size, 3], size = c.batch * c.size ** 2 * 3;
    const images = (name: string) => Float32Array.from(units(name, size), (u) => 2 * u - 1);
    await loadState(discriminator, formulaSource(shapesOf(discriminator)));
    const random = new RandomState(c.seed), own = parameters(discriminator);
    random.set(c.step);
    const program = await capture("step", { x: input(shape), y: input(shape) }, ({ x, y }) => {
      y.requiresGrad = true;
      const numbers = augmentationNumbers(c.batch, random);
      const [real, fake, detached] = [x, y, detach(y)].map((t) => diffAugment(t, AUGMENTATIONS, numbers));
      const gan = generatorLoss(discriminator.forward(fake as Tensor, "frozen"));
      const [dy] = grad(gan, [y]);
      const d = discriminatorLoss(discriminator, real as Tensor, detached as Tensor, loss);
      // In the layout of files.
      const gradients = grad(d, [...own.values()]).map((g) => g.rank === 4 ? permute(g, [0, 3, 1, 2]) : g);
      return { gan, dy: dy as Tensor, d, ...Object.fromEntries(gradients.map((g, i) => [`g${i}`, g])) };
    }).prepare();
    program.run({ x: images("real"), y: images("fake") });
    const { gan, dy, d } = program.outputs, losses = await file.read(`${loss}.losses`);
    for (const [i, [name, tensor]] of Object.entries({ d, gan }).entries()) {
      const [got = NaN] = await program.read(tensor), expected = losses[i] as number;
      assert(
        Math.abs(got - expected) <= TOLERANCE * Math.abs(expected),
        `${loss} ${name}: ${got}, not ${expected}`,
      );
    }
    const error = relativeError(await program.read(dy), await file.read("gradient"), 0);
    assert(error <= TOLERANCE, `the gradient of the reconstruction is off by ${error}`);
    const rows = await file.read(`${loss}.heads`), names = [...own.keys()];
    const states = new Map((await saveState(discriminator)).map(({ name, data }) => [name, data]));
    const singular = [...state(discriminator).keys()].filter((name) => !own.has(name)).sort();
    assertEquals(singular.every((name) => name.endsWith(".u")), true);
    const order = [...names.toSorted(), ...singular];
    assertEquals(rows.length, 16 * order.length);
    for (const [row, name] of order.entries()) {
      const at = names.indexOf(name);
      const outputs = program.outputs as unknown as Record<string, Tensor>;
      const data = at < 0
        ? states.get(name) as Float32Array
        : await program.read(outputs[`g${at}`] as Tensor);
      compareFingerprint(
        `${loss} ${name}`,
        fingerprint(name, data),
        rows.subarray(16 * row, 16 * row + 16),
        data.length,
      );
    }
    program.destroy();
    assertEquals(await saveState(vit), frozen);
    file.close();
  });
}
