// Scores of pairs: similarity of images against scikit-image and PyTorch, and two folders with the same names.

import {
  assert,
  assertEquals,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { dirname, join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { readImage, writePng } from "../../src/image/image.ts";
import { ImageScores } from "../../src/metrics/image_scores.ts";
import { OpenScores } from "../../src/metrics/pairs.ts";
import { pairsByName } from "../../src/metrics/paired_sets.ts";
import { msSsim, psnr, ssim } from "../../src/metrics/psnr_ssim.ts";
import { openImages } from "../../src/data/open_images.ts";
import { scoreReconstruction, withNoise } from "../../src/metrics/tokenizer.ts";
import { ChannelStatistics } from "../../src/formats/channel_statistics.ts";
import { openTokenizer, saveTokenizer } from "../../src/zoo/runs.ts";
import { alignment } from "../helpers/alignment.ts";
import { run } from "../helpers/commands.ts";
import { units } from "../helpers/formula.ts";

import fixture from "../fixtures/similarity.json" with { type: "json" };

/** The pictures of make_similarity.py. */
function pictures(width: number, height: number, seed: number): [Uint8Array, Uint8Array] {
  const a = new Uint8Array(3 * width * height), b = new Uint8Array(a.length);
  for (let i = 0; i < a.length; i++) {
    const c = i % 3, x = Math.floor(i / 3) % width, y = Math.floor(i / 3 / width);
    a[i] = Math.floor(127.5 + 100 * Math.sin((seed + 1) * (x + 2 * c) / 9) * Math.cos(y / (7 + c)));
    b[i] = Math.floor((a[i] as number) * 0.8 + 20 + 15 * ((x * 7 + y * 13 + c * 5) % 11) / 10);
  }
  return [a, b];
}

for (const { width, height, seed, ...expected } of fixture.cases) {
  Deno.test(`PSNR, SSIM and MS-SSIM of ${width} x ${height} pixels equal scikit-image's and PyTorch's to 1e-9`, () => {
    const [a, b] = pictures(width, height, seed), sum = (all: Uint8Array) => all.reduce((s, v) => s + v, 0);
    assertEquals(sum(a) + sum(b), expected.sum);
    const near = (got: number, want: number) =>
      assert(Math.abs(got / want - 1) < 1e-9, `${got}, not ${want}`);
    near(psnr(a, b), expected.psnr);
    near(ssim(a, b, width, height), expected.ssim);
    if (expected.ms_ssim !== undefined) near(msSsim(a, b, width, height), expected.ms_ssim);
    else assertThrows(() => msSsim(a, b, width, height), Error, `${width} x ${height}`);
  });
}

const SIDE = 16;

/** Writes an image for each name: noise by the number of the name, with more of another noise the larger `change` is. */
async function writeImages(folder: string, names: readonly string[], change = 0, side = SIDE) {
  const made = new Map<string, Uint8Array<ArrayBuffer>>();
  for (const [i, name] of names.entries()) {
    const other = units(`other.${i}`, 3 * side * side), share = change * (i + 1) / names.length;
    const data = Uint8Array.from(
      units(`image.${i}`, 3 * side * side),
      (u, k) => 256 * ((1 - share) * u + share * (other[k] as number)),
    );
    await Deno.mkdir(dirname(join(folder, name)), { recursive: true });
    await writePng(join(folder, name), { width: side, height: side, data });
    made.set(name, data);
  }
  return made;
}

Deno.test("tok eval --real A --fake B scores pairs by name: means, a row an image, the worst as a picture", async () => {
  const root = await Deno.makeTempDir(), at = (name: string) => join(root, name);
  const names = Array.from({ length: 12 }, (_, i) => `${i % 2 ? "odd" : "even"}/${i}, "${i}".png`);
  const real = await writeImages(at("a"), names), fake = await writeImages(at("b"), names, 0.9);
  const scored = async (out: string, ...more: string[]) => {
    const sets = ["--real", at("a"), "--fake", at("b"), "--workers", "0", "--out", at(out)];
    const { lines } = await run("eval", ...sets, ...more);
    const read = (name: string) => Deno.readTextFile(join(at(out), name));
    return { lines, scores: JSON.parse(await read("metrics.json")), csv: await read("images.csv") };
  };
  const one = await scored("one", "--metrics", "psnr,ssim", "--batch-size", "5");
  assertEquals(Object.keys(one.scores), ["psnr", "ssim", "mse", "n", "ingredients"]);
  assert(!one.lines.some((line) => line.includes("few"))); // a caution for distances of sets
  assert(one.lines.some((line) => line.endsWith(`the worst by ssim: ${at("one/worst.png")}`)));
  const sorted = names.toSorted(), rows = one.csv.trimEnd().split("\n");
  assertEquals(rows.shift(), "name,psnr,ssim,mse");
  let mean = 0;
  const similarities = sorted.map((name) => ssim(real.get(name)!, fake.get(name)!, SIDE, SIDE));
  for (const [k, name] of sorted.entries()) {
    const value = psnr(real.get(name)!, fake.get(name)!);
    assertStringIncludes(rows[k]!, `"${name.replaceAll('"', '""')}",${value},${similarities[k]},`);
    mean += value / names.length;
  }
  assert(Math.abs(one.scores.psnr / mean - 1) < 1e-12 && one.scores.n === 12);

  const picture = await readImage(at("one/worst.png")); // 10 columns of 66 pixels after a gap of 2, at 4 times the size
  assertEquals([picture.width, picture.height], [662, 134]);
  const order = sorted.toSorted((p, q) =>
    similarities[sorted.indexOf(p)]! - similarities[sorted.indexOf(q)]!
  );
  for (const [column, name] of [[0, order[0]!], [9, order[9]!]] as const) {
    for (const [row, set] of [real, fake].entries()) {
      const first = 3 * ((2 + 66 * row) * picture.width + 2 + 66 * column);
      assertEquals(picture.data.slice(first, first + 3), set.get(name)!.slice(0, 3));
    }
  }
  await Deno.remove(root, { recursive: true });
});

Deno.test("pairs are found under other extensions and as reconstruct names them; a wrong pairing is one line", () => {
  const set = (name: string, ...names: string[]) => ({
    name,
    images: { length: names.length, name: (i: number) => names[i] as string },
  });
  const partners = (a: string[], b: string[]) => [...pairsByName(set("A", ...a), set("B", ...b))];
  assertEquals(partners(["a.png", "b.png"], ["b.png", "a.png"]), [1, 0]);
  assertEquals(partners(["a.JPEG", "c/b.webp"], ["a.png", "c/b.png"]), [0, 1]);
  assertEquals(partners(["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]), [0, 1]);
  for (
    const [a, b, message] of [
      [["a.png"], ["b.png"], '"B" has no "a.png"'],
      [["a.png"], ["a.png", "b.png"], '"A" has no "b.png" (1 images against 2)'],
      [["a.jpg", "a.png"], ["a.webp", "b.png"], '"a.jpg" and "a.png" both pair with "a.webp"'],
      [["a.jpg"], ["a.bmp", "a.webp"], 'several images of "B" are called "a"'],
    ] as const
  ) {
    const { message: said } = assertThrows(() => partners([...a], [...b]), UsageError);
    assertEquals(said, `Cannot pair "A" with "B": ${message}; give two sets with the same names`);
  }
});

Deno.test("sizes that differ, and images too small for a score, are refused before any score", async () => {
  const root = await Deno.makeTempDir(), at = (name: string) => join(root, name);
  await writeImages(at("a"), ["0.png", "1.png"]);
  await writeImages(at("b"), ["0.png", "1.png"], 0.5, 24);
  const score = (...more: string[]) =>
    run("eval", "--real", at("a"), "--fake", at("b"), "--workers", "0", "--out", at("out"), ...more);
  const { message } = await assertRejects(() => score("--metrics", "psnr"), UsageError);
  assertEquals(
    message,
    `Cannot compare "${at("a")}" with "${at("b")}": "0.png" of "${at("b")}" is 24 x 24, not 16 x 16; ` +
      "--image-size N resizes and crops all to squares first",
  );
  await assertRejects(
    () => score("--metrics", "ms-ssim", "--image-size", "160"),
    UsageError,
    'Cannot score "ms-ssim": images of 160 x 160 are too small, it takes 161 x 161',
  );
  await assertRejects(() => Deno.stat(at("out/metrics.json")), Deno.errors.NotFound);
  await score("--metrics", "psnr", "--image-size", "12");
  assertEquals(JSON.parse(await Deno.readTextFile(at("out/metrics.json"))).n, 2);
  await Deno.remove(root, { recursive: true });
});

Deno.test("pairs of rectangular images have PSNR, SSIM and MS-SSIM; LPIPS and rFID want squares", async () => {
  const root = await Deno.makeTempDir(), at = (name: string) => join(root, name);
  const { width, height, seed, ...expected } = fixture.cases.find((c) => c.width !== c.height && c.ms_ssim)!;
  const pair = pictures(width, height, seed);
  for (const [k, folder] of ["a", "b"].entries()) {
    await Deno.mkdir(at(folder));
    await writePng(join(at(folder), "0.png"), { width, height, data: Uint8Array.from(pair[k]!) });
  }
  const score = (...more: string[]) =>
    run("eval", "--real", at("a"), "--fake", at("b"), "--workers", "0", "--out", at("out"), ...more);
  const { result } = await score("--metrics", "psnr,ssim,ms-ssim");
  for (const key of ["psnr", "ssim", "ms_ssim"] as const) {
    assert(Math.abs(result[key] as number - expected[key]!) < 1e-9, `${key}: ${result[key]}`);
  }
  const worst = await readImage(at("out/worst.png"));
  assertEquals([worst.width, worst.height], [2 + width + 2, 2 + 2 * (height + 2)]);
  const first = 3 * ((2 + height + 2) * worst.width + 2);
  assertEquals(worst.data.slice(first, first + 3), pair[1].slice(0, 3));
  await assertRejects(
    () => score("--metrics", "lpips", "--lpips", "x,y"),
    UsageError,
    `Cannot score "lpips": images of ${width} x ${height} are no squares; --image-size N resizes and crops all`,
  );
  await Deno.remove(root, { recursive: true });
});

Deno.test("ImageScores keeps the worst of all batches and nothing without scores of images", async () => {
  const table = new ImageScores(1), pixel = (v: number) => Uint8Array.of(v, v, v);
  const batch = (first: number) => ({
    first,
    count: 1,
    originals: pixel(first),
    reconstructions: pixel(first),
  });
  const said: string[] = [], log = { line: (text = "") => void said.push(text) };
  await table.write("nowhere", log);
  assertEquals([said, table.by], [[], undefined]);
  for (const [i, psnr] of [5, 1, Infinity, 3].entries()) table.add(batch(i), { psnr: [psnr] }, String);
  assertEquals(table.csv(), "name,psnr\n0,5\n1,1\n2,Infinity\n3,3\n");
  const folder = await Deno.makeTempDir();
  await table.write(folder, log);
  assertStringIncludes(said[0] ?? "", "the worst by psnr");
  const { width, data } = await readImage(join(folder, "worst.png"));
  const colors = [1, 3, 0, 2].map((_, k) => data[3 * (2 * width + 2 + 66 * k)]);
  assertEquals(colors, [1, 3, 0, 2]);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("--latent-noise decodes latents with Gaussian noise in units of their standard deviation, whatever the batch", async () => {
  const root = await Deno.makeTempDir(), at = (name: string) => join(root, name);
  const { tokenizer } = await alignment(),
    std = Array.from({ length: tokenizer.channels }, (_, c) => 2 ** (c % 3));
  await tokenizer.setStatistics(new Float32Array(std.length), std);
  await saveTokenizer(at("run"), tokenizer);
  await writeImages(at("data"), ["0.png", "1.png", "2.png"], 0, 32);
  const score = (...more: string[]) =>
    run(
      "eval",
      ...["--tokenizer", at("run"), "--data", at("data"), "--workers", "0", "--out", at("out")],
      ...more,
    );
  await score("--latent-noise", "0.4", "--metrics", "psnr", "--batch-size", "2");
  const { psnr, ...others } = JSON.parse(await Deno.readTextFile(at("out/metrics.json")));
  assertEquals(Object.keys(others), ["mse", "n", "psnr_sigma_0.4", "mse_sigma_0.4", "ingredients"]);
  const images = await openImages(at("data")), options = { size: 32, batchSize: 3 };
  const noisy = await scoreReconstruction(await openTokenizer(at("run")), images, {
    ...options,
    noise: { sigma: 0.4, std, seed: 0 },
  });
  assertEquals([noisy.psnr, noisy.mse], [others["psnr_sigma_0.4"], others["mse_sigma_0.4"]]);
  assert(noisy.psnr !== psnr);
  const csv = await Deno.readTextFile(at("out/images.csv"));
  assertEquals(csv.split("\n").map((row) => row.split(",")[0]), ["name", "0.png", "1.png", "2.png", ""]);

  // The noise that is added has the standard deviations that were asked for.
  const each = 64 * std.length, zero = new Float32Array(50 * each);
  const noise = withNoise(zero, 7, each, { sigma: 0.2, std, seed: 3 }),
    measured = new ChannelStatistics(std.length);
  measured.add(noise, 1);
  measured.std().forEach((s, c) => assert(Math.abs(s / (0.2 * std[c]!) - 1) < 0.05, `${s}`));
  assertNotEquals(withNoise(zero, 7, each, { sigma: 0.2, std, seed: 4 }), noise);
  assertEquals(
    withNoise(zero.subarray(0, each), 9, each, { sigma: 0.2, std, seed: 3 }),
    noise.subarray(2 * each, 3 * each),
  );

  await assertRejects(
    () => score("--latent-noise", "0.2", "--metrics", "effective-rank"),
    UsageError,
    "Cannot use --latent-noise: no score of reconstructions is selected",
  );
  await assertRejects(
    () => run("eval", "--fake", at("data"), "--latent-noise", "0.2"),
    UsageError,
    "Cannot use --latent-noise: it is for the latents of a tokenizer, and this scores two sets of images",
  );
  await Deno.remove(root, { recursive: true });
});

Deno.test("scores that are open are destroyed if the next one cannot be opened", async () => {
  const events: string[] = [];
  const metric = (name: string) => ({
    open: () => ({ add() {}, scores: () => ({}), destroy: () => void events.push(name) }),
  });
  const broken = { open: () => Promise.reject(new UsageError("no weights")) };
  await assertRejects(
    () => OpenScores.open([metric("a"), metric("b"), broken], {}),
    UsageError,
    "no weights",
  );
  assertEquals(events, ["b", "a"]);
});
