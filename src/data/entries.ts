// Lists of images in packed form: typed arrays and one buffer of names. A million images take about 60 MB; as objects they
// would take five times that.

import { createHash } from "node:crypto";
import { UsageError } from "../errors.ts";
import type { ParquetLayout } from "../formats/parquet.ts";
import type { FilePart } from "../image/image.ts";
import type { LeftOut } from "./left_out.ts";

/** Where the bytes of an image are: a file, a member of an archive, or a value of a Parquet page. Plain data for threads. */
export type ImageFile = string | FilePart | PageValue;

export interface PageValue {
  path: string;
  /** For messages. */
  name: string;
  layout: ParquetLayout;
  page: { offset: number; size: number; dictionaryOffset: number; dictionarySize: number };
  /** Its number within the page. */
  index: number;
}

/** A numbered list of image files. */
export interface Entries {
  readonly length: number;
  /** Path below the root, with "/" and without "..". */
  name(i: number): string;
  file(i: number): ImageFile;
  label(i: number): number;
}

/** Images from which the index of a shard, a folder or a list is stored in the user's cache: smaller ones are read as fast. */
export const MIN_TO_REMEMBER = { shard: 32, folder: 50_000, list: 50_000 };

/** Images whose size is compared with a remembered list: files that were overwritten leave no other trace. */
const COMPARED = 1000;

/** Whether evenly spaced files of a remembered list still have their sizes. @param place path of a name */
export function haveSizes(names: Texts, sizes: Float64Array, place: (name: string) => string): boolean {
  const step = Math.max(1, Math.floor(names.length / COMPARED));
  for (let i = 0; i < names.length; i += step) {
    try {
      if (Deno.statSync(place(names.at(i))).size !== sizes[i]) return false;
    } catch {
      return false;
    }
  }
  return true;
}

/** Images and what is known of them. */
export interface ImageSet {
  entries: Entries;
  classes: readonly string[];
  leftOut: LeftOut;
  /** What makes reading slow, and the remedy. */
  note?: string | undefined;
  /** Hash of names, sizes and labels. */
  fingerprint(): string;
}

/** Texts in one buffer of UTF-8. */
export class Texts {
  /** @param ends position behind each text */
  constructor(readonly bytes: Uint8Array, readonly ends: Float64Array) {}

  get length(): number {
    return this.ends.length;
  }

  at(i: number): string {
    return decoder.decode(this.bytes.subarray(this.ends[i - 1] ?? 0, this.ends[i]));
  }

  /** Length in bytes. */
  size(i: number): number {
    return (this.ends[i] as number) - (this.ends[i - 1] ?? 0);
  }

  /** Whether texts `i` and `j` have the same first `length` bytes. */
  alike(i: number, j: number, length: number): boolean {
    const beginI = this.ends[i - 1] ?? 0, beginJ = this.ends[j - 1] ?? 0;
    if (this.size(i) < length || this.size(j) < length) return false;
    for (let k = 0; k < length; k++) if (this.bytes[beginI + k] !== this.bytes[beginJ + k]) return false;
    return true;
  }

  /** Numbers of the texts in the order of `<` on strings, that is of their UTF-16 code units. */
  sorted(): Uint32Array<ArrayBuffer> {
    const { bytes, ends } = this, order = Uint32Array.from(ends.keys());
    const compare = (a: number, b: number) => {
      const beginA = ends[a - 1] ?? 0, beginB = ends[b - 1] ?? 0, sizeA = this.size(a), sizeB = this.size(b);
      for (let k = 0, n = Math.min(sizeA, sizeB); k < n; k++) {
        const byteA = bytes[beginA + k] as number, byteB = bytes[beginB + k] as number;
        if (byteA !== byteB) return utf16Rank(byteA) - utf16Rank(byteB);
      }
      return sizeA - sizeB;
    };
    return order.every((i) => i === 0 || compare(i - 1, i) <= 0) ? order : order.sort(compare);
  }

  /** Hash of the texts `order`, each with a zero and what `end` says of it. */
  fingerprint(order: Iterable<number>, end: (i: number) => string): string {
    const hash = createHash("sha256"), block = new Uint8Array(1 << 16), { bytes, ends } = this;
    let at = 0;
    const flush = () => {
      hash.update(block.subarray(0, at));
      at = 0;
    };
    const push = (byte: number) => {
      if (at === block.length) flush();
      block[at++] = byte;
    };
    for (const i of order) {
      for (let k = ends[i - 1] ?? 0, last = ends[i] as number; k < last; k++) push(bytes[k] as number);
      push(0);
      const text = end(i); // mostly digits, for which a call of the encoder would take longest
      for (let k = 0; k < text.length; k++) {
        const code = text.charCodeAt(k);
        if (code < 128) push(code);
        else {
          encoder.encode(text.slice(k)).forEach(push);
          break;
        }
      }
    }
    flush();
    return hash.digest("hex").slice(0, 16);
  }

  /** Texts `order` of these. */
  reordered(order: Uint32Array): Texts {
    const list = new TextList();
    for (const i of order) list.addBytes(this.bytes.subarray(this.ends[i - 1] ?? 0, this.ends[i]));
    return list.texts();
  }
}

const decoder = new TextDecoder(), encoder = new TextEncoder();

/** Characters U+E000 to U+FFFF (first bytes 0xEE and 0xEF) come after those beyond, which UTF-16 writes as surrogates. */
const utf16Rank = (byte: number) => byte === 0xee || byte === 0xef ? byte + 0x10 : byte;

/** Collects texts. */
export class TextList {
  readonly #bytes = new Growing((n) => new Uint8Array(n));
  readonly #ends = new Growing((n) => new Float64Array(n));

  get length(): number {
    return this.#ends.length;
  }

