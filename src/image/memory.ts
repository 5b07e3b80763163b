// The memory for decoding, of all threads together: a decoder takes its share before it starts and waits while others hold
// what it needs. The count lies in shared memory, for the main thread is often busy with the device.

import { totalmem } from "node:os";

/** A quarter of the RAM that this process may use, bytes. */
export function defaultImageMemory(): number {
  let ram = totalmem();
  try {
    const limit = Number(Deno.readTextFileSync("/sys/fs/cgroup/memory.max"));
    if (limit > 0) ram = Math.min(ram, limit);
  } catch {
    // There is no such limit.
  }
  return Math.floor(ram / 4);
}

const UNIT = 4096;

/** Milliseconds between two looks at what is free: Atomics.waitAsync() would not keep the program alive. */
const POLL = 5;

/** What a thread has to know to share the memory with others. */
export interface SharedMemory {
  limit: number;
  used: SharedArrayBuffer;
}

export class ImageMemory {
  readonly #used: Int32Array<SharedArrayBuffer>;

  /** @param limit bytes */
  constructor(readonly limit: number, private readonly buffer = new SharedArrayBuffer(4)) {
    this.#used = new Int32Array(buffer);
  }

  /** For another thread. */
  get shared(): SharedMemory {
    return { limit: this.limit, used: this.buffer };
  }

  static of({ limit, used }: SharedMemory): ImageMemory {
    return new ImageMemory(limit, used);
  }

  /** Bytes that are held now. */
  get used(): number {
    return UNIT * Atomics.load(this.#used, 0);
  }

  /**
   * Runs `use` while holding `bytes`, at most the limit. A thread must not hold two shares: it would wait for itself.
   */
  async hold<T>(bytes: number, use: () => Promise<T>): Promise<T> {
    const share = Math.ceil(Math.min(bytes, this.limit) / UNIT), most = Math.ceil(this.limit / UNIT);
    for (;;) {
      const used = Atomics.load(this.#used, 0);
      if (used > 0 && used + share > most) await new Promise((resolve) => setTimeout(resolve, POLL));
      else if (Atomics.compareExchange(this.#used, 0, used, used + share) === used) break;
    }
    try {
      return await use();
    } finally {
      Atomics.sub(this.#used, 0, share);
    }
  }
}
