// Sequential reading of bytes through a buffered window, for formats whose parts do not state their length. A length read
// from the file is checked against the size of the source before anything is allocated.

import type { UsageError } from "../errors.ts";
import { bytesAt, type ByteSource } from "./bytes.ts";

const MAX_LINE = 1 << 16, WINDOW = 1 << 16;

export class Cursor {
  readonly #text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  /** The window: bytes of the source from #base; the next one to read is #window[#at]. */
  #window = new Uint8Array();
  #view = new DataView(this.#window.buffer);
  #base: number;
  #at = 0;

  /**
   * @param most upper limit of the bytes that may be read
   * @param wrong makes the error; its argument is a sentence about the contents
   */
  constructor(
    private readonly source: ByteSource,
    private readonly start: number,
    private readonly most: number,
    private readonly wrong: (reason: string) => UsageError,
  ) {
    this.#base = start;
  }

  /** Offset of the next byte in the source. */
  get position(): number {
    return this.#base + this.#at;
  }

  u8(): number {
    const at = this.#need(1);
    return this.#view.getUint8(at);
  }

  u16(): number {
    const at = this.#need(2);
    return this.#view.getUint16(at, true);
  }

  u32(): number {
    const at = this.#need(4);
    return this.#view.getUint32(at, true);
  }

  u64(): number {
    const at = this.#need(8);
    return Number(this.#view.getBigUint64(at, true));
  }

  /** Big-endian, unlike all other numbers. */
  f64(): number {
    const at = this.#need(8);
    return this.#view.getFloat64(at, false);
  }

  /** A copy of the next bytes. */
  take(length: number): Uint8Array<ArrayBuffer> {
    const at = this.#need(length);
    return this.#window.slice(at, at + length);
  }

  /** A UTF-8 text of `length` bytes. */
  string(length: number): string {
    const at = this.#need(length);
    try {
      return this.#text.decode(this.#window.subarray(at, at + length));
    } catch {
      throw this.wrong("has text that is not UTF-8");
    }
  }

  /** A line of Latin-1; its line break is consumed. */
  line(): string {
    let line = "";
    for (let length = 0; length < MAX_LINE; length++) {
      const byte = this.u8();
      if (byte === 0x0a) return line;
      line += String.fromCharCode(byte);
    }
    throw this.wrong(`has a line of more than ${MAX_LINE} characters`);
  }

  /** Loads the next `length` bytes and consumes them. @returns their offset in the window */
  #need(length: number): number {
    if (this.#at + length > this.#window.length) this.#advance(length);
    const at = this.#at;
    this.#at += length;
    return at;
  }

  #advance(length: number): void {
    const position = this.position, { size } = this.source;
    if (length > size - position) throw this.wrong("is cut off");
    if (position + length - this.start > this.most) throw this.wrong(`has more than ${this.most} bytes`);
    this.#window = bytesAt(this.source, position, Math.min(Math.max(length, WINDOW), size - position));
    this.#view = new DataView(this.#window.buffer);
    [this.#base, this.#at] = [position, 0];
  }
}
