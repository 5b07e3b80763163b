// The entry of a worker thread: performs the jobs that come, hands the pixels over without a copy, and never fails itself.
// It is started by its path (see workers.ts), so a compiled or packed program has to bring this file along.

import { failureOf, perform, type Reply, type Request } from "./jobs.ts";

self.onmessage = async ({ data: { id, job } }: MessageEvent<Request>) => {
  try {
    const pixels = await perform(job);
    self.postMessage({ id, pixels } satisfies Reply, { transfer: [pixels.data.buffer] });
  } catch (error) {
    self.postMessage({ id, failure: failureOf(error) } satisfies Reply);
  }
};
