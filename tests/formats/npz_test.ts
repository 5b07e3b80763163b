// .npz files: NumPy's are read, tok's follow NumPy's format, damaged ones are refused.

import { assert, assertEquals, assertRejects } from "@std/assert";
import fc from "fast-check";
import { ShapeError, UsageError } from "../../src/errors.ts";
import { encodeNpyHeader, parseNpyHeader } from "../../src/formats/npy.ts";
import { openKnown } from "../../src/formats/bytes.ts";
import { openNpzSet } from "../../src/data/npz_images.ts";
import { openNpz, writeNpz } from "../../src/formats/npz.ts";
import { ZipReader, ZipWriter } from "../../src/formats/zip.ts";
import { testInOwnProcess } from "../helpers/own_process.ts";

const fixture = (name: string) => new URL(`../fixtures/${name}`, import.meta.url).pathname;

// fixtures/numpy.npz: numpy 2.4 savez_compressed; fixtures/objects.npz: savez of an object array.

Deno.test("openNpz() reads NumPy's compressed arrays in any byte order and memory order", async () => {
  const npz = await openNpz(fixture("numpy.npz"));
  try {
    assertEquals([...npz.arrays.keys()], ["arr_0", "mu", "sigma", "big", "half", "labels", "flag"]);
    assertEquals(npz.arrays.get("arr_0")?.shape, [2, 3, 4, 3]);
    assertEquals([...await npz.read("mu")], [-1, -0.5, 0, 0.5, 1]);
    assertEquals([...await npz.read("sigma")], [0, 1, 2, 3, 4, 5]);
    assertEquals([...await npz.read("big")], [1.5, -2]);
    assertEquals([...await npz.read("half")], [0.5, 2]);
    assertEquals([...await npz.read("labels")], [3, -1]);
    assertEquals([...await npz.read("flag")], [1]);
    const rows = await Array.fromAsync(npz.rows("arr_0"));
    assertEquals(rows.map((row) => [row.length, row[0], row[35]]), [[36, 0, 35], [36, 36, 71]]);
    await assertRejects(() => npz.read("nu"), UsageError, "has no such array");
    await assertRejects(() => npz.rows("mu").next(), UsageError, "not a uint8 array");
  } finally {
    npz.close();
  }
});

Deno.test("openNpz() refuses arrays of objects", async () => {
  await assertRejects(() => openNpz(fixture("objects.npz")), UsageError, "Python objects");
});

/** What `sample --npz` writes, with images in parts that do not end where images do. */
async function writeSamples(path: string): Promise<void> {
  async function* images() {
    for (let i = 0; i < 5; i++) yield Uint8Array.from({ length: 48 }, (_, k) => 48 * i + k);
  }
  await writeNpz(path, [
    { name: "arr_0", shape: [10, 2, 4, 3], data: images() },
    { name: "arr_1", shape: [3], data: new BigInt64Array([5n, 0n, -7n]) },
    { name: "scalar", shape: [], data: new Float64Array([0.25]) },
  ]);
}

Deno.test("writeNpz() and openNpz() round-trip every array", async () => {
  const path = `${await Deno.makeTempDir()}/samples.npz`;
  await writeSamples(path);
  const npz = await openNpz(path);
  const rows = await Array.fromAsync(npz.rows("arr_0"));
  assertEquals(rows.map((row) => row[0]), Array.from({ length: 10 }, (_, i) => 24 * i));
  assertEquals([...await npz.read("arr_1")], [5, 0, -7]);
  assertEquals([...await npz.read("scalar")], [0.25]);
  npz.close();
});

Deno.test("rows() begin at any item, of compressed arrays too", async () => {
  const path = `${await Deno.makeTempDir()}/samples.npz`;
  await writeSamples(path);
  for (
    const [file, from, expected] of [[path, 7, [168, 192, 216]], [fixture("numpy.npz"), 1, [36]]] as const
  ) {
    const npz = await openNpz(file);
    assertEquals((await Array.fromAsync(npz.rows("arr_0", from))).map((row) => row[0]), [...expected]);
    assertEquals(npz.isSeekable("arr_0"), file === path);
    npz.close();
  }
});

