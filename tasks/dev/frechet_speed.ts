// Time and memory of a Frechet distance of two sets of generated features; src/metrics/README.md has the results.
// Run: deno run -A tasks/dev/frechet_speed.ts [ROWS] [COLUMNS] [THREADS]

import process from "node:process";
import { frechet } from "../../src/metrics/frechet.ts";
import { type Gaussian, Moments } from "../../src/metrics/moments.ts";
import { normal } from "../../src/philox.ts";

const [rows = 50_000, columns = 2048, threads] = Deno.args.map(Number), BATCH = 50;

/** Batches of correlated features with means far from zero. */
function* batches(set: number): Generator<Float32Array> {
  const noise = normal(set, 0, 4 * BATCH * columns);
  for (let first = 0; first < rows; first += BATCH) {
    const offset = first * 7919 % (3 * BATCH * columns),
      batch = noise.slice(offset, offset + BATCH * columns);
    for (let k = 0; k < batch.length; k++) batch[k] = 5 + (batch[k] as number) + 0.5 * (batch[k ^ 1] ?? 0);
    yield batch.subarray(0, (rows - first) * columns);
  }
}

const start = performance.now();
function report(what: string): void {
  const { user, system } = process.cpuUsage(), seconds = (performance.now() - start) / 1e3;
  const cpu = (user + system) / 1e6, { maxRSS } = process.resourceUsage();
  const spent = `${seconds.toFixed(1)} s, ${cpu.toFixed(1)} s of all threads`;
  console.log(`${what}: ${spent}, at most ${(maxRSS * 1024 / 1e6).toFixed(0)} MB`);
}

const sets: Gaussian[] = [];
for (const set of [1, 2]) {
  using moments = new Moments(columns, threads);
  for (const batch of batches(set)) await moments.add(batch);
  sets.push(await moments.gaussian());
  report(`moments of ${set} x ${rows} x ${columns}`);
}
const distance = await frechet(sets[0] as Gaussian, sets[1] as Gaussian);
report(`distance ${distance.toFixed(6)}`);
