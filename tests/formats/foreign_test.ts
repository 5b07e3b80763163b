// Other files in place of weights, statistics and configurations, with a remedy: Git LFS pointers, web pages, server errors,
// archives. Without detection they were reported as damaged.

import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { readJson } from "../../src/formats/files.ts";
import { openNpz } from "../../src/formats/npz.ts";
import { openModel } from "../../src/formats/shards.ts";
import { openDit, openTokenizer } from "../../src/zoo/runs.ts";
import { bytes } from "../helpers/pickles.ts";

const POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0d71028bf8b6\nsize 88283115\n";
const PAGE = "<!DOCTYPE html>\n<html><head><title>Virus scan warning</title></head></html>\n";
const XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>';
const tar = bytes("weights.pth", new Uint8Array(246), "ustar\x0000", new Uint8Array(248));
const LFS = 'a Git LFS pointer, not the file itself (88,283,115 bytes); run "git lfs pull"';

/** What lies there, and what is said of it in place of weights and of arrays. */
const CASES: [Uint8Array | string, weights: string, arrays: string][] = [
  [POINTER, LFS, LFS],
  [
    PAGE,
    "a web page (HTML), not weights; fetch the file itself",
    "a web page (HTML), not arrays; fetch the file itself",
  ],
  [
    XML,
    `an XML text, such as a server's error ("AccessDenied"), not weights; fetch the file itself`,
    `an XML text, such as a server's error ("AccessDenied"), not arrays; fetch the file itself`,
  ],
  [
    "Entry not found",
    'a text, "Entry not found", not weights; fetch the file itself',
    'a text, "Entry not found", not arrays; fetch the file itself',
  ],
  [
    '{"error":"Invalid username or password."}\n',
    'a text, "{\\"error\\":\\"Invalid username or password.\\"}", not weights; fetch the file itself',
    'a text, "{\\"error\\":\\"Invalid username or password.\\"}", not arrays; fetch the file itself',
  ],
  ["", "empty (0 bytes); fetch the file itself", "empty (0 bytes); fetch the file itself"],
  [
    new Uint8Array(4096),
    "a file that begins with zeros, as an unfinished download does; fetch it again",
    "a file that begins with zeros, as an unfinished download does; fetch it again",
  ],
  [tar, "a tar archive, not weights; unpack it first", "a tar archive, not arrays; unpack it first"],
  [
    bytes("PAR1", new Uint8Array(100)),
    "a Parquet table, not weights; give the file of the weights, .safetensors or .pth",
    "a Parquet table, not arrays; give an .npz file",
  ],
  [
    bytes(0x1f, 0x8b, 8, new Uint8Array(100)),
    "a gzip file, not weights; unpack it first",
    "a gzip file, not arrays; unpack it first",
  ],
  [
    bytes("\x93NUMPY", 1, 0, new Uint8Array(100)),
    "a NumPy array, not weights; give the file of the weights, .safetensors or .pth",
    "a NumPy array, not arrays; save it as an archive: np.savez(path, array)",
  ],
  [
    bytes("\x89PNG\r\n\x1a\n", new Uint8Array(100)),
    "a PNG image, not weights; give the file of the weights, .safetensors or .pth",
    "a PNG image, not arrays; give an .npz file",
  ],
];

Deno.test("other files in place of weights and arrays are named, with a remedy", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    for (const [content, weights, arrays] of CASES) {
      const path = join(folder, "file");
      Deno.writeFileSync(path, typeof content === "string" ? new TextEncoder().encode(content) : content);
      const asWeights = await assertRejects(() => openModel(path), UsageError) as UsageError;
      assertEquals(asWeights.message, `Cannot read "${path}": it is ${weights}`);
      const asArrays = await assertRejects(() => openNpz(path), UsageError) as UsageError;
      assertEquals(asArrays.message, `Cannot read "${path}": it is ${arrays}`);
    }
    const shards = join(folder, "model.safetensors");
    Deno.writeTextFileSync(shards, POINTER);
    await assertRejects(() => openModel(folder), UsageError, `Cannot read "${shards}": it is ${LFS}`);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a config.json that is a Git LFS pointer or a web page is named as such", () => {
  const path = Deno.makeTempFileSync();
  try {
    for (
      const [content, what] of [[POINTER, LFS], [PAGE, "a web page (HTML); fetch the file itself"]] as const
    ) {
      Deno.writeTextFileSync(path, content);
      assertThrows(() => readJson(path), UsageError, `Cannot read "${path}": it is ${what}`);
    }
  } finally {
    Deno.removeSync(path);
  }
});

Deno.test("a folder with a model of another kind is named by its kind, with a remedy", async () => {
  const folder = Deno.makeTempDirSync();
  const message = async (open: (path: string) => Promise<unknown>, config: unknown) => {
    Deno.writeTextFileSync(join(folder, "config.json"), JSON.stringify(config));
    Deno.writeTextFileSync(join(folder, "model.safetensors"), "");
    return (await assertRejects(() => open(folder), UsageError)).message;
  };
  try {
    assertEquals(
      await message(openTokenizer, { model_type: "dinov2" }),
      `Cannot use "${folder}" as a tokenizer: it holds an encoder; make a tokenizer of it with "tok align --encoder", and name that`,
    );
    assertEquals(
      await message(openTokenizer, { dit: {}, classes: [] }),
      `Cannot use "${folder}" as a tokenizer: it holds a diffusion model; name it with --model, as "tok sample" does`,
    );
    assertEquals(
      await message(openDit, { encoder: {}, decoder: {} }),
      `Cannot use "${folder}" as a diffusion model: it holds a tokenizer; name it with --tokenizer`,
    );
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
