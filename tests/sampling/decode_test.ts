// tok decode: latents in a folder or a file to pictures.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { LatentsWriter } from "../../src/formats/latents.ts";
import { openNpz } from "../../src/formats/npz.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { readImage, toBytes } from "../../src/image/image.ts";
import { readPngTexts } from "../../src/image/png_text.ts";
import { openTokenizer } from "../../src/zoo/runs.ts";
import { constant } from "../../src/tensor/tensor.ts";
import { evaluate, randomArray, testDevice } from "../helpers/check.ts";
import { inFolder, run } from "../helpers/commands.ts";
import { testInOwnProcess } from "../helpers/own_process.ts";
import { fixturePath } from "../helpers/published.ts";

const VAE = fixturePath("vavae_tiny.pt");
const decode = (...args: string[]) => run("decode", "--tokenizer", VAE, ...args);
const N = 5, SIDE = 2;

/** Latents [N,C,SIDE,SIDE], and the bytes of the tokenizer's own pictures of them. */
async function made() {
  await testDevice();
  const tokenizer = await openTokenizer(VAE), C = tokenizer.channels, size = C * SIDE * SIDE;
  const latents = randomArray(N * size, 4) as Float32Array<ArrayBuffer>;
  const nhwc = Float32Array.from({ length: N * size }, (_, i) => {
    const n = Math.floor(i / size), cell = Math.floor(i % size / C), c = i % C;
    return latents[n * size + c * SIDE * SIDE + cell] as number;
  });
  const { y } = await evaluate({}, () => ({ y: tokenizer.decode(constant(nhwc, [N, SIDE, SIDE, C])) }));
  const pixels = y.length / N;
  const images = Array.from({ length: N }, (_, i) => toBytes(y.slice(i * pixels, (i + 1) * pixels)));
  return { tokenizer, C, size, latents, images };
}

/** Decoded pixels may differ by one level: another batch, another order of a sum. */
function assertNear(got: Uint8Array, expected: Uint8Array): void {
  assertEquals(got.length, expected.length);
  const worst = got.reduce((worst, v, i) => Math.max(worst, Math.abs(v - (expected[i] as number))), 0);
  assert(worst <= 1, `${worst} levels`);
}

const pictureOf = (folder: string, i: number) => join(folder, `00000${i}.png`);

Deno.test("decode makes the tokenizer's pictures of a folder of latents, goes on where it stopped, and refuses others", () =>
  inFolder(async (folder) => {
    const { tokenizer, C, latents, images } = await made();
    const path = join(folder, "latents"), out = join(folder, "out"), { name } = tokenizer.identity;
    const write = async (path: string, fingerprint: string, perShard: number) => {
      const record = { made_from: { tokenizer: { name, fingerprint } }, classes: ["a", "b"] };
      const writer = new LatentsWriter(path, [C, SIDE, SIDE], perShard, record);
      await writer.add(latents, latents, [1, 0, 1, 0, 1]);
      await writer.close();
    };
    await write(path, tokenizer.identity.latents, 2);
    await decode("--latents", path, "--out", out, "--npz", "--batch-size", "2");
    for (const [i, image] of images.entries()) assertNear((await readImage(pictureOf(out, i))).data, image);
    const npz = await openNpz(join(out, "samples.npz"));
    assertEquals([...await npz.read("arr_1")], [1, 0, 1, 0, 1]);
    const rows = await Array.fromAsync(npz.rows("arr_0"));
    npz.close();
    assertNear(rows[3] as Uint8Array, images[3] as Uint8Array);
    const recipe = JSON.parse(readPngTexts(pictureOf(out, 2)).get("tok") as string);
    assertEquals([recipe.image, recipe.class, recipe.tokenizer], [2, 1, tokenizer.identity.fingerprint]);
    // Only the missing one is made, with the same bytes.
    const bytes = Deno.readFileSync(pictureOf(out, 3)), kept = Deno.statSync(pictureOf(out, 2)).mtime;
    Deno.removeSync(pictureOf(out, 3));
    const { lines } = await decode("--latents", path, "--out", out, "--batch-size", "3");
    assert(lines.includes("4 of 5 images are there already: going on"), lines.join("\n"));
    assertEquals(Deno.readFileSync(pictureOf(out, 3)), bytes);
    assertEquals(Deno.statSync(pictureOf(out, 2)).mtime, kept);

    await write(join(folder, "other"), "0123456789abcdef", 8);
    await assertRejects(
      () => decode("--latents", join(folder, "other"), "--out", join(folder, "x")),
      UsageError,
      `the tokenizer was "${VAE}" (0123456789abcdef) and is "${VAE}" (${tokenizer.identity.latents}); name the ` +
        `tokenizer that made them`,
    );
  }));

