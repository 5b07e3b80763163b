// The charts of src/sampling/README.md: scores over the weight of each form of guidance, and over network evaluations for each
// sampler. They are made from sweeps of one model; what trains it and its guide are further steps of the same cell.

import { join } from "@std/path";
import { exists, readJson } from "../formats/files.ts";
import type { Chart, Point } from "../run/chart.ts";
import type { Step } from "./cells.ts";

export interface ChartsOptions {
  /** Images of a cell of a sweep. */
  num: number;
  /** Weights of classifier-free guidance. */
  weights: readonly number[];
  /** Weights of autoguidance and of internal guidance. */
  guideWeights: readonly number[];
  steps: readonly number[];
  /** A trained model and its guide, instead of new ones. */
  model?: string | undefined;
  guide?: string | undefined;
}

export const DEFAULTS: ChartsOptions = {
  num: 200,
  weights: [1, 1.5, 2, 3, 4],
  guideWeights: [1, 1.25, 1.5, 2, 3],
  steps: [5, 10, 20],
};

/** A sweep of which each cell is a point. */
interface Sweep {
  name: string;
  args: readonly string[];
  /** The chart that shows it. */
  chart: "guidance" | "evaluations";
  /** The option that is the x axis of guidance, and what the line is called; a chart of evaluations has a line for each sampler. */
  weight?: string;
  title?: string;
}

/** Guidance of the comparison of samplers. */
const CFG = ["--cfg", "2"];
/** The samplers of the comparison. */
const SAMPLERS = ["euler", "heun", "midpoint", "rk4", "dpm++2m", "unipc", "sde"];

function sweepsOf({ weights, guideWeights, steps }: ChartsOptions, guide: string): Sweep[] {
  const guidance = (name: string, title: string, weight: string, args: readonly string[]): Sweep => ({
    ...{ chart: "guidance", name, title, weight, args },
  });
  const alone = ["--cfg", "1"], cfg = weights.join(), guided = guideWeights.join();
  return [
    guidance("cfg", "CFG", "cfg", ["--cfg", cfg]),
    guidance("cfg-zero", "CFG-Zero*", "cfg", ["--cfg", cfg, "--cfg-zero", "on"]),
    guidance("autoguidance", "autoguidance", "guideWeight", [
      ...alone,
      "--guide",
      guide,
      "--guide-weight",
      guided,
    ]),
    guidance("internal", "internal guidance", "ig", [...alone, "--ig", guided]),
    {
      name: "samplers",
      chart: "evaluations",
      args: [...CFG, "--sampler", SAMPLERS.join(), "--steps", steps.join()],
    },
  ];
}

/** Steps of the model and of its guide, which is trained for less long. */
const TRAINED = { model: 900, guide: 200 };
/** The block of the inner head. */
const INNER_HEAD = 2;

/** The commands: training of the model and its guide, where none are given, and the sweeps. @param tok path of main.ts */
export function stepsOf(folder: string, options: ChartsOptions, tok: string): Step[] {
  const at = (name: string) => join(folder, name), tokenizer = at("align");
  const command = (name: string, resumes: boolean, ...args: string[]): Step => ({
    name,
    args: [tok, ...args],
    resumes,
  });
  const training = [
    command("align", true, "align", "--out", tokenizer),
    ...(["model", "guide"] as const).map((name) =>
      command(
        name,
        true,
        ...["train-dit", "--tokenizer", tokenizer, "--out", at(name), "--steps", `${TRAINED[name]}`],
        ...name === "model" ? ["--inner-head", `${INNER_HEAD}`] : [],
      )
    ),
  ];
  const { model = at("model"), guide = at("guide"), num } = options;
  const given = options.model !== undefined && options.guide !== undefined;
  return [
    ...given ? [] : training,
    ...sweepsOf(options, guide).map(({ name, args }) =>
      command(name, false, "sweep", "--model", model, "--num", `${num}`, "--out", at(name), ...args)
    ),
  ];
}

/** Scores in the charts. */
const SCORES = ["fd_encoder", "class_agreement_independent", "class_agreement"];

type Found = { options: Record<string, unknown>; nfe: number } & Record<string, unknown>;

/** The charts of the sweeps that are finished: rows by the name of their file. */
export function chartsOf(folder: string, options: ChartsOptions): Record<Sweep["chart"], Chart[][]> {
  const points: Record<Sweep["chart"], [score: string, point: Point][]> = { guidance: [], evaluations: [] };
  for (const { name, chart, weight = "", title } of sweepsOf(options, "")) {
    const file = join(folder, name, "metrics.json");
    if (!exists(file)) continue;
    for (const cell of (readJson(file) as { cells: Found[] }).cells) {
      const x = chart === "guidance" ? Number(cell.options[weight]) : cell.nfe;
      for (const score of SCORES) {
        if (typeof cell[score] !== "number") continue;
        points[chart].push([score, [x, cell[score], title ?? String(cell.options.sampler)]]);
      }
    }
  }
  const row = (chart: Sweep["chart"], x: string): Chart[][] => {
    const all = points[chart].toSorted(([, [a]], [, [b]]) => a - b);
    const series = [...new Set(points[chart].map(([, [, , one]]) => one))];
    const scores = SCORES.filter((score) => all.some(([name]) => name === score)).slice(0, 2);
    return [scores.map((score) => ({
      name: score,
      points: all.filter(([name]) => name === score).map(([, point]) => point),
      options: { x, series, legend: true },
    }))];
  };
  return { guidance: row("guidance", "weight"), evaluations: row("evaluations", "network evaluations") };
}
