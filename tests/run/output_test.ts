// Outputs of commands: one process at a time, other files untouched, no temporary files left.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { UsageError } from "../../src/errors.ts";
import { throwIfStopped } from "../../src/interruption.ts";
import { openRun } from "../../src/run/checkpoint.ts";
import { beginPictures, refuseOthers } from "../../src/run/existing_output.ts";
import { AtomicFile, writeAtomic } from "../../src/formats/files.ts";
import { Output } from "../../src/run/output.ts";

const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

async function inFolder(test: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A process number that no process has. */
async function deadProcess(): Promise<number> {
  const child = new Deno.Command(Deno.execPath(), { args: ["--version"], stdout: "null" }).spawn();
  await child.status;
  return child.pid;
}

const open = { folder: Output.folder, file: (path: string) => Output.file(`${path}/f.safetensors`) };
for (const [kind, start] of Object.entries(open)) {
  Deno.test(`an output ${kind} is locked until it is released, and leaves no lock`, () =>
    inFolder((folder) => {
      {
        using _output = start(folder);
        assertThrows(() => start(folder), UsageError, `process ${Deno.pid} is writing to it`);
      }
      assertEquals(names(folder), []);
      start(folder).release();
      assertEquals(names(folder), []);
    }));
}

Deno.test("files in one folder are locked separately", () =>
  inFolder((folder) => {
    using _a = Output.file(`${folder}/a`);
    using _b = Output.file(`${folder}/b`);
    assertThrows(() => Output.file(`${folder}/a`), UsageError, "is writing to it");
  }));

Deno.test("two processes never get the same numbered folder", () =>
  inFolder((folder) => {
    using a = Output.numbered(`${folder}/runs`, "align");
    using b = Output.numbered(`${folder}/runs`, "align");
    assertEquals([a.folder, b.folder], [`${folder}/runs/align-001`, `${folder}/runs/align-002`]);
  }));

Deno.test("empty folders created for an output are removed with it, others stay", () =>
  inFolder((folder) => {
    Output.folder(`${folder}/a/b/c`).release();
    Output.numbered(`${folder}/runs`, "eval").release();
    assertEquals(names(folder), []);
    Deno.mkdirSync(`${folder}/users`);
    Output.folder(`${folder}/users`).release();
    {
      using output = Output.folder(`${folder}/full`);
      writeAtomic(`${output.folder}/x`, "x");
    }
    assertEquals(names(folder), ["full", "users"]);
  }));

Deno.test("a deleted or replaced output folder ends the work with one line, and is not recreated", () =>
  inFolder((folder) => {
    for (const replaced of [false, true]) {
      using output = Output.folder(`${folder}/out`);
      throwIfStopped();
      const file = new AtomicFile(`${folder}/out/late`);
      Deno.removeSync(`${folder}/out`, { recursive: true });
      if (replaced) Deno.mkdirSync(`${folder}/out`);
      const line = `Cannot go on: "${folder}/out" or the lock in it was deleted or moved`;
      assertThrows(() => output.check(), UsageError, line);
      assertThrows(throwIfStopped, UsageError, line);
      assertThrows(() => writeAtomic(`${folder}/out/x`, ""), UsageError, line);
      assertThrows(() => file.commit(), UsageError, line);
      output.release();
      assertEquals(names(folder), replaced ? ["out"] : []);
    }
    throwIfStopped();
  }));

Deno.test("only temporary files of tok whose process has ended are removed", () =>
  inFolder(async (folder) => {
    const dead = await deadProcess(), old = Date.now() / 1000 - 4000;
    const users = ["notes.tmp", "a.png.tmp", `x.${dead}-0.tmp`, "x.2026-11.tmp", `x.tok-${dead}-0.tmp.bak`];
    const running = `x.tok-${Deno.ppid}-0.tmp`;
    const left = [`x.tok-${dead}-0.tmp`, `x.tok-${Deno.pid}-9999.tmp`, `old.tok-${Deno.ppid}-1.tmp`];
    for (const sub of ["", "checkpoints"]) {
      Deno.mkdirSync(`${folder}/${sub}`, { recursive: true });
      for (const name of [...users, running, ...left]) Deno.writeTextFileSync(`${folder}/${sub}/${name}`, "");
      Deno.utimeSync(`${folder}/${sub}/${left[2]}`, old, old);
    }
    Deno.mkdirSync(`${folder}/d.tok-${dead}-0.tmp`);
    const writing = new AtomicFile(`${folder}/y`);
    const own = names(folder).find((name) => name.startsWith("y.tok-")) as string;
    openRun(folder, { resume: true }).release();
    const kept = [...users, running];
    assertEquals(names(folder), [...kept, own, "checkpoints", `d.tok-${dead}-0.tmp`].sort());
    assertEquals(names(`${folder}/checkpoints`), [...kept].sort());
    writing.abort();
  }));

Deno.test("an output file removes its own temporary files only", () =>
  inFolder(async (folder) => {
    const dead = await deadProcess();
    for (const name of ["a", "b"]) Deno.writeTextFileSync(`${folder}/${name}.tok-${dead}-0.tmp`, "");
    Output.file(`${folder}/a`).release();
    assertEquals(names(folder), [`b.tok-${dead}-0.tmp`]);
  }));

Deno.test("an output that cannot be written is an error when it is opened", () =>
  inFolder((folder) => {
    Deno.writeTextFileSync(`${folder}/file`, "");
    assertThrows(() => Output.folder(`${folder}/file`), UsageError, "Cannot");
    assertThrows(() => Output.file(`${folder}/file/x`), UsageError, "Cannot");
    assertThrows(() => Output.file(folder), UsageError, "it is a folder and not a file");
    if (Deno.build.os === "linux") assertThrows(() => Output.folder("/proc/tok"), UsageError, "Cannot");
    assertEquals(names(folder), ["file"]);
  }));

// What a folder holds already

Deno.test("results of another command and other files are never overwritten", () =>
  inFolder((folder) => {
    refuseOthers(folder, "sample");
    writeAtomic(`${folder}/config.json`, '{"command": "align"}');
    assertThrows(() => refuseOthers(folder, "sample"), UsageError, 'it holds the results of "tok align"');
    refuseOthers(folder, "align");
    writeAtomic(`${folder}/config.json`, "{}");
    assertThrows(() => refuseOthers(folder, "sample"), UsageError, 'a "config.json" of something else');
  }));

Deno.test("samples are continued with the same options only, and are never mixed with others", () =>
  inFolder((folder) => {
    const begin = (cfg: number, num = 1, fingerprint = "a") => {
      const madeFrom = { model: { name: "m", fingerprint } };
      return beginPictures(folder, "sample", {
        options: { cfg },
        madeFrom,
        others: { num },
        folders: ["sub"],
      });
    };
    Deno.mkdirSync(`${folder}/sub`);
    writeAtomic(`${folder}/sub/cat.JPG`, "");
    writeAtomic(`${folder}/notes.txt`, "");
    assertThrows(
      () => begin(4),
      UsageError,
      `it holds 1 picture already ("sub/cat.JPG"), which would be mixed`,
    );
    assertEquals(names(folder), ["notes.txt", "sub"]);
    Deno.removeSync(`${folder}/sub/cat.JPG`);
    begin(4);
    begin(3); // nothing was made of the first options
    writeAtomic(`${folder}/000000.png`, "");
    begin(3, 2);
    assertThrows(() => begin(4), UsageError, "1 picture of an earlier run, and --cfg was 3 and is 4");
    assertThrows(() => begin(3, 2, "b"), UsageError, `the model was "m" (a) and is "m" (b)`);
    assert(Deno.readTextFileSync(`${folder}/config.json`).includes('"num": 2'));
  }));
