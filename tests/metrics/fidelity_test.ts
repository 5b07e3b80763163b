// Scores of sets of images against NumPy, from toy features up to the command line with Inception at full size.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { writeNpz } from "../../src/formats/npz.ts";
import { readImage, writePng } from "../../src/image/image.ts";
import { openNpzSet } from "../../src/data/npz_images.ts";
import { gather } from "../../src/data/image_source.ts";
import { InceptionScore, kernelDistance } from "../../src/metrics/fidelity.ts";
import { type Features, gaussian } from "../../src/metrics/moments.ts";
import { precisionRecall } from "../../src/metrics/precision_recall.ts";
import { GramBlocks } from "../../src/metrics/gram.ts";
import { unpackImages } from "../../src/ops/pixels.ts";
import { testDevice } from "../helpers/check.ts";
import { run } from "../helpers/commands.ts";
import fixture from "../fixtures/fidelity.json" with { type: "json" };
import { inceptionShapes, shapesOf, units, writeFormula } from "../helpers/formula.ts";
import { Lpips } from "../../src/models/lpips.ts";

const features = (name: string, rows: number, columns: number, scale: number, shift = 0): Features => ({
  data: Float32Array.from(units(name, rows * columns), (u) => scale * u + shift),
  rows,
  columns,
});

function assertNear(got: number | undefined, expected: number, tolerance: number): void {
  assert(
    got !== undefined && Math.abs(got - expected) <= tolerance * Math.abs(expected),
    `${got}, not ${expected}`,
  );
}

Deno.test("InceptionScore of three splits equals NumPy's, for any batches of rows", () => {
  const { data } = features("logits", 23, 7, 6, -3);
  const inParts = (...ends: number[]) => {
    const score = new InceptionScore(7, 10);
    let from = 0;
    for (const end of [...ends, 23]) {
      score.add(data.subarray(7 * from, 7 * end));
      from = end;
    }
    return score.score();
  };
  assertNear(inParts(), fixture.inceptionScore, 1e-7);
  assertEquals(inParts(), inParts(4, 11, 20));
});

Deno.test("kernelDistance() of full sets equals NumPy's; subsets are deterministic by seed and scatter around it", async () => {
  await testDevice();
  const a = features("kid.real", 30, 12, 4), b = features("kid.fake", 30, 12, 4, 0.25);
  assertNear(await kernelDistance(a, b), fixture.kernelDistance, 1e-4);
  const subsets = { subsets: 60, size: 15, seed: 1 };
  const some = await kernelDistance(a, b, subsets);
  assertEquals(await kernelDistance(a, b, subsets), some);
  assert(await kernelDistance(a, b, { ...subsets, seed: 2 }) !== some);
  assertNear(some, fixture.kernelDistance, 0.3);
  await assertRejects(() => kernelDistance({ ...a, rows: 1 }, b), UsageError, "too few");
});

Deno.test("precisionRecall() equals NumPy's, also far from the origin, and refuses sets without enough neighbours", async () => {
  await testDevice();
  for (const far of [0, 500]) {
    const real = features("pr.real", 60, 5, 1, far), fake = features("pr.fake", 50, 5, 0.8, 0.4 + far);
    const { precision, recall } = await precisionRecall(real, fake);
    if (far === 0) assertEquals([precision, recall], [fixture.precision, fixture.recall]);
    else { // f32 keeps four digits of such features
      assert(Math.abs(precision - fixture.precision) <= 0.02 && Math.abs(recall - fixture.recall) <= 0.02);
    }
    assertEquals(await precisionRecall(real, real), { precision: 1, recall: 1 });
    await assertRejects(() => precisionRecall(real, { ...fake, rows: 3 }), UsageError, "too few");
  }
});

Deno.test("GramBlocks cover every pair of sets larger than a block", async () => {
  await testDevice();
  const a = features("a", 2050, 4, 2, -1), b = features("b", 3, 4, 2, -1);
  const program = await GramBlocks.open(2050, 4);
  let seen = 0;
  for await (const { first: [i0, j0], count: [rows, columns], dots, stride } of program.of(a, b)) {
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) {
          sum += (a.data[(i0 + i) * 4 + k] as number) * (b.data[(j0 + j) * 4 + k] as number);
        }
        assert(Math.abs((dots[i * stride + j] as number) - sum) < 1e-6);
        seen++;
      }
    }
  }
  program.destroy();
  assertEquals(seen, 2050 * 3);
});

const SIDE = 16, COUNT = 8;

/** Images as bytes: a ramp over the set and noise. */
function bytes(name: string, share: number): Uint8Array {
  const each = SIDE * SIDE * 3;
  return Uint8Array.from(
    units(name, COUNT * each),
    (u, i) => Math.floor(256 * (share * (Math.floor(i / each) / COUNT) + (1 - share) * u)),
  );
}

