// Existing outputs: one process at a time, sampling resumes where it stopped, and no folder mixes two runs.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { Interrupted, UsageError } from "../../src/errors.ts";
import { endIf } from "../../src/interruption.ts";
import { Output } from "../../src/run/output.ts";
import { inFolder, run, writeImages } from "../helpers/commands.ts";
import { fixturePath } from "../helpers/published.ts";

const GENERATOR = [
  "--model",
  fixturePath("lightningdit_tiny.pt"),
  "--tokenizer",
  fixturePath("vavae_tiny.pt"),
];
const SAMPLING = ["--classes", "7,2", "--steps", "2", "--batch-size", "4"];
const sample = (...args: string[]) => run("sample", ...GENERATOR, ...SAMPLING, ...args);

/** Every file below a folder and its bytes; config.json too. */
function files(folder: string): Record<string, string> {
  return Object.fromEntries(
    [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) =>
      isDirectory
        ? Object.entries(files(join(folder, name))).map(([key, value]) => [`${name}/${key}`, value])
        : [[name, Deno.readFileSync(join(folder, name)).toHex()]]
    ).sort() as [string, string][],
  );
}

for (const folders of ["--no-folders", "--folders"]) {
  Deno.test(`interrupted sampling resumes to the same files and generates no image twice (${folders})`, () =>
    inFolder(async (folder) => {
      const [whole, parts] = [join(folder, "whole"), join(folder, "parts")];
      await sample("--num", "11", "--npz", folders, "--out", whole);
      // Stopped between two batches, the second time with another size of them.
      let batches = 0;
      {
        using _stop = endIf(() => {
          if (batches++ && Object.keys(files(parts)).some((name) => name.includes("000001"))) {
            throw new Interrupted();
          }
        });
        await assertRejects(() => sample("--num", "11", "--npz", folders, "--out", parts), Interrupted);
      }
      const before = Object.keys(files(parts)).filter((name) => /\d{6}\.png$/.test(name));
      assert(before.length > 0 && before.length < 11, `${before}`);
      assert(!Object.keys(files(parts)).some((name) => /\.tmp$|npz|lock/.test(name)));
      // In the middle of a batch pictures may be missing, too.
      const [gone, ...kept] = before.map((name) => join(parts, name)) as [string, ...string[]];
      Deno.removeSync(gone);
      const times = kept.map((path) => Deno.statSync(path).mtime?.getTime());
      const { lines } = await sample("--num", "11", "--npz", folders, "--out", parts);
      assert(
        lines.some((line) => line.startsWith(`${before.length - 1} of 11 images are there already`)),
        lines.join("\n"),
      );
      assertEquals(kept.map((path) => Deno.statSync(path).mtime?.getTime()), times);
      assertEquals(files(parts), files(whole));
      // All there: nothing is made, and nothing changes. More of them begin with the same ones.
      await sample("--num", "11", "--npz", folders, "--out", parts);
      assertEquals(files(parts), files(whole));
      await sample("--num", "13", folders, "--out", parts);
      const longer = files(parts), shorter = files(whole);
      for (const name of Object.keys(shorter).filter((name) => /\d{6}\.png$/.test(name))) {
        assertEquals(longer[name], shorter[name], name);
      }
    }));
}

Deno.test("samples with other options, weights or statistics are never mixed with existing samples or other images", () =>
  inFolder(async (folder) => {
    const out = join(folder, "out");
    await sample("--num", "2", "--out", out);
    const before = files(out);
    const cases: [string[], string][] = [
      [["--cfg", "1"], "--cfg was 4 and is 1"],
      [["--seed", "5"], "--seed was 0 and is 5"],
      [["--classes", "7"], "the classes was"],
      [["--tokenizer", fixturePath("autoencoder_ldm.safetensors")], ""],
    ];
    for (const [args, part] of cases) {
      const options = new Map<string, string>();
      const all = [...GENERATOR, ...SAMPLING, "--num", "2", "--out", out, ...args];
      for (let i = 0; i < all.length; i += 2) options.set(all[i] as string, all[i + 1] as string);
      await assertRejects(() => run("sample", ...[...options].flat()), UsageError, part);
      assertEquals(files(out), before);
    }
    const users = join(folder, "users");
    await writeImages(users, 2);
    await assertRejects(
      () => sample("--num", "2", "--out", users),
      UsageError,
      'it holds 2 pictures already ("0.png", "1.png"), which would be mixed',
    );
    assertEquals(Object.keys(files(users)), ["0.png", "1.png"]);
  }));

