// What tok eval omits, refuses and keeps: before any computation where possible, and with the finished scores written.

import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { ShapeError, UsageError } from "../../src/errors.ts";
import { writePng } from "../../src/image/image.ts";
import { writeNpz } from "../../src/formats/npz.ts";
import { obstacle as obstacleOf, type SetFacts } from "../../src/metrics/image_set.ts";
import { Moments } from "../../src/metrics/moments.ts";
import { Results, Selection } from "../../src/metrics/selection.ts";
import { METRICS } from "../../src/metrics/table.ts";
import { saveTokenizer } from "../../src/zoo/runs.ts";
import { alignment } from "../helpers/alignment.ts";
import { inFolder, run } from "../helpers/commands.ts";
import { evalScores } from "../helpers/eval.ts";
import { units } from "../helpers/formula.ts";
import { fixturePath } from "../helpers/published.ts";

async function writeImages(folder: string, sizes: readonly (readonly [number, number])[]) {
  await Deno.mkdir(folder, { recursive: true });
  for (const [i, [width, height]] of sizes.entries()) {
    const data = Uint8Array.from(units(`${folder.slice(-1)}.${i}`, 3 * width * height), (u) => 256 * u);
    await writePng(join(folder, `${i}.png`), { width, height, data });
  }
}

Deno.test("sampling options are refused where nothing is sampled", async () => {
  const cases: [string, string][] = [
    [
      "--tokenizer x --cfg 2",
      "Cannot use --cfg: it is for the samples of a model, and this scores a tokenizer",
    ],
    [
      "--real a --fake b --guide x",
      "Cannot use --guide: it is for the samples of a model, and this scores two sets",
    ],
    ["--tokenizer x --ema 0.1", "Cannot use --ema: it is for the samples of a model"],
    ["--fake b --steps 9", "score a --model, or leave --steps out"],
  ];
  for (const [line, message] of cases) {
    await assertRejects(() => run("eval", ...line.split(" ")), UsageError, message);
  }
});

Deno.test("eval opens a model with the options of sample: --ema and --latents", async () => {
  await inFolder(async (folder) => {
    const model = [
      "--model",
      fixturePath("lightningdit_tiny.pt"),
      "--tokenizer",
      fixturePath("vavae_tiny.pt"),
    ];
    const score = (...args: string[]) =>
      run("eval", ...model, "--workers", "0", "--out", join(folder, "out"), ...args);
    await assertRejects(() => score("--ema", "0.1"), UsageError, "there are no snapshots");
    await assertRejects(() => score("--latents", folder), UsageError, `Cannot use the latents "${folder}"`);
  });
});

const readScores = async (out: string) => JSON.parse(await Deno.readTextFile(join(out, "metrics.json")));

Deno.test("default scores omit what the images do not allow; requested by name, it is an error before any score", async () => {
  const root = await Deno.makeTempDir(), data = join(root, "data"), tokenizer = join(root, "run");
  await saveTokenizer(tokenizer, (await alignment()).tokenizer);
  for (const name of ["a", "b", "c"]) await writeImages(join(data, name), [[40, 32]]);
  const out = join(root, "out");
  const { lines, error } = await evalScores({ tokenizer, data, out });
  assertEquals(error, undefined);
  const latentKeys = ["mean_min", "mean_max", "std_min", "std_max"].map((name) => `latent_${name}`);
  assertEquals(
    Object.keys(await readScores(out)),
    ["psnr", "ssim", "mse", "n", ...latentKeys, "effective_rank", "ingredients"],
  );
  const said = (word: string) => lines.filter((line) => line.includes(word));
  assertEquals(said("probe"), [
    "left out: probe, knn (classes without an image of even index, to learn from, or of odd index, to test on: " +
    '"a", "b", "c")',
  ]);
  assertEquals(said("--inception").length, 1);
  assertEquals(said("40 x 32"), [
    `"${data}": 3 images of 40 x 32; each has its shorter side resized to 32 and the central 32 x 32 kept`,
  ]);
  for (const metric of ["probe", "knn"]) {
    const refused = await evalScores({ tokenizer, data, metrics: ["psnr", metric], out: join(root, metric) });
    assert(refused.error instanceof UsageError, `${refused.error}`);
    assertStringIncludes(
      refused.error.message,
      `Cannot score "${metric}": classes without an image of even index`,
    );
    await assertRejects(() => readScores(join(root, metric)), Deno.errors.NotFound);
  }
  // With two images a class, nearest neighbours have one to learn from; the probe wants two.
  for (const name of ["a", "b", "c"]) await writeImages(join(data, name), [[32, 32], [32, 32]]);
  const more = await evalScores({ tokenizer, data, out: join(root, "more") });
  assertEquals(more.error, undefined);
  assert((await readScores(join(root, "more"))).knn >= 0);
  assertEquals(more.lines.filter((line) => line.includes("probe")), [
    "left out: probe (3 images to learn from are fewer than two for each of 3 classes)",
  ]);
  await Deno.remove(root, { recursive: true });
});

