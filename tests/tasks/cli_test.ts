// The command line: exit codes, suggestions, help, precedence, and one clear line for bad input.

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import type { z } from "zod";
import {
  type AlignConfig,
  alignConfig,
  evalConfig,
  sampleConfig,
  trainDitConfig,
} from "../../src/cli/config.ts";
import { ALIGN_PRESETS } from "../../src/cli/presets.ts";
import { UsageError } from "../../src/errors.ts";
import { run } from "../helpers/commands.ts";
import { flagOf, resolveConfig } from "../../src/cli/flags.ts";
import { helpOf } from "../../src/cli/help.ts";
import { ganStartOf } from "../../src/train/align_config.ts";
import { COMMANDS, parseCommandLine } from "../../tasks/run.ts";

const MAIN = fromFileUrl(new URL("../../main.ts", import.meta.url));
const CONFIG = fromFileUrl(new URL("../../deno.json", import.meta.url));

async function tok(args: string[], options: { cwd?: string; env?: Record<string, string> } = {}) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--no-check", "-A", "--config", CONFIG, MAIN, ...args],
    stdout: "piped",
    stderr: "piped",
    ...options,
  }).output();
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

Deno.test("tok --help and tok <command> --help print help on stdout, tok --version the version", async () => {
  const top = await tok(["--help"]), align = await tok(["align", "--help"]);
  assertEquals([top.code, align.code], [0, 0]);
  for (const { name } of COMMANDS) assert(top.stdout.includes(`  ${name}`), name);
  assert(align.stdout.includes("Usage: tok align [options]"), align.stdout);
  assert(/^tok \d+\.\d+\.\d+\n$/.test((await tok(["--version"])).stdout));
});

