// Memory limit for decoding, over all threads: a decoder reserves its memory before it starts and waits while others hold it.
// The counter is in shared memory, since the main thread is often blocked by the device.

import { totalmem } from "node:os";

/** A quarter of the RAM available to this process, bytes. */
export function defaultImageMemory(): number {
  let ram = totalmem();
  try {
    const limit = Number(Deno.readTextFileSync("/sys/fs/cgroup/memory.max"));
    if (limit > 0) ram = Math.min(ram, limit);
  } catch {
    // No cgroup limit.
  }
  return Math.floor(ram / 4);
}

const UNIT = 4096;

/** Polling interval, milliseconds: Atomics.waitAsync() would not keep the program alive. */
const POLL = 5;

/** Handle of a memory limit, for other threads. */
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

  /** The handle for another thread. */
  get shared(): SharedMemory {
    return { limit: this.limit, used: this.buffer };
  }

  static of({ limit, used }: SharedMemory): ImageMemory {
    return new ImageMemory(limit, used);
  }

  /** Reserved bytes. */
  get used(): number {
    return UNIT * Atomics.load(this.#used, 0);
  }

  /**
   * Runs `use` while reserving `bytes` (at most the limit). Nested reservations of a thread would deadlock.
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
