// Makes dist/tok: one file that holds Deno, the program, its packages and the embedded models, and runs where none of
// them is installed and nothing can be fetched. A shell header unpacks the archive behind it once, into the user's cache,
// under the archive's own hash. For Linux and macOS, of the kind that packs it. Run: deno task package [FILE]

import { dirname, fromFileUrl, join, resolve } from "@std/path";

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
  // The packages, in a cache that holds nothing else.
  await run(Deno.execPath(), ["cache", "--no-check", "main.ts", "tasks/thread.ts"], {
    DENO_DIR: join(app, "cache"),
  }, app);
  await Deno.copyFile(Deno.execPath(), join(app, "deno"));
  await Deno.chmod(join(app, "deno"), 0o755);
  await run("tar", ["-czf", "payload.tgz", "-C", stage, "tok"]);

  const payload = await Deno.readFile(join(stage, "payload.tgz"));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", payload)).toHex().slice(0, 16);
  const header = (lines: number) =>
    `#!/bin/sh
# tok: unpacks itself once into the cache, then runs. Everything behind the last line is a tar archive.
set -eu
for base in "\${XDG_CACHE_HOME:-}" "\${HOME:+$HOME/.cache}" "\${TMPDIR:-}" /tmp; do
  [ -n "$base" ] || continue
  home="$base/tok/${digest}"
  [ -x "$home/deno" ] && break
  mkdir -p "$base/tok" 2>/dev/null || continue
  part="$base/tok/.part-$$"
  if mkdir "$part" 2>/dev/null && tail -n +${lines} "$0" | tar -xzf - -C "$part" 2>/dev/null && "$part/tok/deno" --version >/dev/null 2>&1; then
    mv "$part/tok" "$home" 2>/dev/null || true # another start may have been faster
    rm -rf "$part"
    [ -x "$home/deno" ] && break
  fi
  rm -rf "$part"
done
[ -x "$home/deno" ] || { echo "tok: Cannot unpack: no folder can be written and run from; set XDG_CACHE_HOME" >&2; exit 1; }
export DENO_DIR="$home/cache" DENO_NO_UPDATE_CHECK=1
exec "$home/deno" run -A --no-check --cached-only --no-prompt --config "$home/deno.json" "$home/main.ts" "$@"
exit 1
`;
  const text = header(header(0).split("\n").length);
  await Deno.mkdir(dirname(target), { recursive: true });
  const file = await Deno.open(target, { write: true, create: true, truncate: true, mode: 0o755 });
  await file.write(new TextEncoder().encode(text));
  await new Blob([payload]).stream().pipeTo(file.writable);
  await Deno.chmod(target, 0o755);
  console.log(`${target}: ${((await Deno.stat(target)).size / 1e6).toFixed(0)} MB`);
} finally {
  await Deno.remove(stage, { recursive: true });
}
