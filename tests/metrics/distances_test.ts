// Distances of sets of features against NumPy and SciPy, and what must hold of each of them.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { ShapeError, UsageError } from "../../src/errors.ts";
import { openImages } from "../../src/data/open_images.ts";
import { writePng } from "../../src/image/image.ts";
import { centerOf, resizeRows } from "../../src/image/resize.ts";
import { rowsOf as imageRows } from "../../src/image/rows.ts";
import { imageProgram, Rows } from "../../src/metrics/batched.ts";
import { EncoderFeatures } from "../../src/metrics/encoder_features.ts";
import { cmmd, kernelDistance } from "../../src/metrics/fidelity.ts";
import { frechet, frechetAtInfinity } from "../../src/metrics/frechet.ts";
import { type Features, gaussian, Moments } from "../../src/metrics/moments.ts";
import { randomOrder, rowsOf } from "../../src/metrics/gram.ts";
import { densityCoverage, precisionRecall } from "../../src/metrics/precision_recall.ts";
import { mind } from "../../src/metrics/sliced.ts";
import { Vit } from "../../src/models/vit.ts";
import { normal } from "../../src/philox.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { testDevice } from "../helpers/check.ts";
import { encoderFolder, inFolder } from "../helpers/encoder_files.ts";
import { units } from "../helpers/formula.ts";
import fixture from "../fixtures/distances.json" with { type: "json" };

const features = (name: string, rows: number, columns: number, scale: number, shift = 0): Features => ({
  data: Float32Array.from(units(name, rows * columns), (u) => scale * u + shift),
  rows,
  columns,
});
type Made = [string, number, number, number, number?];
const REAL = features(...fixture.real as Made), FAKE = features(...fixture.fake as Made);

function assertNear(got: number | undefined, expected: number, tolerance: number, what = ""): void {
  assert(
    got !== undefined && Math.abs(got - expected) <= tolerance * Math.abs(expected),
    `${what} ${got}, not ${expected}`,
  );
}

const first = (x: Features, rows: number): Features => ({
  ...x,
  rows,
  data: x.data.subarray(0, rows * x.columns),
});
const inOrder = (n: number) => Uint32Array.from({ length: n }, (_, i) => i);
const unit = (x: Features): Features => {
  const shifted = x.data.map((v) => v - 2),
    lengths = Array.from({ length: x.rows }, (_, r) => {
      return Math.hypot(...shifted.subarray(r * x.columns, (r + 1) * x.columns));
    });
  return { ...x, data: shifted.map((v, i) => v / lengths[Math.floor(i / x.columns)]!) };
};

Deno.test("distances of given features equal NumPy's and SciPy's to 1e-6, singular covariances too", async () => {
  const u = units("d.directions", 300 * REAL.columns), columns = REAL.columns;
  const directions = { data: Float32Array.from(u, (v) => 2 * v - 1), rows: 300, columns };
  const [wideReal, wideFake] = fixture.wide.map((made) => features(...made as Made)) as [Features, Features];
  assertNear(await frechet(await gaussian(REAL), await gaussian(FAKE)), fixture.frechet, 1e-6, "frechet");
  assertNear(
    await frechet(await gaussian(wideReal), await gaussian(wideFake)),
    fixture.singular,
    1e-6,
    "singular",
  );
  const options = { order: inOrder(FAKE.rows) };
  assertNear(
    await frechetAtInfinity(await gaussian(REAL), FAKE, options),
    fixture.infinity,
    1e-6,
    "infinity",
  );
  for (const profile of ["cpu", "gpu"] as const) {
    await testDevice(profile);
    const { density, coverage } = await densityCoverage(REAL, FAKE);
    assertNear(density, fixture.density, 1e-12, "density");
    assertNear(coverage, fixture.coverage, 1e-12, "coverage");
    assertNear(await cmmd(REAL, FAKE), fixture.cmmd, 1e-6, "cmmd");
    assertNear(await cmmd(unit(REAL), unit(FAKE)), fixture.unitCmmd, 1e-6, "cmmd of unit vectors");
    assertNear(await mind(first(REAL, 45), FAKE, { directions }), fixture.mind, 1e-6, "mind");
  }
});

