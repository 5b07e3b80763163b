// The cache of features: the same bits as without it, no network pass the second time, and what is done about damage, other images,
// other settings, two writers and a full folder.

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { openImages } from "../../src/data/open_images.ts";
import { openNpzSet } from "../../src/data/npz_images.ts";
import { writeNpz } from "../../src/formats/npz.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { writePng } from "../../src/image/image.ts";
import { FeatureCache } from "../../src/metrics/feature_cache.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder } from "../helpers/encoder_files.ts";
import { evalScores } from "../helpers/eval.ts";
import { units } from "../helpers/formula.ts";

const pixels = (name: string) => Uint8Array.from(units(name, 3 * 32 * 32), (u) => 256 * u);

async function writeImages(folder: string, names: readonly string[]) {
  await Deno.mkdir(folder, { recursive: true });
  for (const name of names) {
    await writePng(join(folder, `${name}.png`), { width: 32, height: 32, data: pixels(name) });
  }
}

/** The shards of a cache. */
const shards = (folder: string) =>
  [...Deno.readDirSync(folder)].flatMap(({ name: space }) =>
    [...Deno.readDirSync(join(folder, space))].map(({ name }) => join(folder, space, name))
  );

Deno.test("--feature-cache gives the same bits and runs no network for images that it knows; damage costs time only", async () => {
  await inFolder(async (root) => {
    const at = (name: string) => join(root, name), cache = at("cache");
    await writeImages(at("a"), ["1", "2", "3", "4", "5"]);
    await writeImages(at("b"), ["6", "7", "8"]);
    await writeNpz(at("c.npz"), [{
      name: "arr_0",
      shape: [3, 32, 32, 3],
      data: Uint8Array.from(["6", "7", "8"].flatMap((n) => [...pixels(n)])),
    }]);
    const score = async (real: string, fake: string, more: Record<string, unknown> = {}) => {
      const options = { real: at(real), fake: at(fake), metrics: ["fd-encoder"], out: at("out") };
      const { scores, lines, error } = await evalScores({ ...options, ...more });
      assertEquals(error, undefined);
      const line = lines.find((line) => line.startsWith("feature cache"));
      return { scores, known: line && /: (.*) lookups/.exec(line)?.[1], lines };
    };
    const featureCache = cache, plain = await score("a", "b");
    const first = await score("a", "b", { featureCache });
    assertEquals([first.scores, first.known], [plain.scores, "0 of 8"]);
    const second = await score("a", "b", { featureCache, batchSize: 2 });
    assertEquals([second.scores, second.known], [plain.scores, "8 of 8"]);
    assertStringIncludes(second.lines.join("\n"), "5 images of 32 x 32"); // sizes are known without decoding
    assertEquals((await score("a", "c.npz", { featureCache })).known, "5 of 8"); // other bytes than the files
    assertEquals((await score("a", "b", { featureCache, imageSize: 16 })).known, "0 of 8");

    await Deno.writeFile(at("b/6.png"), await Deno.readFile(at("a/1.png"))); // another image under the old name
    const changed = await score("a", "b", { featureCache });
    assertEquals(changed.known, "8 of 8");
    assert(changed.scores.fd_encoder !== plain.scores.fd_encoder);
    await writeImages(at("b"), ["6"]);

    for (const [k, shard] of shards(cache).entries()) {
      const bytes = await Deno.readFile(shard);
      for (let k = 0; k < 40; k++) bytes[bytes.length - 500 + k]! ^= 1; // features of one image
      await Deno.writeFile(shard, k % 2 ? bytes : bytes.subarray(0, bytes.length / 2));
    }
    const healed = await score("a", "b", { featureCache });
    assertEquals(healed.scores, plain.scores);
    assert(Number(healed.known?.split(" ")[0]) < 8);
    assertEquals((await score("a", "b", { featureCache })).known, "8 of 8");
  });
});

