// The networks that metrics look through, at their published sizes, against the official implementations on weights that a
// formula fills. How each fixture was made stands in its metadata.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { grad, noGrad } from "../src/autograd.ts";
import { UsageError } from "../src/errors.ts";
import { openSafetensors, writeSafetensors } from "../src/io/safetensors.ts";
import { folded, Inception, inceptionParameters, openInception } from "../src/models/inception.ts";
import { Lpips, openLpips } from "../src/models/lpips.ts";
import { countParameters, fileShape, loadState, state } from "../src/nn.ts";
import { mul } from "../src/ops/math.ts";
import { sum } from "../src/ops/reduce.ts";
import { resizeTable } from "../src/ops/resize.ts";
import { constant, type Shape } from "../src/tensor.ts";
import { evaluate, PROFILES, relativeError, testDevice } from "./check.ts";
import { formulaSource, formulaWeights, units } from "./formula.ts";

const open = (name: string) =>
  openSafetensors(fromFileUrl(new URL(`fixtures/${name}.safetensors`, import.meta.url)));

const shapesOf = (model: object) =>
  new Map<string, Shape>([...state(model)].map(([key, tensor]) => [key, fileShape(tensor)]));

/** The published form of Inception's parameters: every convolution with its batch norm. */
function publishedShapes(inception: Inception): Map<string, Shape> {
  const shapes = new Map<string, Shape>();
  for (const [key, shape] of shapesOf(inception)) {
    const conv = /^(?!fc)(.+)\.weight$/.exec(key)?.[1];
    if (key.startsWith("fc.")) shapes.set(key, shape);
    else if (conv !== undefined) {
      shapes.set(`${conv}.conv.weight`, shape);
      for (const part of ["weight", "bias", "running_mean", "running_var"]) {
        shapes.set(`${conv}.bn.${part}`, [shape[0] as number]);
      }
    }
  }
  return shapes;
}

for (const profile of PROFILES) {
  Deno.test(`Lpips and its gradient equal the official LPIPS-VGG at full size (${profile} kernels)`, async () => {
    await testDevice(profile);
    const file = await open("lpips"), lpips = new Lpips();
    await loadState(lpips, formulaSource(shapesOf(lpips)));
    const shape = [2, 48, 37, 3];
    const image = (name: string) => ({
      shape,
      data: Float32Array.from(units(name, 2 * 48 * 37 * 3), (u) => 2 * u - 1),
    });
    const got = await evaluate({ x: image("input.x"), y: image("input.y") }, ({ x, y }) => {
      assert(x && y);
      y.requiresGrad = true;
      const of = noGrad(() => lpips.describe(x));
      const distance = lpips.compare(of, lpips.describe(y));
      const loss = sum(mul(distance, constant(Float32Array.of(1, -0.5), [2])));
      return { distance, gradient: grad(loss, [y])[0] ?? y };
    });
    const errors = [
      relativeError(got.distance, await file.read("distance")),
      relativeError(got.gradient, await file.read("gradient"), 1e-9),
    ];
    file.close();
    for (const tensor of state(lpips).values()) tensor.storage.destroy();
    assert(errors.every((e) => e < 1e-4), `distance and gradient: ${errors}`);
  });
}

for (const input of ["pytorch-fid", "adm"] as const) {
  Deno.test(`Inception equals the official network with the input of ${input}, at full size`, async () => {
    await testDevice("cpu");
    await compareInception(input, 2);
  });
}

Deno.test("Inception equals the official network (gpu kernels)", async () => {
  await testDevice("gpu");
  await compareInception("pytorch-fid", 1);
});

async function compareInception(input: "pytorch-fid" | "adm", images: number) {
  const file = await open("inception"), inception = new Inception();
  await loadState(inception, folded(formulaSource(publishedShapes(inception))));
  const data = Float32Array.from(
    units("input.bytes", images * 32 * 32 * 3),
    (u) => Math.floor(256 * u) / 127.5 - 1,
  );
  const got = await evaluate(
    { x: { shape: [images, 32, 32, 3], data } },
    ({ x }) => noGrad(() => inception.forward(x as NonNullable<typeof x>, input)),
  );
  const errors: Record<string, number> = {};
  for (const [name, values] of Object.entries(got)) {
    errors[name] = relativeError(values, (await file.read(`${input}.${name}`)).subarray(0, values.length));
  }
  file.close();
  for (const tensor of state(inception).values()) tensor.storage.destroy();
  assert(Object.values(errors).every((e) => e < 1e-4), JSON.stringify(errors));
}
