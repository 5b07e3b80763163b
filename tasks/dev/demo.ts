// The five bare commands in a new folder, one after another, with the time and peak memory of each.
// Run: deno task demo [FOLDER]

import { resolve } from "@std/path";

const folder = resolve(Deno.args[0] ?? Deno.makeTempDirSync({ prefix: "tok-demo-" }));
Deno.mkdirSync(folder, { recursive: true });
const main = new URL("../../main.ts", import.meta.url).href;
const commands = [["align"], ["reconstruct"], ["train-dit"], ["sample", "--cfg", "4"], ["eval"]];
console.log(`the demo runs in ${folder}`);
const began = performance.now();
for (const args of commands) {
  console.log(`\n$ tok ${args.join(" ")}`);
  const from = performance.now();
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", main, ...args],
    cwd: folder,
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  let peak = 0;
  const watch = setInterval(() => {
    try {
      const status = Deno.readTextFileSync(`/proc/${child.pid}/status`);
      peak = Math.max(peak, Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0));
    } catch {
      // Only Linux tells, and only while the process lives.
    }
  }, 500);
  const { code } = await child.status;
  clearInterval(watch);
  console.log(
    `(${((performance.now() - from) / 1000).toFixed(1)} s` +
      `${peak ? `, peak RSS ${(peak / 1024).toFixed(0)} MB` : ""})`,
  );
  if (code !== 0) Deno.exit(code);
}
console.log(
  `\n${((performance.now() - began) / 1000).toFixed(1)} s in all; look at ${folder}/runs/*/grid.png and ` +
    `report.html`,
);
