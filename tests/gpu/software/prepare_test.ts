// The software adapter's threads: each pool is pinned to different processors. What the name of an adapter tells of its driver.

import { assert, assertEquals } from "@std/assert";
import { loadsAreCalls, spread, threads } from "../../../src/gpu/software/prepare.ts";

/** The processors that a thread may run on, as Linux lists them. */
const allowed = (thread: number): string =>
  /Cpus_allowed_list:\s*(\S+)/.exec(Deno.readTextFileSync(`/proc/self/task/${thread}/status`))?.[1] ?? "";

Deno.test("llvmpipe loads texels by calls in all versions but that of Debian 12", () => {
  const names = [
    "llvmpipe (LLVM 15.0.6, 512 bits)",
    "llvmpipe (LLVM 19.1.7, 256 bits)",
    "llvmpipe (LLVM 22.1.8, 512 bits)",
    "SwiftShader Device (LLVM 16.0.0)",
    "NVIDIA H200",
  ];
  assertEquals(names.map(loadsAreCalls), [false, true, true, false, false]);
});

Deno.test("spread() pins threads to processors round-robin, and leaves few threads unpinned", () => {
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

/** Lets a thread run on `list` again. */
function free(thread: number, list: string): void {
  const { success } = new Deno.Command("taskset", { args: ["-pc", list, `${thread}`], stdout: "null" })
    .outputSync();
  assert(success);
}
