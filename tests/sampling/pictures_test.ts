// Pictures of tok sample: image i is a function of (seed, i, its class) alone, and its PNG says how it was made.

import { crc32 } from "node:zlib";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { Interrupted, UsageError } from "../../src/errors.ts";
import { openNpz } from "../../src/formats/npz.ts";
import { decodeImage, encodePng, writePng } from "../../src/image/image.ts";
import { readPngTexts, withText } from "../../src/image/png_text.ts";
import { endIf } from "../../src/interruption.ts";
import { beginPictures } from "../../src/run/existing_output.ts";
import { recipeText } from "../../src/sampling/pictures.ts";
import metadata from "../../deno.json" with { type: "json" };
import { inFolder, run } from "../helpers/commands.ts";
import { fixturePath } from "../helpers/published.ts";

const GENERATOR = [
  ...["--model", fixturePath("lightningdit_tiny.pt")],
  ...["--tokenizer", fixturePath("vavae_tiny.pt")],
];
const sample = (...args: string[]) => run("sample", ...GENERATOR, "--steps", "2", ...args);

/** Bytes of the numbered pictures in a folder. */
function pictures(folder: string): Record<string, string> {
  const names = [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) =>
    /^\d{6}\.png$/.test(name)
  );
  return Object.fromEntries(
    names.sort().map((name) => [name, Deno.readFileSync(join(folder, name)).toHex()]),
  );
}

const some = (all: Record<string, string>, first: number, last: number) =>
  Object.fromEntries(
    Object.entries(all).filter(([name]) => parseInt(name) >= first && parseInt(name) <= last),
  );

Deno.test("the same seed gives the same PNG bytes in batches of 1, 3 and 8, for any number and range of images", () =>
  inFolder(async (folder) => {
    const out = (name: string) => join(folder, name);
    await sample("--num", "40", "--batch-size", "8", "--out", out("40"));
    const all = pictures(out("40"));
    assertEquals(Object.keys(all).length, 40);
    await sample("--num", "10", "--batch-size", "3", "--out", out("10"));
    assertEquals(pictures(out("10")), some(all, 0, 9));
    // A range after an interruption, with another batch size; samples.npz has the range alone.
    const range = ["--seeds", "25-33", "--npz", "--out", out("range")];
    {
      let batches = 0;
      using _stop = endIf(() => {
        if (Object.keys(pictures(out("range"))).length && batches++) throw new Interrupted();
      });
      await assertRejects(() => sample(...range, "--batch-size", "3"), Interrupted);
    }
    const before = Object.keys(pictures(out("range"))).length;
    assert(before > 0 && before < 9, `${before}`);
    const { lines } = await sample(...range, "--batch-size", "4");
    assert(
      lines.some((line) => line.startsWith(`${before} of 9 images are there already`)),
      lines.join("\n"),
    );
    assertEquals(pictures(out("range")), some(all, 25, 33));
    const npz = await openNpz(join(out("range"), "samples.npz"));
    const { imageClasses: labels } = JSON.parse(Deno.readTextFileSync(join(out("range"), "config.json")));
    assertEquals([...await npz.read("arr_1")], labels);
    const rows = await Array.fromAsync(npz.rows("arr_0"));
    npz.close();
    for (const [i, name] of Object.keys(some(all, 25, 33)).entries()) {
      assertEquals((await decodeImage(Deno.readFileSync(join(out("range"), name)), name)).data, rows[i]);
    }
    // One class, the same number: the same picture, so that its text is enough to make it again.
    const [recipe] = (await run("inspect", join(out("40"), "000029.png"))).result.found as [
      { recipe: { class: number } },
    ];
    const again = ["--seeds", "29", "--classes", String(recipe.recipe.class), "--batch-size", "1"];
    await sample(...again, "--out", out("again"));
    assertEquals(pictures(out("again")), some(all, 29, 29));
  }));

Deno.test("random labels are printed, and the same picture needs the same class", () =>
  inFolder(async (folder) => {
    const out = join(folder, "a"), args = ["--num", "6", "--classes", "1,4,7", "--batch-size", "6"];
    const { lines } = await sample(...args, "--labels", "random", "--out", out);
    assert(
      lines.some((line) => /^labels: random, \d (or|to) \d images per class \(3 classes\)$/.test(line)),
      `${lines}`,
    );
    const config = JSON.parse(Deno.readTextFileSync(join(out, "config.json"))), labels = config.imageClasses;
    assertEquals([config.labels, config.classes], ["random", ["1", "4", "7"]]);
    assert(labels.every((k: number) => [1, 4, 7].includes(k)) && `${labels}` !== "1,4,7,1,4,7", `${labels}`);
    await sample(...args, "--out", join(folder, "b"));
    const random = pictures(out), equal = pictures(join(folder, "b"));
    Object.keys(equal).forEach((name, i) =>
      assertEquals(random[name] === equal[name], labels[i] === [1, 4, 7][i % 3], name)
    );
  }));

