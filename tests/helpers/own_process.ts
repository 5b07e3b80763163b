// Tests that need a process of their own: test files run as threads of one process (deno test --parallel), which share its
// environment variables, its working folder and its memory.

import { fromFileUrl } from "@std/path";

/** Set in the process that runs the tests. */
const INSIDE = "TOK_TEST_OWN_PROCESS";

/**
 * A `Deno.test` for tests that set environment variables, change the working folder or measure memory. All such tests of a
 * file run in one process, which the first of them starts.
 * @param file URL of the test file: import.meta.url
 */
export function testInOwnProcess(file: string): (name: string, fn: () => void | Promise<void>) => void {
  if (Deno.env.has(INSIDE)) return (name, fn) => Deno.test(name, fn);
  const names: string[] = [];
  let all: Promise<{ passed: Set<string>; said: string }> | undefined;
  return (name) => {
    names.push(name);
    Deno.test(name, async () => {
      const { passed, said } = await (all ??= runTests(file, names));
      if (!passed.has(name)) throw new Error(`in a process of its own:\n${said}`);
    });
  };
}

/** Runs the tests of these names. A software driver may abort in its destructors when the process ends, so each line counts. */
async function runTests(file: string, names: readonly string[]) {
  const escaped = names.map((name) => name.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "test",
      "-A",
      "--no-check",
      "--reporter=tap",
      `--filter=/^(${escaped.join("|")})$/`,
      fromFileUrl(file),
    ],
    env: { [INSIDE]: "1", NO_COLOR: "1" },
  }).output();
  const said = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("");
  const passed = new Set([...said.matchAll(/^ok \d+ - (.*)$/gm)].map(([, name]) => name as string));
  return { passed, said };
}
