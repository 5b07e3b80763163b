// Worker threads that decode images: the same bits, order and errors for any number of threads.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { ahead, depthOf } from "../../src/data/prefetch.ts";
import { batches } from "../../src/data/batches.ts";
import type { BadImage, Images } from "../../src/data/images.ts";
import { openImages } from "../../src/data/open_images.ts";
import { preprocessorOf } from "../../src/data/preprocess.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { gather, part } from "../../src/data/image_source.ts";
import { generatedImages, Workers } from "../../src/data/decode_pool.ts";

const FIXTURES = fromFileUrl(new URL("../fixtures/images", import.meta.url));
const COUNTS = [0, 1, 3];
const SIZE = 24;

/** Two classes of PNG and JPEG files of all kinds, with a cut JPEG in the first and an empty PNG in the second. */
async function folder(damaged: boolean): Promise<string> {
  const root = await Deno.makeTempDir();
  const names = [...Deno.readDirSync(FIXTURES)].map(({ name }) => name).filter((n) => !n.endsWith("webp"))
    .sort();
  for (const [i, name] of names.entries()) {
    Deno.mkdirSync(join(root, "ab"[i % 2] as string), { recursive: true });
    Deno.copyFileSync(join(FIXTURES, name), join(root, "ab"[i % 2] as string, name));
  }
  if (damaged) {
    const whole = Deno.readFileSync(join(FIXTURES, "baseline.jpg"));
    Deno.writeFileSync(join(root, "a/cut.jpg"), whole.subarray(0, whole.length / 2));
    Deno.writeTextFileSync(join(root, "b/empty.png"), "");
  }
  return root;
}

/** What `use` returns for a folder that is read by each number of workers. */
async function forEachCount<T>(
  root: string,
  badImage: BadImage | undefined,
  use: (source: Images, told: string[]) => Promise<T>,
): Promise<T[]> {
  const results: T[] = [];
  for (const count of COUNTS) {
    using workers = new Workers(count);
    const told: string[] = [];
    const onBad = (message: string) => told.push(message);
    results.push(await use(await openImages(root, { badImage, workers, onBad }), told));
  }
  return results;
}

Deno.test("batches of files have the same bits and order with 0, 1 and 3 workers", async () => {
  const all = await forEachCount(await folder(false), undefined, async (source) => {
    const taken = [];
    const options = { batchSize: 5, imageSize: SIZE, seed: 3, step: 2, end: 9, flip: true };
    for await (const batch of batches(source, options)) taken.push(batch);
    return taken;
  });
  assertEquals(all[0]?.length, 7);
  assert(new Set(all[0]?.[0]?.images).size > 100, "images of one colour prove nothing");
  for (const other of all.slice(1)) assertEquals(other, all[0]);
});

Deno.test("a damaged file is skipped, or ends the run, with the same message from a worker", async () => {
  const root = await folder(true);
  const skipped = await forEachCount(root, "skip", async (source, told) => {
    const { images, labels } = await gather(source, Array.from({ length: source.length }, (_, i) => i), SIZE);
    return { images, labels, told: told.toSorted(), bad: [...source.bad].sort() };
  });
  assertEquals(skipped[0]?.bad, ["a/cut.jpg", "b/empty.png"]);
  assertEquals(skipped[0]?.told.map((line) => line.includes("clipped at 255")), [true, false, false]);
  for (const other of skipped.slice(1)) assertEquals(other, skipped[0]);

  const errors = await forEachCount(root, "error", async (source) => {
    const all = Array.from({ length: source.length }, (_, i) => i);
    const error = await assertRejects(() => gather(source, all, SIZE), UsageError, "cut.jpg");
    return [error.name, error.message];
  });
  for (const other of errors.slice(1)) assertEquals(other, errors[0]);
});

