// Only regular files are opened, whatever a path or a link leads to, and small files have a size limit.

import { assertEquals, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../src/errors.ts";
import { openBytes } from "../src/io/bytes.ts";
import { openRegular, readJson, readRegular, readText } from "../src/io/files.ts";

const folder = Deno.makeTempDirSync();
addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));

/** Paths that are no regular files, and what each is called. */
function irregular(): [path: string, kind: string][] {
  const fifo = join(folder, "fifo"), linked = join(folder, "linked.json");
  new Deno.Command("mkfifo", { args: [fifo] }).outputSync();
  Deno.symlinkSync(fifo, linked);
  return [
    [fifo, "a named pipe (FIFO) and not a regular file"],
    [linked, "a named pipe (FIFO) and not a regular file"],
    ["/dev/zero", "a device and not a regular file"],
    [folder, "a folder and not a file"],
  ];
}

const ignore = Deno.build.os === "windows";

Deno.test({
  name: "every reader refuses FIFOs, devices and folders by their kind, also through links",
  ignore,
  fn() {
    for (const [path, kind] of irregular()) {
      for (const read of [openRegular, openBytes, readJson, readText, (p: string) => readRegular(p, 9)]) {
        assertThrows(() => read(path), UsageError, `Cannot read "${path}": it is ${kind}; check the path`);
      }
    }
  },
});

Deno.test("a file above its limit is refused before it is read, and one at the limit is read", () => {
  const path = join(folder, "text");
  Deno.writeTextFileSync(path, "0123456789");
  assertThrows(() => readRegular(path, 9), UsageError, "it has 10 bytes, at most 9 bytes are read");
  assertEquals(readRegular(path, 10).length, 10);
  const large = join(folder, "large.json");
  Deno.openSync(large, { write: true, create: true }).truncateSync(1 << 30);
  assertThrows(() => readJson(large), UsageError, "it has 1.1 GB, at most 16.8 MB are read");
});
