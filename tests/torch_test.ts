// Torch files: what PyTorch wrote is read as PyTorch reads it, in both forms; whatever is hostile or damaged ends in one
// line; ten thousand mutations of each form never crash, hang or read outside the file.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { UsageError } from "../src/errors.ts";
import { openBytes } from "../src/io/bytes.ts";
import { openSafetensors } from "../src/io/safetensors.ts";
import { openModel } from "../src/io/shards.ts";
import { openTorch, readTorch } from "../src/io/torch.ts";
import { mutated, mutations } from "./mutations.ts";
import {
  bytes,
  call,
  dict,
  guarded,
  int,
  legacy,
  type MemberParts,
  members,
  type Part,
  pickle,
  storage,
  tensor,
  text,
  tuple,
  zip,
} from "./pickles.ts";

const fixture = (name: string) => new URL(`fixtures/${name}`, import.meta.url).pathname;
const open = (content: Uint8Array) => readTorch(guarded(content));
const zipped = (contents: Part, changes?: Record<string, Partial<MemberParts> | null>) =>
  open(zip(members(contents, changes)));
const model = dict({ w: tensor() });

for (const form of ["zip", "legacy"]) {
  Deno.test(`openTorch() reads every tensor of the ${form} form as PyTorch does`, async () => {
    const ours = await openTorch(fixture(`torch_${form}.pth`));
    const expected = await openSafetensors(fixture("torch_expected.safetensors"));
    assertEquals([...ours.tensors.keys()].sort(), [...expected.tensors.keys()].sort());
    for (const [key, { dtype, shape }] of expected.tensors) {
      const { dtype: d, shape: s } = ours.tensors.get(key) ?? {};
      assertEquals([key, d, s], [key, dtype, shape]);
      assertEquals(await ours.readBytes(key), await expected.readBytes(key), key);
      assertEquals(
        bytes(...[...ours.parts(key)].map((part) => part.slice())),
        await expected.readBytes(key),
        key,
      );
      if (/F/.test(dtype)) {
        assertEquals(await ours.read(key), await expected.read(key), key);
        assertEquals(await ours.readRows(key, 1, 3), await expected.readRows(key, 1, 3), key);
      } else assertEquals(await ours.readIntegers(key), await expected.readIntegers(key), key);
    }
    expected.close();
    ours.close();
  });
}

Deno.test("both forms and another protocol hold the same plain values, as JSON", async () => {
  const [zip, legacy, other] = await Promise.all(
    ["zip", "legacy", "protocol4"].map((form) => openTorch(fixture(`torch_${form}.pth`))),
  );
  assertEquals(zip?.metadata, legacy?.metadata);
  for (const [key, value] of other?.metadata ?? []) assertEquals(value, zip?.metadata.get(key), key);
  for (const key of other?.tensors.keys() ?? []) {
    assertEquals(await other?.readBytes(key), await zip?.readBytes(key), key);
  }
  const values = Object.fromEntries(
    [...zip?.metadata ?? []].filter(([key]) => /^(plain|args|list)/.test(key)),
  );
  assertEquals(values, {
    "plain.step": "7",
    "plain.loss": "0.25",
    "plain.best": '"Infinity"',
    "plain.none": "null",
    "plain.yes": "true",
    "plain.big": "1180591620717411303424",
    "plain.negative": "-3",
    "plain.text": '"é\\"\\n"',
    "plain.bytes": '"3 bytes"',
    "plain.tuple": '[1,"a",2.5]',
    "plain.empty": "[]",
    "plain.no_items": "{}",
    "plain.set": "[5]",
    "plain.size": "[2,3]",
    "plain.device": '"torch.device"',
    "plain.dtype": '"torch.float16"',
    "plain.counter.a": "2",
    "plain.counter.b": "1",
    "plain.default.k": "1",
    "plain.range": "[true,null]",
    "plain.3": '"three"',
    'plain.1,"x"': '"pair"',
    "args.model": '"DiT-XL/2"',
    "args.lr": "0.0001",
    "args.cfg": "null",
    "args.sizes": "[1,2]",
    "args.more.deep": "true",
    "list.2": '"text"',
  });
  for (const file of [zip, legacy, other]) file?.close();
});

