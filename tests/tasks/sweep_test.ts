// tok sweep: its cells, scores and files, what it computes again, and what it refuses.

import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { resolveConfig } from "../../src/cli/flags.ts";
import { sweepConfig } from "../../src/cli/sweep_config.ts";
import { UsageError } from "../../src/errors.ts";
import {
  bestOf,
  type CellResult,
  cellsOf,
  distinct,
  optionsOf,
  sampleCommand,
} from "../../src/experiment/sweep.ts";
import { chartsOf, tableLines } from "../../src/experiment/sweep_report.ts";
import { ditConfig } from "../../src/models/dit.ts";
import { chartFile } from "../../src/run/chart.ts";
import { expectedEvaluations } from "../../src/sampling/plan.ts";
import { roundedNfe } from "../../src/sampling/sampler_options.ts";
import { parseCommandLine } from "../../tasks/run.ts";
import { inFolder, run, writeImages } from "../helpers/commands.ts";
import { inceptionShapes, writeFormula } from "../helpers/formula.ts";
import { fixturePath } from "../helpers/published.ts";

const config = (...args: string[]) => resolveConfig(sweepConfig, args, { command: "sweep" });
const MODEL = [
  ...["--model", fixturePath("lightningdit_tiny.pt"), "--tokenizer", fixturePath("vavae_tiny.pt")],
];

Deno.test("a sweep has every combination once; unguided, options of guidance make no further cell", () => {
  const c = config(
    "--cfg",
    "1,2",
    "--steps",
    "3,4",
    "--cfg-interval",
    "0-1,0.5-1",
    "--sampler",
    "heun,euler",
  );
  const cells = cellsOf(c), unique = distinct(cells);
  assertEquals([cells.length, unique.length], [16, 12]);
  assertEquals(new Set(cells.map(({ options }) => JSON.stringify(options))).size, 16);
  assertEquals(unique.filter(({ options }) => options.cfg === 1).length, 4);
  assertEquals(unique[0]?.options.cfgInterval, [0, 1]);
  // Another order or further values keep the keys, which name the files of finished cells.
  const more = distinct(cellsOf({ ...c, cfg: [4, 2, 1] })).map(({ key }) => key);
  assertEquals([more.length, unique.filter(({ key }) => !more.includes(key))], [20, []]);
  // A guide counts by its weights: not by its path, where it may have been trained again.
  const keys = (path: string, fingerprint: string) => {
    const guides = new Map([[path, { identity: { name: path, fingerprint } }]]);
    return cellsOf(config("--cfg", "1", "--guide", path), guides).map(({ key }) => key);
  };
  assertEquals(keys("runs/a", "1"), keys("runs/b", "1"));
  assertNotEquals(keys("runs/a", "1"), keys("runs/a", "2"));
  // At weight 1 no guide does anything: all have the images of none.
  const guided = config("--cfg", "1", "--guide", "none,runs/a,runs/b", "--guide-weight", "1,2");
  const three = distinct(cellsOf(guided));
  assertEquals(three.map(({ options: { guide, guideWeight } }) => [guide, guideWeight]), [
    ["runs/a", 2],
    [undefined, 1],
    ["runs/b", 2],
  ]);
  assertEquals(sampleCommand(cellsOf(guided)[2]!, {}), "tok sample --cfg 1");
  const networks = new Map([["runs/a", { dit: {} as never }]]);
  assertEquals(
    cellsOf(guided).map((cell) => optionsOf(cell, { config: guided, guides: networks }).guide !== undefined),
    [
      ...[false, false, false, true, false, false],
    ],
  );
  assertEquals(config().cfg, [1, 1.5, 2, 4]);
  assertEquals(cellsOf(config("--cfg-channels", "all,3")).length, 8);
  // The interval has the name of the other commands, too.
  const file = Deno.makeTempFileSync({ suffix: ".json" }), intervals = [[0, 1], [0.5, 1]];
  for (const name of ["interval", "cfg-interval", "cfgInterval"]) {
    Deno.writeTextFileSync(file, JSON.stringify({ [name]: "0-1,0.5-1" }));
    assertEquals(config("--config", file).cfgInterval, intervals);
    if (name !== "cfgInterval") assertEquals(config(`--${name}`, "0-1,0.5-1").cfgInterval, intervals);
  }
  Deno.removeSync(file);
});

