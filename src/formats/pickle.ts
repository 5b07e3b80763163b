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
      this.#step(code);
    }
    throw this.#wrong(`has more than ${MAX_STEPS} operations`);
  }

  #step(code: number): void {
    switch (code) {
      case 0x80: { // PROTO
        const version = this.#bytes.u8();
        if (version > PROTOCOL) throw this.#wrong(`is of protocol ${version}`);
        return;
      }
      case 0x95: // FRAME
        return void this.#bytes.u64();
      // Constants and numbers
      case 0x4e: // NONE
        return this.#push(null);
      case 0x88: // NEWTRUE
        return this.#push(true);
      case 0x89: // NEWFALSE
        return this.#push(false);
      case 0x4b: // BININT1
        return this.#push(this.#bytes.u8());
      case 0x4d: // BININT2
        return this.#push(this.#bytes.u16());
      case 0x4a: // BININT
        return this.#push(this.#bytes.u32() | 0);
      case 0x8a: // LONG1
        return this.#push(this.#long(this.#bytes.u8()));
      case 0x8b: // LONG4
        return this.#push(this.#long(this.#bytes.u32()));
      case 0x47: // BINFLOAT
        return this.#push(this.#bytes.f64());
      case 0x49: { // INT, also booleans in protocols 0 and 1
        const line = this.#bytes.line();
        return this.#push(line === "00" ? false : line === "01" ? true : this.#decimal(line));
      }
      case 0x4c: // LONG
        return this.#push(this.#decimal(this.#bytes.line().replace(/L$/, "")));
      case 0x46: // FLOAT
        return this.#push(this.#float(this.#bytes.line()));
      // Text and bytes
      case 0x58: // BINUNICODE
      case 0x54: // BINSTRING
        return this.#push(this.#bytes.string(this.#bytes.u32()));
      case 0x8c: // SHORT_BINUNICODE
      case 0x55: // SHORT_BINSTRING
        return this.#push(this.#bytes.string(this.#bytes.u8()));
      case 0x8d: // BINUNICODE8
        return this.#push(this.#bytes.string(this.#bytes.u64()));
      case 0x56: // UNICODE
        return this.#push(unescape(this.#bytes.line()));
      case 0x53: // STRING
        return this.#push(unescape(this.#bytes.line().replace(/^(["'])(.*)\1$/, "$2")));
      case 0x42: // BINBYTES
        return this.#push(this.#bytes.take(this.#bytes.u32()));
      case 0x43: // SHORT_BINBYTES
        return this.#push(this.#bytes.take(this.#bytes.u8()));
      case 0x8e: // BINBYTES8
      case 0x96: // BYTEARRAY8
        return this.#push(this.#bytes.take(this.#bytes.u64()));
      // Containers
      case 0x28: // MARK
        return void this.#marks.push(this.#stack.length);
      case 0x29: // EMPTY_TUPLE
        return this.#push(new Sequence([]));
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: { // TUPLE3
        const items = Array.from({ length: code - 0x84 }, () => this.#pop());
        return this.#push(new Sequence(items.reverse()));
      }
      case 0x74: // TUPLE
      case 0x91: // FROZENSET
        return this.#push(new Sequence(this.#toMark()));
      case 0x5d: // EMPTY_LIST
      case 0x8f: // EMPTY_SET
        return this.#push(new Sequence([], true));
      case 0x6c: // LIST
        return this.#push(new Sequence(this.#toMark(), true));
      case 0x61: // APPEND
        return this.#append([this.#pop()]);
      case 0x65: // APPENDS
      case 0x90: // ADDITEMS
        return this.#append(this.#toMark());
      case 0x7d: // EMPTY_DICT
        return this.#push(new Dict());
      case 0x64: { // DICT
        const items = this.#toMark();
        this.#push(new Dict());
        return this.#set(items);
      }
      case 0x73: // SETITEM
        return this.#set([this.#pop(), this.#pop()].reverse());
      case 0x75: // SETITEMS
        return this.#set(this.#toMark());
      // Stack and memo
      case 0x30: // POP, which also removes a mark on top of the stack
        return void (this.#marks.at(-1) === this.#stack.length ? this.#marks.pop() : this.#pop());
      case 0x31: // POP_MARK
        return void this.#toMark();
      case 0x32: // DUP
        return this.#push(this.#top());
      case 0x70: // PUT
        return this.#put(Number(this.#bytes.line()));
      case 0x71: // BINPUT
        return this.#put(this.#bytes.u8());
      case 0x72: // LONG_BINPUT
        return this.#put(this.#bytes.u32());
      case 0x94: // MEMOIZE
        return this.#put(this.#memo.size);
      case 0x67: // GET
        return this.#get(Number(this.#bytes.line()));
      case 0x68: // BINGET
        return this.#get(this.#bytes.u8());
      case 0x6a: // LONG_BINGET
        return this.#get(this.#bytes.u32());
      // Globals and objects
      case 0x63: // GLOBAL
        return this.#push(this.#global(this.#bytes.line(), this.#bytes.line()));
      case 0x93: { // STACK_GLOBAL
        const name = this.#pop(), module = this.#pop();
        return this.#push(this.#global(module, name));
      }
      case 0x69: { // INST
        const called = this.#global(this.#bytes.line(), this.#bytes.line());
        return this.#push(this.#call(called, this.#toMark()));
      }
      case 0x6f: { // OBJ
        const [called = null, ...args] = this.#toMark();
        return this.#push(this.#call(called, args));
      }
      case 0x52: // REDUCE
      case 0x81: { // NEWOBJ
        const args = this.#pop(), called = this.#pop();
        if (!(args instanceof Sequence)) throw this.#wrong("calls without arguments");
        return this.#push(this.#call(called, args.items));
      }
      case 0x92: { // NEWOBJ_EX
        const named = this.#pop(), args = this.#pop(), called = this.#pop();
        if (!(args instanceof Sequence)) throw this.#wrong("calls without arguments");
        const made = this.#call(called, args.items);
        if (made instanceof Instance) made.parts.push(named);
        return this.#push(made);
      }
      case 0x62: { // BUILD
        const state = this.#pop(), object = this.#top();
        // Attributes of a dict, such as a state dict's versions, are ignored.
        if (object instanceof Instance) object.state = state;
        else if (!(object instanceof Dict)) throw this.#wrong("changes what has no state");
        return;
      }
      case 0x51: // BINPERSID
        if (!this.permissions.persistent) throw this.#wrong("refers to something outside of it");
        return this.#push(this.permissions.persistent(this.#pop()));
      default: // PERSID, the EXT family, out-of-band buffers, and unknown opcodes
        throw this.#wrong(`has the operation 0x${code.toString(16).padStart(2, "0")}, which no weights need`);
    }
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