testInOwnProcess(import.meta.url)(
  "decode without --latents takes the newest latents of the tokenizer in runs/, of encode or of sample",
  () =>
    inFolder(async (folder) => {
      const { tokenizer: { identity }, C, latents } = await made(), here = Deno.cwd();
      const write = async (name: string, fingerprint: string, seconds: number) => {
        const record = { made_from: { tokenizer: { name: "t", fingerprint } }, classes: [] };
        const path = join("runs", name), writer = new LatentsWriter(path, [C, SIDE, SIDE], 8, record);
        await writer.add(latents, latents, [0, 0, 0, 0, 0]);
        await writer.close();
        Deno.utimeSync(join(path, "latents_stats.safetensors"), seconds, seconds);
      };
      Deno.chdir(folder);
      try {
        await assertRejects(
          () => decode(),
          UsageError,
          `Cannot find latents of the tokenizer "${VAE}" under "runs": run "tok encode"`,
        );
        await write("latents-001", identity.latents, 1);
        await write("samples-001/latents", identity.latents, 3);
        await write("latents-002", identity.latents, 2);
        await write("latents-003", "of another", 4);
        await write("train-dit-001/latents", identity.latents, 5); // what a training encoded for itself
        Deno.writeTextFileSync("runs/train-dit-001/config.json", '{"command":"train-dit"}');
        const { lines } = await decode();
        assert(lines.includes("latents: runs/samples-001/latents (the newest)"), lines.join("\n"));
        assertEquals([...Deno.readDirSync("runs/decode-001")].length, N + 2); // the pictures, the grid, config.json
      } finally {
        Deno.chdir(here);
      }
    }),
);

Deno.test("decode reads a file of latents, and undoes the normalisation if its metadata says so", () =>
  inFolder(async (folder) => {
    const { C, latents, images } = await made();
    const shape = [N, C, SIDE, SIDE], path = join(folder, "z.safetensors");
    const mean = randomArray(C, 8), std = randomArray(C, 9).map((v) => 1 + v * v);
    const channel = (i: number) => Math.floor(i / (SIDE * SIDE)) % C;
    const x = latents.map((z, i) => (z - (mean[channel(i)] as number)) / (std[channel(i)] as number));
    const statistics = [{ name: "mean", shape: [C], data: mean }, { name: "std", shape: [C], data: std }];
    await writeSafetensors(path, [{ name: "latents", shape, data: x }, ...statistics], {
      normalised: "true",
    });
    const { lines } = await decode("--latents", path, "--out", join(folder, "a"));
    assert(
      lines.some((line) => line.includes("does not name the tokenizer of its latents")),
      lines.join("\n"),
    );
    for (const [i, image] of images.entries()) {
      assertNear((await readImage(pictureOf(join(folder, "a"), i))).data, image);
    }
    const refusals: [string, Parameters<typeof writeSafetensors>[1], Record<string, string>, string][] = [
      ["none", statistics, {}, 'it has no tensor "latents" of four axes'],
      ["flat", [{ name: "latents", shape: [x.length], data: x }], {}, 'no tensor "latents" of four axes'],
      ["bare", [{ name: "latents", shape, data: x }], { normalised: "true" }, 'it has no "mean" and "std"'],
      ["word", [{ name: "latents", shape, data: x }], { normalised: "yes" }, 'is "yes", neither'],
      ["wide", [{ name: "latents", shape: [N, C * 2, SIDE, SIDE / 2], data: x }], {}, "name another with"],
      ["nan", [{ name: "latents", shape, data: x.map((v, i) => i === 9 ? NaN : v) }], {}, "row 0 of"],
      [
        "labels",
        [{ name: "latents", shape, data: x }, { name: "labels", shape: [1], data: new Int32Array(1) }],
        {},
        "1 labels for 5 latents",
      ],
    ];
    for (const [name, tensors, metadata, message] of refusals) {
      const path = join(folder, `${name}.safetensors`);
      await writeSafetensors(path, tensors, metadata);
      await assertRejects(() => decode("--latents", path, "--out", join(folder, name)), UsageError, message);
    }
  }));
