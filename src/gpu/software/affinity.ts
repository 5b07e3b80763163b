// Where the threads of a software adapter run. Its driver gives each launch to a pool of one thread a processor and goes on
// when all of them are done, hundreds of times a step; whenever the scheduler puts two of them on one processor for a
// moment, that launch takes twice as long. So each is held to a processor of its own. No result depends on it.

/** Bytes of a set of processors as the system call takes it: room for 1,024. */
const SET = 128;

/** Threads of this process, in the order in which they were made; none where the system does not show them. */
export function threads(): number[] {
  if (Deno.build.os !== "linux") return [];
  try {
    return [...Deno.readDirSync("/proc/self/task")].map(({ name }) => Number(name)).sort((a, b) => a - b);
  } catch {
    return [];
  }
}

/**
 * Holds each of `made` to one of the processors that this process may use, in turn: threads of one pool are made one
 * after another, so no two of them share. Does nothing where there are fewer threads than two pools of one a processor
 * (llvmpipe has one for graphics and one for compute): then there is room enough.
 * @param made threads, in the order in which they were made
 */
export function spread(made: readonly number[]): void {
  if (Deno.build.os !== "linux") return;
  let libc;
  try {
    libc = Deno.dlopen("libc.so.6", {
      sched_getaffinity: { parameters: ["i32", "usize", "buffer"], result: "i32" },
      sched_setaffinity: { parameters: ["i32", "usize", "buffer"], result: "i32" },
    });
  } catch {
    return; // No such library, or no permission: the scheduler's choice is right, if slower.
  }
  const { sched_getaffinity, sched_setaffinity } = libc.symbols;
  const allowed = new Uint8Array(SET);
  const failed = sched_getaffinity(0, BigInt(SET), allowed) < 0;
  const processors = Array.from({ length: 8 * SET }, (_, i) => i)
    .filter((i) => (allowed[i >> 3] as number) >> (i & 7) & 1);
  if (!failed && made.length >= 2 * processors.length) {
    made.forEach((thread, i) => {
      const processor = processors[i % processors.length] as number, one = new Uint8Array(SET);
      one[processor >> 3] = 1 << (processor & 7);
      sched_setaffinity(thread, BigInt(SET), one);
    });
  }
  libc.close();
}
