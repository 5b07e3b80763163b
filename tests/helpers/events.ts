// A reader of TensorBoard's event files, from the definitions of the formats alone.

import { assertEquals } from "@std/assert";

/** CRC-32C bit by bit, from its polynomial x^32 + x^28 + ... (0x1EDC6F41), most significant bit first on reversed bits. */
export function slowCrc(bytes: Uint8Array): number {
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
export const one = (data: unknown, field: number) =>
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
