// Statistics and features in .npz files: what other evaluation suites write is read, and what tok writes gives the same scores.

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { openNpzSet } from "../../src/data/npz_images.ts";
import { type NpzArray, writeNpz } from "../../src/formats/npz.ts";
import { writePng } from "../../src/image/image.ts";
import { evalScores } from "../helpers/eval.ts";
import { units } from "../helpers/formula.ts";

const fixture = (name: string) => fromFileUrl(new URL(`../fixtures/statistics/${name}.npz`, import.meta.url));
const numbers = (n: number) => Array.from({ length: n }, (_, i) => i / 8);
const covariance = (n: number) =>
  numbers(n * n).map((v, i, all) => v + (all[i % n * n + Math.floor(i / n)] as number));

Deno.test("files of ADM, pytorch-fid and clean-fid are read with all that they hold", async () => {
  const files: Record<
    string,
    { images?: number; labels?: string[]; pooled?: number; spatial?: number; rows?: number }
  > = {
    adm_reference: { images: 2, labels: ["0"], pooled: 6, spatial: 5 },
    adm_statistics: { pooled: 6, spatial: 5 },
    adm_labeled: { images: 2, labels: ["3", "7"] },
    pytorch_fid: { pooled: 6 },
    clean_fid: { pooled: 6 },
    clean_fid_kid: { rows: 3 },
  };
  for (const [name, { images, labels, pooled, spatial, rows }] of Object.entries(files)) {
    const set = await openNpzSet(fixture(name));
    assertEquals([set.images?.length, set.images?.classes], [images, labels], name);
    if (set.images) {
      const expected = Uint8Array.from({ length: 48 }, (_, i) => 10 + 48 + i);
      assertEquals(new Uint8Array(await set.images.bytes(1, 4)), expected, name);
    }
    for (const [got, n] of [[set.pooled, pooled], [set.spatial, spatial]] as const) {
      assertEquals(got && [[...got.mean], [...got.covariance]], n && [numbers(n), covariance(n)], name);
    }
    assertEquals(
      set.features && [set.features.rows, [...set.features.data]],
      rows && [rows, numbers(rows * 6)],
    );
  }
});

async function writeImages(folder: string, count: number) {
  await Deno.mkdir(folder);
  for (let i = 0; i < count; i++) {
    const data = Uint8Array.from(units(`${folder.at(-1)}.${i}`, 3 * 32 * 32), (u) => 200 * u + 3 * i);
    await writePng(join(folder, `${i}.png`), { width: 32, height: 32, data });
  }
}

Deno.test("scores against --save-features and --save-stats equal those against the images; others are refused", async () => {
  const root = await Deno.makeTempDir(), at = (name: string) => join(root, name);
  await writeImages(at("a"), 7);
  await writeImages(at("b"), 6);
  const fake = at("b"), [stats, features] = [at("stats.npz"), at("features.npz")];
  const score = (real: string, metrics: string[], more: Record<string, unknown> = {}) =>
    evalScores({ real, fake, metrics, out: at("out"), ...more });
  const all = ["fd-encoder", "kid-encoder", "coverage-encoder", "cmmd"];
  const direct = await score(at("a"), all, { saveStats: stats, saveFeatures: features });
  assertEquals(direct.error, undefined);
  const same = (got: Record<string, number>, keys: string[]) => {
    assertEquals(Object.keys(got), [...keys, "n", "ingredients"]);
    for (const key of keys) {
      assert(Math.abs(got[key]! - direct.scores[key]!) <= 1e-12 * Math.abs(got[key]!), key);
    }
  };
  same((await score(features, all)).scores, ["fd_encoder", "kid_encoder", "coverage_encoder", "cmmd"]);
  same((await score(stats, ["fd-encoder"])).scores, ["fd_encoder"]);
  const { about, spaces } = await openNpzSet(stats);
  assert(direct.lines.some((line) => /^cmmd: the CLS token of ".*" serves as the embedding/.test(line)));
  assertEquals(about?.["JPEG files"], false);
  assertEquals(Object.keys(spaces ?? {}).sort(), ["embedding", "patches"]);
  assertEquals([Object.keys(about ?? {}), about?.["image size"]], [
    ["encoder", "image size", "JPEG files"],
    "as the files",
  ]);

  const other: NpzArray[] = [
    { name: "mu_patches", shape: [3], data: new Float64Array(3) },
    { name: "sigma_patches", shape: [3, 3], data: new Float64Array(9) },
    { name: "mu", shape: [3], data: new Float64Array(3) },
    { name: "sigma", shape: [3, 3], data: new Float64Array(9) },
  ];
  await writeNpz(at("other.npz"), other);
  await writeNpz(at("broken.npz"), [{
    name: "features",
    shape: [2, 2],
    data: Float32Array.of(1, 2, NaN, 4),
  }]);
  for (const [name, sigma] of [["negative", [2, 0, 0, -1]], ["triangular", [2, 1, 0, 2]]] as const) {
    await writeNpz(at(`${name}.npz`), [
      { name: "mu_patches", shape: [2], data: new Float64Array(2) },
      { name: "sigma_patches", shape: [2, 2], data: Float64Array.from(sigma) },
    ]);
  }
  const refused: [string, Record<string, unknown>, string][] = [
    [
      at("negative.npz"),
      {},
      '"sigma_patches" is no covariance: it is -1 at [1, 1]; compute the statistics again',
    ],
    [
      at("triangular.npz"),
      {},
      '"sigma_patches" is no covariance: it is 0 at [1, 0] and 1 at [0, 1]; compute the',
    ],
    [
      stats,
      { metrics: ["kid-encoder"] },
      `Cannot score "kid-encoder": "${stats}" holds neither images nor features`,
    ],
    [stats, { imageSize: 16 }, 'the image size was "as the files" and is 16'],
    [at("other.npz"), {}, `"${at("other.npz")}": they have 3 channels and the encoder has 96`],
    [
      at("other.npz"),
      { metrics: ["fid"], inception: "x" },
      '"fid": "' + at("other.npz") + '" has 3 features, "',
    ],
    [at("broken.npz"), {}, '"features" holds NaN at [1, 0]; compute the features again'],
    [
      fixture("clean_fid_kid"),
      {},
      'holds neither images nor statistics in the space "patches" of an encoder',
    ],
    [stats, { saveFeatures: at("f.npz") }, `Cannot write "${at("f.npz")}": "${stats}" holds no images`],
    [stats, { saveStats: stats }, `Cannot write "${stats}": it is the file of --real`],
    [
      at("a"),
      { metrics: ["fd-dinov2"] },
      'Cannot score "fd-dinov2": it is a distance in the space of DINOv2-L/14',
    ],
  ];
  for (const [real, more, message] of refused) {
    const { error } = await score(real, ["fd-encoder"], more);
    assert(error instanceof UsageError, `${message}: ${error}`);
    assertStringIncludes(error.message, message);
    assert(!error.message.includes("\n"));
  }
  await Deno.remove(root, { recursive: true });
});