Deno.test("a folder that was begun before an option existed goes on with that option's default", () =>
  inFolder(async (folder) => {
    const begin = (shift: number, defaults: Record<string, unknown>) =>
      beginPictures(folder, "sample", { options: { cfg: 4, shift }, defaults, madeFrom: {} });
    beginPictures(folder, "sample", { options: { cfg: 4 }, madeFrom: {} });
    await writePng(join(folder, "000000.png"), { width: 1, height: 1, data: new Uint8Array(3) });
    assertThrows(() => begin(1, {}), UsageError, "--shift was not given and is 1");
    assertThrows(() => begin(0.5, { shift: 1 }), UsageError, "--shift was 1 and is 0.5");
    begin(1, { shift: 1 });
  }));

Deno.test("a picture holds its recipe, and inspect prints it", () =>
  inFolder(async (folder) => {
    await sample(
      "--seeds",
      "3-4",
      "--classes",
      "7,2",
      "--cfg",
      "2.5",
      "--seed",
      "9",
      "--folders",
      "--out",
      folder,
    );
    const path = join(folder, "0002_2", "000003.png");
    const texts = readPngTexts(path), recipe = JSON.parse(texts.get("tok") as string);
    assertEquals([...texts.keys()], ["tok"]);
    const { model, tokenizer, "latent statistics": statistics, ...rest } = recipe;
    for (const fingerprint of [model, tokenizer, statistics]) assert(/^[0-9a-f]{16}$/.test(fingerprint));
    const { seed, cfg, steps, sampler, shift, image, class: label, name, tok } = rest;
    assertEquals(
      { seed, cfg, steps, sampler, shift, image, label, name, tok },
      {
        seed: 9,
        cfg: 2.5,
        steps: 2,
        sampler: "euler",
        shift: 1,
        image: 3,
        label: 2,
        name: "2",
        tok: metadata.version,
      },
    );
    for (const key of ["num", "batchSize", "seeds", "labels", "out", "date"]) assert(!(key in recipe), key);
    const { lines, result } = await run("inspect", path);
    assert(lines.includes("  image: 3") && lines.includes("  cfg: 2.5"), lines.join("\n"));
    assertEquals((result.found as { recipe: unknown }[])[0]?.recipe, recipe);
  }));

Deno.test("withText() keeps the pixels, readPngTexts() reads tEXt and iTXt and refuses damage", () =>
  inFolder(async (folder) => {
    const data = Uint8Array.from({ length: 5 * 3 * 3 }, (_, i) => 17 * i);
    const png = await encodePng({ width: 5, height: 3, data }),
      text = recipeText({ name: "Löwe 猫 \u{1f981}\n" });
    assert(/^[\x20-\x7e]+$/.test(text), text);
    const bytes = withText(png, "tok", text), path = join(folder, "a.png");
    assertEquals((await decodeImage(bytes, "a")).data, data);
    const read = (bytes: Uint8Array) => {
      Deno.writeFileSync(path, bytes);
      return readPngTexts(path);
    };
    assertEquals(JSON.parse(read(bytes).get("tok") as string), { name: "Löwe 猫 \u{1f981}\n" });
    assertEquals([...read(png)], []);
    const international = withText(png, "key", "\0\0de\0Wort\0j\xc3\xa4"); // flag, method, language, keyword, text
    const start = 8 + 25 + 4,
      view = new DataView(international.buffer),
      end = start + 4 + view.getUint32(start - 4);
    international.set(new TextEncoder().encode("iTXt"), start);
    view.setUint32(end, crc32(international.subarray(start, end)));
    assertEquals(read(international).get("key"), "j\xc3\xa4");
    let refusals = 0;
    for (let i = 0; i < bytes.length; i++) {
      const damaged = bytes.slice();
      damaged[i]! ^= 0x15;
      try {
        read(damaged);
      } catch (error) {
        assert(error instanceof UsageError, `byte ${i}: ${error}`);
        refusals++;
      }
    }
    assert(refusals > text.length, `${refusals}`);
    for (let length = 0; length < bytes.length; length += 5) {
      assertEquals(
        (() => {
          try {
            return read(bytes.subarray(0, length)).size;
          } catch (error) {
            return error instanceof UsageError;
          }
        })(),
        true,
        `${length} bytes`,
      );
    }
  }));

Deno.test("seeds that are no range or with a number of images, and interpolation that is none, are refused", async () => {
  for (
    const [args, message] of [
      [["--seeds", "9-3"], "Cannot use --seeds 9-3: give first-last, such as 0-9"],
      [["--seeds", "x"], "Cannot use --seeds x: give first-last, such as 0-9"],
      [["--seeds", "0-3", "--num", "4"], "Cannot use --num: --seeds says which images to make"],
      [["--interpolate", "0-2", "--sampler", "sde"], "Cannot use --interpolate with --sampler sde"],
      [["--interpolate", "0-2", "--guide", "dit.pt"], "Cannot use --interpolate with --guide"],
      [["--labels", "even"], "Cannot use --labels even"],
      [["--classes", "0,99"], 'Cannot sample the class "99": the model\'s classes are 0 to'],
    ] as const
  ) await assertRejects(() => sample(...args), UsageError, message);
});