/** The distances, and their value for equal sets where it is known. Outliers enlarge the balls of recall: it need not fall. */
const DISTANCES: Record<
  string,
  { of(a: Features, b: Features): Promise<number>; equal?: number; oneWay?: true }
> = {
  fid: { of: async (a, b) => frechet(await gaussian(a), await gaussian(b)), equal: 0 },
  "fid-infinity": {
    of: async (a, b) => frechetAtInfinity(await gaussian(a), b, { order: randomOrder(b, 3) }),
    oneWay: true,
  },
  kid: { of: kernelDistance },
  "kid of subsets": { of: (a, b) => kernelDistance(a, b, { subsets: 20, size: 30 }), oneWay: true },
  cmmd: { of: cmmd, equal: 0 },
  mind: { of: mind, equal: 0 },
  "1 - precision": {
    of: async (a, b) => 1 - (await precisionRecall(a, b)).precision,
    equal: 0,
    oneWay: true,
  },
  "1 - recall": { of: async (a, b) => 1 - (await precisionRecall(a, b)).recall, equal: 0, oneWay: true },
  "1 - density": { of: async (a, b) => 1 - (await densityCoverage(a, b)).density, equal: 0, oneWay: true },
  "1 - coverage": { of: async (a, b) => 1 - (await densityCoverage(a, b)).coverage, equal: 0, oneWay: true },
};

/** 64 rows, a share of which is replaced by noise far away. */
function corrupted(share: number): Features {
  const x = features("d.set", 64, 12, 4), noise = features("d.noise", 64, 12, 9, -6);
  return { ...x, data: x.data.map((v, i) => i % (12 * 8) < 12 * 8 * share ? noise.data[i]! : v) };
}

Deno.test("each distance is 0 for equal sets, symmetric, grows with corruption and ignores the order of rows", async () => {
  await testDevice();
  const set = corrupted(0), other = features("d.other", 64, 12, 4, 0.2), quarter = corrupted(0.25);
  const half = corrupted(0.5), mixed = rowsOf(half, inOrder(64).map((i) => (37 * i + 5) % 64));
  for (const [name, { of, equal, oneWay }] of Object.entries(DISTANCES)) {
    const [same, near, far] = [await of(set, set), await of(other, quarter), await of(other, half)];
    if (equal !== undefined) assert(Math.abs(same - equal) < 1e-6, `${name} of equal sets: ${same}`);
    else assert(same < 0.05 * far, `${name} of equal sets: ${same}, of others ${far}`);
    if (name !== "1 - recall") assert(far > near, `${name}: half corrupted ${far}, a quarter ${near}`);
    if (!oneWay) assertNear(await of(half, other), far, 1e-6, `${name} the other way round:`);
    assertNear(await of(other, mixed), far, 1e-9, `${name} of other order:`);
  }
});

Deno.test("moments and rows do not depend on the size of the batches that they are made of", async () => {
  const set = corrupted(0.5), base = await gaussian(corrupted(0));
  for (const size of [1, 7, 64]) {
    const moments = new Moments(set.columns), rows = new Rows();
    for (let at = 0; at < set.rows; at += size) {
      const part = set.data.slice(at * set.columns, (at + size) * set.columns);
      await moments.add(part);
      rows.add(part);
    }
    assertNear(await frechet(base, await moments.gaussian()), await frechet(base, await gaussian(set)), 1e-9);
    assertEquals(rows.features(set.rows), set);
  }
});

/**
 * Mean and standard deviation, to second order in 1 / n, of the Frechet distance of two samples of n rows of one Gaussian with
 * variances v. The difference of the means has the variances 2 v_i / n; that of the covariances has entries of variance 2 v_i v_j
 * (1 + [i = j]) / (n - 1), and adds the sum of its squares over 2 (v_i + v_j) (the Bures metric).
 */
function distanceOfParts(v: readonly number[], n: number): { mean: number; deviation: number } {
  const terms = v.map((vi) => 2 * vi / n);
  v.forEach((vi, i) => v.slice(0, i).forEach((vj) => terms.push(2 * vi * vj / (vi + vj) / (n - 1))));
  terms.push(...v.map((vi) => vi / (n - 1)));
  const sum = (values: number[]) => values.reduce((s, t) => s + t, 0);
  return { mean: sum(terms), deviation: Math.sqrt(2 * sum(terms.map((t) => t * t))) };
}

