// The names that a torch file may use, and what each stands for here: tensors, their storages, containers, and classes
// whose objects are carried along as data. Whatever is not in this file is refused. Every size, stride and offset of a
// tensor is checked against its storage before anything is read.

import type { UsageError } from "../errors.ts";
import { type ByteSource, damaged } from "./bytes.ts";
import { Callable, Dict, Foreign, Instance, type Permissions, Sequence, type Value } from "./pickle.ts";
import { extentOf, type Layout } from "./strided.ts";
import type { TensorEntry } from "./tensors.ts";

/** Memory that tensors are views of. */
export class Storage extends Foreign {
  /** Where its elements lie; known after the pickle. */
  bytes: ByteSource | undefined;

  constructor(readonly key: string, readonly dtype: string, readonly count: number) {
    super();
  }
}

/** A tensor. */
export class View extends Foreign implements TensorEntry, Layout {
  readonly dtype: string;

  constructor(
    readonly storage: Storage,
    readonly offset: number,
    readonly shape: readonly number[],
    readonly stride: readonly number[],
  ) {
    super();
    this.dtype = storage.dtype;
  }
}

class StorageType extends Foreign {
  constructor(readonly dtype: string) {
    super();
  }
}

const STORAGES: ReadonlyMap<string, string> = new Map([
  ["torch.FloatStorage", "F32"],
  ["torch.HalfStorage", "F16"],
  ["torch.BFloat16Storage", "BF16"],
  ["torch.DoubleStorage", "F64"],
  ["torch.LongStorage", "I64"],
  ["torch.IntStorage", "I32"],
  ["torch.ShortStorage", "I16"],
  ["torch.CharStorage", "I8"],
  ["torch.ByteStorage", "U8"],
  ["torch.BoolStorage", "BOOL"],
]);

/** Names that stand for themselves: types, as values of dicts and fields. */
const TYPES =
  /^(torch\.(u?int\d+|b?float\d+|bfloat16|bool|complex\d+)|typing\.Any|builtins\.(int|float|str|bool|object))$/;

/**
 * Classes whose objects are carried along: the arguments that checkpoints of DiT, MAE and LDM keep beside the weights. That
 * a whole package may be named is safe because a name is all there is of it here.
 */
const CLASSES =
  /^(argparse\.Namespace|torch\.device|pathlib\.(Pure)?PosixPath|numpy\.dtype|numpy\._?core\.multiarray\.scalar|(omegaconf|pytorch_lightning|lightning)\.[\w.]+)$/;

/** A view may repeat elements (stride 0), but 16 bytes of file shall not become gigabytes. */
const MOST_REPEATED = 1 << 24;
const MOST_AXES = 64;
/** Pairs in lists that dicts are made of. */
const MOST_PAIRS = 1 << 22;

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** What a torch file's pickle may name. Collects the storages that it refers to. */
export class TorchNames implements Permissions {
  readonly storages = new Map<string, Storage>();
  readonly #calls: ReadonlyMap<string, Callable>;
  #pairs = 0;