Deno.test("an encoder's input is the same from a worker, and so is a preprocessor's error", async () => {
  const preprocessor = preprocessorOf({ size: 30, crop_size: 28 }, "CLIPImageProcessor", "test");
  const path = join(FIXTURES, "rgb.png");
  const [plain, ...others] = await Promise.all(COUNTS.map(async (count) => {
    using workers = new Workers(count);
    return await workers.run({
      kind: "input",
      image: path,
      view: { network: { kind: "encoder", preprocessor } },
    });
  }));
  assertEquals([plain?.width, plain?.height], [28, 28]);
  for (const other of others) assertEquals(other, plain);
  using workers = new Workers(1);
  const tooLarge = { ...preprocessor, crop: { height: 999, width: 999 } };
  await assertRejects(
    () =>
      workers.run({
        kind: "input",
        image: path,
        view: { network: { kind: "encoder", preprocessor: tooLarge } },
      }),
    UsageError,
    "Cannot crop 999 x 999 pixels",
  );
  await assertRejects(
    () => workers.run({ kind: "square", image: "/nowhere.png", size: 8 }),
    UsageError,
    'Cannot read "/nowhere.png": it does not exist',
  );
});

Deno.test("workers draw the generated images", async () => {
  using workers = new Workers(2);
  const shapes = new Shapes(40, 7), drawn = generatedImages(workers, shapes);
  const indices = [3, 39, 0, 11, 12, 13];
  assertEquals(await gather(drawn, indices, 20), await gather(shapes, indices, 20));
  assertEquals([drawn.length, drawn.name(5), drawn.classes], [40, shapes.name(5), shapes.classes]);
  assertEquals(part(drawn, 0, 5).parallel, 2);
});

Deno.test("a stopped worker fails all running and all later jobs with one clear error", async () => {
  for (
    const program of [
      `self.onmessage = () => { setTimeout(() => { throw new Error("out of luck"); }) }`,
      `nonsense(`,
    ]
  ) {
    const url = new URL(`data:text/javascript,${encodeURIComponent(program)}`);
    using workers = new Workers(2, undefined, url);
    const job = { kind: "shape", seed: 0, index: 0, size: 4 } as const;
    const failures = await Promise.allSettled([1, 2, 3, 4].map(() => workers.run(job)));
    const messages = failures.map((f) => f.status === "rejected" ? String(f.reason.message) : "none");
    assertEquals(new Set(messages).size, 1);
    assert(
      /^Cannot make an image: a worker stopped \(.+\); use fewer --workers/.test(messages[0] ?? ""),
      messages[0],
    );
    await assertRejects(() => workers.run(job), Error, messages[0]);
  }
});

Deno.test("jobs that run when the workers are disposed of fail instead of hanging", async () => {
  let pending: Promise<unknown>;
  {
    using workers = new Workers(1);
    pending = workers.run({ kind: "shape", seed: 0, index: 0, size: 64 });
  }
  await assertRejects(() => pending, Error, "its worker was ended");
});

Deno.test("ahead() keeps order and depth, ends at the last value, and throws an error at its position", async () => {
  let started = 0;
  const make = async (n: number) => {
    started++;
    await new Promise((resolve) => setTimeout(resolve, n % 2 ? 0 : 3));
    if (n === 6) throw new UsageError("six");
    return n;
  };
  const seen: number[] = [];
  const run = async () => {
    for await (const n of ahead(make, { from: 2, to: 9, depth: 3 })) {
      seen.push(n);
      assert(started <= seen.length + 3, `${started} started for ${seen.length}`);
    }
  };
  await assertRejects(run, UsageError, "six");
  assertEquals(seen, [2, 3, 4, 5]);
  const whole = [];
  for await (const n of ahead(make, { to: 3, depth: 8 })) whole.push(n);
  assertEquals(whole, [0, 1, 2]);
});

Deno.test("prefetched batches are bounded by their bytes, and one without workers", () => {
  assertEquals(depthOf({}, 1), 1);
  assertEquals(depthOf({ parallel: 4 }, 1), 16);
  assertEquals(depthOf({ parallel: 4 }, 50 * 2 ** 20), 2);
  assertEquals(depthOf({ parallel: 4 }, 2 ** 30), 1);
});
