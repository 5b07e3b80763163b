// Sizes from files and options are bounded before anything is allocated: without bounds, each of these ended in hours,
// gigabytes or a stack overflow.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { alignConfig, sampleConfig } from "../../src/cli/config.ts";
import { resolveConfig, type Schema } from "../../src/cli/flags.ts";
import { memoryBytes } from "../../src/formats/bytes.ts";
import { readJson, writeJson } from "../../src/formats/files.ts";
import { duplicateKey, parseJson } from "../../src/formats/json.ts";
import { encodeNpyHeader, parseNpyHeader } from "../../src/formats/npy.ts";
import { openNpz } from "../../src/formats/npz.ts";
import { readSafetensors } from "../../src/formats/safetensors.ts";
import { gather } from "../../src/data/image_source.ts";
import { inferAutoencoder } from "../../src/models/autoencoder_names.ts";
import { ditConfig, inferDit } from "../../src/models/dit_config.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { bytes, zip } from "../helpers/pickles.ts";

const folder = Deno.makeTempDirSync();
addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));

/** The message of what `act` throws; an input that were not bounded would take hours or all memory. */
async function refused(act: () => unknown): Promise<string> {
  const { message } = await assertRejects(async () => await act(), UsageError) as UsageError;
  assert(!message.includes("\n") && message.length < 1500, message.slice(0, 200));
  return message;
}

const header = (json: string, data = 0) => {
  const length = new Uint8Array(new BigUint64Array([BigInt(json.length)]).buffer);
  const all = new Uint8Array(8 + json.length + data);
  all.set(length);
  all.set(utf8(json), 8);
  return memoryBytes("x.safetensors", all);
};
const utf8 = (text: string) => new TextEncoder().encode(text);

Deno.test("a config.json with ten million layers is refused by the field's name", async () => {
  const sizes = { hidden_size: 64, num_attention_heads: 4 };
  for (
    const [config, reason] of [
      [{ model_type: "dinov2", ...sizes, num_hidden_layers: 1e7 }, "num_hidden_layers: at most 1,000 layers"],
      [
        { model_type: "dinov2", ...sizes, hidden_size: 1e9, num_hidden_layers: 1 },
        "hidden_size: at most 65,536",
      ],
      [
        { model_type: "vit_mae", ...sizes, num_hidden_layers: 1, image_size: 16_384, patch_size: 1 },
        "image_size: position tables of more than 16,777,216 elements",
      ],
      [
        { model_type: "dinov2", ...sizes, num_hidden_layers: 1, num_register_tokens: 1e9 },
        "num_register_tokens: at most 4,096 tokens",
      ],
    ] as const
  ) {
    writeJson(join(folder, "config.json"), config);
    const message = await refused(() => openEncoder(folder));
    assert(message.startsWith(`Cannot use "${join(folder, "config.json")}": ${reason}`), message);
  }
});

Deno.test("tensor names of a hundred million blocks are refused for every model", async () => {
  const dit = new Map<string, number[]>([
    ["x_embedder.proj.weight", [64, 4, 1, 1]],
    ["blocks.0.norm1.weight", [64]],
    ["feat_rope.freqs_cos", [16, 16]],
    ["blocks.0.adaLN_modulation.1.weight", [384, 64]],
    ["final_layer.linear.weight", [4, 64]],
    ["pos_embed", [1, 16, 64]],
    ["y_embedder.embedding_table.weight", [11, 64]],
    ["blocks.99999999.norm1.weight", [64]],
  ]);
  assertEquals(
    await refused(() => inferDit("x.pt", dit)),
    'Cannot use "x.pt": depth: at most 1,000 layers are supported',
  );
  const half = (path: string, own: Record<string, number[]>) => ({
    [`${path}.0.block.0.conv1.weight`]: [32, 32, 3, 3],
    [`${path}.0.block.99999999.conv1.weight`]: [32, 32, 3, 3],
    ...own,
  });
  const shapes = new Map(Object.entries({
    ...half("encoder.down", {
      "encoder.conv_in.weight": [32, 3, 3, 3],
      "encoder.conv_out.weight": [8, 32, 3, 3],
    }),
    ...half("decoder.up", {
      "decoder.conv_in.weight": [32, 4, 3, 3],
      "decoder.conv_out.weight": [3, 32, 3, 3],
    }),
  }));
  assertEquals(
    await refused(() => inferAutoencoder({ name: "vae.pt", shapes }, { imageSize: 32, groups: 32 })),
    'Cannot use "vae.pt": encoder.num_res_blocks: at most 1,000 layers are supported',
  );
  assert(!ditConfig.safeParse({ input_size: 4096, hidden_size: 384 }).success);
});

