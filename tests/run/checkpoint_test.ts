// Atomic files, checkpoints that survive a crash at any write point, locks, and the choice of a run.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { UsageError } from "../../src/errors.ts";
import {
  checkpointPath,
  listCheckpoints,
  newestCheckpoint,
  newestRun,
  openCheckpoint,
  openRun,
  saveCheckpoint,
} from "../../src/run/checkpoint.ts";
import {
  AtomicFile,
  explained,
  faults,
  formatBytes,
  makeFolder,
  readJson,
  writeAtomic,
} from "../../src/formats/files.ts";

const tensor = (value: number) => [{ name: "x", shape: [3], data: new Float32Array(3).fill(value) }];
const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
const never = (message: string) => {
  throw new Error(`unexpected warning: ${message}`);
};

// Atomic files

Deno.test("writeAtomic() makes folders, replaces a file, and leaves nothing else", async () => {
  const folder = await Deno.makeTempDir();
  writeAtomic(`${folder}/a/b/c.txt`, "one");
  writeAtomic(`${folder}/a/b/c.txt`, new TextEncoder().encode("two"));
  assertEquals(Deno.readTextFileSync(`${folder}/a/b/c.txt`), "two");
  assertEquals(names(`${folder}/a/b`), ["c.txt"]);
});

Deno.test("AtomicFile.patch() overwrites and goes on at the end", async () => {
  const path = `${await Deno.makeTempDir()}/x`;
  const file = new AtomicFile(path);
  file.write(new Uint8Array([1, 2, 3]));
  file.patch(1, new Uint8Array([9]));
  file.write(new Uint8Array([4]));
  assertEquals(file.position, 4);
  file.commit();
  assertEquals([...Deno.readFileSync(path)], [1, 9, 3, 4]);
});

for (const code of ["ENOSPC", "EIO", "EACCES", "EDQUOT", "EROFS"]) {
  for (const at of ["open", "write", "sync", "rename"]) {
    Deno.test(`${code} at "${at}" gives a UsageError, keeps the old file and leaves no other`, async () => {
      const path = `${await Deno.makeTempDir()}/x`;
      writeAtomic(path, "old");
      faults.at = (point) => {
        if (point === at) throw Object.assign(new Error("refused"), { code });
      };
      try {
        assertThrows(() => writeAtomic(path, "new"), UsageError, `Cannot write "${path}": `);
      } finally {
        faults.at = () => {};
      }
      assertEquals(Deno.readTextFileSync(path), "old");
      assertEquals(names(path.slice(0, -2)), ["x"]);
    });
  }
}

Deno.test("a full device is explained", () => {
  if (Deno.build.os !== "linux") return; // only there is /dev/full
  using full = Deno.openSync("/dev/full", { write: true });
  const error = assertThrows(() => full.writeSync(new Uint8Array(1)));
  const line = explained(error, "write", "/dev/full");
  assert(line instanceof UsageError);
  assertEquals(
    line.message,
    'Cannot write "/dev/full": no space is left on the device; free some space or choose another folder',
  );
});

Deno.test("a file larger than the free space is refused before anything is written", async () => {
  const folder = await Deno.makeTempDir();
  assertThrows(() => new AtomicFile(`${folder}/x`, 2 ** 60), UsageError, "1152921.5 TB are needed and");
  assertEquals(names(folder), []);
});

Deno.test("a file where a folder should be is explained, and so are unreadable and broken JSON files", async () => {
  const folder = await Deno.makeTempDir();
  Deno.writeTextFileSync(`${folder}/file`, "{");
  assertThrows(() => writeAtomic(`${folder}/file/x`, ""), UsageError, "make the folder");
  assertThrows(() => makeFolder(`${folder}/file`), UsageError, "something else has that name");
  assertThrows(() => writeAtomic(folder, ""), UsageError, "it is a folder and not a file");
  assertThrows(() => readJson(`${folder}/file`), UsageError, "it is not JSON");
  assertThrows(() => readJson(`${folder}/none`), UsageError, "it does not exist");
  assertThrows(() => writeAtomic(`${folder}/${"n".repeat(300)}`, ""), UsageError, "the name is too long");
});

Deno.test("an error that is not the file system's is not dressed up", () => {
  const error = new TypeError("a mistake of ours");
  assertEquals(explained(error, "write", "x"), error);
});

Deno.test("formatBytes() chooses the unit", () => {
  assertEquals([0, 999, 1000, 1.5e9, 2e15].map(formatBytes), [
    "0 bytes",
    "999 bytes",
    "1.0 kB",
    "1.5 GB",
    "2000.0 TB",
  ]);
});

// Crashes

