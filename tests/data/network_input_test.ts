// Network inputs: each image is preprocessed by itself, with the numbers of PyTorch and TensorFlow 1. fixtures/fid_sizes.py
// made fixtures/fid_sizes.json.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { openImages } from "../../src/data/open_images.ts";
import { toFloat, writePng } from "../../src/image/image.ts";
import { described, inputOf, inputs, Sizes } from "../../src/data/network_input.ts";
import { interpolate } from "../../src/image/interpolate.ts";
import { writeNpz } from "../../src/formats/npz.ts";
import { openNpzSet } from "../../src/data/npz_images.ts";
import { preprocess, type Preprocessor } from "../../src/data/preprocess.ts";
import type { Image } from "../../src/image/rows.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { rowsOf } from "../../src/image/rows.ts";
import { gatherFloats } from "../../src/data/image_source.ts";
import { generatedInputs, Workers } from "../../src/data/decode_pool.ts";
import { SetEvaluation } from "../../src/metrics/evaluate.ts";
import type { ImageSet } from "../../src/metrics/image_set.ts";
import { Results, Selection } from "../../src/metrics/selection.ts";
import { folded, Inception } from "../../src/models/inception.ts";
import { loadState, state } from "../../src/nn/layers.ts";
import { testDevice } from "../helpers/check.ts";
import { quietLog } from "../helpers/commands.ts";
import fixture from "../fixtures/fid_sizes.json" with { type: "json" };
import { formulaSource, inceptionShapes, units } from "../helpers/formula.ts";

function picture(name: string, [width = 0, height = 0]: readonly number[]): Image {
  return { width, height, data: Uint8Array.from(units(name, 3 * width * height), (u) => 256 * u) };
}

for (const sampling of ["pytorch", "tensorflow1"] as const) {
  Deno.test(`interpolate() stretches images of any shape to 299 x 299 with the numbers of ${sampling}`, () => {
    for (const { size, places, values } of sampling === "pytorch" ? fixture.interpolate : fixture.adm) {
      const got = interpolate(picture(size.join("x"), size), 299, 299, sampling);
      assertEquals(got.length, 3 * 299 * 299);
      places.forEach((place, k) => {
        // ADM's (b - 128) / 128 of b = 127.5 (x + 1)
        const x = got[place] as number, value = sampling === "pytorch" ? x : x * 127.5 / 128 - 1 / 256;
        assert(Math.abs(value - values[k]!) < 1e-5, `${size} at ${place}: ${value}, not ${values[k]}`);
      });
    }
  });
}

const PREPROCESSOR: Preprocessor = {
  resize: { shorter: 20 },
  crop: { height: 16, width: 16 },
  filter: "bicubic",
  exact: false,
  mean: [0.5, 0.4, 0.3],
  std: [0.2, 0.3, 0.4],
};

Deno.test("a network input is the same from a folder, an NPZ and a worker, and in any batch", async () => {
  const folder = await Deno.makeTempDir(), image = picture("wide", [40, 24]);
  await Deno.mkdir(join(folder, "set"));
  await writePng(join(folder, "set/a.png"), image);
  await writePng(join(folder, "set/b.png"), picture("tall", [24, 31]));
  await writeNpz(join(folder, "set.npz"), [{ name: "arr_0", shape: [1, 24, 40, 3], data: image.data }]);
  using workers = new Workers(1);
  const files = await openImages(join(folder, "set"), { workers });
  const { images } = await openNpzSet(join(folder, "set.npz"), workers);
  assert(images);
  const encoder = { network: { kind: "encoder", preprocessor: PREPROCESSOR } } as const;
  const stretched = { network: { kind: "stretched", side: 19, sampling: "pytorch" } } as const;
  const expected = (await preprocess(rowsOf(image), PREPROCESSOR)).data,
    wide = interpolate(image, 19, 19, "pytorch");
  for (const source of [files, images]) {
    assertEquals((await source.input(0, encoder)).data, expected);
    assertEquals((await source.input(0, stretched)).data, wide);
    assertEquals(toFloat(await source.bytes(0, 8)), (await inputOf(rowsOf(image), { square: 8 })).data);
  }
  const cropped = await files.input(0, { square: 12, ...stretched });
  const square = (await inputOf(rowsOf(image), { square: 12 })).data.map((x) => Math.round((x + 1) * 127.5));
  const small = { width: 12, height: 12, data: Uint8Array.from(square) };
  assertEquals(cropped.data, interpolate(small, 19, 19, "pytorch"));
  assertEquals(cropped.original, { width: 40, height: 24 });
  const sizes = new Sizes(), seen = inputs(files, stretched, sizes), each = 3 * 19 * 19;
  const together = await gatherFloats(seen, [0, 1, 1, 1], 19), alone = await gatherFloats(seen, [1], 19);
  assertEquals(together.images.subarray(0, each), wide);
  for (const k of [1, 2, 3]) {
    assertEquals(together.images.subarray(k * each, (k + 1) * each), alone.images);
  }
  assertEquals(sizes.toString(), "1 image of 24 x 31, 1 of 40 x 24");
  await assertRejects(() => Promise.resolve(seen.floats(0, 18)), Error, "became 19 x 19");
  await Deno.remove(folder, { recursive: true });
});

