// The order in which batches are loaded, uploaded, run and read: the device waits for none of these.

import { assertEquals, assertRejects } from "@std/assert";
import { gather, gatherFloats } from "../../src/data/image_source.ts";
import { UsageError } from "../../src/errors.ts";
import { type ImageProgram, inferBatches } from "../../src/metrics/batched.ts";

/** A program over batches of two images of one number that writes down what happens to it; y is a batch's first number. */
function recorded() {
  const events: string[] = [];
  let uploaded = 0, ran = 0;
  const write = (data: Uint32Array) => void events.push(`upload ${uploaded = data[0] as number}`);
  const program = {
    label: "recorded",
    inputs: { x: { size: 2, dim: () => 2, storage: { write } } },
    outputs: { y: {} },
    run: () => void events.push(`run ${ran = uploaded}`),
    read() {
      const y = ran;
      events.push(`read ${y}`);
      return Promise.resolve(Float32Array.of(y, y));
    },
  };
  return { events, program: program as unknown as ImageProgram<"y"> };
}

const OPTIONS = { n: 5, parallel: 0, nameOf: String };

Deno.test("a batch is uploaded while the one before it runs, and runs while the caller uses that one's outputs", async () => {
  const { events, program } = recorded();
  const load = (first: number) =>
    Promise.resolve({ images: Uint32Array.of(first, first), labels: new Uint32Array(2) });
  const counts: number[] = [];
  for await (const { first, count, outputs } of inferBatches(program, load, OPTIONS)) {
    events.push(`use ${first}`);
    assertEquals([...outputs.y], Array(count).fill(first));
    counts.push(count);
  }
  assertEquals(counts, [2, 2, 1]);
  assertEquals(events, [
    ...["upload 0", "run 0", "upload 2", "read 0", "run 2", "use 0"],
    ...["upload 4", "read 2", "run 4", "use 2", "read 4", "use 4"],
  ]);
});

Deno.test("a batch that cannot be loaded ends inference after the outputs of those before it", async () => {
  const { program } = recorded(), used: number[] = [];
  const load = (first: number) =>
    first === 4
      ? Promise.reject(new UsageError("image 4 is damaged"))
      : Promise.resolve({ images: Uint32Array.of(first, first), labels: new Uint32Array(2) });
  await assertRejects(
    async () => {
      for await (const { first } of inferBatches(program, load, OPTIONS)) used.push(first);
    },
    UsageError,
    "image 4 is damaged",
  );
  assertEquals(used, [0, 2]);
});

Deno.test("an image that fills an incomplete batch is loaded once, unless its crops differ", async () => {
  const loaded: number[] = [];
  const load = (i: number, size: number) => {
    loaded.push(i);
    return new Uint8Array(3 * size * size).fill(i);
  };
  const source = { length: 9, classes: [], label: (i: number) => i, name: String, bytes: load };
  const floats = (i: number, size: number) => Float32Array.from(load(i, size));
  const { images, labels } = await gatherFloats({ ...source, floats }, [3, 5, 5, 5], 1);
  assertEquals([[...images], [...labels]], [[3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5], [3, 5, 5, 5]]);
  assertEquals(loaded, [3, 5]);
  const same = await gather(source, [2, 2], 4), other = await gather(source, [2, 2], 4, ["center", "adm"]);
  assertEquals(loaded, [3, 5, 2, 2, 2]);
  assertEquals(same, other);
});
