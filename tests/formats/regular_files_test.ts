// Only regular files are opened, also through links, and small files have a size limit.

import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { alignConfig } from "../../src/cli/config.ts";
import { UsageError } from "../../src/errors.ts";
import { resolveConfig, type Schema } from "../../src/cli/flags.ts";
import { openBytes } from "../../src/formats/bytes.ts";
import { openRegular, readJson, readRegular, readText } from "../../src/formats/files.ts";
import { openNpz } from "../../src/formats/npz.ts";
import { openModel } from "../../src/formats/shards.ts";
import { openInception, openLpips } from "../../src/zoo/networks.ts";
import { openDit, openTokenizer } from "../../src/zoo/runs.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";

const folder = Deno.makeTempDirSync();
addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));

/** Paths that are no regular files, and what each is called. */
function irregular(): [path: string, kind: string][] {
  const fifo = join(folder, "fifo"), linked = join(folder, "linked.json");
  new Deno.Command("mkfifo", { args: [fifo] }).outputSync();
  Deno.symlinkSync(fifo, linked);
  const socket = join(folder, "socket"), listener = Deno.listen({ transport: "unix", path: socket });
  addEventListener("unload", () => listener.close());
  return [
    [fifo, "a named pipe (FIFO) and not a regular file"],
    [linked, "a named pipe (FIFO) and not a regular file"],
    ["/dev/zero", "a device and not a regular file"],
    [socket, "a socket and not a regular file"],
    [folder, "a folder and not a file"],
  ];
}

const ignore = Deno.build.os === "windows";

Deno.test({
  name: "whatever takes a path of weights or a configuration refuses FIFOs and devices, and waits for nobody",
  ignore,
  async fn() {
    const fifo = join(folder, "weights"), encoder = join(folder, "encoder");
    new Deno.Command("mkfifo", { args: [fifo] }).outputSync();
    const schema = alignConfig as unknown as Schema;
    for (const path of [fifo, "/dev/zero"]) {
      const opened: [string, () => unknown][] = [
        ["openModel", () => openModel(path)],
        ["openNpz", () => openNpz(path)],
        ["openEncoder", () => openEncoder(path)],
        ["openTokenizer", () => openTokenizer(path)],
        ["openDit", () => openDit(path)],
        ["openLpips", () => openLpips([path])],
        ["openInception", () => openInception(path)],
        ["--config", () => resolveConfig(schema, ["--config", path], { command: "align" })],
      ];
      for (const [name, open] of opened) {
        const { message } = await assertRejects(async () => await open(), UsageError) as UsageError;
        assertEquals(message.startsWith(`Cannot read "${path}": it is a `), true, `${name}: ${message}`);
      }
    }
    Deno.mkdirSync(encoder);
    new Deno.Command("mkfifo", { args: [join(encoder, "config.json")] }).outputSync();
    await assertRejects(() => openEncoder(encoder), UsageError, "it is a named pipe (FIFO)");
  },
});

Deno.test({
  name: "every reader refuses FIFOs, devices and folders by their kind, also through links",
  ignore,
  sanitizeResources: false, // the socket is there until the end
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
