// Measures time and peak memory of decoding one image file to 256 x 256 (tests/fixtures/make_large.py writes large ones). Run: deno run -A tasks/dev/image_memory.ts FILE [MEGABYTES]

import process from "node:process";
import { Workers } from "../../src/data/decode_pool.ts";

const [path, megabytes] = Deno.args;
if (path === undefined) throw new Error("name a file");
using workers = new Workers(0, megabytes === undefined ? undefined : Number(megabytes) * 1e6);
const before = performance.now();
const { notes } = await workers.run({ kind: "square", path, size: 256 });
const { user, system } = process.cpuUsage();
const [peak] = /(?<=VmHWM:\s*)\d+/.exec(Deno.readTextFileSync("/proc/self/status")) ?? [NaN];
console.log(
  `${path}: ${((performance.now() - before) / 1e3).toFixed(1)} s, ${
    ((user + system) / 1e6).toFixed(1)
  } s of CPU time, ` +
    `peak RSS ${(Number(peak) / 1024).toFixed(0)} MiB`,
);
for (const { text } of notes ?? []) console.log(text);
