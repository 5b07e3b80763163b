// Copies of training images among samples, and the cautions next to scores.

import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { readImage, writePng } from "../../src/image/image.ts";
import { cautionOfFew, cautionsOf } from "../../src/metrics/cautions.ts";
import { nearestTraining, shareOfCopies } from "../../src/metrics/copies.ts";
import type { Features } from "../../src/metrics/moments.ts";
import { SetEvaluation } from "../../src/metrics/evaluate.ts";
import { Results, Selection } from "../../src/metrics/selection.ts";
import { Vit } from "../../src/models/vit.ts";
import { normal } from "../../src/philox.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { generatedInputs, Workers } from "../../src/data/decode_pool.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { testDevice } from "../helpers/check.ts";
import { quietLog, run } from "../helpers/commands.ts";
import { units } from "../helpers/formula.ts";

Deno.test("nearestTraining() equals loops in f64, far from the origin too; exact copies count and few images are refused", async () => {
  await testDevice();
  const columns = 5, offset = (v: number) => Math.fround(v + 100);
  const set = (rows: number, seed: number): Features => ({
    data: normal(seed, 1, rows * columns).map(offset),
    rows,
    columns,
  });
  const training = set(50, 1), generated = set(30, 2);
  generated.data.set(training.data.subarray(7 * columns, 9 * columns), 3 * columns); // 3 and 4 are copies of 7 and 8
  const row = ({ data }: Features, i: number) => data.subarray(i * columns, (i + 1) * columns);
  const distance = (a: Float32Array, b: Float32Array) => Math.hypot(...a.map((v, c) => v - b[c]!));
  const nearest = await nearestTraining(training, generated);
  let copies = 0;
  for (let i = 0; i < generated.rows; i++) {
    const all = Array.from(
      { length: training.rows },
      (_, j) => distance(row(generated, i), row(training, j)),
    );
    const best = all.indexOf(Math.min(...all));
    const own = Math.min(
      ...Array.from(
        { length: training.rows },
        (_, j) => j === best ? Infinity : distance(row(training, best), row(training, j)),
      ),
    );
    assertEquals(nearest.index[i], best);
    assert(Math.abs(nearest.ratio[i]! - all[best]! / own) < 1e-6, `${nearest.ratio[i]}`);
    if (all[best]! < own) copies++;
  }
  assertEquals([...nearest.index.subarray(3, 5), ...nearest.ratio.subarray(3, 5)], [7, 8, 0, 0]);
  assert(copies > 2 && copies < generated.rows);
  assertEquals(shareOfCopies(nearest), copies / generated.rows);
  await assertRejects(() => nearestTraining(set(1, 1), generated), UsageError, "1 training image is too few");
});

Deno.test("tok eval finds copies, shows them above their originals, and says that few images are few", async () => {
  const root = await Deno.makeTempDir(), at = (name: string) => join(root, name), side = 32;
  const image = (name: string) => Uint8Array.from(units(name, 3 * side * side), (u) => 256 * u);
  const write = async (path: string, data: Uint8Array<ArrayBuffer>) =>
    await writePng(at(path), { width: side, height: side, data });
  for (const folder of ["real", "fake"]) await Deno.mkdir(at(folder));
  for (let i = 0; i < 6; i++) await write(`real/${i}.png`, image(`real.${i}`));
  for (let i = 0; i < 4; i++) await write(`fake/${i}.png`, image(i === 2 ? "real.4" : `fake.${i}`));
  const sets = ["--fake", at("fake"), "--metrics", "copies,fd-encoder", "--workers", "0", "--out", at("out")];
  const { lines } = await run("eval", "--real", at("real"), ...sets);
  const scores = JSON.parse(await Deno.readTextFile(at("out/metrics.json")));
  assertEquals(Object.keys(scores), ["fd_encoder", "copies", "n", "ingredients"]);
  assert(scores.copies >= 1 / 4 && scores.copies * 4 % 1 === 0);
  assertStringIncludes(
    lines.join("\n"),
    "4 images are few: Frechet distances of fewer than 5,000 compare only",
  );
  const { width, height, data } = await readImage(at("out/nearest.png")); // 4 above 4 of 32 pixels, doubled, gaps of 2
  assertEquals([width, height], [266, 134]);
  for (const row of [0, 1]) {
    const first = 3 * ((2 + 66 * row) * width + 2);
    assertEquals(data.slice(first, first + 3), image("real.4").slice(0, 3));
  }
  await assertRejects(() => run("eval", ...sets), UsageError, "needs the training images as --real");
  await Deno.remove(root, { recursive: true });
});

