// The software adapter's threads: each pool is pinned to different processors.

import { assert, assertEquals } from "@std/assert";
import { spread, threads } from "../../../src/gpu/software/prepare.ts";

/** The processors that a thread may run on, as Linux lists them. */
const allowed = (thread: number): string =>
  /Cpus_allowed_list:\s*(\S+)/.exec(Deno.readTextFileSync(`/proc/self/task/${thread}/status`))?.[1] ?? "";

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
