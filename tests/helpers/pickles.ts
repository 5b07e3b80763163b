// Hand-assembled pickles, zip archives and torch files, including ones that no library writes, for the readers' tests.

import { crc32 } from "node:zlib";
import type { ByteSource } from "../../src/formats/bytes.ts";

/** A part of a pickle: text is its characters as bytes, so that "]" is EMPTY_LIST; numbers are bytes. */
export type Part = string | number | Uint8Array | Part[];

/** The bytes of parts in a row. */
export function bytes(...parts: Part[]): Uint8Array<ArrayBuffer> {
  const pieces = parts.map((part): Uint8Array => {
    if (typeof part === "number") return Uint8Array.of(part);
    if (typeof part === "string") return Uint8Array.from(part, (c) => c.charCodeAt(0));
    return part instanceof Uint8Array ? part : bytes(...part);
  });
  const all = new Uint8Array(pieces.reduce((n, piece) => n + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

/** `width` bytes of a number, little-endian. */
export function little(value: number | bigint, width: number): Uint8Array {
  return Uint8Array.from({ length: width }, (_, i) => Number((BigInt(value) >> BigInt(8 * i)) & 255n));
}

/** BINUNICODE */
export const text = (value: string): Part => {
  const utf8 = new TextEncoder().encode(value);
  return ["X", little(utf8.length, 4), utf8];
};
/** LONG1 */
export const int = (value: number | bigint): Part => [0x8a, 9, little(value, 9)];
export const tuple = (...items: Part[]): Part => ["(", items, "t"];
export const global = (name: string): Part => {
  const at = name.lastIndexOf(".");
  return `c${name.slice(0, at)}\n${name.slice(at + 1)}\n`;
};
export const call = (name: string, ...args: Part[]): Part => [global(name), tuple(...args), "R"];
export const dict = (entries: Record<string, Part>): Part => [
  "}(",
  ...Object.entries(entries).flatMap(([key, value]) => [text(key), value]),
  "u",
];
export const pickle = (...parts: Part[]): Uint8Array<ArrayBuffer> => bytes(0x80, 2, ...parts, ".");

export interface TensorParts {
  key?: string;
  type?: string;
  count?: number | bigint;
  offset?: number | bigint;
  shape?: readonly (number | bigint)[];
  stride?: readonly (number | bigint)[];
  more?: Part[];
}

/** A storage, by default of six floats called "0". */
export const storage = (
  { key = "0", type = "FloatStorage", count = 6 }: TensorParts = {},
  ...more: Part[]
): Part => [
  tuple(text("storage"), global(`torch.${type}`), text(key), text("cpu"), int(count), ...more),
  "Q",
];

/** A tensor, by default [2, 3]. */
export const tensor = (parts: TensorParts = {}): Part => {
  const { offset = 0, shape = [2, 3], stride = [3, 1], more = [] } = parts;
  return call(
    "torch._utils._rebuild_tensor_v2",
    storage(parts),
    int(offset),
    tuple(...shape.map(int)),
    tuple(...stride.map(int)),
    "\x89",
    call("collections.OrderedDict"),
    ...more,
  );
};

/** A member of an archive; what is given besides the bytes is what the archive says. */
export interface MemberParts {
  name: string;
  data: Uint8Array;
  crc?: number;
  method?: number;
  size?: number;
  compressed?: number;
}

/** A zip archive without ZIP64. */
export function zip(members: readonly MemberParts[]): Uint8Array<ArrayBuffer> {
  const locals: Uint8Array[] = [], central: Uint8Array[] = [];
  let at = 0;
  for (
    const { name, data, crc = crc32(data), method = 0, size = data.length, compressed = size } of members
  ) {
    const head = [
      little(20, 2),
      little(0, 2),
      little(method, 2),
      little(0, 4),
      little(crc, 4),
      little(compressed, 4),
      little(size, 4),
    ];
    const local = bytes("PK\x03\x04", ...head, little(name.length, 2), 0, 0, name, data);
    const names = [little(name.length, 2), little(0, 12), little(at, 4), name];
    central.push(bytes("PK\x01\x02", little(20, 2), ...head, ...names));
    locals.push(local);
    at += local.length;
  }
  const directory = bytes(...central), count = little(members.length, 2);
  return bytes(
    ...locals,
    directory,
    "PK\x05\x06",
    0,
    0,
    0,
    0,
    count,
    count,
    little(directory.length, 4),
    little(at, 4),
    0,
    0,
  );
}

/** The members of a torch file: a pickle, and storage "0" of the floats 0 to 5. */
export function members(
  contents: Part,
  changes: Record<string, Partial<MemberParts> | null> = {},
): MemberParts[] {
  const usual: MemberParts[] = [
    { name: "x/data.pkl", data: pickle(contents) },
    { name: "x/byteorder", data: bytes("little") },
    { name: "x/data/0", data: new Uint8Array(Float32Array.from([0, 1, 2, 3, 4, 5]).buffer) },
    { name: "x/version", data: bytes("3\n") },
  ];
  return usual.flatMap((member) => {
    const change = changes[member.name];
    return change === null ? [] : [{ ...member, ...change }];
  });
}

/** The legacy form of the same. */
export function legacy(contents: Part, { order = "\x88", keys = ["0"], count = 6 as number | bigint, data }: {
  order?: Part;
  keys?: readonly string[];
  count?: number | bigint;
  data?: Uint8Array;
} = {}): Uint8Array<ArrayBuffer> {
  const floats = data ?? new Uint8Array(Float32Array.from([0, 1, 2, 3, 4, 5]).buffer);
  return bytes(
    pickle([0x8a, 10, little(0x1950a86a20f9469cfc6cn, 10)]),
    pickle("M", little(1001, 2)),
    pickle(dict({ little_endian: order })),
    pickle(contents),
    pickle("](", ...keys.map(text), "e"),
    ...keys.flatMap(() => [little(count, 8), floats]),
  );
}

/** Bytes in memory; reading what is not there is a mistake of the reader, and no UsageError. */
export function guarded(content: Uint8Array): ByteSource & { closed: number } {
  return {
    name: "memory",
    size: content.length,
    closed: 0,
    readInto(offset, target) {
      if (!(Number.isSafeInteger(offset) && offset >= 0 && offset + target.length <= content.length)) {
        throw new RangeError(`reads ${target.length} bytes at ${offset} of ${content.length}`);
      }
      target.set(content.subarray(offset, offset + target.length));
    },
    close() {
      this.closed++;
    },
  };
}
