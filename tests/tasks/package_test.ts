// The single-file package: it unpacks completely or not at all, with any state of the cache or the file.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { pack } from "../../tasks/dev/package/pack.ts";

/** A packed program that prints its arguments; its Deno is a script that calls this one. */
async function packed(folder: string): Promise<string> {
  const app = join(folder, "stage/tok");
  await Deno.mkdir(join(app, "src"), { recursive: true });
  await Deno.writeTextFile(join(app, "deno"), `#!/bin/sh\nexec "${Deno.execPath()}" "$@"\n`);
  await Deno.chmod(join(app, "deno"), 0o755);
  await Deno.writeTextFile(
    join(app, "main.ts"),
    'import { x } from "./src/x.ts";\nconsole.log(x, ...Deno.args);\n',
  );
  await Deno.writeTextFile(join(app, "src/x.ts"), 'export const x = "ran";\n');
  await Deno.writeTextFile(join(app, "deno.json"), "{}");
  await pack(join(folder, "stage"), join(folder, "tok"));
  await Deno.remove(join(folder, "stage"), { recursive: true });
  return join(folder, "tok");
}

async function inFolder(test: (folder: string, tok: string) => Promise<void>): Promise<void> {
  if (Deno.build.os === "windows") return; // the single file is a shell script
  const folder = await Deno.makeTempDir();
  try {
    await test(folder, await packed(folder));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function start(tok: string, env: Record<string, string>) {
  const { code, stdout, stderr } = await new Deno.Command("sh", {
    args: [tok, "a b"],
    clearEnv: true,
    env: { PATH: Deno.env.get("PATH") ?? "", ...env },
  }).output();
  const decoder = new TextDecoder();
  return { code, out: decoder.decode(stdout), err: decoder.decode(stderr) };
}

const RAN = { code: 0, out: "ran a b\n", err: "" };
const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
/** The unpacked folder in a cache. */
function unpacked(cache: string): string {
  const [name] = names(cache).filter((name) => /^[0-9a-f]{16}$/.test(name)) as [string];
  assertEquals(names(cache), [name, `${name}.lock`]);
  return join(cache, name);
}

Deno.test("a damaged, incomplete or changed cache is unpacked again", () =>
  inFolder(async (folder, tok) => {
    const env = { HOME: folder };
    assertEquals(await start(tok, env), RAN);
    const home = unpacked(join(folder, ".cache/tok"));
    const changed = () => Deno.statSync(join(home, ".complete")).mtime?.getTime();
    const first = changed();
    assertEquals(await start(tok, env), RAN);
    assertEquals(changed(), first, "what is complete is used as it is");
    const damages = {
      "an empty executable": () => Deno.truncateSync(join(home, "deno")),
      "a cut file": () => Deno.truncateSync(join(home, "src/x.ts"), 5),
      "a missing file": () => Deno.removeSync(join(home, "src/x.ts")),
      "bytes of the same length": () =>
        Deno.writeTextFileSync(join(home, "src/x.ts"), 'export const x = "bad";\n'),
      "no stamp": () => Deno.removeSync(join(home, ".complete")),
      "an empty list": () => Deno.truncateSync(join(home, ".files")),
    };
    for (const [damage, make] of Object.entries(damages)) {
      await new Promise((r) => setTimeout(r, 20));
      make();
      assertEquals(await start(tok, env), RAN, damage);
      unpacked(join(folder, ".cache/tok"));
    }
  }));

Deno.test("parallel first starts leave one copy, and remove the leftovers of a killed one", () =>
  inFolder(async (folder, tok) => {
    const env = { XDG_CACHE_HOME: join(folder, "cache") }, cache = join(folder, "cache/tok");
    const child = new Deno.Command("true").spawn();
    await child.status;
    const host = new TextDecoder().decode((await new Deno.Command("uname", { args: ["-n"] }).output()).stdout)
      .trim();
    Deno.mkdirSync(join(cache, `.part-${host}-${child.pid}/tok`), { recursive: true });
    Deno.chmodSync(cache, 0o700);
    const starts = await Promise.all(Array.from({ length: 4 }, () => start(tok, env)));
    for (const result of starts) assertEquals(result, RAN);
    unpacked(cache);
  }));

Deno.test("a folder that other users own or can write is not used; without HOME a private one is", () =>
  inFolder(async (folder, tok) => {
    const uid = Deno.uid(), temporary = join(folder, "tmp"), own = join(temporary, `tok-${uid}`);
    Deno.mkdirSync(temporary);
    Deno.chmodSync(temporary, 0o1777);
    const env = { TMPDIR: temporary };
    assertEquals(await start(tok, env), RAN);
    const home = unpacked(own);
    assertEquals((Deno.statSync(own).mode ?? 0) & 0o777, 0o700);
    // Ours, but open to others: what lies there is thrown away.
    Deno.writeTextFileSync(join(home, "src/x.ts"), 'export const x = "bad";\n');
    const old = new Date(Date.now() - 1e6);
    Deno.utimeSync(join(home, "src/x.ts"), old, old);
    Deno.chmodSync(own, 0o777);
    assertEquals(await start(tok, env), RAN);
    assertEquals((Deno.statSync(own).mode ?? 0) & 0o022, 0);
    // A planted link, another owner, a parent in which others may replace it.
    const planted = join(folder, "planted");
    Deno.renameSync(own, planted);
    Deno.symlinkSync(planted, own);
    const refused = async (what: string) => {
      const { code, out, err } = await start(tok, env);
      assertEquals([code, out], [1, ""], what);
      assertMatch(
        err,
        /^(tok: warning: .+ is not used: .+\n)?tok: Cannot unpack: .+; set XDG_CACHE_HOME to one\n$/,
      );
    };
    await refused("a link");
    Deno.removeSync(own);
    Deno.chmodSync(temporary, 0o777);
    await refused("a parent that is open to all");
    Deno.chmodSync(temporary, 0o1777);
    if (uid !== 0) return;
    Deno.renameSync(planted, own);
    Deno.chownSync(own, 12345, 12345);
    await refused("another owner");
    assert((await start(tok, { ...env, HOME: folder })).out === RAN.out);
  }));

Deno.test("a truncated or damaged file reports it and leaves nothing", () =>
  inFolder(async (folder, tok) => {
    const bytes = Deno.readFileSync(tok), env = { HOME: folder };
    Deno.writeFileSync(tok, bytes.subarray(0, bytes.length - 100));
    assertEquals(await start(tok, env), {
      code: 1,
      out: "",
      err:
        `tok: Cannot start: ${tok} has ${
          bytes.length - 100
        } of ${bytes.length} bytes, so its download was cut off; ` +
        `download it again\n`,
    });
    const damaged = bytes.slice();
    damaged[bytes.length - 50] = (damaged[bytes.length - 50] as number) ^ 1;
    Deno.writeFileSync(tok, damaged);
    const { code, out, err } = await start(tok, env);
    assertEquals([code, out], [1, ""]);
    assertMatch(
      err,
      /^tok: Cannot start: .+ is damaged \(SHA-256 [0-9a-f]{64}, and it should be [0-9a-f]{64}\); download it again\n$/,
    );
    for (let length = 100; length < 4000; length += 650) { // the header itself
      Deno.writeFileSync(tok, bytes.subarray(0, length));
      assert((await start(tok, env)).code !== 0, `${length} bytes`);
    }
    assertEquals(names(join(folder, ".cache/tok")), []);
  }));
