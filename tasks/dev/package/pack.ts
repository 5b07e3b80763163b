// Packs a folder into one executable file: header.sh, then the folder as a tar archive. The folder holds `deno` and `main.ts`.

import { dirname, fromFileUrl, join } from "@std/path";

const HERE = fromFileUrl(new URL(".", import.meta.url));

/** Packs `STAGE/tok` as `target`, with the files that the header needs. @throws Error for names with shell separators */
export async function pack(stage: string, target: string): Promise<void> {
  const app = join(stage, "tok");
  await Deno.copyFile(join(HERE, "install.ts"), join(app, "install.ts"));
  await Deno.writeTextFile(join(app, ".files"), "");
  const files = list(app, "").sort();
  await Deno.writeTextFile(join(app, ".files"), files.join("\n") + "\n");
  const bytes = files.reduce((sum, name) => sum + Deno.statSync(join(app, name)).size, 0);
  const archive = join(stage, "payload.tgz");
  const { code, stderr } = await new Deno.Command("tar", {
    args: ["-czf", archive, "-C", stage, "tok"],
    stderr: "piped",
  }).output();
  if (code !== 0) throw new Error(`Cannot run tar: ${new TextDecoder().decode(stderr)}`);

  const payload = await Deno.readFile(archive);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", payload)).toHex();
  const template = await Deno.readTextFile(join(HERE, "header.sh"));
  const header = (start: number) =>
    new TextEncoder().encode(
      Object.entries({
        DIGEST: digest,
        START: `${start}`.padEnd(8), // fixed width
        TOTAL: `${start - 1 + payload.length}`.padEnd(12),
        FILES: `${files.length}`,
        BYTES: `${bytes}`,
      }).reduce((text, [key, value]) => text.replace(`@${key}@`, value), template),
    );
  const text = header(header(0).length + 1);
  await Deno.mkdir(dirname(target), { recursive: true });
  const file = await Deno.open(target, { write: true, create: true, truncate: true, mode: 0o755 });
  await new Blob([text, payload]).stream().pipeTo(file.writable);
  await Deno.chmod(target, 0o755);
}

/** Files below a folder, relative to it. */
function list(folder: string, prefix: string): string[] {
  return [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) => {
    if (!/^[\w.@+-]+$/.test(name)) {
      throw new Error(`Cannot pack "${prefix}${name}": a shell would split its name`);
    }
    return isDirectory ? list(join(folder, name), `${prefix}${name}/`) : [prefix + name];
  });
}