Deno.test("each image is preprocessed as the encoder requires: the distance of two sets is symmetric", async () => {
  const root = await Deno.makeTempDir(), at = (name: string) => join(root, name);
  await writeImages(at("a"), [[64, 64], [64, 64], [50, 33], [64, 64]]);
  await writeImages(at("b"), [[32, 32], [32, 32], [32, 32], [32, 32]]);
  const scored = async (real: string, fake: string, more: Record<string, unknown> = {}) => {
    const out = at(`${real}${fake}`), metrics = ["fd-encoder"];
    const { lines, error } = await evalScores({ real: at(real), fake: at(fake), metrics, out, ...more });
    assertEquals(error, undefined);
    const { fd_encoder, n } = await readScores(out);
    assertEquals(n, 4);
    return { lines, distance: fd_encoder as number };
  };
  const one = await scored("a", "b"), other = await scored("b", "a", { batchSize: 3 });
  assert(one.distance > 0 && Math.abs(one.distance / other.distance - 1) < 1e-5);
  const kept = "its shorter side resized to 32 and the central 32 x 32 kept";
  assertEquals(one.lines.filter((line) => line.includes("32 x 32 kept")), [
    `"${at("a")}": 3 images of 64 x 64, 1 of 50 x 33; for the encoder, each has ${kept}`,
    `"${at("b")}": 4 images of 32 x 32; for the encoder, each has ${kept}`,
  ]);
  assertEquals(one.lines.filter((line) => line.includes("not all of one size")).length, 1);
  const cropped = await scored("a", "b", { imageSize: 16 });
  assert(cropped.lines.some((line) => line.includes("the central 16 x 16 kept, then its shorter side")));
  assertEquals(cropped.lines.filter((line) => line.includes("not all of one size")), []);
  assert(Math.abs(cropped.distance / one.distance - 1) > 1e-3);
  await Deno.remove(root, { recursive: true });
});

Deno.test("a score that fails late keeps the others, and is still an error", async () => {
  const results = new Results();
  await results.add(() => Promise.resolve({ fid: 3 }));
  await results.add(() => Promise.reject(new UsageError("Cannot take a kernel distance")));
  await results.add(() => Promise.resolve({ is: 2 }));
  const pair = results.guarded({
    add: () => Promise.reject(new ShapeError("later")),
    scores: () => Promise.resolve({ lpips: 1 }),
  });
  const images = new Uint8Array(3);
  await pair.add(images, images);
  assertEquals(await pair.scores(), {});
  assertEquals(results.scores, { fid: 3, is: 2 });
  await assertRejects(async () => results.rethrow(), UsageError, "kernel distance");
  await assertRejects(() => results.add(() => Promise.reject(new Error("device lost"))), Error, "lost");
});

Deno.test("a score that is not a number is an error, and not among the others", async () => {
  const results = new Results();
  await results.add(() => ({ fid: 3, kid: NaN, psnr: Infinity }));
  assertEquals(results.scores, { fid: 3, psnr: Infinity });
  await assertRejects(async () => results.rethrow(), UsageError, 'Cannot compute "kid": it is not a number');
});

