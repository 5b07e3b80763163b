// torch.save's files of weights: the zip format, and the legacy format before PyTorch 1.6 (pickles, then raw storages). The
// pickle becomes plain data; tensors are read on demand, block by block. Dict keys and list indices are joined with dots to
// names; numbers and texts go to the metadata as JSON, other objects are listed by class name.
// Format: PyTorch, torch/serialization.py.

import { BOUNDS } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { bytesAt, type ByteSource, damaged, memoryBytes, partOf } from "./bytes.ts";
import { Callable, Dict, Instance, Sequence, unpickle, type Value } from "./pickle.ts";
import { gather, isContiguous } from "./strided_read.ts";
import { DTYPE_BITS, TensorFile, type UnreadObject } from "./tensors.ts";
import { ByteString, Storage, TorchNames, View } from "./torch_names.ts";
import { type Member, ZipReader } from "./zip.ts";

const MAX_PICKLE = 1 << 26;
/** Maximum size of a checkpoint's contents: one per value, one per character of its name. */
const MAX_NAMES = 1 << 25;
const MAX_DEPTH = 100;
/** Maximum number of parts of objects to search for tensors, over all objects of a file. */
const MAX_SEARCHED = 1 << 20;
/** Maximum number of parts of a tuple as a key. */
const MAX_PARTS = 8;
const LEGACY_MAGIC = 0x1950a86a20f9469cfc6cn, LEGACY_PROTOCOL = 1001;

/** An open file. */
class TorchFile extends TensorFile<View> {
  constructor(
    private readonly source: ByteSource,
    tensors: ReadonlyMap<string, View>,
    metadata: ReadonlyMap<string, string>,
    override readonly unread: ReadonlyMap<string, UnreadObject>,
  ) {
    super(source.name, tensors, metadata);
  }

  protected fill(view: View, at: number, target: Uint8Array<ArrayBuffer>): void {
    const { storage, offset, shape, stride } = view, width = widthOf(view.dtype);
    const elements = storage.bytes as ByteSource;
    if (!target.length) return;
    if (isContiguous(view)) return elements.readInto(offset * width + at, target);
    const row = shape.slice(1).reduce((n, d) => n * d, width);
    const [step = 0] = stride;
    const rows = {
      offset: offset + at / row * step,
      shape: [target.length / row, ...shape.slice(1)],
      stride,
    };
    gather(elements, width, rows, target);
  }

  protected sequential(view: View): boolean {
    return isContiguous(view);
  }

  close(): void {
    this.source.close();
  }
}

const widthOf = (dtype: string) => (DTYPE_BITS[dtype] as number) / 8;

/** Whether bytes start like a zip archive or a pickle. A safetensors file may, too, but has "{" at byte 8. */
export function isTorch(source: ByteSource): boolean {
  const head = bytesAt(source, 0, Math.min(9, source.size)), [first = 0, second = 0] = head;
  return head[8] !== 0x7b && (first === 0x50 && second === 0x4b || first === 0x80 && second <= 5);
}

/** A torch file of either format. The bytes are closed with it, or at once if they are invalid. @throws UsageError then */
export function readTorch(source: ByteSource): TorchFile {
  try {
    const zipped = source.size > 1 && bytesAt(source, 0, 2)[0] === 0x50;
    return new TorchFile(source, ...flatten(zipped ? readZip(source) : readLegacy(source), source.name));
  } catch (error) {
    source.close();
    throw error;
  }
}