Deno.test("labels that are not balanced, JPEG against PNG and few images are cautions; balanced sets of one format have none", () => {
  const set = (name: string, labels: number[], extension = "png") => ({
    name,
    images: {
      length: labels.length,
      classes: ["a", "b"],
      label: (i: number) => labels[i]!,
      name: (i: number) => `${i}.${extension}`,
    },
  });
  const real = set("real", [0, 0, 1, 1, 1, 1]);
  assertEquals(cautionsOf(real, set("fake", [0, 0, 1, 1, 1])), []);
  assertEquals(cautionsOf(real, set("fake", [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])), []); // the shares of the real set
  const unbalanced = cautionsOf(real, set("fake", [0, 0, 0, 0, 1]));
  assertEquals(unbalanced.length, 1);
  assertStringIncludes(unbalanced[0]!, 'the labels of "fake" are not balanced: 1 to 4 images a class');
  const formats = cautionsOf(set("real", [0, 1], "JPEG"), set("fake", [0, 1]));
  assertEquals(formats.length, 1);
  assertStringIncludes(formats[0]!, '"real" holds JPEG files and "fake" does not');
  assertEquals(cautionsOf(set("real", [0, 1], "JPEG"), set("fake", [0, 1], "jpg")), []);
  assertEquals(cautionsOf({ name: "statistics.npz" }, set("fake", [0, 1])), []);
  const stats = (jpeg: boolean) => ({ name: "statistics.npz", about: { "JPEG files": jpeg } });
  assertStringIncludes(
    cautionsOf(stats(true), set("fake", [0, 1]))[0]!,
    '"statistics.npz" was made of JPEG files',
  );
  assertStringIncludes(cautionsOf(set("real", [0, 1], "jpg"), stats(false))[0]!, '"statistics.npz" was not');
  for (
    const [a, b] of [[stats(false), set("fake", [0, 1])], [stats(true), set("fake", [0, 1], "jpg")]] as const
  ) {
    assertEquals(cautionsOf(a, b), []);
  }
  assertEquals(cautionOfFew(5000, 50_000), undefined);
  assertStringIncludes(cautionOfFew(50_000, 4999) ?? "", "4999 images are few");
});

Deno.test("an encoder that the tokenizer was made from is said to be a partial judge, once", async () => {
  await testDevice();
  const encoder = await openEncoder(undefined), own = await encoder.load(new Vit(encoder.config));
  using workers = new Workers(0);
  const set = (seed: number) => ({
    name: `${seed}`,
    images: generatedInputs(workers, new Shapes(4, seed), 32),
  });
  for (const [ownEncoder, times, count] of [[own, 2, 1], ["0123456789abcdef", 1, 0]] as const) {
    const { log, lines } = quietLog(), never = () => Promise.reject(new Error("not needed"));
    const options = { batchSize: 4, seed: 0, inceptionInput: "adm", ownEncoder } as const;
    const networks = { ...options, inception: never, lpips: never, encoder: () => Promise.resolve(encoder) };
    const selection = new Selection("sets", { metrics: ["fd-encoder"] }), a = set(1), b = set(2);
    using evaluation = await SetEvaluation.open(selection, networks, a, b, log);
    for (let k = 0; k < times; k++) {
      await evaluation.score(a, b, { images: a.images, side: 32 }, new Results());
    }
    assertEquals(lines.filter((line) => line.includes("a partial judge")).length, count);
  }
});