Deno.test("lists take switches, options that are not given, and values that are lists themselves", () => {
  const c = config(
    ...[
      "--cfg-zero",
      "off,on",
      "--guide",
      "none,runs/a-b",
      "--ema",
      "none,0.05",
      "--cfg-interval",
      "0-1,0.25-0.5",
    ],
    ...["--reuse-encoder", "none,every 2,0-5-10,0.3", "--cfg-channels", "all,3"],
  );
  assertEquals([c.cfgZero, c.guide, c.ema], [[false, true], [undefined, "runs/a-b"], [undefined, 0.05]]);
  assertEquals([c.cfgInterval, c.cfgChannels], [[[0, 1], [0.25, 0.5]], ["all", 3]]);
  assertEquals(c.reuseEncoder, [undefined, "every 2", "0-5-10", "0.3"]);
  const [cell] = cellsOf(
    config("--cfg-zero", "on", "--cfg", "2", "--reuse-encoder", "every 2", "--ema", "0.05"),
  );
  const command = sampleCommand(cell!, { model: "runs/a" });
  assertEquals(command, "tok sample --model runs/a --ema 0.05 --cfg 2 --cfg-zero --reuse-encoder 'every 2'");
});

Deno.test("network evaluations are counted over steps, stages of the sampler and passes of guidance", () => {
  const model = ditConfig.parse({
    ...{ input_size: 2, in_channels: 4, hidden_size: 16, depth: 4, num_heads: 2, num_classes: 3 },
    head: { hidden_size: 16, depth: 1, num_heads: 2 },
  });
  const nfe = (...args: string[]) => {
    const c = config(...args), guides = new Map([["a", { dit: {} as never }]]);
    return cellsOf(c).map((cell) =>
      roundedNfe(expectedEvaluations(model, optionsOf(cell, { config: c, guides })))
    );
  };
  assertEquals(nfe("--steps", "4", "--cfg", "1,2", "--cfg-interval", "0-1"), [4, 8]);
  assertEquals(nfe("--steps", "4", "--cfg", "2", "--cfg-interval", "0.5-1"), [6]); // at 0.5 and 0.75
  assertEquals(nfe("--steps", "4", "--cfg", "2", "--cfg-interval", "0.5-1", "--sampler", "heun"), [12]);
  // The second step is guided, so complete; a guide is never reused; dopri5 takes about 60 velocities.
  const reuse = ["--steps", "4", "--cfg", "2", "--reuse-encoder", "every 4"];
  assertEquals(nfe(...reuse, "--cfg-interval", "0.25-1"), [1 + 2 + 4 * 0.6]);
  assertEquals(nfe(...reuse, "--cfg-interval", "0-1", "--guide", "a"), [2 + 6 * 0.6 + 4]);
  assertEquals(nfe("--sampler", "dopri5", "--cfg", "2", "--cfg-interval", "0.25-1"), [60 * 1.75]);
});

