// TensorBoard's event files, read back by a reader of the formats' definitions.

import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { crc32c, EventFile, tfRecord } from "../../src/run/tensorboard.ts";
import { inFolder } from "../helpers/commands.ts";

/** CRC-32C bit by bit, from its polynomial x^32 + x^28 + ... (0x1EDC6F41), most significant bit first on reversed bits. */
function slowCrc(bytes: Uint8Array): number {
  const reversed = (v: number, bits: number) => {
    let out = 0;
    for (let i = 0; i < bits; i++) if (v & 2 ** i) out += 2 ** (bits - 1 - i);
    return out;
  };
  let crc = 0xffffffffn;
  for (const byte of bytes) {
    crc ^= BigInt(reversed(byte, 8)) << 24n;
    for (let i = 0; i < 8; i++) {
      crc = (crc & 0x80000000n ? (crc << 1n) ^ 0x1edc6f41n : crc << 1n) & 0xffffffffn;
    }
  }
  let out = 0n;
  for (let i = 0n; i < 32n; i++) if (crc & (1n << i)) out |= 1n << (31n - i);
  return Number(out ^ 0xffffffffn);
}

/** Records of a file, their checksums checked. */
function records(file: Uint8Array): Uint8Array[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength), out: Uint8Array[] = [];
  const check = (data: Uint8Array, at: number) => {
    const crc = BigInt(slowCrc(data));
    const masked = (((crc >> 15n) | (crc << 17n)) + 0xa282ead8n) & 0xffffffffn;
    assertEquals(BigInt(view.getUint32(at, true)), masked);
  };
  for (let at = 0; at < file.length;) {
    const length = Number(view.getBigUint64(at, true));
    check(file.subarray(at, at + 8), at + 8);
    const data = file.subarray(at + 12, at + 12 + length);
    check(data, at + 12 + length);
    out.push(data);
    at += 16 + length;
  }
  return out;
}

type Field = { field: number; value: number | Uint8Array };

/** Fields of a protocol buffer message; 64-bit and 32-bit ones as floating point. */
function fields(data: Uint8Array): Field[] {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength), out: Field[] = [];
  let at = 0;
  const varint = () => {
    let value = 0, shift = 1;
    for (;; shift *= 128) {
      const byte = data[at++] as number;
      value += (byte & 127) * shift;
      if (byte < 128) return value;
    }
  };
  while (at < data.length) {
    const key = varint(), field = key >>> 3, wire = key & 7;
    if (wire === 0) out.push({ field, value: varint() });
    else if (wire === 1) out.push({ field, value: view.getFloat64((at += 8) - 8, true) });
    else if (wire === 5) out.push({ field, value: view.getFloat32((at += 4) - 4, true) });
    else {
      assertEquals(wire, 2);
      const length = varint();
      out.push({ field, value: data.subarray(at, at += length) });
    }
  }
  return out;
}
const one = (data: unknown, field: number) =>
  fields(data as Uint8Array).find((f) => f.field === field)?.value;
const text = (data: unknown) => new TextDecoder().decode(data as Uint8Array);

/** Events of a file: step, and scalars or images by their tag. */
export function readEvents(path: string) {
  return records(Deno.readFileSync(path)).map((record) => {
    const values = fields(one(record, 5) as Uint8Array ?? new Uint8Array()).map(({ value }) => ({
      tag: text(one(value, 1)),
      scalar: one(value, 2) as number | undefined,
      image: one(value, 4) as Uint8Array | undefined,
    }));
    const version = one(record, 3), session = one(record, 7);
    return {
      time: one(record, 1) as number,
      step: one(record, 2) as number,
      version: version && text(version),
      session: session && one(session, 1),
      values,
    };
  });
}

const hex = (text: string) => Uint8Array.from(text.match(/../g) ?? [], (byte) => parseInt(byte, 16));

Deno.test("crc32c() gives the vectors of RFC 3720, B.4", () => {
  for (
    const [data, crc] of [
      [new Uint8Array(32), "aa36918a"],
      [new Uint8Array(32).fill(255), "43aba862"],
      [Uint8Array.from({ length: 32 }, (_, i) => i), "4e79dd46"],
      [Uint8Array.from({ length: 32 }, (_, i) => 31 - i), "5cdb3f11"],
      [new TextEncoder().encode("123456789"), "839206e3"],
    ] as const
  ) {
    // The bytes of the RFC are in the order of transmission, the lowest first.
    const expected = new DataView(hex(crc).buffer).getUint32(0, true);
    assertEquals([crc32c(data), slowCrc(data)], [expected, expected]);
  }
});

Deno.test("a record is that of TensorFlow, byte by byte", () => {
  // The first record of event files: wall_time 0, file_version "brain.Event:2"; the length's checksum is known from many files.
  const record = tfRecord(hex("09" + "0000000000000000" + "1a0d" + "627261696e2e4576656e743a32"));
  assertEquals([...record.subarray(0, 12)], [...hex("1800000000000000a37f4b22")]);
});

Deno.test("an event file holds scalars, images and the step that a run was resumed from", async () => {
  await inFolder(async (folder) => {
    const warnings: string[] = [], png = Uint8Array.from({ length: 300 }, (_, i) => i);
    {
      using file = new EventFile(folder, 0, (message) => warnings.push(message));
      file.scalars(500, { "train/loss": 0.25, "grad_norm/encoder": 3, bad: NaN });
      file.scalars(600, {});
      file.image(5_000_000_000, "val/grid", { width: 70, height: 200, png });
    }
    await new Promise((r) => setTimeout(r, 2)); // another name
    new EventFile(folder, 400, (message) => warnings.push(message))[Symbol.dispose]();
    const names = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
    assert(names.every((name) => /^events\.out\.tfevents\.\d{10}\./.test(name)), `${names}`);
    const [first, second] = names.map((name) => readEvents(join(folder, name)));
    const now = Date.now() / 1000;
    assert(first?.every(({ time }) => time > now - 60 && time <= now));
    assertEquals(first?.map(({ step, version }) => [step, version]), [
      [0, "brain.Event:2"],
      [500, undefined],
      [5_000_000_000, undefined],
    ]);
    assertEquals(first?.[1]?.values.map(({ tag, scalar }) => [tag, scalar]), [
      ["train/loss", 0.25],
      ["grad_norm/encoder", 3],
      ["bad", NaN],
    ]);
    const [{ tag, image } = {}] = first?.[2]?.values ?? [];
    assertEquals([tag, ...[1, 2, 3].map((field) => one(image, field))], ["val/grid", 200, 70, 3]);
    assertEquals(one(image, 4), png);
    assertEquals(second?.map(({ step, session }) => [step, session]), [[0, undefined], [400, 1]]);
    assertEquals(warnings, []);
  });
});

Deno.test("events that cannot be written give one warning", () => {
  const warnings: string[] = [];
  using file = new EventFile("/nowhere/at/all", 7, (message) => warnings.push(message));
  file.scalars(8, { a: 1 });
  assertEquals(warnings.length, 1);
  assert(warnings[0]?.startsWith("Cannot write TensorBoard's events: "), warnings[0]);
});