Deno.test("openModel() goes by what is in a file, and takes the names that folders have used", async () => {
  const folder = await Deno.makeTempDir();
  Deno.copyFileSync(fixture("torch_zip.pth"), `${folder}/weights.safetensors`);
  Deno.copyFileSync(fixture("torch_expected.safetensors"), `${folder}/weights.pth`);
  const keys = async (path: string) => {
    const store = await openModel(path);
    store.close();
    return store.shapes.size;
  };
  assertEquals(await keys(`${folder}/weights.safetensors`), 47);
  assertEquals(await keys(`${folder}/weights.pth`), 47);
  await assertRejects(() => keys(folder), UsageError, "there is neither");
  Deno.copyFileSync(fixture("torch_legacy.pth"), `${folder}/pytorch_model.bin`);
  assertEquals(await keys(folder), 47);
  Deno.copyFileSync(fixture("reference.safetensors"), `${folder}/diffusion_pytorch_model.safetensors`);
  assertEquals(await keys(folder), 6);
  const sharded = await Deno.makeTempDir();
  Deno.copyFileSync(fixture("torch_zip.pth"), `${sharded}/a.bin`);
  Deno.writeTextFileSync(
    `${sharded}/pytorch_model.bin.index.json`,
    JSON.stringify({ weight_map: { parameter: "a.bin" } }),
  );
  assertEquals(await keys(sharded), 1);
  await assertRejects(() => openTorch(`${folder}/none.pth`), UsageError, "it does not exist");
  await assertRejects(() => openTorch(folder), UsageError, "it is a folder and not a file");
});

Deno.test("a tensor alone is called tensor, and lists go by their indices", async () => {
  assertEquals([...zipped(tensor()).shapes], [["tensor", [2, 3]]]);
  const file = zipped([
    "](",
    tensor(),
    call("torch._utils._rebuild_parameter", tensor({ shape: [6], stride: [1] }), "\x88", "N"),
    "e",
  ]);
  assertEquals([...file.shapes], [["0", [2, 3]], ["1", [6]]]);
  assertEquals([...await file.read("1")], [0, 1, 2, 3, 4, 5]);
});

Deno.test("views of any strides are gathered, whole and by rows", async () => {
  const views: [number[], number[], number, number[]][] = [
    [[3, 2], [1, 3], 0, [0, 3, 1, 4, 2, 5]],
    [[2, 2], [3, 2], 1, [1, 3, 4, 6]],
    [[2, 3], [0, 2], 1, [1, 3, 5, 1, 3, 5]],
    [[2, 2, 2], [0, 1, 1], 2, [2, 3, 3, 4, 2, 3, 3, 4]],
    [[2, 1, 3], [1, 99, 2], 0, [0, 2, 4, 1, 3, 5]],
    [[4], [0], 5, [5, 5, 5, 5]],
    [[], [], 4, [4]],
    [[0, 4], [1, 1], 6, []],
  ];
  for (const [shape, stride, offset, values] of views) {
    const floats = new Uint8Array(Float32Array.from([0, 1, 2, 3, 4, 5, 6]).buffer);
    const file = zipped(dict({ w: tensor({ shape, stride, offset, count: 7 }) }), {
      "x/data/0": { data: floats },
    });
    assertEquals([...await file.read("w")], values);
    const width = values.length / (shape[0] || 1);
    assertEquals([...await file.readRows("w", 1, 2)], values.slice(width, 2 * width));
  }
});

Deno.test("a transposed matrix of many blocks is read in one pass, and equals itself", async () => {
  const [M, N] = [1301, 977];
  const data = Uint32Array.from({ length: M * N }, (_, i) => i);
  const count = M * N,
    content = zip(members(dict({ w: tensor({ type: "IntStorage", shape: [N, M], stride: [1, N], count }) }), {
      "x/data/0": { data: new Uint8Array(data.buffer) },
    }));
  const source = guarded(content);
  let read = 0;
  const counting = {
    ...source,
    readInto: (at: number, target: Uint8Array) => {
      read += target.length;
      source.readInto(at, target);
    },
  };
  const file = readTorch(counting);
  read = 0;
  const values = await file.readIntegers("w");
  assertEquals(read, 4 * count);
  assert(values.every((value, i) => value === (i % M) * N + Math.floor(i / M)));
});