testInOwnProcess(import.meta.url)(
  "images of an .npz of 5 GB are read from both ends with little memory",
  async () => {
    const path = `${await Deno.makeTempDir()}/large.npz`, SIDE = 256, SIZE = SIDE * SIDE * 3, N = 27_500;
    const image = (i: number) => new Uint8Array(SIZE).fill(i % 251);
    // An archive of two images becomes one of N by its sizes and offsets; all images but the first and the last are a hole.
    await writeNpz(path, [{ name: "arr_0", shape: [2, SIDE, SIDE, 3], data: new Uint8Array(2 * SIZE) }]);
    const bytes = Deno.readFileSync(path), view = new DataView(bytes.buffer);
    const header = encodeNpyHeader(new Uint8Array(), [N, SIDE, SIDE, 3]), hole = (N - 2) * SIZE;
    const data = 30 + "arr_0.npy".length + 20,
      central = data + header.length + 2 * SIZE,
      end = bytes.length - 98;
    bytes.set(header, data);
    const sizes = [data - 16, data - 8, central + 46 + 9 + 4, central + 46 + 9 + 12]; // local, then central header
    for (const at of [...sizes, end + 48, end + 64]) { // start of the directory, and of its end record
      view.setBigUint64(at, view.getBigUint64(at, true) + BigInt(hole), true);
    }
    using file = Deno.openSync(path, { write: true, truncate: true });
    file.writeSync(bytes.subarray(0, data + header.length));
    file.writeSync(image(1));
    file.seekSync(central - SIZE + hole, Deno.SeekMode.Start);
    file.writeSync(image(N));
    file.writeSync(bytes.subarray(central));
    assert(Deno.statSync(path).size > 5e9);

    const { images } = await openNpzSet(path);
    assert(images);
    assertEquals([images.length, images.width], [N, SIDE]);
    assertEquals(await images.bytes(N - 1, SIDE), image(N));
    assertEquals(await images.bytes(0, SIDE), image(1));
    const npz = await openNpz(path), before = Deno.memoryUsage().rss, READ = 1500;
    let read = 0;
    for await (const row of npz.rows("arr_0", N - READ)) read += row.length;
    assertEquals(read, READ * SIZE);
    const grown = Deno.memoryUsage().rss - before;
    assert(grown < 0.4 * read, `${grown} bytes more after reading ${read}`);
    npz.close();
    await Deno.remove(path);
  },
);

Deno.test("writeNpz() writes equal bytes for equal arrays, always as ZIP64", async () => {
  const folder = await Deno.makeTempDir();
  await writeSamples(`${folder}/a.npz`);
  await writeSamples(`${folder}/b.npz`);
  const bytes = Deno.readFileSync(`${folder}/a.npz`);
  assertEquals(bytes, Deno.readFileSync(`${folder}/b.npz`));
  const view = new DataView(bytes.buffer);
  assertEquals(view.getUint32(18, true), 0xffffffff, "the 32-bit size of the first member");
  assertEquals(view.getUint32(bytes.length - 22 - 20, true), 0x07064b50, "the ZIP64 locator");
});

Deno.test("writeNpz() refuses data that does not fill its shape and leaves no file", async () => {
  const folder = await Deno.makeTempDir();
  await assertRejects(
    () => writeNpz(`${folder}/a.npz`, [{ name: "x", shape: [3], data: new Uint8Array(2) }]),
    ShapeError,
    '"x" has 2 bytes, its shape (3) needs 3',
  );
  assertEquals([...Deno.readDirSync(folder)], []);
});

Deno.test("encodeNpyHeader() is aligned to 64 bytes and parsed back for every shape", () => {
  fc.assert(fc.property(fc.array(fc.nat(1e6), { maxLength: 8 }), (shape) => {
    fc.pre(Number.isSafeInteger(shape.reduce((n, d) => n * d, 1)));
    const header = encodeNpyHeader(new Float32Array(), shape);
    assertEquals(header.length % 64, 0);
    assertEquals(parseNpyHeader(header), {
      kind: "f4",
      bigEndian: false,
      shape,
      fortran: false,
      start: header.length,
    });
  }));
});