Deno.test("the best cell has the smallest distance; table and charts show every cell", () => {
  const c = config("--cfg", "1,2,4", "--steps", "5,10"), cells = cellsOf(c);
  const results = cells.map((cell, i): CellResult => ({
    ...cell,
    nfe: cell.options.steps,
    seconds: i,
    scores: { class_agreement: i / 10, fd_encoder: 10 + (i - 3.2) ** 2, n: 8 },
  }));
  assertEquals(bestOf(results), results[3]);
  const agreement = results.map((cell) => ({
    ...cell,
    scores: { class_agreement: cell.scores.class_agreement! },
  }));
  assertEquals(bestOf(agreement), agreement[5]);
  const lines = tableLines(results);
  assertEquals(lines[0]?.split(/ {2,}/).slice(-5), [
    "steps",
    "NFE",
    "seconds",
    "fd_encoder",
    "class_agreement",
  ]);
  assertEquals(lines.map((line) => line.endsWith("best")), [false, false, false, false, true, false, false]);
  const [guidance, evaluations] = chartsOf(cells, results);
  assertEquals(guidance?.map(({ name }) => name), ["fd_encoder", "class_agreement"]);
  assertEquals(guidance?.[0]?.options.series, ["steps 5", "steps 10"]);
  assertEquals(evaluations?.[1]?.options.series, ["cfg 1", "cfg 2", "cfg 4"]);
  assertEquals(guidance?.[0]?.points.length, 6);
  const svg = chartFile(chartsOf(cells, results));
  assertEquals(svg.match(/<circle/g)?.length, 4 * 6);
  for (const text of [">cfg 4<", ">guidance weight<", ">network evaluations<"]) {
    assertStringIncludes(svg, text);
  }
  for (
    const [option, x, values] of [
      ["--guide-weight", "autoguidance weight", [1.5, 2]],
      ["--ig", "internal guidance weight", [1, 1.5]],
    ] as const
  ) {
    const cells = cellsOf(config("--cfg", "1", "--guide", "runs/a", option, values.join()));
    const results = cells.map((cell): CellResult => ({
      ...cell,
      nfe: 2,
      seconds: 1,
      scores: { fd_encoder: 1 },
    }));
    const [row, ...others] = chartsOf(cells, results);
    assertEquals([row?.[0]?.options.x, row?.[0]?.points.map(([x]) => x), others], [x, [...values], []]);
  }
  const { config: given } = parseCommandLine(
    sampleCommand(results[2]!, { seed: 7, num: 9 }).split(" ").slice(1),
  );
  assertEquals(
    [
      (given as typeof c).cfg,
      (given as typeof c).steps,
      (given as typeof c).seed,
      (given as typeof c).num,
    ] as unknown[],
    [2, 5, 7, 9],
  );
});

Deno.test("a cell scores as tok eval does; a sweep goes on where it stopped, and refuses other options by name", () =>
  inFolder(async (folder) => {
    const real = join(folder, "real"), out = join(folder, "out"), cells = join(out, "cells");
    await writeImages(real, 4);
    const common = [...MODEL, "--real", real, "--num", "4", "--workers", "0", "--batch-size", "4"];
    const sweep = (...args: string[]) => run("sweep", ...common, "--out", out, ...args);
    const lists = ["--steps", "1,2", "--cfg-interval", "0-1,0.5-1"];
    const first = await sweep("--cfg", "1,2", ...lists);
    assertEquals(first.result.cells, 6);
    const read = () => JSON.parse(Deno.readTextFileSync(join(out, "metrics.json")));
    const metrics = read(), page = Deno.readTextFileSync(join(out, "report.html"));
    assertEquals([metrics.n, metrics.cells.length], [4, 6]);
    assertEquals(page.match(/data:image\/png/g)?.length, 6);
    assertStringIncludes(page, String(first.result.command).slice(0, 20));
    assertStringIncludes(Deno.readTextFileSync(join(out, "charts.svg")), "fd encoder");
    assertEquals([...Deno.readDirSync(cells)].filter(({ name }) => name.endsWith(".npz")), []);
    const scored = join(folder, "scored");
    await run(
      ...["eval", ...common, "--out", scored, "--metrics", "fd-encoder"] as const,
      ...["--cfg", "2", "--steps", "2", "--cfg-interval", "0.5,1"],
    );
    const cell = metrics.cells.find(({ options: o }: CellResult) =>
      o.cfg === 2 && o.steps === 2 && o.cfgInterval[0] === 0.5
    );
    const { fd_encoder, nfe } = JSON.parse(Deno.readTextFileSync(join(scored, "metrics.json")));
    assertEquals([cell.fd_encoder, cell.nfe, nfe], [fd_encoder, 3, 3]);
    const sources = (at: string) => JSON.parse(Deno.readTextFileSync(join(at, "config.json"))).made_from;
    assertEquals(sources(scored), sources(out));
    assertEquals(Object.keys(sources(out)).slice(-3), ["real set", "encoder", "inception"]);
    // A record that is missing is computed again, to the same figures; further values are further cells.
    const names = [...Deno.readDirSync(cells)].map(({ name }) => name).filter((name) =>
      name.endsWith(".json")
    ).sort();
    Deno.removeSync(join(cells, names[0]!));
    const times = () => names.slice(1).map((name) => Deno.statSync(join(cells, name)).mtime?.getTime());
    const before = times(),
      again = await sweep("--cfg", "1,2,3", "--steps", "1,2", "--cfg-interval", "0-1,0.5-1");
    const counts = again.lines.filter((line) => /are there already|^\d+ cells/.test(line));
    assertEquals(counts.map((line) => line.split(",")[0]), [
      "5 of 10 cells are there already",
      "5 cells of 4 images: 20 images",
    ]);
    assertEquals(times(), before);
    assertEquals(read().cells.slice(0, 6), metrics.cells);
    const sweepWith = (option: string, value: string) => {
      const args = [...common, "--out", out, "--cfg", "1", "--steps", "1"], at = args.indexOf(option);
      args.splice(at < 0 ? args.length : at, at < 0 ? 0 : 2, option, value);
      return run("sweep", ...args);
    };
    const refused = (text: string, option: string, value: string) =>
      assertRejects(() => sweepWith(option, value), UsageError, text);
    await refused("--seed was 0 and is 1", "--seed", "1");
    await refused("--num was 4 and is 5", "--num", "5");
    await refused("the encoder was", "--interpolate-offset", "0.3");
    // The same images in another place; then one of them replaced.
    Deno.renameSync(real, join(folder, "moved"));
    const moved = await sweepWith("--real", join(folder, "moved"));
    assert(moved.lines.some((line) => line.startsWith("1 of 1 cells are there already")), `${moved.lines}`);
    Deno.renameSync(join(folder, "moved"), real);
    Deno.copyFileSync(join(scored, "samples.npz"), join(folder, "other.npz"));
    await refused("the real set was", "--real", join(folder, "other.npz"));
    Deno.copyFileSync(join(real, "0.png"), join(real, "more.png"));
    await refused("the real set was", "--real", real);
  }));

