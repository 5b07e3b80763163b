// The reader against the reference library's files and damaged ones; the writer against the reference's bytes; sharded models.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { ShapeError, UsageError } from "../../src/errors.ts";
import { openSafetensors, readSafetensors, writeSafetensors } from "../../src/formats/safetensors.ts";
import { type Origin, renamed } from "../../src/formats/mapped_store.ts";
import { openModel } from "../../src/formats/shards.ts";
import { mutated, mutations } from "../helpers/mutations.ts";
import { guarded } from "../helpers/pickles.ts";

const fixture = (name: string) => new URL(`../fixtures/${name}`, import.meta.url).pathname;
const folder = await Deno.makeTempDir();
let files = 0;

/** A file of a header (text or bytes) with its length before it, and data after it. */
function make(header: string | Uint8Array, data: Uint8Array | number = 0, length?: bigint): string {
  const text = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const bytes = new Uint8Array(8 + text.length + (typeof data === "number" ? data : data.length));
  new DataView(bytes.buffer).setBigUint64(0, length ?? BigInt(text.length), true);
  bytes.set(text, 8);
  if (typeof data !== "number") bytes.set(data, 8 + text.length);
  return save(bytes);
}

function save(bytes: Uint8Array): string {
  const path = `${folder}/${files++}.safetensors`;
  Deno.writeFileSync(path, bytes);
  return path;
}

async function reading<T>(
  path: string,
  use: (file: Awaited<ReturnType<typeof openSafetensors>>) => Promise<T>,
) {
  const file = await openSafetensors(path);
  try {
    return await use(file);
  } finally {
    file.close();
  }
}

/** Header text of one F32 tensor with some fields changed. */
const one = (fields: string) => `{"x":{${fields}}}`;

const WRONG: [string, () => string, string][] = [
  ["an empty file", () => save(new Uint8Array()), "it is empty (0 bytes); fetch the file itself"],
  ["a file of 7 bytes", () => save(new Uint8Array(7)), "7 bytes are no safetensors file"],
  ["a header of length 0", () => make(""), "is not JSON"],
  ["a header longer than the file", () => make("{}", 0, 99n), "claims 99 bytes, the file has 10"],
  ["a header of more than 100 MB", () => make("{}", 0, 100_000_001n), "at most 100000000 are allowed"],
  ["a header of 2^63 bytes", () => make("{}", 0, 1n << 63n), "claims 9223372036854775808 bytes"],
  ["a header that is not UTF-8", () => make(new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d])), "is not JSON"],
  ["a header that is not JSON", () => make('{"x":'), "is not JSON"],
  ["a header with a leading space", () => make(" {}"), "it does not begin with {"],
  ["a header with a byte order mark", () => make("\ufeff{}"), "it does not begin with {"],
  ["a header that is a list", () => make("[]"), "it does not begin with {"],
  [
    "a repeated tensor",
    () => make('{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{}}', 1),
    '"x" is twice',
  ],
  [
    "a repeated tensor in disguise",
    () => make('{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0078":{}}', 1),
    '"x" is twice',
  ],
  [
    "a repeated field",
    () => make(one('"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]'), 1),
    '"dtype" is twice',
  ],
  [
    "an unknown dtype",
    () => make(one('"dtype":"F5","shape":[1],"data_offsets":[0,1]'), 1),
    'dtype "F5" of "x" is unknown',
  ],
  [
    "a dtype from the prototype",
    () => make(one('"dtype":"constructor","shape":[1],"data_offsets":[0,1]'), 1),
    'dtype "constructor" of "x" is unknown',
  ],
  ["no dtype", () => make(one('"shape":[1],"data_offsets":[0,1]'), 1), "is unknown"],
  ["no shape", () => make(one('"dtype":"U8","data_offsets":[0,1]'), 1), 'the shape of "x" is undefined'],
  [
    "a negative size",
    () => make(one('"dtype":"U8","shape":[-1,-1],"data_offsets":[0,1]'), 1),
    'the shape of "x"',
  ],
  [
    "a fractional size",
    () => make(one('"dtype":"U8","shape":[0.5,2],"data_offsets":[0,1]'), 1),
    'the shape of "x"',
  ],
  ["one offset", () => make(one('"dtype":"U8","shape":[1],"data_offsets":[0]'), 1), 'the offsets of "x"'],
  [
    "a negative offset",
    () => make(one('"dtype":"U8","shape":[1],"data_offsets":[-1,0]'), 1),
    'the offsets of "x"',
  ],
  [
    "an offset of 1e300",
    () => make(one('"dtype":"U8","shape":[1],"data_offsets":[0,1e300]'), 1),
    'the offsets of "x"',
  ],
  [
    "an offset in words",
    () => make(one('"dtype":"U8","shape":[1],"data_offsets":["0","1"]'), 1),
    'the offsets of "x"',
  ],
  [
    "offsets in reverse",
    () => make(one('"dtype":"U8","shape":[1],"data_offsets":[1,0]'), 1),
    "does not fill",
  ],
  [
    "a shape beyond its bytes",
    () => make(one('"dtype":"F32","shape":[2],"data_offsets":[0,4]'), 4),
    "does not fill",
  ],
  [
    "a shape that overflows 64 bits to the right size",
    () => make(one('"dtype":"U8","shape":[4294967296,4294967296,1],"data_offsets":[0,0]'), 0),
    "overflows",
  ],
  [
    "ten million elements that are not there",
    () => make(one('"dtype":"F32","shape":[10000000],"data_offsets":[0,40000000]'), 8),
    "its tensors end at byte",
  ],
  ["a hole", () => make(one('"dtype":"U8","shape":[1],"data_offsets":[1,2]'), 2), 'a hole before "x"'],
  [
    "an overlap",
    () =>
      make(
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
        3,
      ),
    'an overlap before "b"',
  ],
  [
    "bytes after the last tensor",
    () => make(one('"dtype":"U8","shape":[1],"data_offsets":[0,1]'), 2),
    "the file at byte",
  ],
  [
    "missing bytes at the end",
    () => make(one('"dtype":"U8","shape":[9],"data_offsets":[0,9]'), 8),
    "the file at byte",
  ],
  [
    "an unknown field",
    () => make(one('"dtype":"U8","shape":[1],"data_offsets":[0,1],"k":1'), 1),
    'unknown field "k"',
  ],
  ["a tensor that is null", () => make('{"x":null}'), '"x" is not described by an object'],
  ["metadata that is a list", () => make('{"__metadata__":["a"]}'), "its metadata is not an object"],
  ["metadata with a number", () => make('{"__metadata__":{"a":1}}'), 'its metadata "a" is not a string'],
];
for (const [what, path, reason] of WRONG) {
  Deno.test(`openSafetensors() refuses ${what} in one line`, async () => {
    const file = path();
    const { message } = await assertRejects(() => openSafetensors(file), UsageError, reason);
    assert(message.startsWith(`Cannot read "${file}": `) && !message.includes("\n"), message);
  });
}

