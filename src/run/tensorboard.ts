// Event files of TensorBoard: records in TFRecord framing (length, masked CRC-32C, data, masked CRC-32C) of tensorflow.Event
// messages with summaries. Source: tensorflow/core/lib/io/record_writer.h, core/util/event.proto, framework/summary.proto.

import { join } from "@std/path";
import { reasonOf } from "../formats/files.ts";
import { encodePng, type Image } from "../image/image.ts";

/** CRC-32C (Castagnoli), reflected. */
const TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
  for (let bit = 0; bit < 8; bit++) i = i & 1 ? (i >>> 1) ^ 0x82f63b78 : i >>> 1;
  return i;
});

export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (TABLE[(crc ^ byte) & 0xff] as number) ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** TensorFlow's mask: the CRC of data that holds its own CRC would be weak. */
const masked = (crc: number) => ((crc >>> 15 | crc << 17) + 0xa282ead8) >>> 0;

/** A record with its framing. */
export function tfRecord(data: Uint8Array): Uint8Array<ArrayBuffer> {
  const record = new Uint8Array(16 + data.length), view = new DataView(record.buffer);
  view.setBigUint64(0, BigInt(data.length), true);
  view.setUint32(8, masked(crc32c(record.subarray(0, 8))), true);
  record.set(data, 12);
  view.setUint32(12 + data.length, masked(crc32c(data)), true);
  return record;
}

/** Protocol buffer fields: varints, fixed 64 and 32 bits, bytes or messages. */
function varint(value: number): number[] {
  const bytes = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push(value % 128 + 128);
  return [...bytes, value];
}
const integer = (field: number, value: number) => Uint8Array.from([...varint(8 * field), ...varint(value)]);
const fixed = (field: number, bytes: 4 | 8, value: number) => {
  const out = new Uint8Array(1 + bytes), view = new DataView(out.buffer);
  out[0] = 8 * field + (bytes === 8 ? 1 : 5);
  if (bytes === 8) view.setFloat64(1, value, true);
  else view.setFloat32(1, value, true);
  return out;
};
const bytes = (field: number, data: Uint8Array | string | readonly Uint8Array[]): Uint8Array => {
  const content = typeof data === "string"
    ? new TextEncoder().encode(data)
    : data instanceof Uint8Array
    ? data
    : concatenated(data);
  return concatenated([Uint8Array.from([...varint(8 * field + 2), ...varint(content.length)]), content]);
};

function concatenated(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Field numbers of Event: wall_time 1, step 2, file_version 3, summary 5, session_log 7; of Summary: value 1. */
const SESSION_START = integer(1, 1);

/** An event file of a run. A failed write gives one warning and does not end the run. */
export class EventFile implements Disposable {
  #file: Deno.FsFile | undefined;

  /**
   * Begins a file in the run's folder.
   * @param step steps done before: TensorBoard forgets later ones of files before, for a run that went back
   */
  constructor(run: string, step: number, private readonly warn: (message: string) => void) {
    // TensorBoard reads the files in the order of their names.
    const seconds = String(Math.floor(Date.now() / 1000)).padStart(10, "0");
    const path = join(
      run,
      `events.out.tfevents.${seconds}.${String(Date.now() % 1000).padStart(3, "0")}.tok`,
    );
    this.#try(() => this.#file = Deno.openSync(path, { append: true, create: true }));
    this.#event(0, bytes(3, "brain.Event:2"));
    if (step > 0) this.#event(step, bytes(7, SESSION_START));
  }

  /** Running metrics as train/NAME; names with a slash, such as grad_norm/encoder, as they are. */
  training(step: number, row: Readonly<Record<string, number>>): void {
    const values = Object.entries(row).filter(([name]) => name !== "step")
      .map(([name, value]) => [name.includes("/") ? name : `train/${name}`, value] as const);
    this.scalars(step, Object.fromEntries(values));
  }

  /** Scores as val/NAME, and a picture of reconstructions or what else it `shows`. */
  async validation(
    step: number,
    scores: Readonly<Record<string, number>>,
    picture?: Image,
    shows = "reconstructions",
  ): Promise<void> {
    this.scalars(step, Object.fromEntries(Object.entries(scores).map(([name, v]) => [`val/${name}`, v])));
    if (picture) this.image(step, `val/${shows}`, { ...picture, png: await encodePng(picture) });
  }

  /** @param values by their tag */
  scalars(step: number, values: Readonly<Record<string, number>>): void {
    const fields = Object.entries(values).map(([tag, value]) =>
      bytes(1, [bytes(1, tag), fixed(2, 4, value)])
    );
    if (fields.length) this.#event(step, bytes(5, fields));
  }

  /** @param png an RGB image as a PNG file */
  image(
    step: number,
    tag: string,
    { width, height, png }: { width: number; height: number; png: Uint8Array },
  ): void {
    const image = [integer(1, height), integer(2, width), integer(3, 3), bytes(4, png)];
    this.#event(step, bytes(5, bytes(1, [bytes(1, tag), bytes(4, image)])));
  }

  [Symbol.dispose](): void {
    this.#file?.close();
    this.#file = undefined;
  }

  #event(step: number, ...fields: Uint8Array[]): void {
    const record = tfRecord(concatenated([fixed(1, 8, Date.now() / 1000), integer(2, step), ...fields]));
    this.#try(() => {
      for (let at = 0; this.#file && at < record.length;) at += this.#file.writeSync(record.subarray(at));
    });
  }

  /** After a failed write no more are tried: a record that is not complete would end the reading of the file. */
  #try(write: () => void): void {
    try {
      write();
    } catch (error) {
      this[Symbol.dispose]();
      this.warn(`Cannot write TensorBoard's events: ${reasonOf(error)}; log.jsonl has the same numbers`);
    }
  }
}
