// Atomic files, checkpoints that survive a crash at any write, locks, and the choice of a run.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { UsageError } from "../../src/errors.ts";
import {
  checkpointPath,
  keepBest,
  listCheckpoints,
  newestCheckpoint,
  newestRun,
  openCheckpoint,
  openRun,
  readBest,
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

Deno.test("writeAtomic() creates folders, replaces a file, and leaves no other file", async () => {
  const folder = await Deno.makeTempDir();
  writeAtomic(`${folder}/a/b/c.txt`, "one");
  writeAtomic(`${folder}/a/b/c.txt`, new TextEncoder().encode("two"));
  assertEquals(Deno.readTextFileSync(`${folder}/a/b/c.txt`), "two");
  assertEquals(names(`${folder}/a/b`), ["c.txt"]);
});

Deno.test("AtomicFile.patch() overwrites bytes and keeps the write position", async () => {
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

Deno.test("a full disk is reported as such", () => {
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

Deno.test("a file in place of a folder, an unreadable and a broken JSON file are reported as such", async () => {
  const folder = await Deno.makeTempDir();
  Deno.writeTextFileSync(`${folder}/file`, "{");
  assertThrows(() => writeAtomic(`${folder}/file/x`, ""), UsageError, "make the folder");
  assertThrows(() => makeFolder(`${folder}/file`), UsageError, "something else has that name");
  assertThrows(() => writeAtomic(folder, ""), UsageError, "it is a folder and not a file");
  assertThrows(() => readJson(`${folder}/file`), UsageError, "it is not JSON");
  assertThrows(() => readJson(`${folder}/none`), UsageError, "it does not exist");
  assertThrows(() => writeAtomic(`${folder}/${"n".repeat(300)}`, ""), UsageError, "the name is too long");
});

Deno.test("an error that is not the file system's is passed on unchanged", () => {
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

// Retention

Deno.test("the best checkpoint and those of every N steps stay, whatever else is removed", async () => {
  const run = await Deno.makeTempDir();
  const save = (step: number) => saveCheckpoint(run, step, tensor(step), {}, { keep: 2, keepEvery: 300 });
  assertEquals(readBest(run), undefined);
  for (let step = 100; step <= 1000; step += 100) {
    await save(step);
    if (step === 200 || step === 400) keepBest(run, { step, metric: "psnr", value: step / 10 });
  }
  assertEquals(listCheckpoints(run), [1000, 900, 600, 300]);
  assertEquals(readBest(run), { step: 400, metric: "psnr", value: 40 });
  const best = await openCheckpoint(`${run}/checkpoints/best.safetensors`);
  assertEquals([best.step, [...await best.file.read("x")]], [400, [400, 400, 400]]);
  best.file.close();
  assertEquals((await newestCheckpoint(run, never))?.step, 1000, "the best is no newest one");
  keepBest(run, { step: 900, metric: "psnr", value: 41 });
  keepBest(run, { step: 900, metric: "psnr", value: 41 }); // the same file
  assertEquals(names(`${run}/checkpoints`).filter((name) => !name.startsWith("step_")), [
    "best.json",
    "best.safetensors",
  ]);
  // A file system without hard links.
  const link = Deno.linkSync;
  Deno.linkSync = () => {
    throw new Error("not supported");
  };
  try {
    keepBest(run, { step: 600, metric: "psnr", value: 42 });
  } finally {
    Deno.linkSync = link;
  }
  const copied = await openCheckpoint(`${run}/checkpoints/best.safetensors`);
  copied.file.close();
  assertEquals([copied.step, readBest(run)?.step], [600, 600]);
  // A checkpoint that is missing is an error, and then no record describes the file.
  assertThrows(() => keepBest(run, { step: 5, metric: "psnr", value: 50 }), UsageError, "best.safetensors");
  assertEquals(readBest(run), undefined);
  // A run that goes back removes later ones, also those to keep.
  await save(500);
  assertEquals(listCheckpoints(run), [500, 300]);
});

// Crashes

Deno.test("kill -9 at any write leaves the old or the new checkpoint complete", async () => {
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

Deno.test("saveCheckpoint() keeps the newest checkpoints, and removes those of an abandoned course", async () => {
  const run = await Deno.makeTempDir();
  for (const step of [100, 200, 300]) await saveCheckpoint(run, step, tensor(step), {});
  assertEquals(listCheckpoints(run), [300, 200]);
  await saveCheckpoint(run, 400, tensor(4), {}, { keep: 3 });
  assertEquals(listCheckpoints(run), [400, 300, 200]);
  await saveCheckpoint(run, 250, tensor(5), {}, { keep: 1 });
  assertEquals(listCheckpoints(run), [250]);
  assertEquals(names(`${run}/checkpoints`), ["step_00000250.safetensors"]);
});

Deno.test("newestCheckpoint() skips damaged checkpoints with a warning and ignores other files", async () => {
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

Deno.test("openRun() refuses a second process until the first has ended", async () => {
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

Deno.test("newestRun() finds the run with the newest model", async () => {
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
