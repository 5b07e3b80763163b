// TensorBoard's event files, read back by a reader of the formats' definitions.

import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { crc32c, EventFile, tfRecord } from "../../src/run/tensorboard.ts";
import { inFolder } from "../helpers/commands.ts";
import { one, readEvents, slowCrc } from "../helpers/events.ts";

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

Deno.test("a record has the bytes of TensorFlow's", () => {
  // The first record of event files: wall_time 0, file_version "brain.Event:2"; the length's checksum is known from many files.
  const record = tfRecord(hex("09" + "0000000000000000" + "1a0d" + "627261696e2e4576656e743a32"));
  assertEquals([...record.subarray(0, 12)], [...hex("1800000000000000a37f4b22")]);
});

Deno.test("an event file holds scalars, images and the step at which a run was resumed", async () => {
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
