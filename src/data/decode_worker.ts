// The entry of a worker thread: performs the jobs that come, hands the pixels over without a copy, and never fails itself.
// It is started by its path (see decode_pool.ts), so a compiled or packed program has to bring this file along.

import { ImageMemory } from "../image/memory.ts";
import { failureOf, perform, type Reply, type Request } from "./decode_task.ts";

/** One job after another: more at a time would be no faster, and hold more memory. */
let last: Promise<void> = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<Request>) => {
  last = last.then(() => reply(data));
};

async function reply({ id, job, memory }: Request): Promise<void> {
  try {
    const pixels = await perform(job, ImageMemory.of(memory));
    self.postMessage({ id, pixels } satisfies Reply, { transfer: [pixels.data.buffer] });
  } catch (error) {
    self.postMessage({ id, failure: failureOf(error) } satisfies Reply);
  }
}
