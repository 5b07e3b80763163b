// Inference with a cache of features: which images run in which batches, in which order features leave, and what is kept.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { inputs, type InputSource, Sizes } from "../../src/data/network_input.ts";
import type { Pixels } from "../../src/data/preprocess.ts";
import { Interrupted, NotFiniteError, UsageError } from "../../src/errors.ts";
import { endIf } from "../../src/interruption.ts";
import type { ImageProgram } from "../../src/metrics/batched.ts";
import { inferCached } from "../../src/metrics/cached_inference.ts";
import { CacheSpace, FeatureCache } from "../../src/metrics/feature_cache.ts";
import { inFolder } from "../helpers/encoder_files.ts";

/**
 * A program over batches of `B` inputs [1,1,3]: y of an image is 10 times its first number.
 * @param size numbers that a batch pretends to have
 */
function fakeProgram(B: number, events: string[] = [], size = 3 * B) {
  let uploaded = new Float32Array(3 * B), ran = uploaded;
  const runs: number[][] = [];
  const program = {
    label: "fake",
    inputs: {
      x: {
        ...{ size, shape: [B, 1, 1, 3], dim: () => B },
        storage: { write: (data: Float32Array<ArrayBuffer>) => void (uploaded = data.slice()) },
      },
    },
    outputs: { y: {} },
    run() {
      ran = uploaded;
      runs.push([...ran.filter((_, k) => k % 3 === 0)]);
      events.push("run");
    },
    read() {
      events.push("read");
      return Promise.resolve(ran.filter((_, k) => k % 3 === 0).map((v) => 10 * v));
    },
  };
  return { program: program as unknown as ImageProgram<"y">, runs };
}

const digestOf = (i: number) => String(i).padStart(16, "0");
const ORIGINAL = { width: 3, height: 2 };

/** Images of one pixel: image `i` is of number `i` and label i % 7. */
function source(length: number, more: Partial<InputSource> = {}, sizes?: Sizes) {
  return inputs(
    {
      ...{
        length,
        classes: [],
        label: (i) => i % 7,
        name: (i) => `${i}.png`,
        bytes: () => new Uint8Array(3),
      },
      input: (i) => Promise.resolve(pixelOf(i)),
      digest: (i) => Promise.resolve(digestOf(i)),
      ...more,
    },
    {},
    sizes,
  );
}

const pixelOf = (i: number): Pixels => ({
  ...{ width: 1, height: 1, data: new Float32Array(3).fill(i), original: ORIGINAL },
});

/** A space of a cache that has features -i of the given images i. */
async function spaceWith(folder: string, known: readonly number[] = []): Promise<CacheSpace<"y">> {
  const open = () => new CacheSpace(new FeatureCache(folder), join(folder, "a"), "", { y: 1 });
  const space = open();
  for (const i of known) {
    await space.add(digestOf(i), { outputs: { y: Float32Array.of(-i) }, size: ORIGINAL });
  }
  await space.close();
  const opened = open();
  await opened.load();
  return opened;
}

const range = (n: number) => Array.from({ length: n }, (_, i) => i);
const isKnown = (i: number) => i % 3 === 0;

Deno.test("missing images of all lookups share full batches, only the last one is padded, and features have the images' order", async () => {
  await inFolder(async (folder) => {
    const n = 700, B = 128, known = range(n).filter(isKnown), missing = range(n).filter((i) => !isKnown(i));
    for (const parallel of [0, 3]) { // prefetching one batch, and several
      const { program, runs } = fakeProgram(B), sizes = new Sizes();
      const cache = await spaceWith(join(folder, `${parallel}`), known);
      const y: number[] = [], labels: number[] = [];
      for await (const batch of inferCached(program, source(n, { parallel }, sizes), cache)) {
        assertEquals([batch.first, batch.count], [y.length, batch.labels.length]);
        y.push(...batch.outputs.y);
        labels.push(...batch.labels);
      }
      assertEquals(y, range(n).map((i) => isKnown(i) ? -i : 10 * i));
      assertEquals(labels, range(n).map((i) => i % 7));
      assertEquals(runs.length, Math.ceil(missing.length / B));
      assertEquals(runs.flat().slice(0, missing.length), missing);
      assertEquals(`${sizes}`, "700 images of 3 x 2");
      const again = fakeProgram(B); // all are known now, and what the network says of them is in the cache
      const after: number[] = [];
      for await (
        const { outputs } of inferCached(
          again.program,
          source(n),
          await spaceWith(join(folder, `${parallel}`)),
        )
      ) after.push(...outputs.y);
      assertEquals([after, again.runs], [y, []]);
    }
  });
});