Deno.test("a damaged .npz ends in a UsageError or in the right numbers, at every byte", async () => {
  const path = `${await Deno.makeTempDir()}/samples.npz`;
  await writeSamples(path);
  const whole = Deno.readFileSync(path);
  const read = async () => {
    const npz = await openNpz(path);
    try {
      const arrays = new Map<string, string>();
      for (const name of npz.arrays.keys()) arrays.set(name, (await npz.read(name)).join());
      return arrays;
    } finally {
      npz.close();
    }
  };
  const right = await read();
  let refused = 0;
  for (let i = 0; i < whole.length; i++) {
    const bytes = whole.slice();
    bytes[i] = (bytes[i] ?? 0) ^ 0x15;
    Deno.writeFileSync(path, bytes);
    const result = await read().catch((error) => error);
    if (result instanceof UsageError) refused++;
    else {
      assert(result instanceof Map, `byte ${i}: ${result}`);
      for (const [name, numbers] of result) {
        assertEquals(numbers, right.get(name) ?? numbers, `byte ${i}, "${name}"`);
      }
    }
  }
  assert(refused > whole.length / 2, `${refused} of ${whole.length} refused`);
  for (let length = 0; length < whole.length; length += 7) {
    Deno.writeFileSync(path, whole.slice(0, length));
    await assertRejects(read, UsageError);
  }
});

Deno.test("openNpz() reports a missing file", async () => {
  await assertRejects(() => openNpz("/nowhere/a.npz"), UsageError, "it does not exist");
});

Deno.test("an archive of more than 65,535 members is written and read", async () => {
  const path = `${await Deno.makeTempDir()}/many.zip`, N = 65_600;
  const zip = new ZipWriter(path);
  for (let i = 0; i < N; i++) await zip.add(`${i}`, i === N - 1 ? [Uint8Array.of(7, 8)] : []);
  zip.close();
  const source = openKnown(path, "arrays");
  try {
    const reader = new ZipReader(source);
    assertEquals(reader.members.size, N);
    const last = reader.members.get(`${N - 1}`);
    assert(last);
    assertEquals(await Array.fromAsync(reader.stream(last)), [Uint8Array.of(7, 8)]);
  } finally {
    source.close();
  }
});

Deno.test("the ZIP64 fields hold sizes and offsets, and members beyond 4 GB are read", async () => {
  const path = `${await Deno.makeTempDir()}/a.zip`, zip = new ZipWriter(path);
  await zip.add("a", [Uint8Array.of(1, 2, 3)]);
  await zip.add("b", [Uint8Array.of(4, 5)]);
  zip.close();
  const bytes = Deno.readFileSync(path), view = new DataView(bytes.buffer);
  const u64 = (at: number) => Number(view.getBigUint64(at, true));
  // Local headers: 30 bytes, name, extra field 1 of 16 bytes with both sizes.
  const localB = 30 + 1 + 20 + 3;
  for (const [at, size] of [[0, 3], [localB, 2]] as const) {
    assertEquals([view.getUint32(at, true), view.getUint32(at + 18, true)], [0x04034b50, 0xffffffff]);
    assertEquals([view.getUint16(at + 31, true), view.getUint16(at + 33, true)], [1, 16]);
    assertEquals([u64(at + 35), u64(at + 43)], [size, size]);
  }
  // Central headers: 46 bytes, name, extra field 1 of 24 bytes with sizes and offset. Then the end records.
  const start = localB + 30 + 1 + 20 + 2, centralB = start + 46 + 1 + 28, end = centralB + 46 + 1 + 28;
  assertEquals([u64(centralB + 51), u64(centralB + 59), u64(centralB + 67)], [2, 2, localB]);
  assertEquals([u64(end + 24), u64(end + 32), u64(end + 40), u64(end + 48)], [2, 2, end - start, start]);
  assertEquals([view.getUint32(end + 56, true), u64(end + 64)], [0x07064b50, end]);
  // The same archive with a hole of 5 GB before "b".
  const HOLE = 5 * 2 ** 30;
  const moved = bytes.slice(), movedView = new DataView(moved.buffer);
  for (const at of [centralB + 67, end + 48, end + 64]) {
    movedView.setBigUint64(at, BigInt(u64(at) + HOLE), true);
  }
  const reader = new ZipReader({
    name: "hole",
    size: bytes.length + HOLE,
    readInto: (offset, target) => {
      for (let i = 0; i < target.length; i++) {
        const at = offset + i;
        target[i] = at < localB ? moved[at] as number : moved[at - HOLE] ?? 0; // zeros in the hole
      }
    },
    close() {},
  });
  const b = reader.members.get("b");
  assertEquals(b?.offset, localB + HOLE);
  assert(b);
  assertEquals(await Array.fromAsync(reader.stream(b)), [Uint8Array.of(4, 5)]);
});