  add(text: string): void {
    this.addBytes(encoder.encode(text));
  }

  addBytes(bytes: Uint8Array): void {
    this.#bytes.add(bytes);
    this.#ends.push(this.#bytes.length);
  }

  texts(): Texts {
    return new Texts(this.#bytes.array(), this.#ends.array());
  }
}

/** A typed array that grows. */
export class Growing<
  A extends Uint8Array<ArrayBuffer> | Uint32Array<ArrayBuffer> | Float64Array<ArrayBuffer>,
> {
  #array: A;
  length = 0;

  constructor(private readonly make: (length: number) => A) {
    this.#array = make(1024);
  }

  push(value: number): void {
    this.#reserve(1);
    this.#array[this.length++] = value;
  }

  add(values: ArrayLike<number>): void {
    this.#reserve(values.length);
    this.#array.set(values, this.length);
    this.length += values.length;
  }

  /** A copy of the values. */
  array(): A {
    return this.#array.slice(0, this.length) as A;
  }

  #reserve(count: number): void {
    if (this.length + count <= this.#array.length) return;
    const larger = this.make(Math.max(this.length + count, 2 * this.#array.length));
    larger.set(this.#array);
    this.#array = larger;
  }
}

/** Labels of a part of a set. */
export interface Labels {
  values: Uint32Array<ArrayBuffer>;
  /** Class names that the values are indices of; undefined: the values are the classes. */
  names: readonly string[] | undefined;
}

/** Collects labels that are written as texts: numbers if all are, names otherwise. */
export class LabelList {
  readonly #texts = new Map<string, number>();
  readonly #values = new Growing((n) => new Uint32Array(n));

  push(text: string): void {
    let value = this.#texts.get(text);
    if (value === undefined) this.#texts.set(text, value = this.#texts.size);
    this.#values.push(value);
  }

  /** As numbers where all labels are, and as names otherwise. */
  labels(): Labels {
    const found = [...this.#texts.keys()];
    if (!found.every(isNumber)) return this.named();
    return { values: this.#values.array().map((v) => Number(found[v])), names: undefined };
  }

  /** As sorted names. */
  named(): Labels & { names: readonly string[] } {
    const found = [...this.#texts.keys()], names = found.toSorted();
    const at = new Map(names.map((name, i) => [name, i])),
      places = found.map((text) => at.get(text) as number);
    return { values: this.#values.array().map((v) => places[v] as number), names };
  }
}

/** Whether a label is the number of a class. */
const isNumber = (text: string) => /^\d{1,6}$/.test(text);

/** Whether a label can be used: not empty, and if it is a number, that of a class. */
export const isLabel = (text: string): boolean =>
  text !== "" && (isNumber(text) || !/^[-+]?\d+(\.\d*)?$/.test(text));

/**
 * The classes of all parts of a set, and the values of each part as indices into them. Lists of names that differ are
 * united and sorted.
 * @param parts undefined labels: the part has none
 * @throws UsageError if parts differ in whether and how they are labelled
 */
export function united(
  root: string,
  parts: readonly { name: string; labels: Labels | undefined }[],
): { classes: readonly string[]; values: readonly (Uint32Array<ArrayBuffer> | undefined)[] } {
  const kindOf = ({ labels }: typeof parts[number]) =>
    !labels ? "no labels" : labels.names ? "class names" : "numbers";
  const [first] = parts, other = first && parts.find((part) => kindOf(part) !== kindOf(first));
  if (first && other) {
    throw new UsageError(
      `Cannot use "${root}": "${first.name}" has ${kindOf(first)} and "${other.name}" has ${
        kindOf(other)
      }; ` +
        `label all files in the same way`,
    );
  }
  const all = parts.flatMap(({ labels }) => labels ?? []), values = all.map((labels) => labels.values);
  const lists = all.flatMap(({ names }) => names ? [names] : []), [names] = lists;
  if (!names) {
    let count = 0;
    for (const part of values) for (const value of part) count = Math.max(count, value + 1);
    return { classes: Array.from({ length: count }, (_, i) => `${i}`), values };
  }
  if (lists.every((list) => list.join("\0") === names.join("\0"))) return { classes: names, values };
  const classes = [...new Set(lists.flat())].sort(), at = new Map(classes.map((name, i) => [name, i]));
  const mapped = lists.map((list) => list.map((name) => at.get(name) as number));
  return { classes, values: values.map((part, k) => part.map((v) => (mapped[k] as number[])[v] as number)) };
}

/** Lists one after another. */
export function joined(parts: readonly Entries[]): Entries {
  if (parts.length === 1) return parts[0] as Entries;
  const ends: number[] = [];
  for (const { length } of parts) ends.push((ends.at(-1) ?? 0) + length);
  const at = (i: number): [Entries, number] => {
    const k = lastAtMost(ends, i) + 1;
    return [parts[k] as Entries, i - (ends[k - 1] ?? 0)];
  };
  const from = <T>(use: (part: Entries, i: number) => T) => (i: number) => use(...at(i));
  return {
    length: ends.at(-1) ?? 0,
    name: from((part, i) => part.name(i)),
    file: from((part, i) => part.file(i)),
    label: from((part, i) => part.label(i)),
  };
}

/** Index of the last of ascending numbers that is at most `value`; -1: none. */
export function lastAtMost(ascending: ArrayLike<number>, value: number): number {
  let low = -1, high = ascending.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((ascending[middle] as number) <= value) low = middle;
    else high = middle;
  }
  return low;
}

/** A name without what would lead out of a folder: "..", a leading "/", a drive. */
export function below(name: string): string {
  return name.split(/[\\/]+/).filter((part) =>
    part !== "" && part !== "." && part !== ".." && !/^[A-Za-z]:$/.test(part)
  )
    .join("/");
}
