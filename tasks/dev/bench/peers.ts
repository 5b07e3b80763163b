// Peers, each in a process of its own: JavaScript libraries in a temporary package folder on the same adapter, and PyTorch
// from a Python installation. A peer reads the cases from a file and prints one JSON object for each that it can run.

import { fromFileUrl, join } from "@std/path";
import { UsageError } from "../../../src/errors.ts";

/** A case as a peer reads it: title and sizes. */
export type PeerCase = { title: string } & Record<string, unknown>;

/** One measurement of a peer. */
export interface Measured {
  case: string;
  ms: number;
  /** Precision or compiler, for peers with several. */
  variant?: string;
}

/** Packages of each JavaScript peer. */
export const PEERS: Readonly<Record<string, readonly string[]>> = {
  "TensorFlow.js": ["@tensorflow/tfjs-core@4.22.0", "@tensorflow/tfjs-backend-webgpu@4.22.0"],
  "jax-js": ["@jax-js/jax@0.1.25"],
  "onnxruntime-web": ["onnxruntime-web@1.30.0"],
};

const SCRIPTS: Readonly<Record<string, string>> = {
  "TensorFlow.js": "tfjs.ts",
  "jax-js": "jax.ts",
  "onnxruntime-web": "ort.ts",
};

const scriptOf = (name: string) => fromFileUrl(new URL(`../peers/${name}`, import.meta.url));

/** Runs one JavaScript peer and yields its times. */
export async function* runPeer(name: string, cases: readonly PeerCase[]): AsyncGenerator<Measured> {
  const folder = await Deno.makeTempDir({ prefix: "tok-peers-" });
  const script = SCRIPTS[name] as string, packages = PEERS[name] ?? [];
  try {
    const imports = Object.fromEntries(packages.map((p) => [p.slice(0, p.lastIndexOf("@")), `npm:${p}`]));
    await Deno.writeTextFile(join(folder, "deno.json"), JSON.stringify({ imports, nodeModulesDir: "auto" }));
    await Deno.writeTextFile(join(folder, "cases.json"), JSON.stringify(cases));
    await Deno.copyFile(scriptOf(script), join(folder, script));
    for await (const _ of lines(Deno.execPath(), ["install", "--quiet"], { cwd: folder }));
    yield* lines(Deno.execPath(), ["run", "--no-check", "-A", script, folder], { cwd: folder });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A Python with PyTorch: `TORCH_PYTHON`, or `python3` on the path. @throws UsageError when there is none */
export async function findTorch(): Promise<{ python: string; version: string; device: string }> {
  const python = Deno.env.get("TORCH_PYTHON") ?? "python3";
  const facts = "import torch; print(torch.__version__, 'cuda' if torch.cuda.is_available() else 'cpu')";
  let out: Deno.CommandOutput | undefined;
  try {
    out = await new Deno.Command(python, { args: ["-c", facts] }).output();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  const [version, device] = out?.success ? new TextDecoder().decode(out.stdout).trim().split(" ") : [];
  if (version === undefined || device === undefined) {
    throw new UsageError(
      `Cannot run PyTorch: "${python}" ${out ? "has no torch" : "was not found"}; set TORCH_PYTHON to a ` +
        `Python that has it`,
    );
  }
  return { python, version, device };
}

/** Runs PyTorch on the cases and yields its times. */
export async function* runTorch(
  python: string,
  cases: readonly PeerCase[],
  signal?: AbortSignal,
): AsyncGenerator<Measured> {
  const file = await Deno.makeTempFile({ prefix: "tok-cases-", suffix: ".json" });
  try {
    await Deno.writeTextFile(file, JSON.stringify(cases));
    yield* lines(python, [scriptOf("pytorch.py"), file], signal ? { signal } : {});
  } finally {
    await Deno.remove(file);
  }
}

/** The JSON lines that a command prints; what else it says goes to the error stream if it fails. An aborted one just ends. */
export async function* lines<L = Measured>(
  command: string,
  args: string[],
  { signal, ...options }: { cwd?: string; env?: Record<string, string>; signal?: AbortSignal } = {},
): AsyncGenerator<L> {
  const process = new Deno.Command(command, {
    args,
    ...options,
    ...signal ? { signal } : {},
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const said = new Response(process.stderr).text();
  let rest = "";
  // A process that the aborted one started may keep its output open.
  const stdout = process.stdout.pipeThrough(new TextDecoderStream(), signal ? { signal } : {});
  try {
    for await (const text of stdout) {
      const whole = (rest + text).split("\n");
      rest = whole.pop() ?? "";
      for (const line of whole) if (line.startsWith(`{"case"`)) yield JSON.parse(line) as L;
    }
  } catch (error) {
    if (!signal?.aborted) throw error;
  }
  const { success } = await process.status;
  if (!success && !signal?.aborted) console.error((await said).trim().split("\n").slice(-12).join("\n"));
}
