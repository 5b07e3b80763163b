// The networks behind metrics, at their published sizes, against the official implementations on formula weights. The
// metadata of each fixture say how it was made.

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { grad, noGrad } from "../../src/tensor/autograd.ts";
import { UsageError } from "../../src/errors.ts";
import { openSafetensors } from "../../src/formats/safetensors.ts";
import { folded, Inception, inceptionParameters } from "../../src/models/inception.ts";
import { Lpips } from "../../src/models/lpips.ts";
import { openInception, openLpips } from "../../src/zoo/networks.ts";
import { countParameters, loadState, parameters, state } from "../../src/nn/layers.ts";
import { mul } from "../../src/ops/math.ts";
import { sum } from "../../src/ops/reduce.ts";
import { resizeTable } from "../../src/ops/resize.ts";
import { constant, input, readTensor, type Shape } from "../../src/tensor/tensor.ts";
import { evaluate, PROFILES, relativeError, testDevice } from "../helpers/check.ts";
import { assertClaim } from "../helpers/claims.ts";
import { formulaSource, inceptionShapes, shapesOf, units, writeFormula } from "../helpers/formula.ts";

const open = (name: string) =>
  openSafetensors(fromFileUrl(new URL(`../fixtures/${name}.safetensors`, import.meta.url)));

for (const profile of PROFILES) {
  Deno.test(`Lpips and its gradient equal the official LPIPS-VGG at full size (${profile} kernels)`, async () => {
    await testDevice(profile);
    const file = await open("lpips"), lpips = new Lpips();
    await loadState(lpips, formulaSource(shapesOf(lpips)));
    // Of the fixture's two images, whose losses are independent, the gpu profile takes one: it is slow on a CPU.
    const images = profile === "cpu" ? 2 : 1;
    const shape = [images, 48, 37, 3];
    const image = (name: string) => ({
      shape,
      data: Float32Array.from(units(name, images * 48 * 37 * 3), (u) => 2 * u - 1),
    });
    const got = await evaluate({ x: image("input.x"), y: image("input.y") }, ({ x, y }) => {
      assert(x && y);
      y.requiresGrad = true;
      const of = noGrad(() => lpips.describe(x));
      const distance = lpips.compare(of, lpips.describe(y));
      const loss = sum(mul(distance, constant(Float32Array.of(1, -0.5).subarray(0, images), [images])));
      return { distance, gradient: grad(loss, [y])[0] ?? y };
    });
    const expected = async (name: keyof typeof got) => (await file.read(name)).subarray(0, got[name].length);
    const output = relativeError(got.distance, await expected("distance"));
    const gradients = relativeError(got.gradient, await expected("gradient"), 1e-9);
    file.close();
    for (const tensor of state(lpips).values()) tensor.storage.destroy();
    assertClaim("lpips", { output, gradients });
  });
}

Deno.test("Lpips has a finite gradient where all features of a pixel are zero", async () => {
  await testDevice();
  const lpips = new Lpips(); // all weights are zero, and so are all features
  const data = Float32Array.from(units("dead", 16 * 16 * 3), (u) => 2 * u - 1);
  const got = await evaluate({ x: { shape: [1, 16, 16, 3], data } }, ({ x }) => {
    assert(x);
    x.requiresGrad = true;
    const distance = lpips.forward(x, constant(data, x.shape));
    return { distance, gradient: grad(distance, [x])[0] ?? x };
  });
  assertEquals([...got.distance], [0]);
  assert(got.gradient.every((g) => g === 0));
  assertThrows(() => lpips.describe(input([1, 16, 15, 3])), UsageError, "16 x 15");
});

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
  await loadState(inception, folded(formulaSource(inceptionShapes())));
  const data = Float32Array.from(
    units("input.bytes", images * 32 * 32 * 3),
    (u) => Math.floor(256 * u) / 127.5 - 1,
  );
  const got = await evaluate(
    { x: { shape: [images, 32, 32, 3], data } },
    ({ x }) => noGrad(() => inception.forward(x as NonNullable<typeof x>, input)),
  );
  const errors: number[] = [];
  for (const [name, values] of Object.entries(got)) {
    errors.push(relativeError(values, (await file.read(`${input}.${name}`)).subarray(0, values.length)));
  }
  file.close();
  for (const tensor of state(inception).values()) tensor.storage.destroy();
  assertClaim("inception", { output: Math.max(...errors) });
}

Deno.test("published sizes: VGG-16's convolutions 14,714,688, LPIPS's layers 1,472, FID's Inception 23,850,960", async () => {
  await testDevice();
  const counts = [0, 0];
  for (const [key, { size }] of parameters(new Lpips())) counts[key.startsWith("lin") ? 1 : 0]! += size;
  assertEquals(counts, [14_714_688, 1_472]);
  assertEquals(inceptionParameters(), 23_850_960);
  const published = [...inceptionShapes()].filter(([key]) => !key.includes("running"));
  assertEquals(published.reduce((n, [, shape]) => n + shape.reduce((a, b) => a * b, 1), 0), 23_850_960);
  assertEquals(countParameters(new Inception()), 23_850_960 - 17_216); // one number fewer for each folded channel
});