/** Zip format: the contents of X/data.pkl, with storages in X/data/. */
function readZip(source: ByteSource): Value {
  const zip = new ZipReader(source), { name } = source;
  const pickles = [...zip.members.values()].filter((member) => member.name.endsWith("/data.pkl"));
  const [pickle] = pickles;
  if (!pickle) {
    const names = [...zip.members.keys()].slice(0, 3).map((member) => JSON.stringify(member.slice(0, 100)));
    throw new UsageError(
      `Cannot read "${name}": it is a zip archive of ` +
        `${names.join(", ") || "nothing"}${zip.members.size > 3 ? " and others" : ""} and not one that ` +
        `torch.save wrote; unpack it, or give the file of the weights`,
    );
  }
  if (pickles.length > 1) {
    throw damaged(name, `it is a zip archive with ${pickles.length} files "data.pkl", torch.save writes one`);
  }
  const folder = pickle.name.slice(0, -"data.pkl".length);
  if (zip.members.has(`${folder}constants.pkl`)) {
    throw new UsageError(
      `Cannot read "${name}": it is a TorchScript program, which has to be run; save its state_dict() instead`,
    );
  }
  const contents = (member: Member, most: number): Uint8Array => {
    if (member.size > most) {
      throw damaged(name, `"${member.name}" is of ${member.size} bytes, at most ${most} are allowed`);
    }
    return bytesAt(zip.stored(member), 0, member.size);
  };
  const order = zip.members.get(`${folder}byteorder`);
  const endian = order && new TextDecoder().decode(contents(order, 64));
  if (endian !== undefined && endian !== "little") throw bigEndian(name, endian);
  const names = new TorchNames(name);
  const { value } = unpickle(memoryBytes(name, contents(pickle, MAX_PICKLE)), 0, names);
  let left = source.size; // storages that share bytes could claim more than the file holds
  for (const storage of names.storages.values()) {
    const member = zip.members.get(`${folder}data/${storage.key}`);
    if (!member) throw damaged(name, `the storage "${storage.key}" is missing`);
    if (storage.width && member.size !== storage.count * storage.width) {
      throw damaged(
        name,
        `"${member.name}" is of ${member.size} bytes, and not of ${storage.count} ${storage.dtype}`,
      );
    }
    storage.bytes = zip.stored(member);
    if ((left -= member.size) < 0) throw damaged(name, "its storages overlap");
  }
  return value;
}

/** Legacy format: magic number, protocol, system information, contents, storage keys, one pickle each; then the storages. */
function readLegacy(source: ByteSource): Value {
  const { name, size } = source;
  const names = new TorchNames(name), nothing = { resolve: () => undefined };
  let at = 0;
  const next = (permissions: Parameters<typeof unpickle>[2]) => {
    const { value, end } = unpickle(source, at, permissions);
    at = end;
    return value;
  };
  if (size < 2 || bytesAt(source, 0, 1)[0] !== 0x80) {
    throw damaged(name, "it is neither a zip archive nor a pickle");
  }
  if (next(names) !== LEGACY_MAGIC) {
    throw new UsageError(
      `Cannot read "${name}": it is a pickle, but not one of torch.save; save the weights with torch.save()`,
    );
  }
  const protocol = next(nothing), facts = next(nothing);
  if (protocol !== LEGACY_PROTOCOL) throw damaged(name, "its protocol is unknown");
  const endian = facts instanceof Dict ? facts.items.indexOf("little_endian") : -1;
  if (endian >= 0 && (facts as Dict).items[endian + 1] !== true) throw bigEndian(name, "big");
  const value = next(names), keys = next(nothing);
  if (!(keys instanceof Sequence)) throw damaged(name, "it does not list its storages");
  for (const key of keys.items) {
    const storage = names.storages.get(String(key));
    if (!storage || storage.bytes) {
      throw damaged(name, "it lists a storage twice, or one that nothing asks for");
    }
    if (size - at < 8) throw damaged(name, `it ends before the storage "${storage.key}"`);
    const count = new DataView(bytesAt(source, at, 8).buffer).getBigInt64(0, true);
    if (count !== BigInt(storage.count)) {
      throw damaged(name, `the storage "${storage.key}" has ${count} elements instead of ${storage.count}`);
    }
    if (!storage.width) {
      throw new UsageError(
        `Cannot read "${name}": the storage "${storage.key}" is of the type "${storage.dtype}", whose size is not ` +
          `known, and others follow it; save the file with PyTorch 1.6 or later`,
      );
    }
    const bytes = storage.count * storage.width;
    if (bytes > size - (at += 8)) throw damaged(name, `the storage "${storage.key}" is cut off`);
    storage.bytes = partOf(source, at, bytes);
    at += bytes;
  }
  for (const { key, bytes } of names.storages.values()) {
    if (!bytes) throw damaged(name, `the storage "${key}" is missing`);
  }
  return value;
}

function bigEndian(name: string, order: string): UsageError {
  return new UsageError(
    `Cannot read "${name}": its byte order is ${JSON.stringify(order)}, only little-endian is supported; ` +
      `save it again on another machine`,
  );
}

/**
 * Tensors, plain values and objects of a checkpoint by name: keys and indices joined with dots. A single tensor is called
 * "tensor". Shared parts appear under each of their names.
 * @throws UsageError for duplicate names, a checkpoint without tensors, or one that contains itself
 */
