// Goes through bytes from one place on, through a window of them: for formats whose parts do not say how long they are.
// Nothing is allocated for a length before the source is known to have as many bytes.

import type { UsageError } from "../errors.ts";
import { bytesAt, type ByteSource } from "./bytes.ts";

const MAX_LINE = 1 << 16, WINDOW = 1 << 16;

export class Cursor {
  readonly #text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  /** Bytes from #base on; the next one is at #at in them. */
  #window = new Uint8Array();
  #view = new DataView(this.#window.buffer);
  #base: number;
  #at = 0;

  /**
   * @param most bytes that may be gone through
   * @param wrong makes the error for a reason that a subject goes before
   */
  constructor(
    private readonly source: ByteSource,
    private readonly start: number,
    private readonly most: number,
    private readonly wrong: (reason: string) => UsageError,
  ) {
    this.#base = start;
  }

  /** Where the next byte is in the source. */
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

  /** Big-endian, the only one that is. */
  f64(): number {
    const at = this.#need(8);
    return this.#view.getFloat64(at, false);
  }

  /** Bytes in a buffer of their own. */
  take(length: number): Uint8Array<ArrayBuffer> {
    const at = this.#need(length);
    return this.#window.slice(at, at + length);
  }

  /** UTF-8 of `length` bytes. */
  string(length: number): string {
    const at = this.#need(length);
    try {
      return this.#text.decode(this.#window.subarray(at, at + length));
    } catch {
      throw this.wrong("has text that is not UTF-8");
    }
  }

  /** Latin-1 up to the end of the line, which is gone beyond. */
  line(): string {
    let line = "";
    for (let length = 0; length < MAX_LINE; length++) {
      const byte = this.u8();
      if (byte === 0x0a) return line;
      line += String.fromCharCode(byte);
    }
    throw this.wrong(`has a line of more than ${MAX_LINE} characters`);
  }

  /** Makes sure of the next `length` bytes and goes behind them. @returns where they are in the window */
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
