// Run by provider_test.ts in a process of its own: opens and closes the device ten times, has an error reported outside any scope,
// loses the device while a read is pending, and ends without closing it.

import { closeDevice, device, openDevice } from "../../src/gpu/device.ts";
import { addInPlace } from "../../src/gpu/memory.ts";
import { capture } from "../../src/gpu/program.ts";
import { readTensor, variable } from "../../src/tensor/tensor.ts";

const say = (what: string, error: Error) =>
  console.error(`${what}: ${error.message.split(/[:(]/, 2).join(":").trim()}`);
/** Waits up to 5 s for an error of the device. @returns it */
async function errorOf(): Promise<Error | undefined> {
  for (const end = performance.now() + 5000; performance.now() < end;) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    try {
      device().check();
    } catch (error) {
      return error as Error;
    }
  }
  return undefined;
}
const sayError = async (what: string) => say(what, await errorOf() ?? new Error("no error in 5 s"));

for (let i = 0; i < 10; i++) {
  await openDevice();
  const sum = variable([4], { init: () => new Float32Array(4).fill(9 * i) });
  const more = variable([4], { init: () => new Float32Array(4).fill(i) });
  const program = await capture("t", {}, () => (addInPlace(more, sum), {})).prepare();
  program.run();
  console.error(`sum ${(await readTensor(sum))[3]}`);
  closeDevice();
}

await openDevice();
device().gpu.createBuffer({ size: 16, usage: 0xffff });
await sayError("reported");
closeDevice();

await openDevice();
const x = variable([4], { init: () => new Float32Array(4) });
const pending = readTensor(x).catch(() => {});
device().destroy();
await pending;
await sayError("lost");
await readTensor(x).catch((error) => say("read", error));
console.error("end");
