// Hostile torch files: each fault of views, storages, archives, the legacy form and the contents ends in one line, and
// nothing in them is executed.

import { assert, assertThrows } from "@std/assert";
import { UsageError } from "../../src/errors.ts";
import { readTorch } from "../../src/formats/torch.ts";
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
} from "../helpers/pickles.ts";

const open = (content: Uint8Array) => readTorch(guarded(content));
const zipped = (contents: Part, changes?: Record<string, Partial<MemberParts> | null>) =>
  open(zip(members(contents, changes)));
const model = dict({ w: tensor() });

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
    "a shape that overflows next to a zero",
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
    "has a parameter that is not a tensor",
  ],
  [
    "a tensor that is negated in name only",
    sizes({ more: [dict({ neg: "\x88" })] }),
    "has a tensor with flags",
  ],
  // Storages
  ["a storage of -1 elements", sizes({ count: -1 }), "refers to something that is not a storage"],
  [
    "a storage of a type that is none",
    () => zipped([tuple(text("storage"), int(1), text("0"), text("cpu"), int(6)), "Q"]),
    "refers to something that is not a storage",
  ],
  [
    "a module outside",
    () => zipped([tuple(text("module"), int(1)), "Q"]),
    "refers to something that is not a storage",
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
  [
    "no pickle",
    damage({ "x/data.pkl": null }),
    'it is a zip archive of "x/byteorder", "x/data/0", "x/version" and not one that torch.save wrote; unpack it',
  ],
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
  [
    "an archive that is empty",
    () => open(zip([])),
    "it is a zip archive of nothing and not one that torch.save",
  ],
  ["an archive's beginning", () => open(bytes("PK\x03\x04")), "it is not a complete zip archive"],
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
    "it holds no tensors and is not a checkpoint",
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
    "a billion of one tensor",
    () => zipped(["]", tensor(), "a", Array(30).fill(["2\x86"])]),
    "it has more than 100000 tensors",
  ],
  [
    "a billion of one value",
    () => zipped(["(", tensor(), "]", ")", "a", Array(30).fill(["2\x86"]), "t"]),
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
