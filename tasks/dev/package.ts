// Writes dist/tok: one self-extracting file with Deno, the program, its packages and the embedded models; it needs neither an
// installation nor a network. A shell header (package/header.sh) unpacks the archive once into the user's cache, under the
// archive's hash. For Linux and macOS, for the platform that packs it. Run: deno task package [FILE]

import { fromFileUrl, join, resolve } from "@std/path";
import { pack } from "./package/pack.ts";

const TOP = fromFileUrl(new URL("../..", import.meta.url));
const target = resolve(Deno.args[0] ?? join(TOP, "dist/tok"));
const stage = await Deno.makeTempDir({ prefix: "tok-package-" });

async function run(
  command: string,
  args: string[],
  env: Record<string, string> = {},
  cwd = stage,
): Promise<void> {
  const { code, stderr } = await new Deno.Command(command, {
    args,
    env,
    cwd,
    stdout: "null",
    stderr: "piped",
  }).output();
  if (code !== 0) {
    throw new Error(`Cannot run ${command} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
  }
}

async function copyTree(from: string, to: string): Promise<void> {
  await Deno.mkdir(to, { recursive: true });
  for await (const { name, isDirectory } of Deno.readDir(from)) {
    if (isDirectory) await copyTree(join(from, name), join(to, name));
    else await Deno.copyFile(join(from, name), join(to, name));
  }
}

try {
  const app = join(stage, "tok");
  for (const folder of ["src", "tasks", "kernels"]) await copyTree(join(TOP, folder), join(app, folder));
  for (const file of ["main.ts", "deno.json", "deno.lock", "LICENSE"]) {
    await Deno.copyFile(join(TOP, file), join(app, file));
  }
  await Deno.remove(join(app, "tasks/dev"), { recursive: true });
  // A package cache with nothing else in it.
  await run(Deno.execPath(), ["cache", "--no-check", "main.ts", "tasks/thread.ts"], {
    DENO_DIR: join(app, "cache"),
  }, app);
  await Deno.copyFile(Deno.execPath(), join(app, "deno"));
  await Deno.chmod(join(app, "deno"), 0o755);
  // Deno's caches of this machine's paths are useless elsewhere and change while it runs.
  for (const { name } of [...Deno.readDirSync(join(app, "cache"))]) {
    if (name !== "npm") await Deno.remove(join(app, "cache", name), { recursive: true });
  }
  await pack(stage, target);
  console.log(`${target}: ${((await Deno.stat(target)).size / 1e6).toFixed(0)} MB`);
} finally {
  await Deno.remove(stage, { recursive: true });
}