Deno.test("the next images are looked up while a batch runs", async () => {
  await inFolder(async (folder) => {
    const events: string[] = [], { program } = fakeProgram(2, events);
    const digest = (i: number) => {
      events.push(`look up ${i}`);
      return Promise.resolve(digestOf(i));
    };
    const cache = await spaceWith(folder, [0, 2, 4]);
    for await (const _ of inferCached(program, source(7, { digest }), cache));
    const between = events.slice(events.indexOf("run"), events.indexOf("read"));
    for (const i of [5, 6]) assert(between.includes(`look up ${i}`), `${events}`);
  });
});

Deno.test("features that wait for a missing image take bounded memory, and known images leave before all are looked up", async () => {
  await inFolder(async (folder) => {
    const n = 1500, known = range(n).slice(1), { program, runs } = fakeProgram(4);
    let lookups = 0;
    const digest = (i: number) => {
      lookups++;
      return Promise.resolve(digestOf(i));
    };
    const cache = await spaceWith(folder, known), bytes = 4 * 300; // 300 features
    const yielded: number[] = [];
    for await (const { first } of inferCached(program, source(n, { digest }), cache, bytes)) {
      if (first === 0) assert(lookups < 900, `${lookups} lookups`);
      yielded.push(first);
    }
    assertEquals(runs, [[0, 0, 0, 0]]);
    assert(yielded.length > 4);
    await inFolder(async (folder) => { // no bound: the image runs after all lookups
      const { program, runs } = fakeProgram(4), missing = [0, n - 1];
      const cache = await spaceWith(folder, range(n).filter((i) => !missing.includes(i)));
      for await (const _ of inferCached(program, source(n), cache));
      assertEquals(runs, [[0, n - 1, n - 1, n - 1]]);
    });
  });
});

Deno.test("no more features wait than the bound, batches that are loaded ahead included; nor more images than prefetching holds", async () => {
  await inFolder(async (folder) => {
    const n = 4000,
      B = 4,
      most = 300,
      patterns: Record<string, (i: number) => boolean> = {
        "one missing at the start": (i) => i === 0,
        "one of 100 missing": (i) => i % 100 === 0,
        "most missing": (i) => i % 5 > 0,
        "all missing": () => true,
        "none missing": () => false,
      };
    const MiB = 2 ** 20, batchBytes = [1, 64, 300, 20, 128].map((n) => n * MiB), batches = [18, 4, 3, 8, 3];
    for (const [k, [name, isMissing]] of Object.entries(patterns).entries()) {
      const { program, runs } = fakeProgram(B, [], batchBytes[k]! / 4), y: number[] = [];
      const cache = await spaceWith(join(folder, name), range(n).filter((i) => !isMissing(i)));
      let lookups = 0, waiting = 0, images = 0, loaded = 0;
      const looked = new Set<number>(), asked = new Set<number>();
      const digest = (i: number) => {
        if (!looked.has(i)) waiting = Math.max(waiting, ++lookups - y.length);
        looked.add(i);
        return Promise.resolve(digestOf(i));
      };
      const input = (i: number) => {
        asked.add(i);
        images = Math.max(images, asked.size - B * Math.max(0, runs.length - 1)); // all but the last one are finished
        return Promise.resolve(pixelOf(i)).finally(() => loaded++);
      };
      const images3 = source(n, { digest, input, parallel: 3 });
      for await (const { first, outputs } of inferCached(program, images3, cache, 4 * most)) {
        assertEquals(first, y.length);
        y.push(...outputs.y);
      }
      assertEquals(y, range(n).map((i) => isMissing(i) ? 10 * i : -i), name);
      assert(waiting <= most, `${name}: ${waiting} images are looked up and not yielded`);
      assert(images <= batches[k]! * B, `${name}: ${images} images are in memory`);
      if (name === "all missing") assert(images > 2 * B, "prefetching works");
      const full = Math.ceil(loaded / B);
      assert(
        runs.length <= (name === "one of 100 missing" ? loaded : full + 1),
        `${name}: ${runs.length} runs`,
      );
    }
  });
});

