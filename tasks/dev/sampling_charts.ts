// Makes the charts of src/sampling/README.md: trains a model and its guide on generated images, sweeps over guidance and over
// samplers, and draws guidance.svg and evaluations.svg. Goes on where it was interrupted.
// Run: deno task charts [--out DIR] [--num N] [--model RUN --guide RUN] [--write]

import { parseArgs } from "@std/cli/parse-args";
import { fromFileUrl, join } from "@std/path";
import { runCell } from "../../src/experiment/cells.ts";
import { chartsOf, type ChartsOptions, DEFAULTS, stepsOf } from "../../src/experiment/sampling_charts.ts";
import { UsageError } from "../../src/errors.ts";
import { makeFolder, writeAtomic } from "../../src/formats/files.ts";
import { chartFile } from "../../src/run/chart.ts";

const here = (name: string) => fromFileUrl(new URL(name, import.meta.url));
const USAGE = `Usage: deno task charts [options]

  --out DIR              Folder of the models, the sweeps and the charts [runs/charts]
  --num N                Images of each cell [${DEFAULTS.num}]
  --weights W,...        Weights of classifier-free guidance [${DEFAULTS.weights}]
  --guide-weights W,...  Weights of autoguidance and of internal guidance [${DEFAULTS.guideWeights}]
  --steps N,...          Steps of the samplers [${DEFAULTS.steps}]
  --model RUN            Model with an inner head, with --guide [trained]
  --guide RUN            Guide of autoguidance, with --model [trained for fewer steps]
  --write                Also write the charts to src/sampling/charts
`;

const args = parseArgs(Deno.args, {
  string: ["out", "num", "weights", "guide-weights", "steps", "model", "guide"],
  boolean: ["write", "help"],
  default: { out: "runs/charts" },
  unknown: (arg) => {
    console.error(`Cannot make the charts: unknown argument "${arg}"\n\n${USAGE}`);
    Deno.exit(2);
  },
});
if (args.help) {
  console.log(USAGE);
  Deno.exit(0);
}
const list = (name: "weights" | "guide-weights" | "steps", standard: readonly number[]) => {
  const values = (args[name] as string | undefined)?.split(",").map(Number) ?? standard;
  if (values.every((value) => value > 0)) return values;
  console.error(`Cannot make the charts: --${name} is ${args[name]}, not a list of positive numbers`);
  return Deno.exit(2);
};
const options: ChartsOptions = {
  num: Number(args.num ?? DEFAULTS.num),
  weights: list("weights", DEFAULTS.weights),
  guideWeights: list("guide-weights", DEFAULTS.guideWeights),
  steps: list("steps", DEFAULTS.steps),
  model: args.model as string | undefined,
  guide: args.guide as string | undefined,
};
const out = args.out as string;
makeFolder(out);
try {
  const steps = stepsOf(out, options, here("../../main.ts"));
  await runCell(
    { row: "charts", seed: 0, folder: out, steps },
    (line) => console.log(`$ deno run -A ${line}`),
  );
  for (const [name, rows] of Object.entries(chartsOf(out, options))) {
    for (const folder of [out, ...args.write ? [here("../../src/sampling/charts")] : []]) {
      makeFolder(folder);
      writeAtomic(join(folder, `${name}.svg`), chartFile(rows));
      console.log(join(folder, `${name}.svg`));
    }
  }
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  console.error(error.message);
  Deno.exit(2);
}
