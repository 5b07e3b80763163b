// The ablation of AlignTok (arXiv 2509.25162) at small scale: its rows, what is measured of each, and what the paper claims of
// them. All rows train for the same number of steps and differ in nothing else than their options.

import { join } from "@std/path";
import type { Scores } from "../metrics/metric.ts";
import type { Step } from "./cells.ts";

/** One configuration: options of `tok align` besides those of every row. */
export interface Row {
  name: string;
  /** For people. */
  title: string;
  /** Steps of its stages; 1 for a stage that is left out. */
  steps: readonly number[];
  align: readonly string[];
  /** Whether a claim compares it: such rows run with every seed, others with the first. */
  claimed?: boolean;
}

/** Steps of the three stages; a recipe without stages trains for their sum. */
export const STAGE_STEPS = [100, 300, 80] as const;
export const DIT_STEPS = 1000;
/** Guidance weights with which each model is sampled; 1 is unguided. */
export const GUIDANCE = [1, 3] as const;

/** Runs of some hundred steps end before an adversarial loss helps. */
const COMMON = ["--gan", "none"];

const total = STAGE_STEPS.reduce((sum, n) => sum + n, 0);
/** Stages 1 and 2; stage 2 also takes the steps of stage 3. */
const two = ["--stages", "1,2"], twoSteps = [STAGE_STEPS[0], total - STAGE_STEPS[0], 1];
/** The preset's weight of the semantic loss, which stands for the paper's w_sp = 1. */
const W_SP = 0.2;

export const ROWS: readonly Row[] = [
  {
    name: "stage-1",
    title: "stage 1 only",
    steps: [total, 1, 1],
    align: ["--stages", "1"],
    claimed: true,
  },
  {
    name: "w-sp-0",
    title: "stages 1+2, w_sp 0",
    steps: twoSteps,
    align: [...two, "--w-semantic", "0"],
    claimed: true,
  },
  {
    name: "w-sp-1",
    title: "stages 1+2, w_sp 1",
    steps: twoSteps,
    align: [...two, "--w-semantic", `${W_SP}`],
    claimed: true,
  },
  {
    name: "w-sp-5",
    title: "stages 1+2, w_sp 5",
    steps: twoSteps,
    align: [...two, "--w-semantic", `${5 * W_SP}`],
  },
  {
    name: "before",
    title: "L_sp before the adapter",
    steps: twoSteps,
    align: [...two, "--semantic-at", "before"],
  },
  {
    name: "cosine",
    title: "L_sp as cosine distance",
    steps: twoSteps,
    align: [...two, "--semantic-loss", "cosine"],
  },
  { name: "lora", title: "LoRA on the encoder", steps: twoSteps, align: [...two, "--lora-rank", "8"] },
  { name: "all", title: "all three stages", steps: STAGE_STEPS, align: [], claimed: true },
  { name: "noise-tau", title: "all three, noise tau 0.2", steps: STAGE_STEPS, align: ["--noise-tau", "0.2"] },
  { name: "vae", title: "vanilla VAE", steps: [total], align: ["--recipe", "vae"], claimed: true },
  { name: "va-vae", title: "VA-VAE", steps: [total], align: ["--recipe", "va-vae"], claimed: true },
  {
    name: "va-vae-vit",
    title: "VA-VAE with the ViT",
    steps: [total],
    align: ["--recipe", "va-vae-vit"],
  },
];

/**
 * The commands of a cell: align, train-dit, score.
 * @param scale factor of all numbers of training steps
 * @param paths of main.ts and of the program that writes scores.json
 */
export function stepsOf(
  row: Row,
  { seed, scale }: { seed: number; scale: number },
  folder: string,
  paths: { tok: string; score: string },
): Step[] {
  const align = join(folder, "align"), dit = join(folder, "dit"), common = ["--seed", `${seed}`];
  const tok = (command: string, ...args: string[]): Step => ({
    name: command,
    args: [paths.tok, command, ...common, ...args],
    resumes: true,
  });
  const steps = row.steps.map((n) => n * scale);
  return [
    tok("align", "--out", align, ...COMMON, ...row.align, "--steps", steps.join()),
    tok("train-dit", "--tokenizer", align, "--out", dit, "--steps", `${scale * DIT_STEPS}`),
    { name: "score", args: [paths.score, folder, `${seed}`], resumes: false },
  ];
}

/** A measured quantity: a key of the scores. */
export interface Quantity {
  key: string;
  title: string;
  better: "higher" | "lower";
  digits: number;
}

export const QUANTITIES: readonly Quantity[] = [
  { key: "psnr", title: "PSNR (dB)", better: "higher", digits: 2 },
  { key: "rfd", title: "FD of reconstructions", better: "lower", digits: 2 },
  { key: "probe", title: "linear probe", better: "higher", digits: 3 },
  { key: "gfd", title: "FD unguided", better: "lower", digits: 2 },
  { key: "agreement_unguided", title: "agreement, unguided", better: "higher", digits: 3 },
  { key: "gfd_guided", title: "FD, guided", better: "lower", digits: 2 },
  { key: "agreement", title: "agreement, guided", better: "higher", digits: 3 },
];

/** A claim of the paper about the means of two rows. */
export interface Claim {
  text: string;
  key: string;
  /** Row with the better mean, and the other. */
  rows: readonly [better: string, worse: string];
}

export const CLAIMS: readonly Claim[] = [
  { text: "stage 2 improves reconstruction", key: "psnr", rows: ["w-sp-1", "stage-1"] },
  { text: "stage 2 improves reconstruction (FD)", key: "rfd", rows: ["w-sp-1", "stage-1"] },
  { text: "stage 3 does not lose reconstruction", key: "rfd", rows: ["all", "w-sp-1"] },
  { text: "without L_sp the latent loses its semantics", key: "probe", rows: ["w-sp-1", "w-sp-0"] },
  { text: "stage 1 holds the most semantics", key: "probe", rows: ["stage-1", "w-sp-1"] },
  { text: "L_sp belongs after the adapter", key: "probe", rows: ["w-sp-1", "before"] },
  { text: "unguided generation: better than the vanilla VAE", key: "gfd", rows: ["all", "vae"] },
  {
    text: "unguided classes: clearer than the vanilla VAE's",
    key: "agreement_unguided",
    rows: ["all", "vae"],
  },
  { text: "unguided generation: better than VA-VAE", key: "gfd", rows: ["all", "va-vae"] },
  { text: "unguided classes: clearer than VA-VAE's", key: "agreement_unguided", rows: ["all", "va-vae"] },
];

/** Whether the mean of the first row is the better one; undefined where one is missing. */
export function holds({ key, rows }: Claim, means: ReadonlyMap<string, Scores>): boolean | undefined {
  const [a, b] = rows.map((row) => means.get(row)?.[key]) as [number?, number?];
  if (a === undefined || b === undefined) return undefined;
  return QUANTITIES.find((q) => q.key === key)?.better === "higher" ? a > b : a < b;
}
