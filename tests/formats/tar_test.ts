// Tar archives: members by offset as an independent reader finds them; truncated, damaged and concatenated archives.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { unpackTar } from "modern-tar";
import { UsageError } from "../../src/errors.ts";
import { TarFile } from "../../src/formats/tar.ts";

const shard = (name: string) => fromFileUrl(new URL(`../fixtures/data/${name}`, import.meta.url));
const SHARDS = ["shard-000.tar", "shard-001.tar"].map(shard);

/** Names and contents of an archive's members. */
function contents(path: string): [name: string, data: number[]][] {
  using tar = new TarFile(path);
  return [...tar.members()].map(({ name, offset, size }) => [name, [...tar.read(offset, size)]]);
}

function withBytes(bytes: Uint8Array): string {
  const path = Deno.makeTempFileSync({ suffix: ".tar" });
  Deno.writeFileSync(path, bytes);
  return path;
}

Deno.test("TarFile finds the members that modern-tar unpacks, with GNU and pax long names", async () => {
  for (const path of SHARDS) {
    const expected = await unpackTar(Deno.readFileSync(path), { strict: true });
    const found = contents(path);
    assertEquals(found, expected.map(({ header, data }) => [header.name, [...data as Uint8Array]]));
    assert(found.some(([name]) => name.length > 100), "no long name was tested");
  }
});

Deno.test("folders and links in an archive are skipped, and an old name without a prefix is read", async () => {
  const root = await Deno.makeTempDir();
  Deno.mkdirSync(`${root}/a/b`, { recursive: true });
  Deno.writeTextFileSync(`${root}/a/b/1.txt`, "one");
  Deno.symlinkSync("1.txt", `${root}/a/b/2.txt`);
  Deno.writeTextFileSync(`${root}/a/${"long".repeat(20)}.txt`, "x".repeat(40_000));
  for (const format of ["v7", "ustar", "gnu", "posix"]) {
    const args = [`--format=${format}`, "--sort=name", "-cf", `${root}/${format}.tar`, "-C", root, "a"];
    assertEquals((await new Deno.Command("tar", { args }).output()).code, 0);
    const found = contents(`${root}/${format}.tar`).map(([name, { length }]) => [name, length]);
    assertEquals(found, [["a/b/1.txt", 3], [`a/${"long".repeat(20)}.txt`, 40_000]]);
  }
});

Deno.test("a truncated archive is an error that names the offset", () => {
  const bytes = Deno.readFileSync(SHARDS[0] as string), end = 18432; // two empty blocks follow
  for (let length = 0; length <= end; length += 256) {
    const path = withBytes(bytes.subarray(0, length));
    const error = assertThrows(() => contents(path), UsageError, `Cannot use "${path}": it `);
    assert(length === 0 || /at byte \d+/.test(error.message), error.message);
    Deno.removeSync(path);
  }
  assertThrows(
    () => contents(withBytes(bytes.subarray(0, 12_850))),
    UsageError,
    'it is cut off: "./0003.png" at byte 12288 has 77 bytes and the file ends at byte 12850; fetch it again',
  );
});

Deno.test("a damaged header, another kind of file, and archives joined end to end are errors", () => {
  const bytes = Deno.readFileSync(SHARDS[0] as string);
  for (const at of [0, 124, 156, 3072]) {
    const wrong = bytes.slice();
    wrong[at] = (wrong[at] as number) ^ 1;
    const place = at - at % 512;
    assertThrows(
      () => contents(withBytes(wrong)),
      UsageError,
      `the header at byte ${place} is damaged; fetch it again`,
    );
  }
  const zip = new Uint8Array(1024);
  zip.set(new TextEncoder().encode("PK\x03\x04"));
  assertThrows(
    () => contents(withBytes(zip)),
    UsageError,
    "it is a zip archive, not a tar archive; unpack it",
  );
  const joined = new Uint8Array(2 * bytes.length);
  joined.set(bytes);
  joined.set(bytes, bytes.length);
  assertThrows(
    () => contents(withBytes(joined)),
    UsageError,
    `there is more at byte ${bytes.length}, behind the end`,
  );
});