Deno.test("a folded convolution is the convolution and its batch norm to the last digits of f32", async () => {
  const shapes = new Map<string, Shape>([["a.conv.weight", [3, 2, 1, 1]]]);
  for (const part of ["weight", "bias", "running_mean", "running_var"]) shapes.set(`a.bn.${part}`, [3]);
  const source = formulaSource(shapes), own = folded(source);
  assertEquals([...own.shapes], [["a.weight", [3, 2, 1, 1]], ["a.bias", [3]]]);
  const read = (key: string) => source.read(key);
  const [w, g, b, m, v] = await Promise.all(
    ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"].map((k) => read(`a.${k}`)),
  ) as [Float32Array, Float32Array, Float32Array, Float32Array, Float32Array];
  const at = (x: Float32Array, i: number) => x[i] as number;
  const gain = (c: number) => at(g, c) / Math.sqrt(at(v, c) + 1e-3);
  assertEquals(await own.read("a.weight"), w.map((x, i) => x * gain(i >> 1)));
  assertEquals(await own.read("a.bias"), b.map((x, c) => x - gain(c) * at(m, c)));
});

Deno.test("LPIPS loads from torchvision's file and the linear layers, or from the package's own state", async () => {
  await testDevice();
  const folder = await Deno.makeTempDir(), path = (name: string) => join(folder, `${name}.safetensors`);
  const shapes = [...shapesOf(new Lpips())];
  const vgg = shapes.filter(([key]) => key.startsWith("features"));
  const lins = shapes.filter(([key]) => key.startsWith("lin"));
  await writeFormula(path("vgg16"), new Map([...vgg, ["classifier.6.bias", [1000]]]));
  await writeFormula(path("lins"), new Map(lins));
  const slice = (index: number) => 1 + [4, 9, 16, 23].filter((end) => index >= end).length;
  const renamed = vgg.map(([key, shape]): [string, Shape] => {
    const [, index, part] = key.split(".");
    return [`net.slice${slice(Number(index))}.${index}.${part}`, shape];
  });
  await writeFormula(
    path("whole"),
    new Map([
      ...renamed,
      ...lins,
      ...lins.map(([key, shape]): [string, Shape] => [key.replace("lin", "lins."), shape]),
      ["scaling_layer.shift", [1, 3, 1, 1]],
      ["scaling_layer.scale", [1, 3, 1, 1]],
    ]),
    (key) => key.replace(/^net\.slice\d/, "features"),
  );
  const [a, b] = [await openLpips([path("vgg16"), path("lins")]), await openLpips([path("whole")])];
  for (const [key, tensor] of [...state(a)].filter((_, i) => i % 7 === 0)) {
    assertEquals(await readTensor(tensor), await readTensor(state(b).get(key) ?? tensor), key);
  }
  assertMatch(a.fingerprint ?? "", /^[0-9a-f]{16}$/);
  assertEquals(a.fingerprint, b.fingerprint, "the same weights, however they are filed");
  const refused = async (paths: string[], ...words: string[]) => {
    const { message } = await assertRejects(() => openLpips(paths.map(path)), UsageError);
    assert(!message.includes("\n") && words.every((word) => message.includes(word)), message);
  };
  await refused(["vgg16"], "no linear layers", "vgg.pth", "PerceptualSimilarity");
  await refused(["lins"], "no VGG-16", "vgg16-397923af.pth");
  await refused(["whole", "lins"], "in both", "lin0.model.1.weight");
  const alex = new Map<string, Shape>([["features.0.weight", [64, 3, 11, 11]], ...lins]);
  await writeFormula(path("alex"), alex);
  await refused(["alex"], "features.0.weight", "[64, 3, 11, 11]");
  await Deno.remove(folder, { recursive: true });
});

Deno.test("weights of another Inception are refused in one line that names the right file", async () => {
  await testDevice();
  const folder = await Deno.makeTempDir(), path = join(folder, "other.safetensors");
  const refused = async (shapes: Map<string, Shape>, ...words: string[]) => {
    await writeFormula(path, shapes);
    const { message } = await assertRejects(() => openInception(path), UsageError);
    assert(!message.includes("\n") && words.every((word) => message.includes(word)), message);
  };
  const right = "pt_inception-2015-12-05-6726825d.pth";
  await refused(new Map([["fc.weight", [1000, 2048]]]), "torchvision's", right);
  await refused(new Map([["Mixed_7c.branch_pool.conv.weight", [4, 2, 1, 1]]]), "bn.weight", "missing", right);
  await refused(new Map([["fc.weight", [1008, 2048]]]), "missing", "Conv2d_1a_3x3");
  await Deno.remove(folder, { recursive: true });
});

Deno.test("resizeTable() with pixels at corners gives TensorFlow 1's values", () => {
  const table = resizeTable(4, 6, { filter: "bilinear", corners: true });
  const rows = Array.from({ length: 6 }, (_, i) => {
    const at = i * 4 / 6, base = Math.floor(at), share = at - base;
    return [0, 1, 2, 3].map((j) =>
      Math.fround((j === base ? 1 - share : 0) + (j === Math.min(base + 1, 3) ? share : 0))
    );
  });
  assertEquals([...table], rows.flat());
});
