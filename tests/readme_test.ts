// READMEs stay true: their commands parse with the real option parser, their links lead to files, and the one at the top
// is short.

import { assert, assertEquals } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import { parseCommandLine } from "../tasks/run.ts";

const TOP = fromFileUrl(new URL("..", import.meta.url));

function readmes(folder = ""): string[] {
  return [...Deno.readDirSync(join(TOP, folder))].flatMap(({ name, isDirectory }) => {
    const path = join(folder, name);
    if (isDirectory) return /^(\.git|node_modules|runs|dist)$/.test(name) ? [] : readmes(path);
    return name === "README.md" ? [path] : [];
  }).sort();
}

/** Command lines of `tok` in code blocks (with or without a prompt and a comment) and in code spans. */
function commands(text: string): string[] {
  const blocks = [...text.matchAll(/```\w*\n([\s\S]*?)```/g)].flatMap(([, block]) =>
    (block as string).split("\n")
  );
  const spans = [...text.matchAll(/`(tok [^`\n]+)`/g)].map(([, span]) => span as string);
  return [...blocks, ...spans].map((line) => line.replace(/^\$ /, "").replace(/\s+#.*$/, "").trim())
    .filter((line) => /^tok [a-z]/.test(line))
    // Placeholders and lists of alternatives are no command lines.
    .filter((line) => !/[<\[]|\.\.\./.test(line));
}

Deno.test("every command in a README parses", () => {
  let count = 0;
  for (const path of readmes()) {
    for (const line of commands(Deno.readTextFileSync(join(TOP, path)))) {
      if (/--(help|version)\b/.test(line)) continue;
      try {
        parseCommandLine(line.split(/\s+/).slice(1));
        count++;
      } catch (error) {
        throw new Error(`${path}: ${line}`, { cause: error });
      }
    }
  }
  assert(count > 15, `only ${count} commands were found`);
});

Deno.test("every link in a README leads to a file", () => {
  for (const path of readmes()) {
    const links = [...Deno.readTextFileSync(join(TOP, path)).matchAll(/\]\((?!https?:)([^)#]+)\)/g)];
    for (const [, target] of links) Deno.statSync(join(TOP, dirname(path), target as string));
  }
});

Deno.test("the README at the top has at most 150 lines, and each main folder one of its own", () => {
  assert(Deno.readTextFileSync(join(TOP, "README.md")).split("\n").length <= 151);
  const own = ["kernels", "src", "src/gpu", "src/train", "tasks", "tasks/dev/bench", "tests"];
  assertEquals(own.map((f) => join(f, "README.md")).filter((path) => !readmes().includes(path)), []);
});
