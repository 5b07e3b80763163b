// The software adapter's threads: each pool is pinned to different processors. What the name of an adapter tells of its driver.

import { assert, assertEquals } from "@std/assert";
import {
  type CompilerTraits,
  compilerTraits,
  pinned,
  spread,
  threads,
} from "../../../src/gpu/software/prepare.ts";
import { testInOwnProcess } from "../../helpers/own_process.ts";

const testAlone = testInOwnProcess(import.meta.url);

/** The processors that a thread may run on, as Linux lists them. */
const allowed = (thread: number): string =>
  /Cpus_allowed_list:\s*(\S+)/.exec(Deno.readTextFileSync(`/proc/self/task/${thread}/status`))?.[1] ?? "";

Deno.test("what is known of a compiler follows from the version of LLVM in llvmpipe's name", () => {
  const traits = {
    "llvmpipe (LLVM 15.0.6, 512 bits)": [false, false, false, 90e9, 0],
    "llvmpipe (LLVM 19.1.7, 256 bits)": [true, false, true, 240e9, 50e9],
    "llvmpipe (LLVM 22.1.8, 512 bits)": [true, true, true, 40e9, 0],
    "llvmpipe: Mesa 26.2.6-1 (LLVM 22.1.8) through Dawn": [true, true, true, 40e9, 0],
    "SwiftShader Device (LLVM 16.0.0)": [false, false, false, 90e9, 0],
    "NVIDIA H200": [false, false, false, 90e9, 0],
  };
  for (const [name, values] of Object.entries(traits)) {
    const [loadsFirst, scalarLoads, loopsStores, largeTilesFrom, largeScalarTilesFrom] = values;
    const expected = { loadsFirst, scalarLoads, loopsStores, largeTilesFrom, largeScalarTilesFrom };
    assertEquals(compilerTraits(name), expected as CompilerTraits, name);
  }
});

testAlone("spread() pins threads to processors round-robin, and leaves few threads unpinned", () => {
  const all = threads(), own = Deno.pid, before = allowed(own);
  assert(all.length > 1 && all.includes(own));
  const processors = before.split(",").reduce((n, part) => {
    const [first = 0, last = first] = part.split("-").map(Number);
    return n + last - first + 1;
  }, 0);
  try {
    spread(Array<number>(2 * processors - 1).fill(own));
    assertEquals(allowed(own), before, "there is room enough");
    spread(Array<number>(2 * processors).fill(own)); // the last one decides
    assert(/^\d+$/.test(allowed(own)), allowed(own));
    const seen = new Set<string>();
    for (let i = 1; i <= processors; i++) {
      free(own, before);
      spread(Array<number>(2 * processors + i).fill(own));
      seen.add(allowed(own));
    }
    assertEquals(seen.size, processors, "one after another");
  } finally {
    free(own, before);
  }
});

testAlone("pinned() leaves threads alone that are not the driver's", async () => {
  const before = new Set(threads()), whole = allowed(Deno.pid), workers: Worker[] = [];
  const source = URL.createObjectURL(new Blob(["postMessage(0);"], { type: "text/javascript" }));
  try {
    await pinned(async () => {
      for (let i = 0; i < 2 * navigator.hardwareConcurrency; i++) {
        const worker = new Worker(source, { type: "module" });
        workers.push(worker);
        await new Promise((resolve) => worker.onmessage = resolve);
      }
    });
    const started = threads().filter((thread) => !before.has(thread));
    assert(started.length >= workers.length, `${started.length} threads`);
    for (const thread of started) assertEquals(allowed(thread), whole);
  } finally {
    for (const worker of workers) worker.terminate();
    URL.revokeObjectURL(source);
  }
});

/** Lets a thread run on `list` again. */
function free(thread: number, list: string): void {
  const { success } = new Deno.Command("taskset", { args: ["-pc", list, `${thread}`], stdout: "null" })
    .outputSync();
  assert(success);
}