Deno.test("sizes and views have readable descriptions", () => {
  const sizes = new Sizes();
  [1, 2, 2, 3, 4, 5].forEach((n, i) => sizes.add(i, { width: 10 * n, height: 7 }));
  assertEquals(sizes.toString(), "2 images of 20 x 7, 1 of 10 x 7, 1 of 30 x 7, 2 of 2 other sizes");
  assert(sizes.differ(7));
  const network = { kind: "stretched", side: 299, sampling: "pytorch" } as const;
  assertEquals(described({ network }), "its sides stretched to 299 x 299");
  assertEquals(
    described({ square: 32, network }),
    "its shorter side resized to 32 and the central 32 x 32 kept, then its sides stretched to 299 x 299",
  );
  assertEquals(
    described({ network: { kind: "encoder", preprocessor: PREPROCESSOR } }),
    "its shorter side resized to 20 and the central 16 x 16 kept",
  );
});

Deno.test("the Frechet distance of sets with images of several sizes is pytorch-fid's, in both orders", async () => {
  await testDevice("cpu");
  const inception = new Inception();
  await loadState(inception, folded(formulaSource(inceptionShapes())));
  const folder = await Deno.makeTempDir();
  const sets = await Promise.all((["real", "fake"] as const).map(async (name): Promise<ImageSet> => {
    await Deno.mkdir(join(folder, name));
    for (const [i, size] of fixture.sets.sizes[name].entries()) {
      await writePng(join(folder, name, `${i}.png`), picture(`${name}.${i}`, size));
    }
    return { name, images: await openImages(join(folder, name)) };
  }));
  const [real, fake] = sets as [ImageSet, ImageSet], said: string[] = [];
  const distance = async (a: ImageSet, b: ImageSet, batchSize: number) => {
    const { log, lines } = quietLog(), results = new Results();
    const options = {
      ...{ batchSize, seed: 0, inceptionInput: "pytorch-fid" as const },
      inception: () => Promise.resolve(inception),
      lpips: () => Promise.reject(),
      encoder: () => Promise.reject(),
    };
    const selection = new Selection("sets", { metrics: ["fid"], inception: "formula" });
    using evaluation = await SetEvaluation.open(selection, options, a, b, log);
    await evaluation.score(a, b, { images: a.images!, side: 32 }, results);
    results.rethrow();
    said.push(...lines.filter((line) => line.includes("for Inception")).map((line) => line.split(";")[0]!));
    return results.scores.fid as number;
  };
  const ways = [await distance(real, fake, 2), await distance(fake, real, 2)];
  for (const way of ways) assert(Math.abs(way / fixture.sets.fid - 1) < 1e-4, `${ways}`);
  assert(Math.abs(ways[0]! / ways[1]! - 1) < 1e-5, `${ways}`);
  assertEquals(said.slice(0, 2), [
    '"real": 1 image of 40 x 56, 1 of 64 x 64',
    '"fake": 1 image of 32 x 32, 1 of 75 x 18',
  ]);
  for (const tensor of state(inception).values()) tensor.storage.destroy();
  await Deno.remove(folder, { recursive: true });
});

Deno.test("generated shapes are drawn at the side asked for, with the same bytes as network inputs", async () => {
  const source = generatedInputs(new Workers(0), new Shapes(3, 1), 24);
  const { width, height, data, original } = await source.input(2, {});
  assertEquals([width, height, original], [24, 24, { width: 24, height: 24 }]);
  assertEquals(data, toFloat(new Shapes(3, 1).bytes(2, 24)));
});