Deno.test("an evaluation in the folder of another one leaves none of its files, and a refused one leaves all", async () => {
  await inFolder(async (root) => {
    const at = (...path: string[]) => join(root, ...path), size = [16, 16] as const;
    for (const name of ["a", "b"]) await writeImages(at(name), [size, size, size]);
    for (const [name, rows] of [["real.npz", 24], ["fake.npz", 22]] as const) {
      const data = Float32Array.from(units(name, rows * 96));
      await writeNpz(at(name), [{ name: "features_patches", shape: [rows, 96], data }]);
    }
    const files = () => [...Deno.readDirSync(at("out"))].map(({ name }) => name).sort();
    const score = (options: Record<string, unknown>) => evalScores({ out: at("out"), ...options });
    const pairs = { real: at("a"), fake: at("b"), metrics: ["psnr"] };
    const sets = { real: at("real.npz"), fake: at("fake.npz"), metrics: ["fd-encoder"] };
    await Deno.mkdir(at("out"));
    await Deno.writeTextFile(at("out", "pca.png"), "of the user"); // no evaluation's
    assertEquals((await score(pairs)).error, undefined);
    const own = ["config.json", "metrics.json", "report.html"], images = ["images.csv", "worst.png"];
    assertEquals(files(), [...own, ...images, "pca.png"].toSorted());
    assertStringIncludes((await score({ ...sets, fake: at("none.npz") })).error?.message ?? "", "none.npz");
    assertEquals(files(), [...own, ...images, "pca.png"].toSorted());
    const latents = { tokenizer: fixturePath("vavae_tiny.pt"), data: at("a"), metrics: ["rfid"] };
    assertStringIncludes(
      (await score({ ...latents, imageSize: 16, inception: at("none.pth") })).error?.message ?? "",
      "Cannot",
    );
    assertEquals(files(), [...own, ...images, "pca.png"].toSorted());
    assertEquals((await score({ ...sets, intervals: true })).error, undefined);
    assertEquals(files(), [...own, "intervals.json"].toSorted());
    // One that fails half-way has no figures of the one before.
    const { gaussian } = Moments.prototype;
    Moments.prototype.gaussian = () => Promise.reject(new UsageError("Cannot go on"));
    try {
      assertEquals((await score(sets)).error?.message, "Cannot go on");
    } finally {
      Moments.prototype.gaussian = gaussian;
    }
    assertEquals(files().filter((name) => name !== "report.html"), ["config.json"]);
  });
});

Deno.test("scores that sets do not allow are excluded before any is computed", () => {
  const obstacle = (name: string, real: SetFacts, fake: SetFacts) =>
    obstacleOf(METRICS.find((metric) => metric.name === name)!, real, fake);
  const statistics = (n: number) => ({ mean: new Float64Array(n), covariance: new Float64Array(n * n) });
  const many: SetFacts = { name: "many", images: { length: 10 } };
  const few = (length: number): SetFacts => ({ name: "few", images: { length } });
  assertEquals(obstacle("fid", many, few(1)), '"few" holds 1 image, it takes 2');
  assertEquals(obstacle("kid", few(1), many), '"few" holds 1 image, it takes 2');
  assertEquals(obstacle("recall", many, few(3)), '"few" holds 3 images, it takes 4');
  assertEquals(obstacle("precision", many, few(4)), undefined);
  assertEquals(obstacle("is", few(1), few(1)), undefined);
  const other: SetFacts = { name: "other", pooled: statistics(3) };
  assertEquals(obstacle("fid", other, other), undefined);
  assertEquals(
    obstacle("fid", other, many),
    '"other" has 3 features, "many" 2048: the statistics are of another network',
  );
  assertEquals(obstacle("kid", other, many), '"other" holds neither images nor features');
  assertEquals(
    obstacle("fid-infinity", { ...other, pooled: statistics(2048) }, { ...many, images: { length: 16 } }),
    undefined,
  );
  assertEquals(obstacle("fid-infinity", many, many), '"many" holds 10 images, it takes 16');
  assertEquals(obstacle("sfid", other, many), '"other" holds neither images nor spatial statistics');
});

