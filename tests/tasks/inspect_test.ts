// tok inspect: the listing of each kind of file, conversion, and the parameter counts of published sizes.

import { assert, assertEquals } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { openModel } from "../../src/formats/shards.ts";
import { PUBLISHED } from "../../src/models/sizes.ts";
import { run } from "../helpers/commands.ts";
import { dict, int, members, tensor, zip } from "../helpers/pickles.ts";

const at = (path: string) => fromFileUrl(new URL(`../../${path}`, import.meta.url));
const fixture = (name: string) => at(`tests/fixtures/${name}`);
const folder = await Deno.makeTempDir();
const own = (name: string) => join(folder, name);

/** Runs the command in this process. */
async function tok(...args: string[]) {
  try {
    const { lines, result } = await run("inspect", ...args);
    return { code: 0, err: lines.join("\n"), last: JSON.stringify(result) };
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    return { code: 2, err: `tok: ${error.message}`, last: "" };
  }
}

Deno.test("inspect lists the tensors of torch files and of .npz files", async () => {
  const legacy = await tok(fixture("torch_legacy.pth"), "--json");
  assertEquals(legacy.code, 0, legacy.err);
  const { found: [file] } = JSON.parse(legacy.last);
  assertEquals(file.tensors.length, 47);
  assertEquals(file.tensors.find(({ name }: { name: string }) => name === "views.half_transposed"), {
    name: "views.half_transposed",
    dtype: "F16",
    shape: [7, 5],
  });
  assertEquals(file.metadata["args.model"], '"DiT-XL/2"');
  assert(/views\.permuted +F32 +\[5, 2, 4, 3\]/.test(legacy.err), legacy.err);
  const npz = await tok(fixture("numpy.npz"), "--json");
  assertEquals(JSON.parse(npz.last).found[0].tensors[0], { name: "arr_0", dtype: "u1", shape: [2, 3, 4, 3] });
});

Deno.test("inspect lists the objects next to weights by the names of their classes", async () => {
  const found = await tok(fixture("company.pth"));
  assertEquals(found.code, 0, found.err);
  assert(/model\.w +F32 +\[2, 3\]/.test(found.err), found.err);
  for (
    const line of [
      "  date: an object of datetime.datetime, not read and not run",
      "  average: an object of __main__.Average that holds tensors, not read and not run",
      "  step: 7",
    ]
  ) assert(found.err.split("\n").includes(line), found.err);
});

Deno.test("inspect --convert writes the same tensors with the same dtypes, and plain values as texts", async () => {
  for (const form of ["zip", "legacy"]) {
    const { code, err } = await tok(fixture(`torch_${form}.pth`), "--convert", own(`${form}.safetensors`));
    assertEquals(code, 0, err);
    const ours = await openModel(`${folder}/${form}.safetensors`);
    const expected = await openModel(fixture("torch_expected.safetensors"));
    assertEquals(ours.shapes.size, 47);
    const all = (parts: Iterable<Uint8Array>) => [...parts].flatMap((part) => [...part]);
    for (const [key, { dtype, shape }] of expected.tensors) {
      assertEquals([key, ours.tensors.get(key)?.dtype, ours.tensors.get(key)?.shape], [key, dtype, shape]);
      assertEquals(all(ours.parts(key)), all(expected.parts(key)), key);
    }
    assertEquals(ours.metadata.get("plain.step"), "7");
    assertEquals(ours.metadata.get("format"), "pt");
    ours.close();
    expected.close();
  }
  assertEquals(
    Deno.readFileSync(`${folder}/zip.safetensors`),
    Deno.readFileSync(`${folder}/legacy.safetensors`),
  );
});

