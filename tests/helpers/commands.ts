// Runs commands inside the test process: seconds faster than starting tok, and errors arrive as thrown.

import { assert, assertEquals } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { requestAdapter } from "../../src/gpu/device.ts";
import { makeFolder } from "../../src/formats/files.ts";
import { writePng } from "../../src/image/image.ts";
import { Log } from "../../src/run/log.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { saveState } from "../../src/nn/layers.ts";
import { openTokenizer } from "../../src/zoo/runs.ts";
import { parseCommandLine } from "../../tasks/run.ts";
import { randomArray, testDevice } from "./check.ts";
import { fixturePath } from "./published.ts";

/** Whether the next device that is requested is the one of commands. */
let sharing = false;

/**
 * Lets all commands of a test file have one device: kernels that the first one compiled are ready for all. A device that a
 * command requests for itself after that (to compile on several threads) is a new one.
 */
function shareDevice(): void {
  const { requestDevice } = GPUAdapter.prototype, open = new Map<boolean, GPUDevice>();
  GPUAdapter.prototype.requestDevice = async function (...args) {
    const shared = sharing, fallback = this.info.isFallbackAdapter, known = open.get(fallback);
    sharing = false;
    if (shared && known) return known;
    const device = await requestDevice.apply(this, args);
    if (shared) {
      open.set(fallback, device);
      device.lost.then(() => void open.delete(fallback));
    }
    return device;
  };
}
shareDevice();

/** `--cpu`, or nothing where there is only a GPU. */
export const SOFTWARE: readonly string[] = await requestAdapter(true).then(() => ["--cpu"], () => []);

/** Runs a command on the software adapter if there is one, as main.ts does. @returns what it said and what it returned */
export async function run(
  name: string,
  ...args: string[]
): Promise<{ lines: string[]; result: Record<string, unknown> }> {
  const { command, config, origins } = parseCommandLine([name, ...args, ...SOFTWARE]);
  const { log, lines } = quietLog();
  sharing = true;
  try {
    return {
      lines,
      result: await command.run(config, { log, commandLine: `tok ${name}`, stopping: () => false, origins }),
    };
  } finally {
    sharing = false;
    log.close();
  }
}

const MAIN = fromFileUrl(new URL("../../main.ts", import.meta.url));
const CONFIG = fromFileUrl(new URL("../../deno.json", import.meta.url));

/**
 * Starts a command in a process and kills it with SIGKILL as soon as the log of its run in `out` has a row of step `step` or
 * later. @throws with the command's error stream, where it ends by itself or is not there in two minutes
 */
export async function killAt(step: number, out: string, name: string, ...args: string[]): Promise<void> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", "-A", "--config", CONFIG, MAIN, name, ...args, ...SOFTWARE],
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const stderr = new Response(child.stderr).text(), log = join(out, "log.jsonl");
  let last = 0, ended = false;
  child.status.then(() => ended = true);
  for (let waited = 0; waited < 120_000 && last < step && !ended; waited += 20) {
    await new Promise((r) => setTimeout(r, 20));
    try {
      for (const [, n] of Deno.readTextFileSync(log).matchAll(/"step":(\d+)/g)) {
        last = Math.max(last, Number(n));
      }
    } catch {
      continue; // the run has not made its log yet
    }
  }
  if (!ended) child.kill("SIGKILL");
  const { signal } = await child.status;
  assertEquals(signal, "SIGKILL", `${name} ended before step ${step}:\n${await stderr}`);
  assert(last >= step, `${name} was at step ${last} after two minutes, not ${step}:\n${await stderr}`);
}

/** A log that keeps its lines to itself. */
export function quietLog(): { log: Log; lines: string[] } {
  const lines: string[] = [], log = new Log({ json: false, terminal: { stdout: false, stderr: false } });
  log.line = (text) => void lines.push(text);
  log.progress = () => ({ update: () => {}, end: () => {} });
  return { log, lines };
}

/** A folder for a test, which is removed after it. */
export async function inFolder(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** `n` PNG files of random pixels, 8 x 8. */
export async function writeImages(folder: string, n: number): Promise<void> {
  makeFolder(folder);
  for (let i = 0; i < n; i++) {
    const data = Uint8Array.from(randomArray(8 * 8 * 3, i + 1), (v) => 128 + 80 * v);
    await writePng(join(folder, `${i}.png`), { width: 8, height: 8, data });
  }
}

/** The small VA-VAE of the fixtures in another file, with one tensor changed. */
export async function changed(path: string, key?: string): Promise<string> {
  await testDevice();
  const tensors = (await saveState(await openTokenizer(fixturePath("vavae_tiny.pt")))).reverse();
  const tensor = tensors.find(({ name }) => name === key);
  if (tensor) tensor.data[0] = (tensor.data[0] as number) + 0.5;
  else assertEquals(key, undefined);
  await writeSafetensors(path, tensors);
  return path;
}

/** Tensors of that VA-VAE: one that makes latents, and one that makes images of them. */
export const ENCODES = "encoder.conv_in.bias", DECODES = "decoder.conv_in.bias";