Deno.test("metrics are omitted with one note per reason; if none is left, the reasons are the error", () => {
  const notes: string[] = [], nothing = { metrics: undefined, inception: undefined, lpips: undefined };
  const selection = new Selection("sets", nothing);
  selection.settle((line) => notes.push(line));
  assertEquals(notes.length, 1);
  assertStringIncludes(
    notes[0]!,
    "left out: fid, sfid, is, kid, precision, recall (it needs --inception FILE",
  );
  assertEquals([selection.from("encoder").length, selection.from("inception", "reconstructions")], [2, []]);
  const none = new Selection("sets", nothing);
  none.exclude(({ from }) => from === "encoder" && '"a.npz" holds no images');
  assertThrows(
    () => none.settle(() => notes.push("")),
    UsageError,
    'fd-encoder, copies ("a.npz" holds no images)',
  );
  assertThrows(() => new Selection("sets", { ...nothing, metrics: ["fid"] }), UsageError, "--inception FILE");
  assertEquals(notes.length, 1);
});

Deno.test("an option without effect and a single array are refused with a remedy", async () => {
  const refused = async (options: Record<string, unknown>, ...words: string[]) => {
    const { error, lines } = await evalScores(options);
    assert(error instanceof UsageError, `${error}`);
    for (const word of words) assertStringIncludes(error.message, word);
    return lines;
  };
  await refused({ tokenizer: "run", real: "photos" }, "Cannot score a tokenizer with --real", "--data");
  await refused({ fake: "a", data: "photos" }, "Cannot use --data here", "--real");
  await refused({ model: "run", fake: "photos" }, "Cannot score --fake and --model at once", "leave one out");
  await refused({ fake: "images.npy" }, 'Cannot score "images.npy"', "np.savez");
  await refused({ fake: "nowhere.NPZ" }, 'Cannot read "nowhere.NPZ": it does not exist');
});

Deno.test("an npz with unusable images, labels or statistics is refused with the reason", async () => {
  const root = await Deno.makeTempDir(), path = join(root, "set.npz");
  const images = { name: "arr_0", shape: [3, 4, 6, 3], data: new Uint8Array(216) };
  const labels = (data: Float64Array | BigInt64Array, shape = [data.length]) => ({
    name: "arr_1",
    shape,
    data,
  });
  const mu = (data: number[]) => ({ name: "mu", shape: [data.length], data: Float64Array.from(data) });
  const sigma = (data: number[]) => ({ name: "sigma", shape: [2, 2], data: Float64Array.from(data) });
  const cases: [Parameters<typeof writeNpz>[1], string][] = [
    [[images, labels(Float64Array.of(0, NaN, 1))], '"arr_1" gives image 1 the label NaN; labels are whole'],
    [[images, labels(Float64Array.of(0, 1, 0.5))], '"arr_1" gives image 2 the label 0.5'],
    [[images, labels(BigInt64Array.of(-1n, 0n, 1n))], '"arr_1" gives image 0 the label -1'],
    [
      [images, labels(Float64Array.of(0, 1))],
      '"arr_1" is float64 [2], not one label for each of the 3 images',
    ],
    [[images, labels(new Float64Array(6), [3, 2])], '"arr_1" is float64 [3, 2], not one label'],
    [
      [{ ...images, data: new Float32Array(216) }],
      '"arr_0" is float32 [3, 4, 6, 3], not uint8 [N, H, W, 3]; store the pixels as bytes',
    ],
    [
      [{ ...images, shape: [3, 3, 4, 6] }],
      "[3, 3, 4, 6], not uint8 [N, H, W, 3]; move the channels to the end",
    ],
    [[{ ...images, shape: [0, 4, 4, 3], data: new Uint8Array(0) }], "there is no image in it"],
    [
      [{ name: "pixels", shape: [72, 3], data: new Uint8Array(216) }],
      'but "pixels" uint8 [72, 3]; save images as',
    ],
    [[mu([0, Infinity]), sigma([1, 0, 0, 1])], '"mu" holds Infinity at [1]; compute the statistics again'],
    [[mu([0, 1]), sigma([1, 0, NaN, 1])], '"sigma" holds NaN at [1, 0]'],
    [[mu([0, 1])], 'it has "mu" but not "sigma"'],
  ];
  for (const [arrays, message] of cases) {
    await writeNpz(path, arrays);
    const { error } = await evalScores({ fake: path, metrics: ["fd-encoder"], out: join(root, "out") });
    assert(error instanceof UsageError, `${error}`);
    assertStringIncludes(error.message, `Cannot score "${path}": `);
    assertStringIncludes(error.message, message);
  }
  await assertRejects(() => readScores(join(root, "out")), Deno.errors.NotFound);
  await Deno.remove(root, { recursive: true });
});
