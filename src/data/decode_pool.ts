// Worker threads that load images. A job is sent at once, to the worker with the fewest jobs: while the main thread waits for
// the device it handles no messages, so a worker that asked for its next job would be idle.

import { defaultImageMemory, ImageMemory } from "../image/memory.ts";
import type { InputSource } from "./network_input.ts";
import { errorOf, type Job, perform, type PixelsOf, type Reply, type Request } from "./decode_task.ts";
import type { Shapes } from "./toy_shapes.ts";
import type { ImageSource } from "./image_source.ts";

/** A job that was sent to a worker. */
interface Pending {
  resolve(pixels: PixelsOf<Job>): void;
  reject(error: Error): void;
}

interface Thread {
  worker: Worker;
  pending: Map<number, Pending>;
}

export class Workers implements Disposable {
  readonly #threads: Thread[] = [];
  readonly #memory: ImageMemory;
  #jobs = 0;
  /** The latest job of the calling thread. */
  #last: Promise<unknown> = Promise.resolve();
  /** Why nothing can be made any more. */
  #over: Error | undefined;

  /**
   * Threads start with their first job. Dispose of the workers at the end: they keep the process alive.
   * @param count threads; 0: jobs run on the calling thread
   * @param imageMemory bytes for decoding, of all threads together; by default a quarter of the RAM
   * @param entry the program of a thread
   */
  constructor(
    readonly count: number,
    imageMemory = defaultImageMemory(),
    private readonly entry = new URL("./decode_worker.ts", import.meta.url),
  ) {
    this.#memory = new ImageMemory(imageMemory);
  }

  /** The pixels of a job. @throws UsageError as perform() does; Error when a thread stopped, or after dispose */
  run<J extends Job>(job: J): Promise<PixelsOf<J>> {
    if (this.#over) return Promise.reject(this.#over);
    if (this.count === 0) {
      const made = this.#last.then(() => perform(job, this.#memory) as Promise<PixelsOf<J>>);
      this.#last = made.catch(() => {});
      return made;
    }
    const thread = this.#leastBusy(), id = this.#jobs++;
    return new Promise((resolve, reject) => {
      thread.pending.set(id, { resolve: resolve as Pending["resolve"], reject });
      thread.worker.postMessage({ id, job, memory: this.#memory.shared } satisfies Request);
    });
  }

  /** Ends all threads; jobs that are under way fail. */
  [Symbol.dispose](): void {
    this.#stop(new Error("Cannot make an image: its worker was ended"));
  }

  #leastBusy(): Thread {
    const busy = (thread: Thread) => thread.pending.size;
    const idle = this.#threads.find((thread) => busy(thread) === 0);
    if (idle) return idle;
    if (this.#threads.length < this.count) return this.#start();
    return this.#threads.reduce((a, b) => busy(b) < busy(a) ? b : a);
  }

  #start(): Thread {
    const worker = new Worker(this.entry, { type: "module" });
    const thread: Thread = { worker, pending: new Map() };
    worker.onmessage = ({ data }: MessageEvent<Reply>) => {
      const job = thread.pending.get(data.id);
      thread.pending.delete(data.id);
      if ("pixels" in data) job?.resolve(data.pixels);
      else job?.reject(errorOf(data.failure));
    };
    worker.onerror = (event) => {
      event.preventDefault(); // or it would end the program where nobody can catch it
      const [reason] = event.message.replace(/^Uncaught /, "").split("\n");
      this.#stop(
        new Error(
          `Cannot make an image: a worker stopped (${reason}); use fewer --workers, or --workers 0 to do without`,
        ),
      );
    };
    this.#threads.push(thread);
    return thread;
  }

  #stop(reason: Error): void {
    this.#over ??= reason;
    for (const { worker, pending } of this.#threads.splice(0)) {
      worker.terminate();
      for (const { reject } of pending.values()) reject(reason);
    }
  }
}

/** Generated shapes, computed by workers. */
export function generatedImages(workers: Workers, shapes: Shapes): ImageSource {
  return {
    length: shapes.length,
    classes: shapes.classes,
    parallel: workers.count,
    identity: () => shapes.identity(),
    label: (i) => shapes.label(i),
    name: (i) => shapes.name(i),
    bytes: async (index, size) => (await workers.run({ kind: "shape", seed: shapes.seed, index, size })).data,
  };
}

/** The same as network inputs, from images of side `side`. */
export function generatedInputs(workers: Workers, shapes: Shapes, side: number): InputSource {
  const shape = (index: number) => ({ kind: "shape", seed: shapes.seed, index, size: side }) as const;
  return {
    ...generatedImages(workers, shapes),
    input: (i, view) => workers.run({ kind: "input", image: shape(i), view }),
  };
}
