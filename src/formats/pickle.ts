// Python pickles (protocols 0 to 5) as plain data: no code of the pickle runs. A global name is looked up with `resolve`; a call
// is one of our functions on plain values, or an inert object of a class name and its parts.
// Hand-written, because the npm package pickleparser (0.2.1) is not safe on hostile files: BINBYTES of length -5 moves it
// backwards until memory ends, DICT assigns to "__proto__", REDUCE applies anything on the stack, LONG1 loses the sign, and a
// list of 300,000 items overflows the call stack.
// Opcodes: Python, Lib/pickletools.py.

import type { UsageError } from "../errors.ts";
import { type ByteSource, damaged } from "./bytes.ts";
import { Cursor } from "./byte_reader.ts";

/** A list, tuple or set. */
export class Sequence {
  constructor(readonly items: Value[], readonly growing = false) {}
}

/** A dict as alternating keys and values: keys may be of any type, and duplicate. */
export class Dict {
  readonly items: Value[] = [];
}

/**
 * An object of a class that is known by name only. Its arguments, its state, and the items appended to it are kept as data and
 * never interpreted.
 */
export class Instance {
  state: Value = null;
  readonly parts: Value[] = [];
  /** @param args not copied, so that a list shared by a million objects exists once */
  constructor(readonly name: string, readonly args: readonly Value[] = []) {}
}

/**
 * A class or function that the pickle may call: `call` is ours, takes plain values, and throws if they are wrong.
 */
export class Callable {
  constructor(readonly name: string, readonly call: (args: readonly Value[]) => Value) {}
}

/** Values that a format adds: tensors, storages. */
export abstract class Foreign {}

export type Value =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | Sequence
  | Dict
  | Instance
  | Callable
  | Foreign;

/** What a pickle may use beyond plain data. */
export interface Permissions {
  /** The meaning of "module.name"; undefined refuses the pickle, naming it. */
  resolve(name: string): Value | undefined;
  /** The meaning of a persistent id. */
  persistent?(id: Value): Value;
}

/** Maximum number of opcodes; a checkpoint has about 45 per tensor. Bounds time, stack, memo and allocations. */
const MAX_STEPS = 1 << 22;
/** Maximum size, bytes; 100,000 tensors take 20 MB. */
const MAX_BYTES = 1 << 26;
const MAX_DIGITS = 1000, PROTOCOL = 5, STOP = 0x2e;

/**
 * Reads the pickle at byte `at`.
 * @returns its value, and the offset of its end
 * @throws UsageError if it is damaged, too large, or uses a name that `permissions` do not resolve
 */
export function unpickle(
  source: ByteSource,
  at: number,
  permissions: Permissions,
): { value: Value; end: number } {
  return new Machine(source, at, permissions).run();
}

/** A number if it is exact, else a bigint. */
const integer = (value: bigint): number | bigint => {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
};

class Machine {
  #stack: Value[] = [];
  readonly #marks: number[] = [];
  readonly #memo = new Map<number, Value>();
  readonly #bytes: Cursor;

  constructor(private readonly source: ByteSource, at: number, private readonly permissions: Permissions) {
    this.#bytes = new Cursor(source, at, MAX_BYTES, (reason) => this.#wrong(reason));
  }