Deno.test("kill -9 at any write point leaves the checkpoint before or the new one, whole", async () => {
  const seen = new Set<string>();
  for (let point = 0; point < 100; point++) {
    const run = await Deno.makeTempDir();
    await saveCheckpoint(run, 100, tensor(1), { lr: 1 });
    const { signal, stdout } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        "--no-check",
        new URL("../fixtures/save_and_die.ts", import.meta.url).pathname,
        run,
        `${point}`,
      ],
      stdout: "piped",
    }).output();
    const said = new TextDecoder().decode(stdout).trim();
    seen.add(said);
    const checkpoint = await newestCheckpoint(run, never);
    assert(checkpoint, `nothing is left after a crash at point ${point}, "${said}"`);
    const expected = ["renamed", "done", "saved"].includes(said) ? 200 : 100;
    assertEquals(
      [checkpoint.step, checkpoint.config],
      [expected, { lr: expected / 100 }],
      `point ${point}, "${said}"`,
    );
    const x = await checkpoint.file.read("x");
    assert(x.every((value) => value === expected / 100));
    checkpoint.file.close();
    openRun(run, { resume: true }).release();
    assert(
      !names(`${run}/checkpoints`).some((name) => name.endsWith(".tmp")),
      "a temporary file outlives openRun()",
    );
    await Deno.remove(run, { recursive: true });
    if (said === "saved") break;
    assertEquals(signal, "SIGKILL");
  }
  assertEquals([...seen], ["open", "write", "written", "sync", "rename", "renamed", "done", "saved"]);
});

// Checkpoints

Deno.test("saveCheckpoint() keeps the newest ones, and forgets a course that was left", async () => {
  const run = await Deno.makeTempDir();
  for (const step of [100, 200, 300]) await saveCheckpoint(run, step, tensor(step), {});
  assertEquals(listCheckpoints(run), [300, 200]);
  await saveCheckpoint(run, 400, tensor(4), {}, { keep: 3 });
  assertEquals(listCheckpoints(run), [400, 300, 200]);
  await saveCheckpoint(run, 250, tensor(5), {}, { keep: 1 });
  assertEquals(listCheckpoints(run), [250]);
  assertEquals(names(`${run}/checkpoints`), ["step_00000250.safetensors"]);
});

Deno.test("newestCheckpoint() passes over damaged ones with a warning and does not look at others", async () => {
  const run = await Deno.makeTempDir();
  assertEquals(await newestCheckpoint(run, never), undefined);
  for (const step of [100, 200, 300]) await saveCheckpoint(run, step, tensor(step), { step }, { keep: 9 });
  Deno.truncateSync(checkpointPath(run, 300), 40);
  Deno.writeTextFileSync(checkpointPath(run, 200), "");
  Deno.writeTextFileSync(`${run}/checkpoints/step_00000400.safetensors.7-0.tmp`, "");
  Deno.writeTextFileSync(`${run}/checkpoints/step_400.safetensors`, "");
  Deno.writeTextFileSync(`${run}/checkpoints/notes.txt`, "");
  const warnings: string[] = [];
  const checkpoint = await newestCheckpoint(run, (message) => warnings.push(message));
  assertEquals([checkpoint?.step, checkpoint?.config], [100, { step: 100 }]);
  checkpoint?.file.close();
  assertEquals(warnings.map((w) => /step_0+(\d+)/.exec(w)?.[1]), ["300", "200"]);
  assert(warnings.every((w) => w.endsWith("going on with the checkpoint before it")));
});

Deno.test("openCheckpoint() refuses a file of weights", async () => {
  const path = new URL("../fixtures/reference.safetensors", import.meta.url).pathname;
  await assertRejects(() => openCheckpoint(path), UsageError, "it is not a checkpoint of a run");
});

// Runs

Deno.test("openRun() refuses a folder that holds another run unless it is resumed", async () => {
  const run = `${await Deno.makeTempDir()}/runs/a`;
  openRun(run).release();
  openRun(run).release(); // nothing is left of a run that never began
  await saveCheckpoint(run, 70, tensor(1), {});
  assertThrows(
    () => openRun(run),
    UsageError,
    `Cannot start a run in "${run}": it holds another run already, at step 70; ` +
      `continue that one with --resume or choose another --out`,
  );
  openRun(run, { resume: true }).release();
});

Deno.test("openRun() keeps a second process out, and lets it in when the first has died", async () => {
  const run = await Deno.makeTempDir();
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", new URL("../fixtures/hold_run.ts", import.meta.url).pathname, run],
    stdout: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  await reader.read();
  assertThrows(() => openRun(run), UsageError, `process ${child.pid} is writing to it`);
  child.kill("SIGKILL");
  await child.status;
  await reader.cancel();
  using _lock = openRun(run);
  assertThrows(() => openRun(run), UsageError, `process ${Deno.pid} is writing to it`);
});

Deno.test("newestRun() finds the run whose model was finished last", async () => {
  const runs = await Deno.makeTempDir();
  assertEquals(newestRun(`${runs}/none`, "model"), undefined);
  const finish = (name: string, kind: string, time: number, files = ["config.json", "model.safetensors"]) => {
    for (const file of files) {
      writeAtomic(`${runs}/${name}/${kind}/${file}`, "{}");
      Deno.utimeSync(`${runs}/${name}/${kind}/${file}`, time, time);
    }
  };
  finish("a", "tokenizer", 2000);
  finish("b", "tokenizer", 1000);
  finish("b", "model", 3000);
  finish("c", "tokenizer", 4000, ["config.json"]);
  assertEquals(newestRun(runs, "tokenizer"), `${runs}/a`);
  assertEquals(newestRun(runs, "model"), `${runs}/b`);
});