function flatten(
  root: Value,
  path: string,
): [Map<string, View>, Map<string, string>, Map<string, UnreadObject>] {
  const tensors = new Map<string, View>(), metadata = new Map<string, string>();
  const unread = new Map<string, UnreadObject>();
  let left = MAX_NAMES;
  const spend = (n: number) => {
    if ((left -= n) < 0) throw damaged(path, "it holds more values than any checkpoint does");
  };
  const text = (value: Value): string => {
    if (value instanceof Sequence) return `[${value.items.map(text).join(",")}]`;
    const json = plainText(value);
    spend(json.length);
    return json;
  };
  const search = { left: MAX_SEARCHED };
  const visit = (value: Value, name: string, depth: number) => {
    spend(1 + name.length);
    if (depth > MAX_DEPTH) throw damaged(path, `its contents are nested deeper than ${MAX_DEPTH} times`);
    if (value instanceof Instance && value.name === "argparse.Namespace") value = value.state;
    const below = (key: string) => name ? `${name}.${key}` : key;
    if (value instanceof Dict && value.items.length) {
      for (let i = 0; i < value.items.length; i += 2) {
        visit(value.items[i + 1] as Value, below(keyText(value.items[i] as Value)), depth + 1);
      }
      return;
    }
    if (value instanceof Sequence && !value.items.every(isPlain)) {
      return value.items.forEach((item, i) => visit(item, below(String(i)), depth + 1));
    }
    const key = name || (value instanceof View ? "tensor" : "value");
    if (tensors.has(key) || metadata.has(key)) {
      throw damaged(path, `the name "${key.slice(0, 200)}" is in it twice`);
    }
    if (value instanceof View) {
      tensors.set(key, value);
      if (tensors.size <= BOUNDS.tensors) return;
      throw damaged(path, `it has more than ${BOUNDS.tensors} tensors`);
    }
    metadata.set(key, text(value));
    if (!(value instanceof Instance) || value instanceof ByteString) return;
    unread.set(key, { type: value.name, holdsTensors: holdsTensors(value, search) });
  };
  visit(root, "", 0);
  if (tensors.size) return [tensors, metadata, unread];
  const [key, object] = [...unread].find(([, { holdsTensors }]) => holdsTensors) ?? [];
  throw new UsageError(
    object
      ? `Cannot read "${path}": its tensors are inside an object of the class "${object.type}" ("${key}"), which is ` +
        `not run; load it with PyTorch and save its state_dict()`
      : `Cannot read "${path}": it holds no tensors and is not a checkpoint; check which file it is`,
  );
}

/** Whether an object contains a tensor or a storage, as far as the search goes. */
function holdsTensors(root: Value, search: { left: number }): boolean {
  const seen = new Set<Value>([root]), waiting: Value[] = [root];
  for (let value; (value = waiting.pop()) !== undefined;) {
    if (value instanceof View || value instanceof Storage) return true;
    const parts = value instanceof Instance
      ? [value.args, value.parts, [value.state]]
      : value instanceof Sequence || value instanceof Dict
      ? [value.items]
      : [];
    for (const list of parts) {
      for (const part of list) {
        if (--search.left < 0) return false;
        if (typeof part !== "object" || part === null || seen.has(part)) continue;
        seen.add(part);
        waiting.push(part);
      }
    }
  }
  return false;
}

/** A key as part of a name. */
function keyText(key: Value): string {
  if (typeof key === "string") return key;
  if (key instanceof Callable) return key.name;
  return key instanceof Sequence ? key.items.slice(0, MAX_PARTS).map(plainText).join(",") : plainText(key);
}

/** Whether a value has no parts. */
function isPlain(value: Value): boolean {
  return !(value instanceof Sequence || value instanceof Dict || value instanceof Instance ||
    value instanceof View);
}

/** JSON of a value without parts. Infinities, NaN and objects become text. */
function plainText(value: Value): string {
  if (typeof value === "bigint") return String(value);
  if (typeof value === "number" && !Number.isFinite(value)) return `"${value}"`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (value instanceof Uint8Array) return `"${value.length} bytes"`;
  if (value instanceof Instance || value instanceof Callable) return JSON.stringify(value.name);
  return value instanceof Dict ? "{}" : '"a storage"';
}
