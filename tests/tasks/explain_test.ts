// --explain: the value of each option, where it comes from, and the grade of the recipe's value.

import { assert, assertEquals } from "@std/assert";
import type { z } from "zod";
import { aboutOption } from "../../src/cli/about.ts";
import { alignConfig, trainDitConfig } from "../../src/cli/config.ts";
import { explain, explainTable } from "../../src/cli/explain.ts";
import { resolveOptions, type Schema } from "../../src/cli/flags.ts";
import { ALIGN_GRADES, TRAIN_DIT_GRADES } from "../../src/cli/grades.ts";
import { ALIGN_PRESETS } from "../../src/cli/presets.ts";
import { run } from "../helpers/commands.ts";

function explained(...args: string[]) {
  const { config, origins } = resolveOptions(alignConfig, args, { command: "align", presets: ALIGN_PRESETS });
  return explain(alignConfig, config, origins, ALIGN_GRADES);
}

Deno.test("every option that decides the result of a training has a grade", () => {
  for (const [schema, grades] of [[alignConfig, ALIGN_GRADES], [trainDitConfig, TRAIN_DIT_GRADES]] as const) {
    const options = Object.entries((schema as Schema).shape).filter(([name, type]) =>
      !aboutOption(type as z.ZodType)?.free && !["preset", "seed", "tokenizer", "latents"].includes(name)
    );
    assertEquals(options.map(([name]) => name).filter((name) => !Object.hasOwn(grades, name)), []);
    assert(options.length > 15);
  }
});

Deno.test("--explain distinguishes default, preset, config file and command line, and grades the effective value", async () => {
  const file = await Deno.makeTempFile({ suffix: ".json" });
  await Deno.writeTextFile(file, JSON.stringify({ wSemantic: 3, "batch-size": 4 }));
  const rows = explained(
    "--preset",
    "dinov2-l-f16d32",
    "--config",
    file,
    "--semantic-at",
    "before",
    "--w-gan",
    "0.1",
  );
  await Deno.remove(file);
  const row = (name: string) => {
    const { value, from, grade, source } = rows.find((r) => r.name === name) ??
      rows[0] as typeof rows[number];
    return [value, from, grade, source];
  };
  assertEquals(row("wL1").slice(0, 3), [1, "default", "N"]);
  assertEquals(row("lr").slice(0, 3), [[1e-4, 1e-4, 1e-4], "preset", "I"]);
  assertEquals(row("wSemantic"), [3, "config file", "C", "on LAION"]);
  assertEquals(row("semanticAt").slice(0, 3), ["before", "command line", "C"]);
  assertEquals(row("wGan"), [0.1, "command line", "tok", "recipe: 0.5 (I)"]);
  assertEquals(row("clip"), [1, "default", "tok", ""]);
  assertEquals(row("accumulate"), [32, "preset", "tok", "recipe: 256 in all (I)"]); // 4 x 32
  const grades = explained("--preset", "dinov2-l-f16d32").map(({ name, grade }) => [name, grade]);
  assertEquals(Object.fromEntries(grades).batchSize, "I"); // 8 x 32
  assertEquals(explained().find(({ name }) => name === "latentChannels")?.grade, "tok");
});

Deno.test("the table of --explain fits the terminal, and --json has each option; neither needs data, weights or an adapter", async () => {
  const rows = explained("--preset", "siglip2-l-f16d32");
  for (const columns of [80, 100, 140]) {
    const lines = explainTable(rows, columns);
    assertEquals(lines.filter((line) => line.length > columns), []);
    const text = lines.join(" ").replace(/\s+/g, " ");
    for (const { name, source } of rows) {
      assert(text.includes(source) && name !== "", `${columns}: ${source}`);
    }
  }
  const { lines, result } = await run("align", "--preset", "dinov2-l-f16d64", "--explain");
  const options = result.options as Record<string, { value: unknown; from: string; grade: string }>;
  assertEquals(options.latentChannels, { value: 64, from: "preset", grade: "N", source: "f16d64" } as never);
  assert(lines.some((line) => /^--latent-channels +64 +preset +N/.test(line)), lines.join("\n"));
  const dit = (await run("train-dit", "--preset", "imagenet", "--explain")).result.options as typeof options;
  assertEquals([dit.steps?.grade, dit.batchSize?.grade, dit.clip?.grade], ["N", "I", "tok"]);
});