Deno.test("reconstruct never overwrites its input, mixes with older images, or gives two images one name", () =>
  inFolder(async (folder) => {
    const photos = join(folder, "photos"), out = join(folder, "out");
    const reconstruct = (input: string, to: string) =>
      run(
        "reconstruct",
        ...["--tokenizer", fixturePath("vavae_tiny.pt"), "--image-size", "16", "--input", input, "--out", to],
      );
    await writeImages(photos, 3);
    Deno.mkdirSync(join(photos, "sub"));
    Deno.copyFileSync(join(photos, "0.png"), join(photos, "sub/0.png"));
    const originals = files(photos);
    await assertRejects(() => reconstruct(photos, photos), UsageError, "it holds 4 pictures already");
    assertEquals(files(photos), originals);
    Deno.copyFileSync(join(photos, "1.png"), join(photos, "0.jpg")); // contents decide, not names
    Deno.copyFileSync(join(photos, "1.png"), join(photos, "grid.webp"));
    await reconstruct(photos, out);
    const made = files(out);
    assertEquals(Object.keys(made), [
      ...[
        "0.jpg.png",
        "0.png.png",
        "1.png",
        "2.png",
        "config.json",
        "grid.png",
        "grid.webp.png",
        "metrics.json",
      ],
      "sub/0.png",
    ]);
    assertEquals(made["0.jpg.png"], made["1.png"]);
    assertEquals(made["0.png.png"], made["sub/0.png"]);
    assert(made["0.jpg.png"] !== made["0.png.png"]);
    await reconstruct(photos, out);
    assertEquals(files(out), made);
    Deno.removeSync(join(photos, "2.png"));
    await assertRejects(
      () => reconstruct(photos, out),
      UsageError,
      "pictures of an earlier run, and the images was",
    );
    assertEquals(files(out), made);
  }));

const VAE = ["--tokenizer", fixturePath("vavae_tiny.pt"), "--image-size", "16"];
const TENSORS = fixturePath("reference.safetensors");
/** Every command with an output, and the option that names it. */
const WRITERS: [string, ...string[]][] = [
  ["align", "--out"],
  ["train-dit", ...VAE, "--images", "20", "--out"],
  ["encode", ...VAE, "--images", "20", "--batch-size", "4", "--out"],
  ["reconstruct", ...VAE, "--num", "20", "--batch-size", "4", "--out"],
  ["sample", ...GENERATOR, "--num", "20", "--steps", "2", "--batch-size", "4", "--out"],
  ["eval", ...VAE, "--num", "20", "--batch-size", "4", "--metrics", "psnr", "--out"],
  ["features", "--batch-size", "4", "--out"],
  ["inspect", TENSORS, "--convert"],
];

Deno.test("every command refuses an output folder of another process before its work", () =>
  inFolder(async (folder) => {
    const out = join(folder, "out.safetensors");
    for (const [name, ...args] of WRITERS) {
      using _other = name === "features" || name === "inspect" ? Output.file(out) : Output.folder(out);
      let batches = 0;
      using _count = endIf(() => void batches++);
      await assertRejects(
        () => run(name, ...args, out),
        UsageError,
        `Cannot write to "${out}": process ${Deno.pid} is writing to it`,
        name,
      );
      assert(batches <= 1, `${name}: ${batches} batches`); // align copies its encoder before
    }
    assertEquals([...Deno.readDirSync(folder)], []);
  }));

Deno.test("every command refuses an output folder that cannot be written before its work", () =>
  inFolder(async (folder) => {
    Deno.writeTextFileSync(join(folder, "file"), "");
    const out = join(folder, "file/out.safetensors");
    for (const [name, ...args] of WRITERS) {
      let batches = 0;
      using _count = endIf(() => void batches++);
      await assertRejects(() => run(name, ...args, out), UsageError, `"${folder}/file`, name);
      assert(batches <= 1, `${name}: ${batches} batches`); // align copies its encoder before
    }
  }));

Deno.test("a command whose output folder is deleted during its work ends with one line and does not recreate it", () =>
  inFolder(async (folder) => {
    for (const [name, ...args] of WRITERS.slice(2, -1)) {
      const place = join(folder, name);
      let batches = 0;
      using _delete = endIf(() => {
        if (++batches === 6) Deno.removeSync(place, { recursive: true });
      });
      const out = name === "features" ? join(place, "out.safetensors") : place;
      await assertRejects(() => run(name, ...args, out), UsageError, `Cannot go on: "${place}"`, name);
      assertEquals([...Deno.readDirSync(folder)], [], name);
    }
  }));

Deno.test("images too small for SSIM are reconstructed without that score", () =>
  inFolder(async (folder) => {
    const args = ["--tokenizer", fixturePath("vavae_tiny.pt"), "--image-size", "8", "--num", "3", "--out"];
    const { lines, result } = await run("reconstruct", ...args, join(folder, "out"));
    assertEquals(Object.keys(result), ["out", "psnr", "mse", "n"]);
    assert(lines.at(-1)?.includes("no SSIM below 11 x 11 pixels over 3 images"), lines.at(-1));
  }));

Deno.test("encode does nothing if the same latents are complete, and refuses others", () =>
  inFolder(async (folder) => {
    const out = join(folder, "out");
    const encode = (images: string) =>
      run("encode", ...VAE, "--images", images, "--batch-size", "4", "--out", out);
    await encode("6");
    const before = files(out);
    const { lines } = await encode("6");
    assert(lines.at(-1)?.startsWith("6 latents of these images are there already"), lines.at(-1));
    await assertRejects(() => encode("7"), UsageError, "it holds latents already, and the data was");
    assertEquals(files(out), before);
  }));
