// tok eval --compare: finished evaluations side by side, and what it refuses.

import { assert, assertAlmostEquals, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { makeFolder, readJson, writeJson } from "../../src/formats/files.ts";
import { readImageScores } from "../../src/metrics/image_scores.ts";
import type { Ingredients, SamplingIngredients } from "../../src/metrics/ingredients.ts";
import { INTERVALS, type StoredIntervals } from "../../src/metrics/intervals.ts";
import { betterOf, intervalKindOf, isFigureOf, METRIC_NAMES } from "../../src/metrics/table.ts";
import { normal } from "../../src/philox.ts";
import { inFolder, run } from "../helpers/commands.ts";

const sampling: SamplingIngredients = {
  sampler: "euler",
  steps: 20,
  nfe: 39,
  guidance: "cfg 4",
  labels: "equal",
  ema: "the model's own",
  seed: 0,
  images: [0, 49],
  options: "",
};

/** Ingredients of a figure. */
const made = (more: Partial<Ingredients> = {}): Ingredients => ({
  ...{ protocol: "pytorch-fid", from: "inception", space: "pooled", precision: "f32" },
  network: { name: "inception.pth", fingerprint: "0123" },
  input: "each has its own size",
  real: { name: "photos", fingerprint: "aa", count: 100 },
  fake: { name: "samples", count: 40 },
  ...{ seed: 0, tok: "0.5.0", adapter: "a test" },
  ...more,
});

/** Scores of 40 images: what all runs have in common, noise of each run, and an offset. */
const scoresOf = (stream: number, offset: number) =>
  Array.from(normal(5, 0, 40), (v, i) => 25 + v + 0.1 * (normal(5, stream, 40)[i] as number) + offset);

const mean = (values: readonly number[]) => values.reduce((sum, v) => sum + v, 0) / values.length;

const split = { train: 100, test: 100, by: "index" };
const probe = {
  ...{ optimizer: "L-BFGS", objective: "cross-entropy", penalty: 1e-4, features: "standardized" },
  ...{ iterations: 60, converged: true },
};

interface Made {
  psnr?: number[];
  /** Accuracy of a linear probe. */
  probe?: number;
  fid?: number;
  groups?: number[];
  ingredients?: Partial<Ingredients>;
  name?: (i: number) => string;
}

/** Content of intervals.json. */
const intervalsOf = (fid: number, groups: number[]): StoredIntervals => ({
  method: "a test",
  images: { fid: 40 },
  value: { fid },
  interval: { fid: [fid - 1, fid + 1] },
  without_group: { fid: groups },
  right: [],
});

/** A folder as tok eval leaves it. */
function evaluation(
  folder: string,
  { psnr, probe: accuracy, fid, groups, ingredients, name = (i) => `${i}.png` }: Made,
): string {
  makeFolder(folder);
  const figures = {
    ...psnr && { psnr: mean(psnr) },
    ...fid !== undefined && { fid },
    ...accuracy !== undefined && { probe: accuracy },
  };
  const pairs = {
    from: "reconstructions",
    space: undefined,
    network: undefined,
    input: "RGB bytes",
  } as const;
  writeJson(join(folder, "metrics.json"), {
    ...{ ...figures, n: 40 },
    ingredients: {
      ...psnr && { psnr: made({ ...pairs, ...ingredients }) },
      ...fid !== undefined && { fid: made(ingredients) },
      ...accuracy !== undefined && { probe: made(ingredients) },
    },
  });
  if (psnr) {
    const rows = psnr.map((v, i) => `"${name(i)}",${v}`);
    Deno.writeTextFileSync(join(folder, "images.csv"), ["name,psnr", ...rows, ""].join("\n"));
  }
  if (groups && fid !== undefined) {
    writeJson(join(folder, INTERVALS), intervalsOf(fid, groups));
  }
  return folder;
}

const compared = async (...args: string[]) => {
  const { lines, result } = await run("eval", "--compare", ...args);
  return { lines, result: result as unknown as Compared };
};
interface Compared {
  runs: { name: string }[];
  facts: Record<string, (string | null)[]>;
  figures: Record<string, {
    better: string;
    values: (number | null)[];
    intervals: ([number, number] | null)[];
    best: number;
    differences: ({ value: number; interval: [number, number] | null } | null)[];
    inside: (boolean | null)[];
  }>;
  notes: string[];
}

Deno.test("runs are columns, the best is marked, and differences on the same images are paired", async () => {
  await inFolder(async (root) => {
    const at = (name: string) => join(root, name);
    const b = scoresOf(2, 0.2), groups = Array.from(normal(1, 1, 10), (v) => 3 + 0.1 * v);
    const shift = (by: number) => groups.map((v, i) => v + by + 0.01 * (i % 2));
    const a = evaluation(at("a"), { psnr: scoresOf(1, 0), fid: 3, groups, ingredients: { sampling } });
    evaluation(at("b"), {
      ...{ psnr: b, fid: 3.5, groups: shift(0.5) },
      ingredients: { sampling: { ...sampling, sampler: "heun", nfe: 78 } },
    });
    // The same images in another order.
    evaluation(at("c"), { psnr: b.toReversed().map((v) => v - 0.001), name: (i) => `${39 - i}.png` });
    const out = at("out"), json = join(at("b"), "metrics.json");
    const { lines, result } = await compared(a, json, at("c"), "--out", out);
    assertEquals(result.runs.map(({ name }) => name), ["a", "b", "c"]);
    assertEquals(result.facts.sampler, ["euler", "heun", null]);
    assertEquals(result.facts.NFE, ["39", "78", null]);
    const { psnr, fid } = result.figures;
    assertEquals([psnr!.better, psnr!.best, fid!.better, fid!.best], ["higher", 1, "lower", 0]);
    assertEquals([psnr!.inside, fid!.inside], [[false, null, false], [null, false, null]]);
    // All images: standard error 1 / sqrt(40) = 0.16. The difference: 0.1 sqrt(2 / 40) = 0.02.
    const width = ([low, high]: [number, number]) => high - low;
    assertAlmostEquals(width(psnr!.intervals[0]!) / (2 * 1.96 * 0.16), 1, 0.3);
    assertAlmostEquals(width(psnr!.differences[0]!.interval!) / (2 * 1.96 * 0.022), 1, 0.3);
    const [low, high] = psnr!.differences[2]!.interval!;
    assertAlmostEquals(low, -0.001, 1e-9);
    assertAlmostEquals(high, -0.001, 1e-9);
    assertAlmostEquals(width(fid!.differences[1]!.interval!), 2 * 2.262 * 0.015, 1e-4);
    assertEquals(fid!.values, [3, 3.5, null]);
    const row = (name: string) => lines.find((line) => line.startsWith(name))!;
    assert(/^psnr ↑ +2\d\.\d+ \[.*\] +2\d\.\d+ \[.*\] \* +/.test(row("psnr")), row("psnr"));
    assert(/^fid ↓ +3 \[.*\] \* +3\.5 \[.*\]$/.test(row("fid")), row("fid"));
    const { out: _, ...same } = result as Compared & { out: string };
    assertEquals(readJson(join(out, "compare.json")), JSON.parse(JSON.stringify(same)));
    const page = Deno.readTextFileSync(join(out, "compare.html"));
    for (const text of ["<b>3</b>", "heun", "Intervals", "</svg>"]) assertStringIncludes(page, text);
    assert(!/https?:|src="(?!data:)/.test(page));
    // The order of the runs is that of the columns, and changes no interval.
    const turned = await compared(at("c"), at("b"), a);
    const first = await compared(evaluation(at("0"), { fid: 3 }), a, at("b"), at("c"));
    assertEquals(first.result.figures.psnr!.intervals.slice(1), result.figures.psnr!.intervals);
    for (const key of ["psnr", "fid"]) {
      const before = result.figures[key]!, after = turned.result.figures[key]!;
      assertEquals(after.values, before.values.toReversed());
      assertEquals(after.intervals, before.intervals.toReversed());
      assertEquals(after.differences, before.differences.toReversed());
    }
    assertEquals((await compared(a, at("b"), "--metrics", "fid")).result.figures.psnr, undefined);
  });
});

Deno.test("what was not kept has no interval, and the option that keeps it is named", async () => {
  await inFolder(async (root) => {
    const at = (name: string) => join(root, name), groups = Array.from(normal(1, 1, 10), (v) => 3 + v);
    const near = groups.map((v, i) => v + 0.1 * (i % 3 - 1));
    evaluation(at("a"), { psnr: scoresOf(1, 0), fid: 3, groups });
    evaluation(at("b"), { psnr: scoresOf(2, 0), fid: 3.01, groups: near });
    evaluation(at("c"), { psnr: scoresOf(3, 0), fid: 4 });
    Deno.writeTextFileSync(join(at("c"), "images.csv"), "name,psnr\nof another,12\n");
    const { lines, result: { figures } } = await compared(at("a"), at("b"), at("c"));
    assertEquals([figures.fid!.intervals[2], figures.psnr!.intervals[2]], [null, null]);
    assertEquals(figures.fid!.inside, [null, true, null]);
    const said = (text: string) => assert(lines.some((line) => line.includes(text)), text);
    said("fid: zero is inside the 95 % interval of the difference of b from a");
    said("no interval of fid of c: evaluate with --intervals");
    said("no interval of psnr of c: images.csv has no such scores of this evaluation");
    const keys = [
      "fid",
      "is",
      "fd_infinity_encoder",
      "rfid_sigma_0.4",
      "fd_mae@224",
      "psnr",
      "class_agreement",
    ];
    assertEquals(keys.map(intervalKindOf), [...Array(5).fill("groups"), "images", "hits"]);
    assertEquals(intervalKindOf("nfe"), undefined);
  });
});

Deno.test("intervals of another evaluation are not shown, and a damaged file of them is refused in one line", async () => {
  await inFolder(async (root) => {
    const at = (name: string) => join(root, name), groups = Array.from(normal(1, 1, 10), (v) => 3 + v);
    const a = evaluation(at("a"), { fid: 3, groups }), b = evaluation(at("b"), { fid: 3.5 });
    const path = join(b, INTERVALS), stale = intervalsOf(3, groups);
    writeJson(path, stale);
    const { lines, result } = await compared(a, b);
    assert(result.figures.fid!.intervals[0] !== null && result.figures.fid!.intervals[1] === null);
    assert(lines.some((line) => line.includes("no interval of fid of b: evaluate with --intervals")));
    const { value: _, ...old } = stale;
    const short = { ...stale, without_group: { fid: groups.slice(1) } };
    const right = [{ names: ["a", "b"], hits: { probe: [1] } }];
    for (
      const damaged of [{}, [], null, old, short, { ...stale, without_group: { fid: 3 } }, {
        ...stale,
        right,
      }]
    ) {
      writeJson(path, damaged);
      const error = await assertRejects(
        () => run("eval", "--compare", a, b),
        UsageError,
        `Cannot read "${path}": it does not hold the intervals of an evaluation`,
      );
      assert(!error.message.includes("\n"));
    }
  });
});

Deno.test("figures that differ in what they were computed from are refused in one line", async () => {
  await inFolder(async (root) => {
    const at = (name: string) => join(root, name), a = evaluation(at("a"), { fid: 3 });
    const cases: [Partial<Ingredients>, string][] = [
      [
        { protocol: "adm" },
        'the protocol is "pytorch-fid" in one and "adm" in the other; evaluate both with the same --protocol',
      ],
      [{ space: "spatial" }, 'the space is "pooled" in one and "spatial" in the other'],
      [
        { network: { name: "other.pth", fingerprint: "4567" } },
        'the network is "inception.pth" (0123) in one and "other.pth" (4567) in the other',
      ],
      [
        { input: "each is stretched" },
        'the input is "each has its own size" in one and "each is stretched" in the other',
      ],
      [{ fake: { name: "samples", count: 50 } }, "the number of images is 40 in one and 50 in the other"],
      [
        { real: { name: "photos", fingerprint: "bb", count: 100 } },
        'the reference is "photos" (aa) in one and "photos" (bb)',
      ],
      [
        { real: { name: "photos", fingerprint: "aa", count: 90 } },
        "the number of real images is 100 in one and 90",
      ],
      [{ latentNoise: 0.2 }, "the noise on latents is none in one and 0.2 in the other"],
    ];
    for (const [k, [ingredients, message]] of cases.entries()) {
      const b = evaluation(at(`b${k}`), { fid: 4, ingredients });
      const error = await assertRejects(() => run("eval", "--compare", a, b), UsageError, message);
      assertStringIncludes(error.message, `Cannot compare "fid" of "a" and "b${k}": `);
      assert(!error.message.includes("\n"));
    }
    const labels = { from: "labels", space: "latents", network: undefined } as const;
    const of = (name: string, ingredients: Partial<Ingredients>) =>
      evaluation(at(name), { probe: 0.5, ingredients: { ...labels, ...ingredients } });
    const trained = of("trained", { split, probe });
    for (
      const [name, other, message] of [
        [
          "split",
          { split: { ...split, train: 50 }, probe },
          'the split is "100 training and 100 test images, index"',
        ],
        [
          "seed",
          { split: { ...split, seed: 5 }, probe },
          "in the other; evaluate both with the same --data and",
        ],
        ["penalty", { split, probe: { ...probe, penalty: 1e-3 } }, "the probe is"],
        ["optimizer", { split, probe: { ...probe, optimizer: "Nesterov" } }, "the probe is"],
        ["iterations", { split, probe: { ...probe, iterations: 70 } }, undefined],
        // Versions before 0.3.0 recorded neither, and trained by another method.
        ["old", {}, "the split is"],
        [
          "no-probe",
          { split },
          'L-BFGS" in one and not recorded in the other; evaluate both with the same version',
        ],
      ] as const
    ) {
      const b = of(name, other);
      for (const runs of [[trained, b], [b, trained]]) {
        if (!message) await run("eval", "--compare", ...runs);
        else if (runs[0] === trained) {
          await assertRejects(() => run("eval", "--compare", ...runs), UsageError, message);
        } else await assertRejects(() => run("eval", "--compare", ...runs), UsageError);
      }
    }
    // Each pair is compared: the first run does not say what its input is.
    const [x, y, z] = [undefined, "one", "another"].map((input) =>
      evaluation(at(`input ${input}`), { fid: 3, ingredients: { input } })
    );
    await assertRejects(
      () => run("eval", "--compare", x!, y!, z!),
      UsageError,
      'Cannot compare "fid" of "input one" and "input another": the input is "one" in one and "another"',
    );
    // What may differ, and what is unknown.
    const sampled = evaluation(at("sampled"), {
      fid: 4,
      ingredients: { sampling, input: undefined, seed: 3 },
    });
    assertEquals((await compared(a, sampled)).result.figures.fid!.values, [3, 4]);

    const refused = async (message: string, ...args: string[]) =>
      void await assertRejects(() => run("eval", "--compare", ...args), UsageError, message);
    await refused(`Cannot compare "${a}" alone`, a);
    const pairs = evaluation(at("pairs"), { psnr: scoresOf(1, 0) });
    await refused('Cannot compare "a" and "pairs": no two of them have a figure in common', a, pairs);
    await refused('Cannot compare "a" and "sampled": no two of them', a, sampled, "--metrics", "psnr");
    writeJson(join(at("old"), "metrics.json"), { fid: 3 });
    await refused("does not say what its figures were computed from; evaluate it again", a, at("old"));
    await refused(`Cannot read "${join(at("none"), "metrics.json")}": it does not exist`, a, at("none"));
    await refused("Cannot use --num: --compare reads finished evaluations", a, sampled, "--num", "3");
    writeJson(join(at("taken"), "config.json"), { command: "eval" });
    await refused('it holds the results of "tok eval"', a, sampled, "--out", at("taken"));
  });
});

Deno.test("every metric says which values are better", () => {
  const higher = METRIC_NAMES.filter((name) => betterOf(name.replaceAll("-", "_")) === "higher");
  const expected =
    "psnr ssim ms-ssim cknna probe knn is precision recall density coverage precision-encoder " +
    "recall-encoder density-encoder coverage-encoder";
  assertEquals(higher.toSorted(), expected.split(" ").toSorted());
  assertEquals(["psnr_sigma_0.2", "rfid_sigma_0.4", "class_agreement_independent"].map(betterOf), [
    "higher",
    "lower",
    "higher",
  ]);
  assertEquals(["latent_std_min", "effective_rank", "copies"].map(betterOf), [
    undefined,
    undefined,
    undefined,
  ]);
  assert(isFigureOf("latent_std_min", "channels") && isFigureOf("psnr_sigma_0.2", "psnr"));
  assert(isFigureOf("class_agreement", "classes") && !isFigureOf("fid_infinity", "fid"));
});

Deno.test("images.csv is read back with quoted names", async () => {
  await inFolder((root) => {
    const path = join(root, "images.csv");
    Deno.writeTextFileSync(path, 'name,psnr,ssim\n"a,""b"".png",1,0.5\nc.png,2,\n');
    const { names, columns } = readImageScores(path);
    assertEquals(names, ['a,"b".png', "c.png"]);
    assertEquals([...columns], [["psnr", [1, 2]], ["ssim", [0.5, NaN]]]);
    return Promise.resolve();
  });
});