const writeSet = (path: string, data: Uint8Array) =>
  writeNpz(path, [{ name: "arr_0", shape: [COUNT, SIDE, SIDE, 3], data }]);

Deno.test("images of an NPZ file are read in any order, with their labels; other arrays are refused", async () => {
  const path = await Deno.makeTempFile({ suffix: ".npz" }), data = bytes("set.real", 0.5);
  await writeNpz(path, [
    { name: "arr_0", shape: [COUNT, SIDE, SIDE, 3], data },
    {
      name: "arr_1",
      shape: [COUNT],
      data: BigInt64Array.from({ length: COUNT }, (_, i) => BigInt(5 * (i % 2))),
    },
  ]);
  const { images } = await openNpzSet(path);
  assert(images);
  assertEquals([images.length, images.width, images.height], [COUNT, SIDE, SIDE]);
  assertEquals([images.classes, images.label(3)], [["0", "5"], 1]);
  const each = SIDE * SIDE * 3, at = (i: number) => data.subarray(i * each, (i + 1) * each);
  for (const indices of [[0, 1, 2, 2], [7, 3], [0, 7]]) {
    const batch = await gather(images, indices, SIDE);
    const pixels = unpackImages(batch.images, SIDE);
    indices.forEach((i, k) => assertEquals(pixels.subarray(k * each, (k + 1) * each), at(i)));
  }
  await writeNpz(path, [{ name: "other", shape: [2], data: new Float32Array(2) }]);
  await assertRejects(() => openNpzSet(path), UsageError, '"other"');
  await writeNpz(path, [{ name: "arr_0", shape: [2, 4, 3], data: new Uint8Array(24) }]);
  await assertRejects(() => openNpzSet(path), UsageError, "[2, 4, 3]");
  await writeNpz(path, [
    { name: "mu", shape: [2], data: new Float64Array(2) },
    { name: "sigma", shape: [3, 2], data: new Float64Array(6) },
  ]);
  await assertRejects(() => openNpzSet(path), UsageError, "[3, 2]");
  await Deno.remove(path);
});

Deno.test("FID, sFID, IS, KID, precision and recall of tok eval equal the official networks with NumPy", async () => {
  const folder = await Deno.makeTempDir(), path = (name: string) => join(folder, name);
  await writeFormula(path("inception.safetensors"), inceptionShapes());
  await writeSet(path("real.npz"), bytes("set.real", 0.5));
  await writeSet(path("fake.npz"), bytes("set.fake", 0.95));
  const inception = ["--inception", path("inception.safetensors")];
  const sets = ["--real", path("real.npz"), "--fake", path("fake.npz"), ...inception];
  const asked = "fid,sfid,is,kid,precision,recall,density,coverage,mind";
  const saved = ["--save-features", path("features.npz"), "--out", path("out")];
  await run("eval", ...sets, "--metrics", asked, ...saved);
  const scores = JSON.parse(await Deno.readTextFile(path("out/metrics.json")));
  assertEquals(Object.keys(scores).sort(), ["ingredients", "n", ...asked.split(",")].sort());
  const { fid, sfid, is, kid, precision, recall } = fixture.sets;
  assertNear(scores.fid, fid, 1e-4);
  assertNear(scores.sfid, sfid, 1e-4);
  assertNear(scores.is, is, 1e-5);
  assertNear(scores.kid, kid, 1e-4);
  assertEquals([scores.precision, scores.recall, scores.n], [precision, recall, COUNT]);

  // Saved features serve as both sets: every distance is that of equal sets.
  const stored = await openNpzSet(path("features.npz"));
  assertEquals([stored.features?.rows, stored.features?.columns, stored.spatial?.mean.length], [
    COUNT,
    2048,
    2023,
  ]);
  const names = Object.keys(stored.about ?? {});
  assertEquals(names, ["inception", "Inception input", "image size", "JPEG files"]);
  const equal = ["--real", path("features.npz"), "--fake", path("features.npz"), ...inception];
  const { result } = await run(
    "eval",
    ...[...equal, "--metrics", "fid,precision,density,coverage,mind", "--out", path("equal")],
  );
  assert((result.fid as number) < 1e-6, `${result.fid}`);
  const { precision: p, density, coverage, mind, n } = result;
  assertEquals([p, density, coverage, mind, n], [1, 1, 1, 0, COUNT]);
  await assertRejects(
    () => run("eval", ...equal, "--metrics", "fid", "--inception-input", "adm"),
    UsageError,
    'the Inception input was "pytorch-fid" and is "adm"',
  );

  // Statistics stand in for images where they suffice, and it is said where they do not.
  const known = await gaussian(features("statistics", 3, 2048, 1));
  await writeNpz(path("known.npz"), [
    { name: "mu", shape: [2048], data: known.mean },
    { name: "sigma", shape: [2048, 2048], data: known.covariance },
  ]);
  const stats = ["--real", path("known.npz"), "--fake", path("known.npz"), ...inception];
  await run("eval", ...stats, "--out", path("same"));
  const same = JSON.parse(await Deno.readTextFile(path("same/metrics.json")));
  assertEquals(Object.keys(same), ["fid", "ingredients"]);
  assert(same.fid < 1e-6);
  await assertRejects(
    () => run("eval", ...stats.slice(0, 4)),
    UsageError,
    "no metric applies: fid, sfid, is, kid, precision, recall (it needs --inception FILE",
  );
  await assertRejects(
    () => run("eval", ...stats, "--metrics", "fid,kid"),
    UsageError,
    `Cannot score "kid": "${path("known.npz")}" holds neither images nor features`,
  );
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a score or loss that cannot be computed is refused in one line that says what is missing", async () => {
  for (
    const [line, ...words] of [
      ["eval --fake x --metrics fid", '"fid"', "--inception", "pt_inception-2015-12-05-6726825d.pth"],
      ["eval --tokenizer x --metrics lpips", '"lpips"', "--lpips", "vgg16-397923af.pth"],
      ["eval --tokenizer x --metrics rfid", '"rfid"', "--inception"],
      ["eval --tokenizer x --metrics fid", '"fid"', "a diffusion model or two sets", "this is a tokenizer"],
      ["eval --model x --metrics psnr", '"psnr"', "a tokenizer or two sets of images"],
      ["align --preset dinov2-l-f16d32 --data photos", "--lpips FILES", "vgg.pth"],
    ] as const
  ) {
    const [command = "", ...args] = line.split(" ");
    const { message } = await assertRejects(() => run(command, ...args), UsageError);
    assert(!message.includes("\n") && words.every((word) => message.includes(word)), message);
  }
});