Deno.test("help fits the terminal, shows defaults, and leaves advanced options to --help all", () => {
  for (const command of COMMANDS) {
    const [short, all] = [false, true].map((all) => helpOf(command, { all, columns: 80 })) as [
      string,
      string,
    ];
    for (
      const [width, help] of [[80, short], [80, all], [
        70,
        helpOf(command, { all: true, columns: 70 }),
      ]] as const
    ) {
      assertEquals(help.split("\n").filter((line) => line.length > width), [], command.name);
    }
    assert(short.includes(`Usage: tok ${command.name}`) && short.includes("Examples:"), command.name);
    assert(short.includes("--seed N") && short.includes("[0]"), command.name);
    assert(
      !short.includes("--debug") && short.includes("--help all") && all.includes("--debug"),
      command.name,
    );
    const flags = Object.entries(command.schema.shape).map(([name, type]) => flagOf(name, type as z.ZodType));
    for (const flag of flags) assertMatch(all, new RegExp(`^  --(no-)?${flag}( |$)`, "m"), command.name);
    assert(!/\[[SNCI]\/?[SNCI]?[\]:]/.test(all), `${command.name}: no grades of evidence`);
  }
  const reconstruct = helpOf(parseCommandLine(["reconstruct"]).command, { all: false, columns: 200 });
  assertMatch(reconstruct, /--no-grid +Do not write grid\.png/);
  assertMatch(reconstruct, /--image-size N +Side of the images, pixels \[the tokenizer's\]/);
});

Deno.test("every example of every command's help parses", () => {
  for (const { name, examples } of COMMANDS) {
    assert(examples.length > 0, name);
    for (const line of examples) {
      const [program, ...args] = line.split(" ");
      assertEquals([program, parseCommandLine(args).command.name], ["tok", name]);
    }
  }
});

Deno.test("every command of every README parses", () => {
  let count = 0;
  for (const path of readmes(fromFileUrl(new URL("../..", import.meta.url)))) {
    const [...text] = Deno.readTextFileSync(path).split("```");
    const blocks = text.filter((_, i) => i % 2 === 1).join("\n"),
      prose = text.filter((_, i) => i % 2 === 0).join();
    const commands = [
      ...blocks.matchAll(/^ *(?:\$ )?tok ([a-z][^#\n]*)/gm),
      ...prose.matchAll(/`tok ([a-z][^`]*)`/g),
    ].map((m) => m[1] as string).filter((line) => !line.includes("..."));
    for (const line of commands) {
      try {
        parseCommandLine(line.trim().split(/\s+/));
      } catch (error) {
        throw new Error(`${path}: tok ${line}: ${(error as Error).message}`);
      }
    }
    count += commands.length;
  }
  assert(count >= 20, `${count} commands`);
});

/** README files below a folder. */
function readmes(folder: string): string[] {
  return [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) => {
    const path = join(folder, name);
    if (isDirectory) return /^(\.|node_modules|fixtures|runs|dist)/.test(name) ? [] : readmes(path);
    return name === "README.md" ? [path] : [];
  });
}

Deno.test("an unknown command or option ends with exit 2 and one line that names the nearest", async () => {
  const { code, stderr, stdout } = await tok(["smaple"]);
  assertEquals([code, stdout, stderr.trim().split("\n").length], [2, "", 1]);
  assert(stderr.includes("did you mean sample?"), stderr);
  for (
    const [line, nearest] of [
      ["sample --cgf 4", "did you mean --cfg?"],
      ["train-dit --head 4", "did you mean --head-width, --head-depth?"],
      ["align --stepps 1,1,1", "did you mean --steps?"],
      ["align --checkpoint", "Cannot use --checkpoint: it is called --recompute now"],
      ["sample --checkpoint", '"tok sample" has no such option'],
      ["sample --interval 0,1", "did you mean --cfg-interval, --ig-interval?"],
    ] as const
  ) assertThrows(() => parseCommandLine(line.split(" ")), UsageError, nearest);
});

Deno.test("a preset selects its encoder, and --gan-start off does not depend on the steps", () => {
  const align = (...args: string[]) => parseCommandLine(["align", ...args]).config as AlignConfig;
  assertEquals(align("--preset", "dinov2-l-f16d32").encoder, "facebook/dinov2-large");
  assertEquals(align("--preset", "dinov2-b-f16d32").encoder, "facebook/dinov2-base");
  assertEquals(align("--preset", "dinov2-b-f16d32", "--encoder", "mine").encoder, "mine");
  for (const name of Object.keys(ALIGN_PRESETS)) assertEquals(align("--preset", name).preset, name);
  const starts = (...args: string[]) => [1, 2, 3].map((stage) => ganStartOf(align(...args), stage));
  assertEquals(starts("--steps", "300,900,110"), [Infinity, Infinity, 85]);
  assertEquals(starts("--gan-start", "off"), [Infinity, Infinity, Infinity]);
  assertEquals(starts("--gan-start", "3,off,0"), [3, Infinity, 0]);
  for (const wrong of ["never", "1,2", "off,off,off,off", "-1"]) {
    assertThrows(() => align("--gan-start", wrong), UsageError, "Cannot use --gan-start");
  }
});

Deno.test("an unknown preset is an error that names those it may mean; one for real images refuses to train without", async () => {
  for (
    const [line, words] of [
      ["align --preset dinov2-l", "did you mean dinov2-l-f16d32, dinov2-l-f16d64, dinov2-l-f16d32-512?"],
      ["align --preset smal", "did you mean small?"],
      ["align --preset huge", "choose one of tiny, small, dinov2-b-f16d32"],
      ["train-dit --preset imagenot", "did you mean imagenet?"],
    ] as const
  ) assertThrows(() => parseCommandLine(line.split(" ")), UsageError, words);
  for (
    const [line, words] of [
      [
        "align --preset dinov2-l-f16d32",
        'Cannot train "dinov2-l-f16d32": it needs --data DIR; give a folder',
      ],
      [
        "train-dit --preset imagenet",
        'Cannot train "imagenet": it needs --data DIR or --latents DIR; give a',
      ],
    ] as const
  ) {
    const [name = "", ...args] = line.split(" ");
    await assertRejects(() => run(name, ...args), UsageError, words);
  }
  const cached = { HF_HUB_CACHE: await Deno.makeTempDir() };
  const line = "align --preset mae-l-f16d32 --data photos --perceptual encoder";
  const { code, stderr } = await tok(line.split(" "), { env: cached });
  assertEquals([code, stderr.trim().split("\n").length], [2, 1], stderr);
  assert(stderr.includes('"facebook/vit-mae-large"') && stderr.includes("fetch it with --download"), stderr);
});

Deno.test("options override the config file, the file the preset, the preset the defaults", async () => {
  const file = await Deno.makeTempFile({ suffix: ".json" });
  await Deno.writeTextFile(file, JSON.stringify({ "batch-size": 5, latentChannels: 7 }));
  const resolve = (...args: string[]) => parseCommandLine(["align", ...args]).config as AlignConfig;
  assertEquals(resolve().latentChannels, 16);
  assertEquals(resolve("--preset", "dinov2-l-f16d32").latentChannels, 32);
  assertEquals(resolve("--preset", "dinov2-l-f16d32", "--config", file).latentChannels, 7);
  const all = resolve("--preset=dinov2-l-f16d32", "--config", file, "--latent-channels", "9", "--flip");
  assertEquals([all.latentChannels, all.batchSize, all.flip, all.decoderChannels], [9, 5, true, 128]);
  assertEquals(resolve("--preset", "dinov2-l-f16d32", "--no-flip").flip, false);
  await Deno.writeTextFile(file, JSON.stringify({ latentChanels: 7 }));
  assertThrows(() => resolve("--config", file), UsageError, "latentChannels");
  await Deno.remove(file);
});

Deno.test("values are checked for type, range, number of parts, choices and repetition", () => {
  const wrong: [string[], string][] = [
    [["--batch-size", "0"], "--batch-size 0"],
    [["--batch-size", "many"], "--batch-size many"],
    [["--steps", "1,2"], "--steps 1,2"],
    [["--steps", "1,2,x"], "--steps 1,2,x"],
    [["--semantic-loss", "l3"], "--semantic-loss l3"],
    [["--ema", "1"], "--ema 1"],
    [["--out"], "--out"],
    [["--seed", "1", "--seed", "2"], "twice"],
    [["photos"], "photos"],
  ];
  for (const [args, part] of wrong) {
    assertThrows(() => resolveConfig(alignConfig, args, { command: "align" }), UsageError, part);
  }
  assertEquals(resolveConfig(sampleConfig, ["--cfg", "-1"], { command: "sample" }).cfg, -1);
  assertEquals(
    resolveConfig(sampleConfig, ["--cfg-interval", "0.2,0.8", "--cfg-channels", "3"], { command: "sample" })
      .cfgChannels,
    3,
  );
  assertEquals(resolveConfig(trainDitConfig, ["--model", "XL/1"], { command: "train-dit" }).model, "XL/1");
});

Deno.test("every list option accepts spaces at its commas, in one argument or several", async () => {
  const resolve = (...args: string[]) => resolveConfig(sampleConfig, args, { command: "sample" });
  for (
    const args of [["0,1"], ["0, 1"], [" 0 , 1 "], ["0,", "1"], ["0", ",1"], ["0", ",", "1"]]
  ) {
    assertEquals(resolve("--classes", ...args).classes, ["0", "1"], args.join("|"));
    assertEquals(resolve("--cfg-interval", ...args, "--num", "3").cfgInterval, [0, 1], args.join("|"));
  }
  assertEquals(resolve("--classes=disc, square", "--num", "3").classes, ["disc", "square"]);
  assertEquals(resolve().classes, ["all"]);
  const metrics = ["--metrics", "fid,", "is"];
  assertEquals(resolveConfig(evalConfig, metrics, { command: "eval" }).metrics, ["fid", "is"]);
  const steps = resolveConfig(alignConfig, ["--steps", "1,", "2,", "3"], { command: "align" }).steps;
  assertEquals(steps, [1, 2, 3]);
  for (const text of ["0,,1", "0,", ",", ",1"]) {
    assertThrows(() => resolve("--classes", text), UsageError, `--classes ${text}: a value is missing`);
  }
  // Runs to compare are separate arguments, whose commas are their own, or one argument with commas.
  const compare = (...args: string[]) =>
    resolveConfig(evalConfig, ["--compare", ...args], { command: "eval" }).compare;
  assertEquals(compare("a, 1", "b,2", "c"), ["a, 1", "b,2", "c"]);
  for (const args of [["a", "b"], ["a,b"], ["a,", "b"], ["a, b"]]) assertEquals(compare(...args), ["a", "b"]);
  assertThrows(() => compare("a", ""), UsageError, "--compare a,: a value is missing");
  // Only a comma joins: a stray word stays one, and so do words behind options that take no list.
  assertThrows(() => resolve("--classes", "0", "1"), UsageError, 'Cannot use "1"');
  assertThrows(() => resolve("--model", "a,", "b"), UsageError, 'Cannot use "b"');
  const file = await Deno.makeTempFile({ suffix: ".json" });
  await Deno.writeTextFile(file, JSON.stringify({ classes: "0, 1", "cfg-interval": [0.5, 1] }));
  assertEquals(resolve("--config", file).classes, ["0", "1"]);
  assertEquals(resolve("--config", file).cfgInterval, [0.5, 1]);
  await Deno.remove(file);
});

Deno.test("bad input ends with exit 2 and one line that says what, where and why", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.mkdir(join(folder, "empty"));
    await Deno.writeTextFile(join(folder, "text.png"), "no image");
    await Deno.mkdir(join(folder, "broken"));
    await Deno.copyFile(join(folder, "text.png"), join(folder, "broken/1.png"));
    await Deno.copyFile(join(folder, "text.png"), join(folder, "broken/2.png"));
    await Deno.mkdir(join(folder, "encoder"));
    await Deno.writeTextFile(
      join(folder, "encoder/config.json"),
      JSON.stringify({ model_type: "dinov2", hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2 }),
    );
    const cases: [string[], string][] = [
      [["reconstruct"], "tok align"],
      [["sample"], "tok train-dit"],
      [["align", "--data", "empty"], "empty"],
      [["align", "--data", "absent"], "absent"],
      [["align", "--encoder", "empty"], "config.json"],
      [["align", "--encoder", "encoder"], "model.safetensors"],
      [["align", "--image-size", "30"], "30"],
      [["features", "--input", "text.png"], "text.png"],
      [["inspect", "text.png"], "text.png"],
      [["reconstruct", "--tokenizer", "empty"], "empty"],
      [["align", "--data", "broken", "--out", "run"], "broken"],
      [["features", "--out", "text.png/f.safetensors"], "text.png"],
    ];
    for (const [args, part] of cases) {
      const { code, stderr } = await tok(args, { cwd: folder });
      assertEquals(code, 2, `${args.join(" ")}: ${stderr}`);
      const lines = stderr.trim().split("\n"), [last] = lines as [string];
      assertEquals(lines.length, 1, `errors come alone: ${args.join(" ")}: ${stderr}`);
      assert(last.startsWith("tok: Cannot") && last.includes(part), `${args.join(" ")}: ${last}`);
      assert(!/^\s+at /m.test(stderr), "no stack trace");
    }
    assertEquals(
      [...Deno.readDirSync(folder)].map(({ name }) => name).sort(),
      ["broken", "empty", "encoder", "text.png"],
      "nothing half-written, no folder of a run, no lock",
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a machine without an adapter gets one line that says what to install, exit 2 and no folder", async () => {
  const folder = await Deno.makeTempDir();
  const env = { VK_DRIVER_FILES: "/nowhere.json", DENO_WEBGPU_BACKEND: "vulkan" };
  try {
    for (const command of ["align", "doctor"]) {
      const { code, stderr } = await tok([command], { cwd: folder, env });
      assertEquals(code, 2, stderr);
      assertMatch(stderr.trim().split("\n").at(-1) as string, /^tok: Cannot find any WebGPU adapter: .+; .+/);
    }
    assertEquals([...Deno.readDirSync(folder)], []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test('--json prints one object per line on stdout, the last one "done"; text for people goes to stderr', async () => {
  const { code, stdout, stderr } = await tok(["align", "--dry-run", "--json"], { env: { NO_COLOR: "1" } });
  assertEquals(code, 0, stderr);
  const rows = stdout.trim().split("\n").map((line) => JSON.parse(line));
  assertEquals(rows.at(-1).event, "done");
  assertEquals(rows.at(-1).plans.length, 3);
  assert(rows.at(-1).plans[1].totalBytes > 0 && rows.at(-1).plans[1].flops > 1e9);
  assert(stderr.includes("GFLOP") && !stderr.includes("\x1b["));
});

Deno.test("a dry run that does not fit prints its table first and ends with 2; train-dit plans without a tokenizer", async () => {
  const large = await tok([
    "align",
    "--dry-run",
    "--stages",
    "1",
    "--batch-size",
    "32768",
    "--image-size",
    "48",
  ]);
  const lines = large.stderr.trim().split("\n");
  assertEquals(large.code, 2, large.stderr);
  assert(lines.some((line) => /^latent: 120 steps of [\d.]+ GFLOP/.test(line)), large.stderr);
  assertMatch(lines.at(-1) as string, /^tok: Cannot fit the run: it needs .+ are free; use --recompute, or /);
  await assertRejects(
    () => run("align", "--dry-run", "--stages", "1", "--batch-size", "65536", "--image-size", "64"),
    UsageError,
    'Cannot plan "latent": its tensors are too large for any adapter',
  );
  const folder = await Deno.makeTempDir();
  try {
    const sized = ["--model", "S/1", "--batch-size", "8", "--epochs", "2", "--memory", "80GB"];
    const args = ["train-dit", ...sized, "--dry-run", "--json"];
    const { code, stdout, stderr } = await tok(args, { cwd: folder });
    assertEquals(code, 0, stderr);
    const { plans: [plan], parameters } = JSON.parse(stdout.trim().split("\n").at(-1) as string);
    assertEquals([plan.steps, Math.round(parameters.dit / 1e6)], [Math.ceil(2 * 1281167 / 8), 33]);
    assertEquals(stderr.split("\n").filter((line) => line.includes("--batch-size 8")).length, 4, stderr);
    assert(stderr.includes("planned for latents of 32 channels"), stderr);
    assertEquals([...Deno.readDirSync(folder)], []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a full stdout gives one line on stderr and exit 1, a closed one gives no message", async () => {
  if (Deno.build.os !== "linux") return; // only there is /dev/full
  const shell = async (line: string) => {
    const words = [Deno.execPath(), "run", "--quiet", "--no-check", "-A", "--config", CONFIG, MAIN];
    const command = `"${words.join('" "')}" ${line}`;
    const { code, stderr } = await new Deno.Command("sh", { args: ["-c", command], stderr: "piped" })
      .output();
    return { code, stderr: new TextDecoder().decode(stderr) };
  };
  const line = "tok: Cannot write to standard output: no space is left on the device; ";
  for (const args of ["--help", "sample --help", "inspect --preset all --json"]) {
    const { code, stderr } = await shell(`${args} > /dev/full`);
    assertEquals(code, 1);
    assertEquals(stderr.split("\n").filter((l) => l.startsWith("tok:")).length, 1, stderr);
    assert(stderr.includes(line) && !/^\s+at /m.test(stderr), stderr);
  }
  assertEquals(await shell("--help 2>&1 | true"), { code: 0, stderr: "" });
});
