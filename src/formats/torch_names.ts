// Meaning of the global names in a torch file: tensors, storages and containers. Objects of any other name are kept unread.
// Names that run commands or code, which no weights need, are refused. Sizes, strides and offsets of tensors are checked
// against their storage before anything is read.

import type { UsageError } from "../errors.ts";
import { type ByteSource, damaged } from "./bytes.ts";
import { Callable, Dict, Foreign, Instance, type Permissions, Sequence, type Value } from "./pickle.ts";
import { extentOf, type Layout } from "./strided_read.ts";
import { DTYPE_BITS, type TensorEntry } from "./tensors.ts";

/** Storage of tensors. */
export class Storage extends Foreign {
  /** Location of its elements; known after the pickle. */
  bytes: ByteSource | undefined;

  /**
   * @param dtype safetensors' name, or PyTorch's if safetensors has none
   * @param width bytes per element; 0: unknown
   */
  constructor(readonly key: string, readonly dtype: string, readonly width: number, readonly count: number) {
    super();
  }

  /** Whether its tensors can be read. */
  get known(): boolean {
    return this.dtype in DTYPE_BITS;
  }
}

/** Bytes in the encoding of protocols 0 to 2; only their number is kept. */
export class ByteString extends Instance {
  constructor(length: number) {
    super(`${length} bytes`);
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
  constructor(readonly dtype: string, readonly width: number) {
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

/** Storages whose tensors are not read: bytes per element, which the legacy format needs to skip them. */
const UNREAD_WIDTHS: Readonly<Record<string, number>> = {
  ComplexHalf: 4,
  ComplexFloat: 8,
  ComplexDouble: 16,
  QInt8: 1,
  QUInt8: 1,
  QInt32: 4,
  Untyped: 1,
};

/**
 * Names that run commands or code. They would not run here, but other readers of the file would run them, so it is refused. No
 * such list is complete, and nothing depends on it.
 */
const HOSTILE =
  /^((os|posix|nt|subprocess|commands|popen2|sys|socket|pty|runpy|shutil|importlib|imp|code|codeop|ctypes|marshal|pip|webbrowser|bdb|pdb|timeit|torch\.hub)\.[\s\S]*|os\s[\s\S]*|builtins\.(eval|exec|compile|open|__import__|execfile|input|breakpoint|globals|vars)|(pickle|_pickle|cPickle|torch)\.(load|loads))$/;

/** A view may repeat elements (stride 0); this bounds how far, so that 16 bytes of a file do not become gigabytes. */
const MAX_REPEATED = 1 << 24;
const MAX_AXES = 64;
/** Maximum number of pairs in a list that a dict is made of. */
const MAX_PAIRS = 1 << 22;

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** The names that a torch file's pickle may use. Collects the storages that it refers to. */
export class TorchNames implements Permissions {
  readonly storages = new Map<string, Storage>();
  readonly #calls: Map<string, Callable>;
  #pairs = 0;

  constructor(private readonly path: string) {
    const list = ([value = null]: readonly Value[]) => this.#list(value);
    const dict = (args: readonly Value[]) => this.#dict(args);
    const calls: [string, (args: readonly Value[]) => Value][] = [
      ["torch._utils._rebuild_tensor", (args) => this.#view(args)],
      ["torch._utils._rebuild_tensor_v2", (args) => this.#view(args)],
      ["torch._utils._rebuild_parameter", ([tensor = null]) => this.#tensor(tensor)],
      ["torch._utils._rebuild_parameter_with_state", ([tensor = null]) => this.#tensor(tensor)],
      ["torch._tensor._rebuild_from_type_v2", (args) => this.#typed(args)],
      ["torch.Size", list],
      ["builtins.list", list],
      ["builtins.tuple", list],
      ["builtins.set", list],
      ["builtins.frozenset", list],
      ["builtins.dict", dict],
      ["collections.OrderedDict", dict],
      ["collections.Counter", dict],
      ["collections.defaultdict", ([, ...args]) => dict(args)],
      // Bytes, and objects without arguments in protocols 0 and 1.
      ["builtins.bytes", () => new ByteString(0)],
      ["_codecs.encode", ([text]) => new ByteString(typeof text === "string" ? text.length : 0)],
      ["copyreg._reconstructor", ([made]) => {
        if (made instanceof Callable) return made.call([]);
        throw this.#wrong("makes an object of no class");
      }],
    ];
    this.#calls = new Map(calls.map(([name, call]) => [name, new Callable(name, call)]));
  }

  resolve(asked: string): Value | undefined {
    const name = asked.replace(/^__builtin__\./, "builtins.").replace(/^copy_reg\./, "copyreg."); // of Python 2
    if (HOSTILE.test(name)) return undefined;
    const type = /^torch\.(?:storage\.)?(\w+)Storage$/.exec(name)?.[1];
    if (type !== undefined) {
      const dtype = STORAGES.get(name), width = (DTYPE_BITS[dtype ?? ""] ?? 0) / 8;
      return dtype === undefined
        ? new StorageType(name, UNREAD_WIDTHS[type] ?? 0)
        : new StorageType(dtype, width);
    }
    let call = this.#calls.get(name);
    if (!call) this.#calls.set(name, call = new Callable(name, (args) => new Instance(name, args)));
    return call;
  }

  /** ("storage", type, key, device, elements), in old legacy files followed by a view. */
  persistent(id: Value): Value {
    const [kind, type, key, , count, view = null] = id instanceof Sequence ? id.items : [];
    const name = typeof key === "number" ? String(key) : key;
    if (kind !== "storage" || !(type instanceof StorageType) || typeof name !== "string" || !isCount(count)) {
      throw this.#wrong("refers to something that is not a storage");
    }
    if (view !== null) throw this.#wrong(`makes the storage "${name}" a view of another one`);
    const storage = this.storages.get(name) ?? new Storage(name, type.dtype, type.width, count);
    if (storage.dtype !== type.dtype || storage.count !== count) {
      throw this.#wrong(`has two descriptions of the storage "${name}"`);
    }
    this.storages.set(name, storage);
    return storage;
  }

  /** A tensor; or an unread object if its storage cannot be read. */
  #view([storage, offset, size, strides, , , flags = null]: readonly Value[]): View | Instance {
    if (storage instanceof Storage && !storage.known) return new Instance(storage.dtype, [storage]);
    const shape = size instanceof Sequence ? size.items : [];
    const stride = strides instanceof Sequence ? strides.items : [];
    if (
      !(storage instanceof Storage && size instanceof Sequence && strides instanceof Sequence) ||
      !isCount(offset) ||
      shape.length > MAX_AXES || !shape.every(isCount) || stride.length !== shape.length ||
      !stride.every(isCount)
    ) throw this.#wrong("has a tensor whose storage, offset, shape or strides are none");
    // Lazily conjugated or negated: the storage holds other numbers than the tensor.
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
        `${what} and strides [${stride.join(", ")}] from element ${offset} on: the storage ` +
          `"${storage.key}" has ${storage.count} elements`,
      );
    }
    if (elements > Math.max(storage.count, MAX_REPEATED)) {
      throw this.#wrong(`${what} that repeats the ${storage.count} elements of its storage too often`);
    }
    return view;
  }

  #tensor(value: Value): View | Instance {
    if (value instanceof View || value instanceof Instance) return value;
    throw this.#wrong("has a parameter that is not a tensor");
  }

  /** (function, class, arguments, state): a subclass of torch.Tensor, read as a plain tensor. */
  #typed([rebuild = null, type = null, args = null]: readonly Value[]): Value {
    const plain = rebuild instanceof Callable && args instanceof Sequence ? rebuild.call(args.items) : null;
    if (plain instanceof View) return plain;
    return new Instance(type instanceof Callable ? type.name : "torch.Tensor", [plain, args]);
  }

  #list(value: Value): Sequence {
    if (value === null) return new Sequence([], true);
    if (value instanceof Sequence) return new Sequence(value.items, value.growing);
    throw this.#wrong("makes a list of something else");
  }

  /** Arguments: none, a dict, or a list of pairs. */
  #dict([value = null]: readonly Value[]): Dict {
    if (value instanceof Dict) return value;
    const dict = new Dict(), pairs = value === null ? [] : value instanceof Sequence ? value.items : [null];
    if ((this.#pairs += pairs.length) > MAX_PAIRS) throw this.#wrong(`has more than ${MAX_PAIRS} pairs`);
    for (const pair of pairs) {
      if (!(pair instanceof Sequence) || pair.items.length !== 2) {
        throw this.#wrong("makes a dict of something else");
      }
      dict.items.push(...pair.items);
    }
    return dict;
  }

  #wrong(reason: string): UsageError {
    return damaged(this.path, `its pickle ${reason}`);
  }
}