Deno.test("disjoint halves of a set are as far apart as theory says; flattened features are not", async () => {
  const columns = 24, n = 1000, pairs = 4, variances = Array.from({ length: columns }, (_, i) => 0.9 ** i);
  const { mean, deviation } = distanceOfParts(variances, n), bound = 4 * deviation / Math.sqrt(pairs);
  assert(bound < 0.2 * mean);
  const shape = (data: Float32Array, columns: number) => ({ data, rows: data.length / columns, columns });
  const sets = Array.from(
    { length: pairs },
    (_, s) => normal(s, 9, 2 * n * columns).map((z, k) => 3 + z * Math.sqrt(variances[k % columns]!)),
  );
  const apart = async (columns: number, width = columns) => {
    let sum = 0;
    for (const data of sets) {
      const halves = [data.subarray(0, data.length / 2), data.subarray(data.length / 2)];
      const [a, b] = await Promise.all(halves.map((half) => gaussian(shape(half, columns))));
      assertEquals([a!.mean.length, b!.covariance.length], [width, width ** 2]);
      sum += await frechet(a!, b!) / pairs;
    }
    return sum;
  };
  const distance = await apart(columns);
  assert(Math.abs(distance - mean) < bound, `${distance}, not ${mean} within ${bound}`);
  const flat = await apart(1);
  assert(Math.abs(flat - mean) > bound, `flattened: ${flat} against ${mean}`);
  await assertRejects(() => apart(columns, 1));
  const part = { data: new Float32Array(50), rows: 2, columns };
  await assertRejects(() => gaussian(part), ShapeError, "features [2, 24] have 50 numbers");
  await assertRejects(() => new Moments(columns).add(part.data), ShapeError, "50 numbers are no rows of 24");
});

Deno.test("FD-DINOv2 takes the CLS token of the image stretched to 224 x 224, with the authors' positions", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const encoder = await openEncoder(await encoderFolder(folder, "dinov2_patch14"));
    const image = {
      width: 40,
      height: 56,
      data: Uint8Array.from(units("dinov2", 3 * 40 * 56), (u) => 256 * u),
    };
    await Deno.mkdir(join(folder, "images"));
    await writePng(join(folder, "images", "0.png"), image);
    const stretched = await resizeRows(imageRows(image), centerOf({ width: 224, height: 224 }, 224, 224));
    const mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225];
    const x = Float32Array.from(stretched.data, (v, i) => (v / 255 - mean[i % 3]!) / std[i % 3]!);
    const vit = new Vit({ ...encoder.config, interpolate_offset: 0.1 });
    await encoder.load(vit);
    const sizes = { batchSize: 1, size: 224, floats: true };
    const program = await imageProgram("cls", (x) => ({ y: vit.forward(x).cls! }), sizes);
    program.run({ x });
    const expected = await program.read(program.outputs.y).finally(() => program.destroy());
    const options = { batchSize: 1, n: 1, space: "dinov2" as const };
    const extractor = await EncoderFeatures.open(encoder, options);
    const { features } = await extractor.extract(await openImages(join(folder, "images")));
    extractor.destroy();
    expected.forEach((v, i) =>
      assert(Math.abs(v - features.data[i]!) < 1e-5, `${i}: ${v}, ${features.data[i]}`)
    );
    assertEquals(features.data.length, expected.length);
  });
});

Deno.test("distances refuse too few images and features of another network", async () => {
  await testDevice();
  const few = first(FAKE, 5), order = inOrder(15);
  const cases: [() => Promise<unknown>, string][] = [
    [() => densityCoverage(few, FAKE), "5 real images are too few; use more than 5"],
    [
      async () => frechetAtInfinity(await gaussian(REAL), first(FAKE, 15), { order }),
      "15 images are too few; use more than 15",
    ],
    [() => mind(REAL, { ...FAKE, rows: 90, columns: 6 }), "12 against 6"],
    [() => cmmd(REAL, { ...FAKE, rows: 90, columns: 6 }), "12 against 6"],
    [() => densityCoverage(REAL, { ...FAKE, rows: 90, columns: 6 }), "12 against 6"],
  ];
  for (const [compute, message] of cases) await assertRejects(compute, UsageError, message);
});
