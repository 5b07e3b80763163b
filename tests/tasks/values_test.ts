// Values of options that are refused: the message says what the option takes, in the command line's words.

import { assert, assertThrows } from "@std/assert";
import type { z } from "zod";
import { flagOf } from "../../src/cli/flags.ts";
import { UsageError } from "../../src/errors.ts";
import { COMMANDS, parseCommandLine } from "../../tasks/run.ts";

Deno.test("a refused value of any option is answered in the command line's words", () => {
  const refused = (line: string) => assertThrows(() => parseCommandLine(line.split(" ")), UsageError).message;
  for (
    const [line, reason] of [
      ["sample --num 0", "give a whole number from 1 to 100,000,000"],
      ["sample --num x", "give a whole number from 1 to 100,000,000"],
      ["sample --num 200000000", "at most 100,000,000 images are supported"],
      ["sample --seed 1.5", "give a whole number from 0 on"],
      ["sample --seed 1e20", "at most 9,007,199,254,740,991 is supported"],
      ["sample --cfg x", "give a number"],
      ["sample --shift 0", "give a number above 0"],
      ["sample --cfg-rescale 2", "give a number from 0 to 1"],
      ["sample --zero-init 1", "give a number from 0 to below 1"],
      ["sample --apg-momentum -1", "give a number above -1 and below 1"],
      ["edit --strength 0", "give a number above 0 and at most 1"],
      ["sample --apg-norm x", "give none, or a number above 0"],
      ["train-dit --ema posthoc2", "give a number from 0 to below 1, or posthoc"],
      ["sample --cfg-interval 0.5", "give 2 values, each a number from 0 to 1, such as 0.1,1"],
      ["sample --cfg-interval 0,2", '"2" is not a number from 0 to 1'],
      ["sample --cfg-interval 1,0", "give the smaller time first"],
      ["sample --labels even", "give one of equal, random"],
      ["align --steps 1,2,x", '"x" is not a whole number from 1 on'],
      ["eval --metrics psnr,fidd", "mind6; did you mean fid?"],
      ["train-dit --model XL", "1p6B/2; did you mean XL/1?"],
      ["sweep --cfg 1,x", '"x" is not a number'],
      ["sweep --apg maybe", '"maybe" is not off or on'],
      ["sweep --sampler euler,huen", "euler-stochastic; did you mean heun?"],
      [
        "sweep --cfg-interval 0,1",
        '"0" is not FROM-TO, each a number from 0 to 1, such as 0.1-1; a comma separates values',
      ],
      ["sweep --steps=", "it needs a value (N,...)"],
    ] as const
  ) {
    const message = refused(line);
    assert(message.endsWith(reason) && message.startsWith("Cannot use --"), `${line}: ${message}`);
  }
  assert(refused("train-dit --model XL").includes(": give one of tiny, tiny/2, S/1, "));
  let count = 0;
  for (const { name, schema } of COMMANDS) {
    for (const [field, type] of Object.entries(schema.shape).filter(([field]) => field !== "config")) {
      for (const value of ["?", "-1e30", "1e30", "?,?,?,?"]) {
        const flag = flagOf(field, type as z.ZodType), line = `${name} --${flag}=${value}`;
        try {
          parseCommandLine([name, `--${flag}=${value}`]);
        } catch (error) {
          const { message } = error as Error;
          assert(
            error instanceof UsageError && message.startsWith(`Cannot use --${flag} `),
            `${line}: ${message}`,
          );
          assert(!/invalid|expected|received|too (small|big)|undefined|null/i.test(message), message);
          assert(!message.endsWith(": "), message);
          count++;
        }
      }
    }
  }
  assert(count > 300, `only ${count} values were refused`);
});