const sizes = (parts: Parameters<typeof tensor>[0]) => () => zipped(dict({ w: tensor(parts) }));
const damage = (changes: Record<string, Partial<MemberParts> | null>) => () => zipped(model, changes);
/** Ten storages, all of them the same bytes of the file. */
const overlapping = () => {
  const keys = [..."0123456789"], data = new Uint8Array(4000);
  const pickled = {
    name: "x/data.pkl",
    data: pickle(tuple(...keys.map((key) => tensor({ key, count: 1000 })))),
  };
  const content = zip([
    pickled,
    ...keys.map((key) => ({
      name: `x/data/${key}`,
      data: key === "9" ? data : data.slice(0, 0),
      size: 4000,
    })),
  ]);
  return open(content);
};
const WRONG: [string, () => unknown, string][] = [
  // Views
  ["an offset beyond the storage", sizes({ offset: 1 }), 'from element 1 on: the storage "0" has 6 elements'],
  ["an offset of 2^53", sizes({ offset: 1n << 53n }), "whose storage, offset, shape or strides are none"],
  ["a negative offset", sizes({ offset: -1 }), "whose storage, offset, shape or strides are none"],
  ["a shape beyond the storage", sizes({ shape: [3, 3] }), "has a tensor of shape [3, 3] and strides [3, 1]"],
  ["strides beyond the storage", sizes({ stride: [4, 1] }), "and strides [4, 1]"],
  ["a negative stride", sizes({ stride: [-3, 1] }), "whose storage, offset, shape or strides are none"],
  ["a negative size", sizes({ shape: [-2, -3] }), "whose storage, offset, shape or strides are none"],
  ["fewer strides than sizes", sizes({ stride: [1] }), "whose storage, offset, shape or strides are none"],
  [
    "a hundred axes",
    sizes({ shape: Array(100).fill(1), stride: Array(100).fill(1) }),
    "whose storage, offset, shape",
  ],
  ["a shape that overflows", sizes({ shape: [1n << 40n, 1n << 40n], stride: [0, 0] }), "which overflows"],
  [
    "a shape that overflows beside a zero",
    sizes({ shape: [...Array(22).fill((1n << 53n) - 1n), 0], stride: Array(23).fill(0) }),
    "which overflows",
  ],
  [
    "strides that overflow",
    sizes({ shape: [3, 3], stride: [(1n << 53n) - 1n, (1n << 53n) - 1n] }),
    "and strides",
  ],
  [
    "an element repeated to gigabytes",
    sizes({ shape: [1 << 25], stride: [0] }),
    "repeats the 6 elements of its storage too often",
  ],
  [
    "a tensor of what is no storage",
    () => zipped(dict({ w: call("torch._utils._rebuild_tensor_v2", int(1), int(0), tuple(), tuple()) })),
    "whose storage, offset",
  ],
  [
    "a parameter that is no tensor",
    () => zipped(call("torch._utils._rebuild_parameter", int(1))),
    "has a parameter that is no tensor",
  ],
  [
    "a tensor that is negated in name only",
    sizes({ more: [dict({ neg: "\x88" })] }),
    "has a tensor with flags",
  ],
  // Storages
  ["a storage of -1 elements", sizes({ count: -1 }), "refers to something that is no storage"],
  [
    "a storage of a type that is none",
    () => zipped([tuple(text("storage"), int(1), text("0"), text("cpu"), int(6)), "Q"]),
    "refers to something that is no storage",
  ],
  [
    "a module outside",
    () => zipped([tuple(text("module"), int(1)), "Q"]),
    "refers to something that is no storage",
  ],
  [
    "a view of a storage",
    () => zipped(storage({}, tuple(text("1"), int(0), int(6)))),
    'makes the storage "0" a view of another one',
  ],
  [
    "two types of one storage",
    () => zipped(tuple(tensor(), tensor({ type: "IntStorage" }))),
    'two descriptions of the storage "0"',
  ],
  [
    "two lengths of one storage",
    () => zipped(tuple(tensor(), tensor({ count: 7 }))),
    'two descriptions of the storage "0"',
  ],
  ["a storage that is missing", sizes({ key: "7" }), 'the storage "7" is missing'],
  [
    "a storage elsewhere",
    sizes({ key: "../../../etc/passwd" }),
    'the storage "../../../etc/passwd" is missing',
  ],
  ["a storage of another length", sizes({ count: 7 }), '"x/data/0" is of 24 bytes, and not of 7 F32'],
  // Archives
  [
    "a pickle with a wrong checksum",
    damage({ "x/data.pkl": { crc: 1 } }),
    'the checksum of "x/data.pkl" is wrong',
  ],
  [
    "a pickle that is deflated",
    damage({ "x/data.pkl": { method: 8 } }),
    '"x/data.pkl" is compressed, and must not be',
  ],
  [
    "a storage that is deflated",
    damage({ "x/data/0": { method: 8 } }),
    '"x/data/0" is compressed, and must not be',
  ],
  [
    "a storage of two sizes",
    damage({ "x/data/0": { compressed: 23 } }),
    '"x/data/0" has two sizes, 23 and 24',
  ],
  [
    "a storage that ends behind the file",
    () => zipped(dict({ w: tensor({ count: 600 }) }), { "x/data/0": { size: 2400 } }),
    '"x/data/0" is cut off',
  ],
  ["a pickle of 4 GB", damage({ "x/data.pkl": { size: 0xfffffffe } }), "at most 67108864 are allowed"],
  ["no pickle", damage({ "x/data.pkl": null }), '0 files "data.pkl"'],
  ["two pickles", damage({ "x/version": { name: "y/data.pkl" } }), '2 files "data.pkl"'],
  ["two storages of one name", damage({ "x/version": { name: "x/data/0" } }), '"x/data/0" is in it twice'],
  ["big-endian bytes", damage({ "x/byteorder": { data: bytes("big") } }), 'its byte order is "big"'],
  [
    "a TorchScript program",
    damage({ "x/version": { name: "x/constants.pkl" } }),
    "it is a TorchScript program",
  ],
  [
    "a member that begins beyond the file",
    () => open(zip(members(model)).map((b, i, all) => i >= all.length - 6 && i < all.length - 2 ? 0xff : b)),
    "directory",
  ],
  ["storages on top of each other", overlapping, "its storages overlap"],
  ["an archive that is empty", () => open(zip([])), '0 files "data.pkl"'],
  ["an archive's beginning", () => open(bytes("PK\x03\x04")), "it is not a whole zip archive"],
  // The legacy form
  [
    "the legacy form on a big-endian machine",
    () => open(legacy(model, { order: "\x89" })),
    'its byte order is "big"',
  ],
  [
    "a legacy storage of another length",
    () => open(legacy(model, { count: 5 })),
    'the storage "0" has 5 elements instead of 6',
  ],
  [
    "a legacy storage of a negative length",
    () => open(legacy(model, { count: -1n })),
    'the storage "0" has -1 elements',
  ],
  [
    "a legacy storage listed twice",
    () => open(legacy(model, { keys: ["0", "0"] })),
    "it lists a storage twice",
  ],
  [
    "a legacy storage that nothing asks for",
    () => open(legacy(model, { keys: ["1"] })),
    "or one that nothing asks for",
  ],
  ["a legacy storage that is missing", () => open(legacy(model, { keys: [] })), 'the storage "0" is missing'],
  [
    "a legacy storage that is cut off",
    () => open(legacy(model, { data: new Uint8Array(23) })),
    'the storage "0" is cut off',
  ],
  [
    "a pickle that torch.save did not write",
    () => open(pickle(dict({ a: int(1) }))),
    "it is a pickle, but not one of torch.save",
  ],
  [
    "a hostile pickle that torch.save did not write",
    () => open(pickle(call("posix.system", text("id")))),
    'asks for "posix.system"',
  ],
  ["a file that is neither", () => open(bytes("GIF89a")), "it is neither a zip archive nor a pickle"],
  ["an empty file", () => open(new Uint8Array()), "it is neither a zip archive nor a pickle"],
  // Contents
  [
    "a checkpoint without tensors",
    () => zipped(dict({ a: int(1), b: text("x") })),
    "it holds no tensors and is no checkpoint",
  ],
  [
    "a payload behind a tensor",
    () => zipped(dict({ w: tensor(), x: call("posix.system", text("id")) })),
    'asks for "posix.system"',
  ],
  [
    "a key twice",
    () => zipped(["}(", text("w"), tensor(), text("w"), tensor(), "u"]),
    'the name "w" is in it twice',
  ],
  [
    "two keys of one name",
    () => zipped(dict({ "a.w": tensor(), a: dict({ w: tensor() }) })),
    'the name "a.w" is in it twice',
  ],
  [
    "keys of two kinds and one name",
    () => zipped(["}(", text("1"), tensor(), int(1), tensor(), "u"]),
    'the name "1" is in it twice',
  ],
  ["a list that holds itself", () => zipped(["]q\x00h\x00a", tensor(), "a"]), "nested deeper than 100 times"],
  ["a dict that holds itself", () => zipped(["}q\x00", text("k"), "h\x00s"]), "nested deeper than 100 times"],
  [
    "a million nested tuples",
    () => zipped([tensor(), new Uint8Array(1_000_000).fill(0x85)]),
    "nested deeper than 100 times",
  ],
  [
    "a billion of one value",
    () => zipped(["]", tensor(), "a", Array(30).fill(["2\x86"])]),
    "more values than any checkpoint does",
  ],
  [
    "a long text a thousand times",
    () =>
      zipped([
        text("x".repeat(100_000)),
        "q\x000}(",
        ...Array.from({ length: 1000 }, (_, i) => [text(`k${i}`), "h\x00"]),
        "u",
      ]),
    "more values than any checkpoint does",
  ],
  [
    "a long key a thousand times",
    () =>
      zipped([
        text("x".repeat(100_000)),
        "q\x000](",
        ...Array.from({ length: 1000 }, () => ["}", "h\x00", "}s"]),
        "e",
      ]),
    "more values than any checkpoint does",
  ],
];
for (const [what, act, reason] of WRONG) {
  Deno.test(`readTorch() refuses ${what} in one line`, () => {
    const { message } = assertThrows(act, UsageError, reason) as UsageError;
    assert(message.startsWith('Cannot read "memory": ') && !message.includes("\n"), message);
  });
}