Deno.test("all files of an evaluation are the same bytes with the cache as without, when files are renamed or have equal content, too", async () => {
  await inFolder(async (root) => {
    const at = (name: string) => join(root, name), contents = ["1", "2", "3", "4", "1", "5"];
    const write = async (folder: string, names: readonly string[], images: readonly string[]) => {
      await Deno.mkdir(at(folder));
      for (const [k, name] of names.entries()) {
        const image = { width: 32, height: 32, data: pixels(images[k]!) };
        await writePng(join(at(folder), `${name}.png`), image);
      }
    };
    const score = async (suffix: string, featureCache?: string) => {
      const out = at("out"); // the page names it
      const metrics = ["psnr", "mse", "fd-encoder", "copies"];
      const sets = { real: at(`real${suffix}`), fake: at(`fake${suffix}`), metrics };
      const { lines, error } = await evalScores({ ...sets, out, featureCache });
      assertEquals(error, undefined);
      const files = [...Deno.readDirSync(out)].map(({ name }) => name).sort();
      const bytes = await Promise.all(files.map(async (name) => {
        const text = (await Deno.readFile(join(out, name))).toBase64();
        return [name, text] as const;
      }));
      await Deno.remove(out, { recursive: true });
      return {
        files: Object.fromEntries(bytes),
        known: lines.find((line) => line.startsWith("feature cache")),
      };
    };
    const names = ["a", "b", "c", "d", "e", "f"], others = ["q", "p", "o", "n", "m", "l"]; // the order is reversed
    const fakes = contents.map((name, i) => i === 2 ? name : `fake ${name}`); // a copy
    for (const [suffix, own] of [["", names], [" renamed", others]] as const) {
      await write(`real${suffix}`, own, contents);
      await write(`fake${suffix}`, own, fakes);
      const plain = await score(suffix), listed = Object.keys(plain.files);
      for (const name of ["images.csv", "metrics.json", "nearest.png", "report.html", "worst.png"]) {
        assert(listed.includes(name), `${listed}`);
      }
      const csv = new TextDecoder().decode(Uint8Array.fromBase64(plain.files["images.csv"]!));
      assertEquals(
        csv.trim().split("\n").slice(1).map((row) => row.split(",")[0]),
        own.toSorted().map((n) => `${n}.png`),
      );
      for (const [k, found] of ["1 of 12", "12 of 12"].entries()) {
        const { files, known } = await score(suffix, at("cache"));
        assertStringIncludes(known ?? "", suffix ? "12 of 12 lookups" : `${found} lookups`);
        assertEquals(Object.keys(files), listed);
        for (const name of listed) assert(files[name] === plain.files[name], `${name} ${k}${suffix}`);
      }
    }
  });
});

Deno.test("two writers may add the same images; a full cache removes what was used least recently", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const row = (v: number) => ({
      outputs: { y: Float32Array.of(v, v + 0.5), z: Float32Array.of(-v) },
      size: { width: v, height: 2 },
    });
    const key = (i: number) =>
      String.fromCharCode(...Array.from({ length: 16 }, (_, k) => (31 * i + 7 * k) % 256));
    const open = (limit?: number) => new FeatureCache(folder, limit).space(["a"], { y: 2, z: 1 });
    const [one, two] = [await open(), await open()];
    for (const i of [1, 2]) await one.add(key(i), row(i));
    for (const i of [2, 3]) await two.add(key(i), row(i));
    await Promise.all([one.close(), two.close()]);
    const both = await open();
    for (const i of [1, 2, 3]) assertEquals(await both.read(key(i)), row(i));
    assertEquals(await both.read(key(4)), undefined);
    await both.close();
    assertEquals(await (await new FeatureCache(folder).space(["b"], { y: 2, z: 1 })).read(key(1)), undefined);
    const [a, b] = shards(folder) as [string, string];
    await Deno.utime(a, 1, 1);
    const { size } = await Deno.stat(b), small = await open(2 * size + 100);
    await small.add(key(5), row(5));
    await small.close();
    const left = shards(folder);
    assert(left.length === 2 && !left.includes(a) && left.includes(b));
    const after = await open(); // the removed images are computed again
    assertEquals(await after.read(key(5)), row(5));
    await after.close();
  });
});

Deno.test("the digest of an image is of its bytes, and there is none of a file that cannot be decoded", async () => {
  await inFolder(async (folder) => {
    await writeImages(join(folder, "a"), ["1", "2"]);
    await Deno.writeFile(join(folder, "a/3.png"), await Deno.readFile(join(folder, "a/1.png")));
    await Deno.writeTextFile(join(folder, "a/4.png"), "no image");
    const images = await openImages(join(folder, "a"), { badImage: "skip" });
    const digests = await Promise.all([0, 1, 2].map((i) => images.digest(i)));
    assertEquals(digests[0], digests[2]);
    assert(digests[0] !== digests[1] && digests[0]?.length === 16);
    await images.input(3, {});
    assertEquals(await images.digest(3), undefined);
    await writeNpz(join(folder, "s.npz"), [{
      name: "arr_0",
      shape: [2, 32, 32, 3],
      data: Uint8Array.of(...pixels("1"), ...pixels("2")),
    }]);
    const { images: npz } = await openNpzSet(join(folder, "s.npz"));
    assert(await npz!.digest(0) !== await npz!.digest(1));
  });
});

Deno.test("a shard that cannot be opened now stays; one that is damaged or of another form is removed", async () => {
  await testDevice();
  await inFolder(async (folder) => {
    const columns = { y: 1 }, size = { width: 1, height: 1 }, key = "0123456789abcdef";
    const open = () => new FeatureCache(folder).space(["a"], columns);
    const space = await open();
    await space.add(key, { outputs: { y: Float32Array.of(3) }, size });
    await space.close();
    const [shard] = shards(folder) as [string], openSync = Deno.openSync;
    try {
      Deno.openSync = () => {
        throw Object.assign(new Error("too many open files"), { code: "EMFILE" });
      };
      assertEquals(await (await open()).read(key), undefined);
    } finally {
      Deno.openSync = openSync;
    }
    const after = await open();
    assertEquals((await after.read(key))?.outputs, { y: Float32Array.of(3) });
    await after.close();
    await writeSafetensors(shard, [{ name: "rows", shape: [1, 1], data: Float32Array.of(3) }]);
    await open();
    assertEquals(shards(folder), []);
    await Deno.writeTextFile(shard, "no header");
    await open();
    assertEquals(shards(folder), []);
  });
});