Deno.test("--protocol of a sweep computes and records what tok eval does under it, and refuses the same", () =>
  inFolder(async (folder) => {
    const real = join(folder, "real"), weights = join(folder, "inception.safetensors");
    await writeImages(real, 4);
    await writeFormula(weights, inceptionShapes());
    const common = [...MODEL, "--real", real, "--num", "4", "--workers", "0", "--cfg", "1", "--steps", "1"];
    const as = (name: string) => ["--protocol", name, "--inception", weights];
    const json = (...path: string[]) => JSON.parse(Deno.readTextFileSync(join(folder, ...path)));
    const score = (command: "sweep" | "eval", out: string, ...args: string[]) =>
      run(command, ...common, "--out", join(folder, out), ...args);
    const { result, lines } = await score("sweep", "sweep", ...as("clean"));
    const evaluated = await score("eval", "eval", ...as("clean"));
    const protocols = { fid: "clean", kid: "clean" }, metrics = json("sweep", "metrics.json");
    assertEquals([result.protocols, metrics.protocols], [protocols, protocols]);
    const { nfe: _, n: __, ...own } = json("eval", "metrics.json");
    for (const name of ["fid", "kid"] as const) {
      assertEquals(metrics.cells[0][name], own[name]);
      assertEquals(own.ingredients[name].protocol, "clean");
    }
    const { protocol, inceptionInput } = json("sweep", "config.json");
    assertEquals([protocol, inceptionInput], ["clean", "clean"]);
    assert(lines.includes("protocols: fid: clean; kid: clean"), `${lines}`);
    assertStringIncludes(Deno.readTextFileSync(join(folder, "sweep/report.html")), "fid: clean; kid: clean");
    const warned = (all: readonly string[]) => all.filter((line) => /do not compare/.test(line));
    assertEquals(warned(lines), warned(evaluated.lines));
    const refused = async (message: string, ...args: string[]) => {
      for (const command of ["sweep", "eval"] as const) {
        if (command === "eval" && args.includes("fdr6")) continue;
        const error = await assertRejects(() => score(command, `${command}-refused`, ...args), UsageError);
        assertStringIncludes(error.message, message);
      }
    };
    await refused(
      "it is pytorch-fid, and --protocol adm fixes adm",
      ...as("adm"),
      "--inception-input",
      "pytorch-fid",
    );
    await refused("--protocol dgm has no figure of Inception; choose another --protocol", ...as("dgm"));
    await refused(
      "--protocol clean has no figure in the space of one encoder",
      ...as("clean"),
      "--encoder",
      "x",
    );
    for (const option of [["--inception", "none"], ["--inception-input", "adm"]]) {
      await refused("and --metrics selects none", "--metrics", "fd-encoder", ...option);
    }
    await refused("Cannot use --protocol adm with --metrics kid", ...as("adm"), "--metrics", "kid");
    await refused("Cannot use --protocol: fdr6 is of six spaces, and a sweep", ...as("fdr6").slice(0, 2));
    await assertRejects(
      () => score("sweep", "sweep", ...as("pytorch-fid")),
      UsageError,
      '--protocol was "clean" and is "pytorch-fid"',
    );
    const none = await score("sweep", "none", "--metrics", "fid,fd-encoder", "--inception", weights);
    assertEquals(none.result.protocols, { fid: "tok", fd_encoder: "tok" }); // four images
  }));