  constructor(private readonly path: string) {
    const list = ([value = null]: readonly Value[]) => this.#list(value);
    const dict = (args: readonly Value[]) => this.#dict(args);
    const calls: [string, (args: readonly Value[]) => Value][] = [
      ["torch._utils._rebuild_tensor", (args) => this.#view(args)],
      ["torch._utils._rebuild_tensor_v2", (args) => this.#view(args)],
      ["torch._utils._rebuild_parameter", ([tensor = null]) => this.#tensor(tensor)],
      ["torch.Size", list],
      ["builtins.list", list],
      ["builtins.tuple", list],
      ["builtins.set", list],
      ["builtins.frozenset", list],
      ["builtins.dict", dict],
      ["collections.OrderedDict", dict],
      ["collections.Counter", dict],
      ["collections.defaultdict", ([, ...args]) => dict(args)],
      // Bytes as protocols 0 to 2 spell them, and objects without arguments as 0 and 1 do.
      ["builtins.bytes", () => new Instance("0 bytes")],
      ["_codecs.encode", ([text]) => new Instance(`${typeof text === "string" ? text.length : 0} bytes`)],
      ["copyreg._reconstructor", ([made]) => {
        if (made instanceof Callable) return made.call([]);
        throw this.#wrong("makes an object of no class");
      }],
    ];
    this.#calls = new Map(calls.map(([name, call]) => [name, new Callable(name, call)]));
  }

  resolve(asked: string): Value | undefined {
    const name = asked.replace(/^__builtin__\./, "builtins.").replace(/^copy_reg\./, "copyreg."); // of Python 2
    const dtype = STORAGES.get(name);
    if (dtype !== undefined) return new StorageType(dtype);
    if (TYPES.test(name)) return new Instance(name);
    if (CLASSES.test(name)) return new Callable(name, () => new Instance(name));
    return this.#calls.get(name);
  }

  /** ("storage", type, key, device, elements), in the legacy form with a view, which nothing has made for long. */
  persistent(id: Value): Value {
    const [kind, type, key, , count, view = null] = id instanceof Sequence ? id.items : [];
    const name = typeof key === "number" ? String(key) : key;
    if (kind !== "storage" || !(type instanceof StorageType) || typeof name !== "string" || !isCount(count)) {
      throw this.#wrong("refers to something that is no storage");
    }
    if (view !== null) throw this.#wrong(`makes the storage "${name}" a view of another one`);
    const storage = this.storages.get(name) ?? new Storage(name, type.dtype, count);
    if (storage.dtype !== type.dtype || storage.count !== count) {
      throw this.#wrong(`has two descriptions of the storage "${name}"`);
    }
    this.storages.set(name, storage);
    return storage;
  }

  #view([storage, offset, size, strides, , , flags = null]: readonly Value[]): View {
    const shape = size instanceof Sequence ? size.items : [];
    const stride = strides instanceof Sequence ? strides.items : [];
    if (
      !(storage instanceof Storage && size instanceof Sequence && strides instanceof Sequence) ||
      !isCount(offset) ||
      shape.length > MOST_AXES || !shape.every(isCount) || stride.length !== shape.length ||
      !stride.every(isCount)
    ) throw this.#wrong("has a tensor whose storage, offset, shape or strides are none");
    // Conjugated or negated in name only: the storage holds other numbers than the tensor.
    if (flags !== null && !(flags instanceof Dict && !flags.items.length)) {
      throw this.#wrong("has a tensor with flags, whose numbers are not those of its storage");
    }
    const what = `has a tensor of shape [${shape.join(", ")}]`, elements = shape.reduce((n, d) => n * d, 1);
    if (!Number.isSafeInteger(8 * elements)) {
      throw this.#wrong(`${what}, which overflows`);
    }
    const view = new View(storage, offset, shape, stride), extent = extentOf(view);
    if (!Number.isSafeInteger(extent) || extent > storage.count) {
      throw this.#wrong(
        `${what} and strides [${
          stride.join(", ")
        }] from element ${offset} on: the storage "${storage.key}" has ` +
          `${storage.count} elements`,
      );
    }
    if (elements > Math.max(storage.count, MOST_REPEATED)) {
      throw this.#wrong(`${what} that repeats the ${storage.count} elements of its storage too often`);
    }
    return view;
  }

  #tensor(value: Value): View {
    if (value instanceof View) return value;
    throw this.#wrong("has a parameter that is no tensor");
  }

  #list(value: Value): Sequence {
    if (value === null) return new Sequence([], true);
    if (value instanceof Sequence) return new Sequence(value.items, value.growing);
    throw this.#wrong("makes a list of what is none");
  }

  /** No argument, a dict, or a list of pairs. */
  #dict([value = null]: readonly Value[]): Dict {
    if (value instanceof Dict) return value;
    const dict = new Dict(), pairs = value === null ? [] : value instanceof Sequence ? value.items : [null];
    if ((this.#pairs += pairs.length) > MOST_PAIRS) throw this.#wrong(`has more than ${MOST_PAIRS} pairs`);
    for (const pair of pairs) {
      if (!(pair instanceof Sequence) || pair.items.length !== 2) {
        throw this.#wrong("makes a dict of what is none");
      }
      dict.items.push(...pair.items);
    }
    return dict;
  }

  #wrong(reason: string): UsageError {
    return damaged(this.path, `its pickle ${reason}`);
  }
}