Deno.test("a storage whose checksum is wrong is refused once it has been read through", async () => {
  const file = zipped(dict({ w: tensor(), part: tensor({ shape: [2], stride: [1] }) }), {
    "x/data/0": { crc: 1 },
  });
  assertEquals([...await file.read("part")], [0, 1]); // a part of it cannot be checked
  await assertRejects(() => file.read("w"), UsageError, 'the checksum of "x/data/0" is wrong');
  assertThrows(() => [...file.parts("w")], UsageError, 'the checksum of "x/data/0" is wrong');
});

Deno.test("a file is closed once, by its store or by what was wrong with it", () => {
  for (
    const content of [zip(members(model)), zip(members(int(1))), bytes("PK"), legacy(model), legacy(int(1))]
  ) {
    const source = guarded(content);
    try {
      readTorch(source).close();
    } catch (error) {
      assert(error instanceof UsageError);
    }
    assertEquals(source.closed, 1);
  }
});

Deno.test("a file that shrinks while it is open gives a UsageError", async () => {
  const path = `${await Deno.makeTempDir()}/x.pth`;
  Deno.writeFileSync(path, legacy(model));
  const file = readTorch(openBytes(path));
  Deno.truncateSync(path, 20);
  await assertRejects(() => file.read("w"), UsageError, "it ends after 20 bytes");
  file.close();
});

for (const form of ["zip", "legacy"]) {
  const whole = Deno.readFileSync(fixture(`torch_${form}.pth`));

  Deno.test(`the ${form} form cut off at any byte is refused`, () => {
    for (let n = 0; n < whole.length; n++) assertThrows(() => open(whole.slice(0, n)), UsageError);
  });

  Deno.test(`ten thousand mutations of the ${form} form end in tensors or in a UsageError`, async () => {
    let opened = 0;
    await fc.assert(
      fc.asyncProperty(mutations(whole.length), async (changes) => {
        try {
          const file = open(mutated(whole, changes));
          opened++;
          for (const key of file.tensors.keys()) await file.readBytes(key);
        } catch (error) {
          if (!(error instanceof UsageError)) throw error;
          assert(!error.message.includes("\n"), error.message);
        }
      }),
      { numRuns: 10_000 },
    );
    assert(opened > 500, `only ${opened} of the mutated files could be opened at all`);
  });
}