Deno.test("options have upper bounds, and a batch has a bound in bytes", async () => {
  const use = (schema: unknown, ...args: string[]) => () =>
    resolveConfig(schema as Schema, args, { command: "x" });
  assertEquals(
    await refused(use(alignConfig, "--batch-size", "1000000000")),
    "Cannot use --batch-size 1000000000: at most 65,536 at a time are supported",
  );
  assertEquals(
    await refused(use(alignConfig, "--image-size", "100000")),
    "Cannot use --image-size 100000: at most 16,384 pixels are supported",
  );
  assertEquals(
    await refused(use(alignConfig, "--decoder-blocks", "100000000")),
    "Cannot use --decoder-blocks 100000000: at most 1,000 layers are supported",
  );
  assertEquals(
    await refused(use(sampleConfig, "--num", "1000000000000")),
    "Cannot use --num 1000000000000: at most 100,000,000 images are supported",
  );
  const source = { length: 1, classes: [], label: () => 0, name: () => "", bytes: () => new Uint8Array() };
  assertEquals(
    await refused(() => gather(source, new Array(65_536).fill(0), 256)),
    "Cannot load 65536 images of 256 x 256 at a time: they take 51.5 GB, at most 8.6 GB are supported; use a smaller " +
      "--batch-size or --image-size",
  );
});

Deno.test("JSON that is too deep or too large is not parsed", async () => {
  const path = join(folder, "brackets.json");
  Deno.writeFileSync(path, utf8("[".repeat(10_000_000)));
  assertEquals(
    await refused(() => readJson(path)),
    `Cannot read "${path}": it is not JSON (it is nested deeper than 100 times)`,
  );
  Deno.writeFileSync(path, utf8(`[${"[],".repeat(5_000_000)}[]]`));
  assert((await refused(() => readJson(path))).includes("it has more than 2,000,000 values"));
  Deno.truncateSync(path, 40_000_000);
  assert((await refused(() => readJson(path))).includes("it has 40.0 MB, at most 16.8 MB are read"));
  assertEquals(parseJson(new TextEncoder().encode('\uFEFF{"a": ["[[[\\"", 1]}')), { a: ['[[["', 1] });
  assertEquals(
    parseJson(new TextEncoder().encode(`${"[".repeat(100)}${"]".repeat(100)}`)) instanceof Array,
    true,
  );
  assertEquals(duplicateKey(utf8('{"a": {"a": 1}, "b": ["a", "a"], "\\u0061": 2}')), "a");
  assertEquals(duplicateKey(utf8('{"a\\\\": 1, "a\\"": {"a": 1, "b": 1}, "b" : "b:"}')), undefined);
});

Deno.test("a header with a million tensors is refused, one with a long text is read", async () => {
  const entry = '":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}';
  const many = `{${Array.from({ length: 100_001 }, (_, i) => `"${i}${entry}`).join(",")}}`;
  assertEquals(
    await refused(() => readSafetensors(header(many))),
    'Cannot read "x.safetensors": it has 100001 tensors, at most 100000 are supported; fetch or make it again',
  );
  assert(
    (await refused(() => readSafetensors(header(`{"a":${"[".repeat(20_000_000)}`)))).includes(
      "nested deeper",
    ),
  );
  const last = '"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}';
  for (const unit of ["x", "\\n", '\\"']) {
    const text = `{"__metadata__":{"a":"${unit.repeat(20_000_000 / unit.length)}${last}`;
    assertEquals(readSafetensors(header(text, 4)).metadata.get("a")?.length, 20_000_000 / unit.length);
  }
  const named = `{"${"x".repeat(20_000_000)}":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}`;
  assert((await refused(() => readSafetensors(header(named, 4)))).endsWith("...; fetch or make it again"));
});

Deno.test("an .npz that claims a hundred million images in 300 bytes is refused when it is opened", async () => {
  const path = join(folder, "claim.npz");
  const head = encodeNpyHeader(new Uint8Array(), [100_000_000, 32, 32, 3]);
  Deno.writeFileSync(path, zip([{ name: "arr_0.npy", data: head }]));
  assertEquals(
    await refused(() => openNpz(path)),
    `Cannot read "${path}" as .npz: "arr_0" does not have as many bytes as its shape (100000000,32,32,3) needs; make it again`,
  );
  const size = head.length + 100_000_000 * 3072;
  Deno.writeFileSync(
    path,
    zip([{ name: "arr_0.npy", data: head, size: size % 2 ** 32, compressed: 128, method: 8 }]),
  );
  assert((await refused(() => openNpz(path))).includes("out of 128, which deflate cannot do"));
  const count = bytes(0x50, 0x4b, 5, 6, 0, 0, 0, 0, 0xfe, 0xff, 0xfe, 0xff, new Uint8Array(10));
  Deno.writeFileSync(path, count);
  assert((await refused(() => openNpz(path))).includes("its directory is damaged"));
  const many = Array.from({ length: 1001 }, (_, i) => ({ name: `${i}.npy`, data: new Uint8Array() }));
  Deno.writeFileSync(path, zip(many));
  assert((await refused(() => openNpz(path))).includes("it has 1001 files, at most 1000 are supported"));
  // A pattern that backtracks over these digits does not come to an end.
  const digits = encodeNpyHeader(new Uint8Array(), [1]).slice(0, 10);
  const text = `{'descr': '|u1', 'fortran_order': False, 'shape': (${"1".repeat(60_000)}x), }\n`;
  new DataView(digits.buffer).setUint16(8, text.length, true);
  assertThrows(() => parseNpyHeader(bytes(digits, text)), Error, "its header is damaged");
});
