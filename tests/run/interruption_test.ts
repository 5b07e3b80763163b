// Ctrl-C and SIGTERM: they end a command in every phase, also while the command's thread is blocked.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { Interrupted } from "../../src/errors.ts";
import { capture } from "../../src/gpu/program.ts";
import { holdOff, isHeld, requestStop, stopRequested, throwIfStopped } from "../../src/interruption.ts";
import { writePng } from "../../src/image/image.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { infer } from "../../src/metrics/batched.ts";
import { exp } from "../../src/ops/math.ts";
import { mean } from "../../src/ops/reduce.ts";
import { imageInput, pixels } from "../../src/ops/pixels.ts";
import { variable } from "../../src/tensor/tensor.ts";
import type { Optimizer } from "../../src/train/optimizer.ts";
import { trainLoop } from "../../src/train/loop.ts";
import { testDevice } from "../helpers/check.ts";
import { SOFTWARE } from "../helpers/commands.ts";

const MAIN = fromFileUrl(new URL("../../main.ts", import.meta.url));
const CONFIG = fromFileUrl(new URL("../../deno.json", import.meta.url));

/** Runs `test` as if a signal had come, and forgets it. */
async function stopped<T>(test: () => T | Promise<T>): Promise<T> {
  requestStop(130);
  try {
    return await test();
  } finally {
    requestStop(0);
  }
}

Deno.test("a stop is checked between batches, and delayed while there is something to save", async () => {
  throwIfStopped();
  await stopped(() => {
    assertEquals(stopRequested(), 130);
    assertThrows(throwIfStopped, Interrupted);
  });
  assert(!isHeld());
  {
    using _a = holdOff();
    using _b = holdOff();
    assert(isHeld());
  }
  assert(!isHeld());
});

Deno.test("a program stops before a kernel is compiled, and inference between two batches", async () => {
  await testDevice("cpu");
  const make = (side: number) =>
    capture("t", { x: imageInput(2, side) }, ({ x }) => ({ y: mean(exp(pixels(x)), [1, 2]) }));
  await stopped(() => assertRejects(() => make(5).prepare(), Interrupted));
  const program = await make(7).prepare();
  let batches = 0;
  const all = async () => {
    for await (const _ of infer(program, new Shapes(100, 1))) if (++batches === 3) requestStop(143);
  };
  await stopped(async () => {
    requestStop(0);
    await assertRejects(all, Interrupted);
  });
  assertEquals(batches, 3);
  program.destroy();
});

Deno.test("a training loop stopped while kernels of a later step compile saves the earlier steps", async () => {
  await testDevice("cpu");
  const runningMetrics = variable([1]);
  await runningMetrics.storage.materialise();
  const readProgress = () => Promise.resolve({ applied: 0, skipped: 0, lossScale: 1 });
  const readNorms = () => Promise.resolve([]);
  const optimizer = { label: "none", readProgress, readNorms } as unknown as Optimizer;
  for (const [at, saved, held] of [[3, [3], true], [0, [], false]] as const) {
    const saves: number[] = [];
    const run = () =>
      trainLoop({
        steps: 9,
        async *data() {
          for (;;) yield 0;
        },
        async step(n) {
          if (n < at) return;
          assertEquals(isHeld(), held);
          throw new Interrupted();
        },
        runningMetrics,
        metrics: ["loss"],
        optimizers: [optimizer],
        stepBytes: 4,
      }, {
        from: 0,
        logEvery: 100,
        saveEvery: 0,
        onLog: () => {},
        save: (n) => Promise.resolve(void saves.push(n)),
        stopping: () => false,
      });
    if (at === 0) await assertRejects(run, Interrupted); // nothing is lost
    else assertEquals((await run()).done, 3);
    assertEquals(saves, [...saved]);
    assert(!isHeld());
  }
});

/** Starts a command and signals it `wait` milliseconds after it has found its adapter. */
async function signalled(
  folder: string,
  { signal, wait, again }: { signal: Deno.Signal; wait: number; again?: number },
  ...args: string[]
) {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-check", "-A", "--config", CONFIG, MAIN, ...args, "--json", ...SOFTWARE],
    cwd: folder,
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  const stderr = new Response(child.stderr).text();
  let out = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    out += part.value;
    if (out.includes('"adapter"')) break;
  }
  await new Promise((r) => setTimeout(r, wait));
  child.kill(signal);
  if (again !== undefined) {
    await new Promise((r) => setTimeout(r, again));
    child.kill(signal);
  }
  const { code } = await child.status;
  for (let part = await reader.read(); !part.done; part = await reader.read()) out += part.value;
  const last = JSON.parse(out.trim().split("\n").at(-1) as string);
  return { code, last, stderr: await stderr };
}

Deno.test("Ctrl-C during a long batch ends the command with exit 130 before the batch is done", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const { code, last, stderr } = await signalled(
      folder,
      { signal: "SIGINT", wait: 1500 },
      ...["features", "--image-size", "1024", "--batch-size", "16"],
    );
    assertEquals(code, 130, stderr);
    assert(stderr.includes("in the middle of a batch"), stderr);
    assertEquals([last.event, last.interrupted], ["done", true]);
    assert(!/^\s+at /m.test(stderr), stderr);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("SIGTERM between batches ends a command with exit 143 and the command to resume, and leaves no temporary files", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const data = new Uint8Array(3 * 32 * 32).fill(7);
    for (let i = 0; i < 500; i++) {
      await writePng(join(folder, `in/${i}.png`), { width: 32, height: 32, data });
    }
    const args = ["features", "--input", "in", "--out", "f.safetensors", "--batch-size", "1"];
    const { code, last, stderr } = await signalled(
      folder,
      { signal: "SIGTERM", wait: 300 },
      ...args,
    );
    assertEquals(code, 143, stderr);
    assertEquals([last.event, last.interrupted], ["done", true]);
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["in"]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a second signal ends a command at once, also while its thread is blocked", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const args = ["features", "--image-size", "1024", "--batch-size", "16"];
    const moment = { signal: "SIGTERM", wait: 1500, again: 200 } as const;
    const { code, stderr } = await signalled(folder, moment, ...args);
    assertEquals(code, 143, stderr);
    // After the grace period the first signal would have ended it with this line.
    assert(!stderr.includes("in the middle of a batch"), stderr);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