Deno.test("inspect --preset prints the published numbers of parameters", async () => {
  const millions = (name: string) => Math.round((PUBLISHED.get(name)?.parameters() ?? 0) / 1e4) / 100;
  assertEquals(Object.fromEntries([...PUBLISHED.keys()].map((name) => [name, millions(name)])), {
    "dinov2-s": 22.06,
    "dinov2-b": 86.58,
    "dinov2-l": 304.37,
    "dinov2-g": 1136.48,
    "dinov2-s-reg": 22.06,
    "dinov2-b-reg": 86.58,
    "dinov2-l-reg": 304.37,
    "dinov2-g-reg": 1136.49,
    "dinov3-s": 21.6,
    "dinov3-s-plus": 28.69,
    "dinov3-b": 85.66,
    "dinov3-l": 303.13,
    "dinov3-h-plus": 840.59,
    "dinov3-7b": 6716.04,
    "siglip-b16-224": 85.8,
    "siglip2-b16-256": 85.84,
    "siglip2-l16-256": 303.36,
    "siglip2-l16-512": 304.15,
    "siglip-so400m-14-384": 412.99,
    "clip-l14": 303.18,
    "vit-b16": 85.8,
    "mae-b16": 85.65,
    "mae-l16": 303.1,
    "vavae-decoder": 41.42,
    "vavae": 69.84,
    "sd-vae": 83.65,
    "inception": 23.85,
    "lpips-vgg": 14.72,
    "lightningdit-s/1": 32.99,
    "lightningdit-s/2": 32.99,
    "lightningdit-b/1": 130.56,
    "lightningdit-b/2": 130.56,
    "lightningdit-l/1": 458.15,
    "lightningdit-l/2": 458.15,
    "lightningdit-xl/1": 675.26,
    "lightningdit-xl/2": 675.26,
    "lightningdit-1p0b/1": 1029.4,
    "lightningdit-1p0b/2": 1029.4,
    "lightningdit-1p6b/1": 1631.77,
    "lightningdit-1p6b/2": 1631.77,
  });
  const { code, last, err } = await tok("--preset", "lightningdit-xl/1", "--json");
  assertEquals(code, 0, err);
  assertEquals(JSON.parse(last).presets.length, 1);
  assert(err.includes("675.26 M"), err);
});

Deno.test("inspect refuses unreadable files in one line, and writes nothing", async () => {
  Deno.writeTextFileSync(`${folder}/text.txt`, "hello, world");
  Deno.writeFileSync(`${folder}/cut.pth`, Deno.readFileSync(fixture("torch_zip.pth")).slice(0, 5000));
  const hidden = zip(members(dict({ "a\x1b[31m\nb": tensor() })));
  Deno.writeFileSync(`${folder}/hidden.pth`, hidden);
  Deno.writeFileSync(`${folder}/taken.pth`, zip(members(dict({ __metadata__: tensor() }))));
  Deno.writeFileSync(`${folder}/numbers.pth`, zip(members(dict({ a: int(1) }))));
  const cases: [string[], string][] = [
    [[], "name a file, a run or a folder"],
    [[own("none.pth")], "check the path"],
    [[folder], "it is not a file of tensors, a run or a model folder"],
    [[own("text.txt")], "text.txt"],
    [[own("cut.pth")], "it is not a complete zip archive"],
    [[own("numbers.pth")], "it holds no tensors and is not a checkpoint"],
    [[own("taken.pth"), "--convert", own("x.safetensors")], 'cannot hold a tensor "__metadata__"'],
    [[fixture("torch_zip.pth"), "--convert", own("x.pth")], "only .safetensors can be written"],
    [["--preset", "dinov2-x"], "did you mean dinov2-s?"],
    [[own("text.txt"), "--preset", "dinov2-s"], "--preset goes without a file"],
  ];
  for (const [args, reason] of cases) {
    const { code, err } = await tok(...args);
    assertEquals(code, 2, err);
    const line = err.trim().split("\n").at(-1) ?? "";
    assert(line.startsWith("tok: Cannot") && line.includes(reason), err);
  }
  assertEquals([...Deno.readDirSync(folder)].filter(({ name }) => /^x\.|tmp/.test(name)), []);
  const { err } = await tok(own("hidden.pth"));
  assert(err.includes("a\\u001b[31m\\nb") && !err.includes("\x1b[31m"), err);
});