  run(): { value: Value; end: number } {
    for (let steps = 0; steps < MAX_STEPS; steps++) {
      const code = this.#bytes.u8();
      if (code === STOP) return { value: this.#pop(), end: this.#bytes.position };
      const operation = this.#operations[code];
      const shown = `0x${code.toString(16).padStart(2, "0")}`;
      if (!operation) throw this.#wrong(`has the operation ${shown}, which no weights need`);
      operation();
    }
    throw this.#wrong(`has more than ${MAX_STEPS} operations`);
  }

  /** The operations by opcode. Missing: PERSID, the EXT family, out-of-band buffers, and what is unknown. */
  readonly #operations: Readonly<Record<number, () => void>> = {
    0x80: () => { // PROTO
      const version = this.#bytes.u8();
      if (version > PROTOCOL) throw this.#wrong(`is of protocol ${version}`);
    },
    0x95: () => void this.#bytes.u64(), // FRAME
    // Constants and numbers
    0x4e: () => this.#push(null), // NONE
    0x88: () => this.#push(true), // NEWTRUE
    0x89: () => this.#push(false), // NEWFALSE
    0x4b: () => this.#push(this.#bytes.u8()), // BININT1
    0x4d: () => this.#push(this.#bytes.u16()), // BININT2
    0x4a: () => this.#push(this.#bytes.u32() | 0), // BININT
    0x8a: () => this.#push(this.#long(this.#bytes.u8())), // LONG1
    0x8b: () => this.#push(this.#long(this.#bytes.u32())), // LONG4
    0x47: () => this.#push(this.#bytes.f64()), // BINFLOAT
    0x49: () => { // INT, also booleans in protocols 0 and 1
      const line = this.#bytes.line();
      this.#push(line === "00" ? false : line === "01" ? true : this.#decimal(line));
    },
    0x4c: () => this.#push(this.#decimal(this.#bytes.line().replace(/L$/, ""))), // LONG
    0x46: () => this.#push(this.#float(this.#bytes.line())), // FLOAT
    // Text and bytes
    0x58: () => this.#push(this.#bytes.string(this.#bytes.u32())), // BINUNICODE
    0x54: () => this.#push(this.#bytes.string(this.#bytes.u32())), // BINSTRING
    0x8c: () => this.#push(this.#bytes.string(this.#bytes.u8())), // SHORT_BINUNICODE
    0x55: () => this.#push(this.#bytes.string(this.#bytes.u8())), // SHORT_BINSTRING
    0x8d: () => this.#push(this.#bytes.string(this.#bytes.u64())), // BINUNICODE8
    0x56: () => this.#push(unescape(this.#bytes.line())), // UNICODE
    0x53: () => this.#push(unescape(this.#bytes.line().replace(/^(["'])(.*)\1$/, "$2"))), // STRING
    0x42: () => this.#push(this.#bytes.take(this.#bytes.u32())), // BINBYTES
    0x43: () => this.#push(this.#bytes.take(this.#bytes.u8())), // SHORT_BINBYTES
    0x8e: () => this.#push(this.#bytes.take(this.#bytes.u64())), // BINBYTES8
    0x96: () => this.#push(this.#bytes.take(this.#bytes.u64())), // BYTEARRAY8
    // Containers
    0x28: () => void this.#marks.push(this.#stack.length), // MARK
    0x29: () => this.#push(new Sequence([])), // EMPTY_TUPLE
    0x85: () => this.#tuple(1), // TUPLE1
    0x86: () => this.#tuple(2), // TUPLE2
    0x87: () => this.#tuple(3), // TUPLE3
    0x74: () => this.#push(new Sequence(this.#toMark())), // TUPLE
    0x91: () => this.#push(new Sequence(this.#toMark())), // FROZENSET
    0x5d: () => this.#push(new Sequence([], true)), // EMPTY_LIST
    0x8f: () => this.#push(new Sequence([], true)), // EMPTY_SET
    0x6c: () => this.#push(new Sequence(this.#toMark(), true)), // LIST
    0x61: () => this.#append([this.#pop()]), // APPEND
    0x65: () => this.#append(this.#toMark()), // APPENDS
    0x90: () => this.#append(this.#toMark()), // ADDITEMS
    0x7d: () => this.#push(new Dict()), // EMPTY_DICT
    0x64: () => { // DICT
      const items = this.#toMark();
      this.#push(new Dict());
      this.#set(items);
    },
    0x73: () => this.#set([this.#pop(), this.#pop()].reverse()), // SETITEM
    0x75: () => this.#set(this.#toMark()), // SETITEMS
    // Stack and memo; POP also removes a mark on top of the stack
    0x30: () => void (this.#marks.at(-1) === this.#stack.length ? this.#marks.pop() : this.#pop()), // POP
    0x31: () => void this.#toMark(), // POP_MARK
    0x32: () => this.#push(this.#top()), // DUP
    0x70: () => this.#put(Number(this.#bytes.line())), // PUT
    0x71: () => this.#put(this.#bytes.u8()), // BINPUT
    0x72: () => this.#put(this.#bytes.u32()), // LONG_BINPUT
    0x94: () => this.#put(this.#memo.size), // MEMOIZE
    0x67: () => this.#get(Number(this.#bytes.line())), // GET
    0x68: () => this.#get(this.#bytes.u8()), // BINGET
    0x6a: () => this.#get(this.#bytes.u32()), // LONG_BINGET
    // Globals and objects
    0x63: () => this.#push(this.#global(this.#bytes.line(), this.#bytes.line())), // GLOBAL
    0x93: () => { // STACK_GLOBAL
      const name = this.#pop(), module = this.#pop();
      this.#push(this.#global(module, name));
    },
    0x69: () => { // INST
      const called = this.#global(this.#bytes.line(), this.#bytes.line());
      this.#push(this.#call(called, this.#toMark()));
    },
    0x6f: () => { // OBJ
      const [called = null, ...args] = this.#toMark();
      this.#push(this.#call(called, args));
    },
    0x52: () => this.#reduce(), // REDUCE
    0x81: () => this.#reduce(), // NEWOBJ
    0x92: () => this.#reduce(this.#pop()), // NEWOBJ_EX
    0x62: () => { // BUILD
      const state = this.#pop(), object = this.#top();
      // Attributes of a dict, such as a state dict's versions, are ignored.
      if (object instanceof Instance) object.state = state;
      else if (!(object instanceof Dict)) throw this.#wrong("changes what has no state");
    },
    0x51: () => { // BINPERSID
      if (!this.permissions.persistent) throw this.#wrong("refers to something outside of it");
      this.#push(this.permissions.persistent(this.#pop()));
    },
  };

  #tuple(length: number): void {
    this.#push(new Sequence(Array.from({ length }, () => this.#pop()).reverse()));
  }

