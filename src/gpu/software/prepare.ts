// How a software adapter is opened: what its driver reads from the environment, and where its threads run. Mesa's llvmpipe
// splits each launch among a pool of one thread per processor and waits for all of them, hundreds of times a step; when the
// scheduler puts two of them on one processor, the launch takes twice as long. So each thread is pinned. No result depends on it.

const SOFTWARE = /llvmpipe|lavapipe|swiftshader|softpipe|basic render/i;

/** Whether an adapter of this name computes on the CPU. */
export function isSoftware(name: string): boolean {
  return SOFTWARE.test(name);
}

/** What GEMMs need to know of an adapter's compiler; see README.md. */
export interface CompilerTraits {
  /** It stores results of multiplications on the stack unless all operands of an iteration are loaded first. */
  readonly loadsFirst: boolean;
  /** A load of one address by all threads of a SIMD vector is a scalar load, other loads from buffers are gathers. */
  readonly scalarLoads: boolean;
  /** A store to a buffer is compiled for each SIMD lane and component, so GEMMs store in a loop, which compiles faster. */
  readonly loopsStores: boolean;
  /** Multiply-adds of a GEMM over all runs from which a tile larger than 16x16 earns back the time of its compilation. */
  readonly largeTilesFrom: number;
  /** The same of GEMMs that load single elements, in a tile larger than 4x4. */
  readonly largeScalarTilesFrom: number;
}

/**
 * The traits of an adapter of this name. It tells LLVM's version, which stands in for Mesa's: measured are Mesa 22.3 (LLVM 15),
 * 25.0 (LLVM 19) and 26.2 (LLVM 22).
 */
export function compilerTraits(name: string): CompilerTraits {
  const llvm = Number(/llvmpipe.*\(LLVM (\d+)/.exec(name)?.[1] ?? 0);
  return llvm >= 22
    ? {
      loadsFirst: true,
      scalarLoads: true,
      loopsStores: true,
      largeTilesFrom: 40e9,
      largeScalarTilesFrom: 0,
    }
    : llvm > 15
    ? {
      loadsFirst: true,
      scalarLoads: false,
      loopsStores: true,
      largeTilesFrom: 240e9,
      largeScalarTilesFrom: 50e9,
    }
    : {
      loadsFirst: false,
      scalarLoads: false,
      loopsStores: false,
      largeTilesFrom: 90e9,
      largeScalarTilesFrom: 0,
    };
}

/** Sets what Vulkan drivers read from the environment at their first use; what is set already stays. */
export function prepareDrivers(): void {
  if (Deno.build.os !== "linux") return;
  const unlessSet = (name: string, value: string) => Deno.env.get(name) || Deno.env.set(name, value);
  // The Vulkan loader complains on stderr about a missing runtime folder on every headless machine.
  unlessSet("XDG_RUNTIME_DIR", Deno.env.get("TMPDIR") ?? "/tmp");
  // llvmpipe uses vectors of 256 bits unless told otherwise. GEMMs are 1.1 to 1.5 times as fast with 512 on Mesa 22.3, 25.0 and
  // 26.2, buffer loads are slower on the first two (README.md).
  if (hasAvx512()) unlessSet("LP_NATIVE_VECTOR_WIDTH", "512");
}

function hasAvx512(): boolean {
  try {
    return /^flags\s*:.*\bavx512f\b/m.test(Deno.readTextFileSync("/proc/cpuinfo"));
  } catch {
    return false; // not every sandbox shows it; the driver's own choice is always right, if slower
  }
}

/** Pins llvmpipe's threads that `make` starts to processors; not those that start meanwhile, such as workers that decode images. */
export async function pinned<T>(make: () => Promise<T>): Promise<T> {
  const before = new Set(threads()), made = await make();
  spread(threads().filter((thread) => !before.has(thread) && isOfDriver(thread)));
  return made;
}

/** Whether llvmpipe named this thread: llvmpipe-0, llvmpipe-1, ... */
function isOfDriver(thread: number): boolean {
  try {
    return Deno.readTextFileSync(`/proc/self/task/${thread}/comm`).startsWith("llvmpipe-");
  } catch {
    return false; // it has ended
  }
}

/** Bytes of a CPU set as the system call takes it: 1,024 processors. */
const SET = 128;

/** Thread ids of this process in order of creation; none where the system does not list them. */
export function threads(): number[] {
  if (Deno.build.os !== "linux") return [];
  try {
    return [...Deno.readDirSync("/proc/self/task")].map(({ name }) => Number(name)).sort((a, b) => a - b);
  } catch {
    return [];
  }
}

/**
 * Pins each thread to one of the processors of this process, round-robin: threads of one pool are created one after another, so
 * no two of them share. Does nothing for fewer threads than two pools (llvmpipe has one for graphics and one for compute).
 * @param made threads in order of creation
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