Deno.test("tok align --perceptual lpips trains with LPIPS, logs it and scores it; tok eval scores LPIPS and rFID", async () => {
  const folder = await Deno.makeTempDir(), path = (name: string) => join(folder, name);
  await writeFormula(path("lpips.safetensors"), shapesOf(new Lpips()));
  await writeFormula(path("inception.safetensors"), inceptionShapes());
  const lpips = ["--lpips", path("lpips.safetensors")];
  const few = "--stages 1 --steps 1,1,1 --batch-size 2 --held-out 2 --gan none".split(" ");
  const perceptual = ["--perceptual", "lpips", "--w-perceptual", "1", ...lpips];
  await run("align", ...few, ...perceptual, "--out", path("run"));
  const read = async (name: string) => JSON.parse(await Deno.readTextFile(path(name)));
  const config = await read("run/config.json");
  assertEquals([config.perceptual, config.lpips], ["lpips", [path("lpips.safetensors")]]);
  const metrics = await read("run/metrics.json");
  assert(metrics.lpips > 0 && metrics.stages.latent.lpips > 0);
  const step = (await Deno.readTextFile(path("run/log.jsonl"))).split("\n").map((l) => l && JSON.parse(l))
    .find((row) => row.event === "step");
  assert(step.perceptual > 0 && Number.isFinite(step.perceptual), JSON.stringify(step));
  await run(
    ...["eval", "--tokenizer", path("run"), "--num", "2", "--metrics", "lpips,rfid"] as const,
    ...["--inception", path("inception.safetensors"), ...lpips, "--out", path("eval")],
  );
  const scores = await read("eval/metrics.json");
  assertEquals(Object.keys(scores).sort(), ["ingredients", "lpips", "mse", "n", "rfid"]);
  assert(scores.lpips > 0 && scores.rfid > 0);

  // The same images as two folders have the same LPIPS: they are taken from the picture of the worst.
  const { width, data } = await readImage(path("eval/worst.png")), side = 32;
  for (let k = 0; k < 4; k++) { // two above two, each pixel as 2 x 2
    const image = Uint8Array.from({ length: 3 * side * side }, (_, i) => {
      const x = 2 + 66 * (k % 2) + 2 * (Math.floor(i / 3) % side);
      const y = 2 + 66 * Math.floor(k / 2) + 2 * Math.floor(i / 3 / side);
      return data[3 * (y * width + x) + i % 3] as number;
    });
    await Deno.mkdir(path(k < 2 ? "a" : "b"), { recursive: true });
    await writePng(path(`${k < 2 ? "a" : "b"}/${k % 2}.png`), { width: side, height: side, data: image });
  }
  const sets = ["--real", path("a"), "--fake", path("b"), "--metrics", "lpips", ...lpips];
  await run("eval", ...sets, "--workers", "0", "--out", path("pairs"));
  const pairs = await read("pairs/metrics.json");
  assertNear(pairs.lpips, scores.lpips, 1e-5);
  assertNear(pairs.mse, scores.mse, 1e-9);
  await Deno.remove(folder, { recursive: true });
});