  /** @param named arguments by name, which only an object keeps */
  #reduce(named?: Value): void {
    const args = this.#pop(), called = this.#pop();
    if (!(args instanceof Sequence)) throw this.#wrong("calls without arguments");
    const made = this.#call(called, args.items);
    if (named !== undefined && made instanceof Instance) made.parts.push(named);
    this.#push(made);
  }

  #push(value: Value): void {
    this.#stack.push(value);
  }

  #top(): Value {
    if (this.#stack.length <= (this.#marks.at(-1) ?? 0)) {
      throw this.#wrong("takes from an empty stack");
    }
    return this.#stack.at(-1) as Value;
  }

  #pop(): Value {
    const value = this.#top();
    this.#stack.length--;
    return value;
  }

  #toMark(): Value[] {
    const mark = this.#marks.pop();
    if (mark === undefined) throw this.#wrong("misses a mark");
    return this.#stack.splice(mark);
  }

  #append(items: readonly Value[]): void {
    const list = this.#top();
    const room = list instanceof Instance
      ? list.parts
      : list instanceof Sequence && list.growing
      ? list.items
      : undefined;
    if (!room) throw this.#wrong("appends to a value that is not a list");
    for (const item of items) room.push(item);
  }

  #set(items: readonly Value[]): void {
    const dict = this.#top();
    const room = dict instanceof Dict ? dict.items : dict instanceof Instance ? dict.parts : undefined;
    if (!room) throw this.#wrong("sets items of a value that is not a dict");
    if (items.length % 2) throw this.#wrong("has a key without a value");
    for (const item of items) room.push(item);
  }

  #put(index: number): void {
    if (!Number.isSafeInteger(index)) throw this.#wrong("has a memo index that is not a number");
    this.#memo.set(index, this.#top());
  }

  #get(index: number): void {
    const value = this.#memo.get(index);
    if (value === undefined) {
      throw this.#wrong(`asks for the memo ${index}, which is not set`);
    }
    this.#push(value);
  }

  #global(module: Value, name: Value): Value {
    if (typeof module !== "string" || typeof name !== "string") {
      throw this.#wrong("has a name that is not a text");
    }
    const path = `${module}.${name}`, value = this.permissions.resolve(path);
    if (value !== undefined) return value;
    const shown = JSON.stringify(path.slice(0, 200));
    throw this.#wrong(
      `asks for ${shown}, which no weights need and which would run something; nothing of it was run, and whoever ` +
        `loads the file elsewhere should not trust it`,
    );
  }

  #call(called: Value, args: readonly Value[]): Value {
    if (called instanceof Callable) return called.call(args);
    if (called instanceof Instance) return new Instance(called.name, args);
    throw this.#wrong("calls what cannot be called");
  }

  #long(length: number): number | bigint {
    if (length > MAX_DIGITS) throw this.#wrong(`has an integer of ${length} bytes`);
    const digits = this.#bytes.take(length).reverse().toHex();
    return integer(BigInt.asIntN(8 * length, BigInt(`0x${digits || "0"}`)));
  }

  #decimal(line: string): number | bigint {
    if (!/^[+-]?\d+$/.test(line) || line.length > MAX_DIGITS) {
      throw this.#wrong("has an invalid integer");
    }
    return integer(BigInt(line.replace("+", "")));
  }

  #float(line: string): number {
    const [, sign, name] = /^(-?)(inf|nan)$/.exec(line) ?? [];
    const value = name ? (name === "inf" ? Infinity : NaN) * (sign ? -1 : 1) : Number(line);
    if (line && (name || Number.isFinite(value))) return value;
    throw this.#wrong("has an invalid number");
  }

  #wrong(reason: string): UsageError {
    return damaged(this.source.name, `its pickle ${reason}`);
  }
}

/** Resolves the escapes of protocol 0's text. */
function unescape(line: string): string {
  const named: Record<string, string> = { n: "\n", r: "\r", t: "\t", "\\": "\\", "'": "'", '"': '"' };
  return line.replace(
    /\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})|([nrt\\'"]))/g,
    (_, x, u, U, name) => name ? named[name] as string : String.fromCodePoint(parseInt(x ?? u ?? U, 16)),
  );
}
