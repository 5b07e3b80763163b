// tasks/dev/mesa.sh without a folder: what it refuses. The folders themselves are made by hand and by CI.

import { assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl, join } from "@std/path";

const SCRIPT = fromFileUrl(new URL("../../tasks/dev/mesa.sh", import.meta.url));

function mesa(...args: string[]): { code: number; text: string } {
  const { code, stdout, stderr } = new Deno.Command("sh", { args: [SCRIPT, ...args] }).outputSync();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

Deno.test({
  name: "mesa.sh refuses wrong arguments and folders that are not its own in one line",
  ignore: Deno.build.os === "windows",
  fn() {
    const folder = Deno.makeTempDirSync();
    try {
      for (const args of [[], ["make"], ["run", folder], ["remove", folder], ["make", folder, "woody"]]) {
        const { code, text } = mesa(...args);
        if (/^mesa: Cannot make .*: this (needs root|system gives)/.test(text)) continue; // before the suite is read
        assertEquals([code, text], [
          2,
          "usage: sh tasks/dev/mesa.sh make DIR [sid|trixie] | run DIR COMMAND...\n",
        ]);
      }
      Deno.writeTextFileSync(join(folder, "mine"), "");
      for (const [what, why] of [["run", "there is no Mesa; make it first"], ["make", "it is not empty"]]) {
        const { code, text } = mesa(what as string, folder, ...what === "run" ? ["true"] : []);
        assertEquals(code, 1, text);
        assertMatch(text, /^mesa: Cannot (run|make) "[^"\n]*": [^\n]+\n$/);
        assertMatch(text, new RegExp(`this needs root on Linux|no private mounts|${why}`));
      }
      assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["mine"]);
    } finally {
      Deno.removeSync(folder, { recursive: true });
    }
  },
});