Deno.test("openSafetensors() reports what is wrong with the path", async () => {
  await assertRejects(() => openSafetensors(folder), UsageError, "it is a folder and not a file");
  await assertRejects(() => openSafetensors(`${folder}/none`), UsageError, "it does not exist");
  Deno.symlinkSync(`${folder}/loop`, `${folder}/loop`);
  await assertRejects(() => openSafetensors(`${folder}/loop`), UsageError, "lead in a circle");
});

Deno.test("openSafetensors() accepts trailing spaces, empty tensors, rank 0 and names from the prototype", async () => {
  const entry = (dtype: string, shape: string, offsets: string) =>
    `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
  const path = make(
    `{"__proto__":${entry("F32", "[]", "[0,4]")},"constructor":${entry("U8", "[1]", "[4,5]")},` +
      `"none":${entry("F32", "[3,0]", "[5,5]")},"__metadata__":{"__proto__":"m"}}   `,
    new Uint8Array([0, 0, 0xc0, 0x7f, 7]),
  );
  await reading(path, async (file) => {
    assertEquals([...file.tensors.keys()], ["__proto__", "constructor", "none"]);
    assertEquals(file.metadata, new Map([["__proto__", "m"]]));
    assertEquals([...await file.read("__proto__")], [NaN]);
    assertEquals([...await file.readIntegers("constructor")], [7]);
    assertEquals((await file.read("none")).length, 0);
    await assertRejects(() => file.read("toString"), UsageError, "has no such tensor");
  });
});

Deno.test("openSafetensors() reads every dtype of the reference files as numbers", async () => {
  await reading(fixture("reference.safetensors"), async (file) => {
    assertEquals(file.metadata.get("format"), "pt");
    assertEquals(file.shapes.get("b.weight"), [2, 3]);
    assertEquals([...await file.read("b.weight")], [0, 0.25, 0.5, 0.75, 1, 1.25]);
    assertEquals([...await file.readRows("b.weight", 1, 2)], [0.75, 1, 1.25]);
    assertEquals([...await file.readIntegers("a.ids")], [1, -2, 3]);
    assertEquals([...await file.readIntegers("byte")], [1, 255]);
    assertEquals([...await file.read("half")], [0.5, -65504, 2 ** -24]); // the smallest denormal
    assertEquals([...await file.read("double")], [Math.fround(Math.PI)]);
    await assertRejects(() => file.read("a.ids"), UsageError, "its dtype is I64");
    await assertRejects(() => file.readIntegers("half"), UsageError, "its dtype is F16");
  });
  await reading(fixture("bfloat16.safetensors"), async (file) => {
    assertEquals([...await file.read("x")], [1.5, -2, Infinity, 2 ** -133, 3.140625]); // of 1e-40 and pi
  });
});

Deno.test("readIntegers() refuses values beyond 32 bits", async () => {
  const path = `${folder}/large.safetensors`;
  await writeSafetensors(path, [{ name: "x", shape: [1], data: new BigInt64Array([1n << 40n]) }]);
  await reading(
    path,
    (file) => assertRejects(() => file.readIntegers("x"), UsageError, "1099511627776 is beyond 32 bits"),
  );
});

Deno.test("a tensor whose data is not aligned is read", async () => {
  const data = new Uint8Array(9);
  new DataView(data.buffer).setFloat32(1, 2.5, true);
  new DataView(data.buffer).setFloat32(5, -1, true);
  const path = make(
    '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}',
    data,
  );
  assertEquals([...await reading(path, (file) => file.read("x"))], [2.5, -1]);
});

Deno.test("a file that shrinks while it is open gives a UsageError", async () => {
  const path = `${folder}/shrinking.safetensors`;
  await writeSafetensors(path, [{ name: "x", shape: [100], data: new Float32Array(100) }]);
  await reading(path, async (file) => {
    Deno.truncateSync(path, 200);
    await assertRejects(() => file.read("x"), UsageError, "it ends after 200 bytes");
  });
});

Deno.test("writeSafetensors() writes the bytes of the reference file", async () => {
  const path = `${folder}/ours.safetensors`;
  await writeSafetensors(path, [
    { name: "b.weight", shape: [2, 3], data: Float32Array.from([0, 0.25, 0.5, 0.75, 1, 1.25]) },
    { name: "a.ids", shape: [3], data: new BigInt64Array([1n, -2n, 3n]) },
    { name: "half", shape: [3], data: Float16Array.from([0.5, -65504, 6e-8]) },
    { name: "byte", shape: [2, 1], data: new Uint8Array([1, 255]) },
    { name: "double", shape: [], data: new Float64Array([Math.PI]) },
    { name: "empty", shape: [0, 4], data: () => Promise.resolve(new Float32Array()), dtype: "F32" },
  ], { format: "pt" });
  assertEquals(Deno.readFileSync(path), Deno.readFileSync(fixture("reference.safetensors")));
});

Deno.test("writeSafetensors() refuses data that does not fill its shape, and duplicate names", async () => {
  const path = `${folder}/refused.safetensors`;
  const data = new Float32Array(3);
  for (
    const [tensors, reason] of [
      [[{ name: "x", shape: [2, 2], data }], '"x" has 12 bytes, its shape needs 16'],
      [
        [{ name: "x", shape: [2, 2], data: () => data, dtype: "F32" }],
        '"x" has 12 bytes, its shape needs 16',
      ],
      [[{ name: "x", shape: [3], data }, { name: "x", shape: [3], data }], '"x" is taken'],
      [[{ name: "__metadata__", shape: [3], data }], '"__metadata__" is taken'],
      [[{ name: "x", shape: [3], data: () => data }], 'the dtype of "x" is not known'],
    ] as const
  ) await assertRejects(() => writeSafetensors(path, tensors), ShapeError, reason);
  assertEquals([...Deno.readDirSync(folder)].filter(({ name }) => /refused|tmp/.test(name)), []);
});

Deno.test("ten thousand mutations of a file end in the same tensors or in a UsageError", async () => {
  const whole = Deno.readFileSync(fixture("reference.safetensors"));
  await fc.assert(
    fc.asyncProperty(mutations(whole.length), async (changes) => {
      const bytes = mutated(whole, changes);
      try {
        const file = readSafetensors(guarded(bytes));
        for (const [name, { begin, end }] of file.tensors) {
          assert(begin >= 8 && begin <= end && end <= bytes.length, `${name} lies outside the file`);
          assertEquals(await file.readBytes(name), bytes.slice(begin, end));
        }
      } catch (error) {
        if (!(error instanceof UsageError)) throw error;
      }
    }),
    { numRuns: 10_000 },
  );
});

// Sharded models

/** A model of two shards; `change` may spoil it. */
async function sharded(
  change: (folder: string, index: Record<string, string>) => void = () => {},
): Promise<string> {
  const model = await Deno.makeTempDir();
  await writeSafetensors(`${model}/a.safetensors`, [{
    name: "x",
    shape: [2],
    data: new Float32Array([1, 2]),
  }]);
  await writeSafetensors(`${model}/b.safetensors`, [{ name: "y", shape: [1], data: new Int32Array([3]) }]);
  const index = { x: "a.safetensors", y: "b.safetensors" };
  change(model, index);
  Deno.writeTextFileSync(`${model}/model.safetensors.index.json`, JSON.stringify({ weight_map: index }));
  return model;
}

Deno.test("openModel() reads shards as one model, a single file, and a path to a file", async () => {
  const model = await openModel(await sharded());
  assertEquals([...model.shapes], [["x", [2]], ["y", [1]]]);
  assertEquals([...await model.read("x")], [1, 2]);
  assertEquals([...await model.readIntegers("y")], [3]);
  await assertRejects(() => model.read("z"), UsageError, "has no such tensor");
  model.close();
  const single = await Deno.makeTempDir();
  Deno.copyFileSync(fixture("reference.safetensors"), `${single}/model.safetensors`);
  for (const path of [single, `${single}/model.safetensors`]) {
    const file = await openModel(path);
    assertEquals(file.shapes.size, 6);
    file.close();
  }
});

Deno.test("openModel() refuses missing shards, shards of another folder, and wrong indices", async () => {
  const refuses = async (reason: string, change: Parameters<typeof sharded>[0]) => {
    const model = await sharded(change);
    await assertRejects(() => openModel(model), UsageError, reason);
  };
  await refuses('"b.safetensors" is missing', (model) => Deno.removeSync(`${model}/b.safetensors`));
  for (const name of ["../a.safetensors", "/etc/passwd", "..", ".", "sub\\a.safetensors", "", "a\0b"]) {
    await refuses("is not a file name", (_, index) => index["x"] = name);
  }
  await refuses('"z" is not in it, although the index says so', (_, index) => index["z"] = "a.safetensors");
  const empty = await Deno.makeTempDir();
  await assertRejects(() => openModel(empty), UsageError, 'neither "model.safetensors" nor');
  await assertRejects(() => openModel(`${empty}/none`), UsageError, 'neither "model.safetensors" nor');
  for (const text of ["{}", "[]", '{"weight_map":[]}', "null"]) {
    Deno.writeTextFileSync(`${empty}/model.safetensors.index.json`, text);
    await assertRejects(() => openModel(empty), UsageError, 'it has no "weight_map"');
  }
  Deno.writeTextFileSync(`${empty}/model.safetensors.index.json`, "{");
  await assertRejects(() => openModel(empty), UsageError, "it is not JSON");
});

Deno.test("renamed() reads tensors and their rows by other names, and omits missing ones", async () => {
  const path = `${folder}/fused.safetensors`;
  const data = Float32Array.from({ length: 12 }, (_, i) => i);
  await writeSafetensors(path, [{ name: "qkv", shape: [6, 2], data }, {
    name: "b",
    shape: [1],
    data: data.slice(7, 8),
  }]);
  const file = await openModel(path);
  const model = renamed(
    file,
    new Map<string, Origin>([
      ["key", { key: "qkv", rows: [2, 4] }],
      ["all", "qkv"],
      ["bias", "b"],
      ["absent", "none"],
      ["rows", { key: "none", rows: [0, 1] }],
    ]),
  );
  assertEquals([...model.shapes], [["key", [2, 2]], ["all", [6, 2]], ["bias", [1]]]);
  assertEquals([...await model.read("key")], [4, 5, 6, 7]);
  assertEquals([...await model.read("all")], [...data]);
  assertEquals([...await model.read("bias")], [7]);
  await assertRejects(() => model.read("qkv"), UsageError, 'no tensor of "');
  for (const rows of [[4, 7], [-1, 2], [3, 2]] as [number, number][]) {
    const make = () => renamed(file, new Map([["x", { key: "qkv", rows }]]));
    assertThrows(make, UsageError, `rows ${rows[0]} to ${rows[1]} of "qkv" are asked for, and it is [6, 2]`);
  }
  file.close();
});