Deno.test("a sweep over averages and reused blocks of a run that predicts data has the weights, NFE, time and distance of each", () =>
  inFolder(async (folder) => {
    const real = join(folder, "real"), dit = join(folder, "dit"), few = ["--workers", "0"];
    await writeImages(join(real, "a"), 4);
    const tokenizer = ["--tokenizer", fixturePath("vavae_tiny.pt")];
    const small = [...tokenizer, "--data", real, "--image-size", "8", "--batch-size", "2", "--steps", "3"];
    const posthoc = ["--ema", "posthoc", "--ema-every", "1", "--lr", "0.1", "--warmup", "0"];
    await run("train-dit", ...small, ...few, ...posthoc, "--prediction", "data", "--out", dit);
    const shared = ["--model", dit, "--real", real, "--num", "4", "--batch-size", "4", "--cfg", "1", ...few];
    const sweep = async (out: string, ...args: string[]) => {
      const { lines } = await run("sweep", ...shared, "--steps", "2", "--out", join(folder, out), ...args);
      const { cells } = JSON.parse(Deno.readTextFileSync(join(folder, out, "metrics.json")));
      return { lines, cells: cells as { nfe: number; fd_encoder: number }[] };
    };
    const both = await sweep("both", "--ema", "0.25,none");
    assertEquals(both.lines.filter((line) => line.startsWith("weights: power-function")).length, 1);
    const { lines, cells } = await sweep("reuse", "--reuse-encoder", "none,every-2");
    assertEquals(cells.map(({ nfe }) => nfe), [2, 1.5]);
    const own = cells[0]?.fd_encoder;
    assertEquals(both.cells[1]?.fd_encoder, own);
    for (const other of [both.cells[0], cells[1]]) assertNotEquals(other?.fd_encoder, own);
    const table = lines.findIndex((line) => /reuse-encoder +NFE +seconds +fd_encoder/.test(line));
    assertMatch(lines[table + 1] ?? "", /none +2 +\d+\.\d +[\d.]+/);
    assertMatch(lines[table + 2] ?? "", /every-2 +1\.5 +\d+\.\d +[\d.]+/);
  }));

Deno.test("unknown samplers, empty lists, repeated values and intervals in another form are refused", () => {
  const refused = (...args: string[]) => {
    try {
      config(...args);
    } catch (error) {
      assert(error instanceof UsageError && !error.message.includes("\n"), `${error}`);
      return error.message;
    }
    throw new Error(`${args} was accepted`);
  };
  assertStringIncludes(
    refused("--sampler", "euler,huen"),
    'Cannot use --sampler euler,huen: "huen" is not one of',
  );
  assertStringIncludes(refused("--cfg", ""), "Cannot use --cfg: it needs a value");
  assertStringIncludes(refused("--cfg", "1,,2"), "a value is missing before or after a comma");
  assertStringIncludes(refused("--cfg", "1,1.0"), "name each value once");
  assertStringIncludes(refused("--steps", "0"), "Cannot use --steps 0");
  assertStringIncludes(refused("--cfg-interval", "0.1,1"), "Cannot use --interval 0.1,1");
  assertStringIncludes(refused("--cfg-interval", "0.1-2"), "Cannot use --interval 0.1-2");
  assertStringIncludes(refused("--interval", "0-1", "--cfg-interval", "0-1"), "Cannot use --interval twice");
  assertStringIncludes(refused("--intervall", "0-1"), "did you mean --interval?");
  assertStringIncludes(refused("--cfg-zero", "yes"), "Cannot use --cfg-zero yes");
  assertStringIncludes(refused("--reuse-encoder", "every 2,1-2"), "give every-2");
  assertStringIncludes(refused("--metrics", "psnr"), "Cannot use --metrics psnr");
});