Deno.test("an image that cannot be loaded ends inference after the features before it, and those of batches that ran are kept", async () => {
  await inFolder(async (folder) => {
    const { program } = fakeProgram(2), cache = await spaceWith(folder, [0, 3]);
    const input = (i: number) =>
      i === 5 ? Promise.reject(new UsageError("5.png is damaged")) : Promise.resolve(pixelOf(i));
    const y: number[] = [];
    await assertRejects(
      async () => {
        for await (const { outputs } of inferCached(program, source(9, { input }), cache)) {
          y.push(...outputs.y);
        }
      },
      UsageError,
      "5.png is damaged",
    );
    assertEquals(y, [0, 10, 20, -3]);
    const after = await spaceWith(folder);
    assertEquals((await after.read(digestOf(2)))?.outputs.y, Float32Array.of(20));
    assertEquals(await after.read(digestOf(4)), undefined);
    await after.close();
  });
});

Deno.test("a damaged row is computed again, alone, and the next time it is there; the output of a network is named by its file", async () => {
  await inFolder(async (folder) => {
    const n = 20,
      shard = async () => {
        const [{ name }] = await Array.fromAsync(Deno.readDir(join(folder, "a"))) as [Deno.DirEntry];
        return join(folder, "a", name);
      };
    await (await spaceWith(folder, range(n))).close();
    const path = await shard(), bytes = await Deno.readFile(path);
    const row = new Uint8Array(Float32Array.of(-7).buffer), at = bytes.toHex().indexOf(row.toHex()) / 2;
    assert(Number.isInteger(at));
    bytes[at]! ^= 1;
    await Deno.writeFile(path, bytes);
    for (const runsAgain of [[[7, 7, 7, 7]], []]) {
      const { program, runs } = fakeProgram(4), y: number[] = [];
      for await (const { outputs } of inferCached(program, source(n), await spaceWith(folder))) {
        y.push(...outputs.y);
      }
      assertEquals(runs, runsAgain);
      assertEquals(y, range(n).map((i) => i === 7 ? 70 : -i));
    }
    const { program } = fakeProgram(4), input = (i: number) => Promise.resolve(pixelOf(i === 13 ? NaN : i));
    const known = await spaceWith(join(folder, "b"), range(n).filter((i) => i % 3 > 0 && i !== 13));
    await assertRejects(
      async () => {
        for await (const _ of inferCached(program, source(n, { input }), known));
      },
      NotFiniteError,
      'for image 13 ("13.png"): it holds NaN',
    );
  });
});

Deno.test("features of a file in whose place another image was read are used and not kept", async () => {
  await inFolder(async (folder) => {
    const { program } = fakeProgram(4), bad = new Set<number>();
    const input = (i: number) => {
      if (i === 1) bad.add(i);
      return Promise.resolve(pixelOf(i === 1 ? 2 : i));
    };
    const digest = (i: number) => Promise.resolve(bad.has(i) ? undefined : digestOf(i));
    const cache = await spaceWith(folder), y: number[] = [];
    for await (const { outputs } of inferCached(program, source(3, { input, digest }), cache)) {
      y.push(...outputs.y);
    }
    assertEquals(y, [0, 20, 20]);
    const after = await spaceWith(folder);
    assertEquals(await after.read(digestOf(1)), undefined);
    assertEquals((await after.read(digestOf(2)))?.outputs.y, Float32Array.of(20));
    await after.close();
  });
});

Deno.test("a signal ends inference between batches, and between lookups where all images are known", async () => {
  await inFolder(async (folder) => {
    for (const known of [[], range(2000)]) {
      const { program, runs } = fakeProgram(2),
        cache = await spaceWith(join(folder, `${known.length}`), known);
      let count = 0;
      await assertRejects(async () => {
        let stopped = false;
        using _ = endIf(() => {
          if (stopped) throw new Interrupted();
        });
        for await (const batch of inferCached(program, source(2000), cache)) {
          count = batch.first + batch.count;
          stopped = true;
        }
      }, Interrupted);
      assert(count > 0 && count <= 600, `${count} images`);
      assert(runs.length < 4, `${runs.length} batches`);
    }
  });
});

Deno.test("features of a JPEG that was decoded at reduced size are not kept", async () => {
  await inFolder(async (folder) => {
    const run = async (reduced: boolean, v: number) => {
      const cache = await spaceWith(folder), sizes = new Sizes(), { program } = fakeProgram(1);
      const pixels = {
        ...pixelOf(v),
        ...reduced && { notes: [{ kind: "reduced" as const, text: "decoded at 1/2" }] },
      };
      const images = source(1, { input: () => Promise.resolve(pixels) }, sizes), rows: number[] = [];
      for await (const { outputs } of inferCached(program, images, cache)) rows.push(...outputs.y);
      assertEquals(`${sizes}`, "1 image of 3 x 2");
      return rows;
    };
    assertEquals(await run(true, 1), [10]);
    assertEquals(await run(false, 2), [20]);
    assertEquals(await run(false, 3), [20]);
  });
});
