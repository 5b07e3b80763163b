// The options of tok eval, one field an option as in config.ts.

import { z } from "zod";
import { count } from "../bounds.ts";
import { SUBJECTS } from "../metrics/selection.ts";
import { PROTOCOL_NAMES, PROTOCOLS } from "../metrics/protocols.ts";
import { SIX_SPACES } from "../metrics/six_networks.ts";
import type { Subject } from "../metrics/metric.ts";
import { METRIC_NAMES, METRICS, REQUESTED_NAMES } from "../metrics/table.ts";
import { INCEPTION_INPUTS } from "../models/inception.ts";
import { GROUPS } from "./about.ts";
import type { Condition, Conditions } from "./conditions.ts";
import { encoder, flag, general, lpips, reading, sampling, text } from "./options.ts";
import { generator } from "./sample_config.ts";

const { input, output, data, metrics } = GROUPS;
const DATA = { value: "PATH", otherwise: "generated shapes" };
const advanced = true;
const npz = () => z.string().endsWith(".npz", 'give a name that ends with ".npz"').optional();

export const evalConfig = z.strictObject({
  ...generator,
  model: input(text(), "Score a diffusion model: sample from it, then compare", {
    value: "RUN",
    otherwise: "the newest run with one",
  }),
  tokenizer: input(
    text(),
    "Score a tokenizer: reconstruction, and probes, tested on images that they were not trained on; with --model: the decoder of its latents, both scored if there is --data",
    { value: "RUN" },
  ),
  data: input(
    text(),
    "Images for a tokenizer: folder, list, .tar or .parquet; with --model: one report of it and its tokenizer, of all metrics " +
      "that the files allow",
    DATA,
  ),
  real: input(text(), "Real images: as --data, or NPZ, or NPZ of their statistics or features", {
    value: "PATH",
    otherwise: "--data, else generated shapes",
  }),
  fake: input(
    text(),
    "Images to compare with --real: as --data, or NPZ; psnr, ssim, ms-ssim, mse, lpips and rfid pair them by name",
    { value: "PATH" },
  ),
  compare: input(
    z.array(z.string()).min(1).optional(),
    "Instead: finished evaluations side by side, folders or their metrics.json; with --out also compare.html and compare.json",
    { value: "DIR ...", words: true },
  ),
  out: output(
    text(),
    "Folder for metrics.json and report.html; images.csv, worst.png and nearest.png where they apply",
    {
      value: "DIR",
      otherwise: "a new one under ./runs",
    },
  ),
  saveStats: output(
    npz(),
    "Also write mean and covariance of the features of the real images, for another --real",
    { value: "FILE" },
  ),
  saveFeatures: output(
    npz(),
    "Also write the features of the real images, their mean and covariance, for another --real",
    { value: "FILE" },
  ),
  metrics: metrics(z.array(z.enum(METRIC_NAMES)).min(1).optional(), `Any of ${METRIC_NAMES.join(", ")}`, {
    otherwise: `all that apply; without both --data and --model, not ${REQUESTED_NAMES.join(", ")}`,
  }),
  intervals: metrics(
    flag(),
    "Also write intervals.json: 95 % intervals of figures that are no means over images, for --compare; computes each of them " +
      "ten times more",
  ),
  latentNoise: metrics(
    z.array(z.number().nonnegative()).min(1).optional(),
    "Also score reconstructions from latents with Gaussian noise of these standard deviations, in units of the latents' own; " +
      "0: none",
    { value: "N,...", otherwise: "0.2,0.4 with --data and --model; else none" },
  ),
  inception: metrics(
    text(),
    "Inception-v3 weights for FID: pytorch-fid's pt_inception-2015-12-05-6726825d.pth",
    { value: "FILE" },
  ),
  protocol: metrics(
    z.enum(PROTOCOL_NAMES).optional(),
    "Compute what a published evaluator computes: fixes --metrics, resizing, network input and pooling, warns of other numbers " +
      "of images. adm: ADM's TensorFlow suite, pytorch-fid, clean: clean-fid, edm2, dgm: dgm-eval, fdr6: FD-loss's six spaces",
    { otherwise: "none" },
  ),
  inceptionInput: metrics(
    z.enum(INCEPTION_INPUTS).default("pytorch-fid"),
    "Resizing and scaling before Inception: of pytorch-fid, ADM's evaluator (TensorFlow 1), clean-fid, or FDr6",
    { advanced },
  ),
  lpips,
  ...encoder,
  encoders: input(
    z.array(z.string()).min(1).optional(),
    `For fdr6 and mind6, with --inception: ${
      SIX_SPACES.slice(1).map(({ where }) => where).join(", ")
    }, in any order; each as --encoder`,
    { value: "DIR,...", free: true },
  ),
  featureCache: metrics(
    text(),
    "Folder that keeps the features of images by hashes of image, preprocessing and network: the next evaluation of the same " +
      "images runs no network. At most 20 GB, then the least recently used are removed; 8 kB an image for fid, 4 for DINOv2-L",
    { value: "DIR", otherwise: "none", free: true },
  ),
  num: data(count("images").default(200), "Number of images to sample or generate"),
  imageSize: data(count("pixels").optional(), "Resize and crop all images to squares first", {
    unit: "pixels",
    otherwise: "a tokenizer's training size, with --data and --model for all; else sets: no",
  }),
  batchSize: data(count("batch").default(50), "Images at a time"),
  ...reading,
  ...sampling,
  ...general,
});
export type EvalConfig = z.infer<typeof evalConfig>;

/** The options of {@link protocolConditions}. */
type UnderProtocol = Pick<EvalConfig, "protocol" | "inceptionInput" | "inception" | "encoder" | "imageSize">;

/** Options that a protocol, or without one --metrics, fixes or does not read. */
export function protocolConditions(
  { protocol, inceptionInput, metrics: requested }: Pick<
    EvalConfig,
    "protocol" | "inceptionInput" | "metrics"
  >,
  parts: readonly Subject[],
): Conditions<UnderProtocol> {
  if (protocol === undefined) {
    const ofInception = METRICS.filter(({ from, weights }) => from === "six" || weights === "inception");
    const needed = [[
      () => requested === undefined || ofInception.some(({ name }) => requested.includes(name)),
      "it is for figures of Inception, and --metrics selects none",
      "choose other --metrics",
    ]] as const;
    return { inception: needed, inceptionInput: needed };
  }
  const { input, metrics } = PROTOCOLS[protocol], other = "choose another --protocol";
  const fixes = input === undefined ? "has no figure of Inception" : `fixes ${input}`;
  const names = new Set(metrics);
  return {
    protocol: [[
      () => parts.some((part) => part !== "tokenizer") || names.has("rfid"),
      `${protocol} compares sets of images, and this scores a tokenizer`,
      "choose adm, pytorch-fid or clean",
    ]],
    inceptionInput: [[
      () => inceptionInput === input,
      `it is ${inceptionInput}, and --protocol ${protocol} ${fixes}`,
      other,
    ]],
    inception: [[() => input !== undefined, `--protocol ${protocol} ${fixes}`, other]],
    encoder: [[
      () => METRICS.some(({ name, from }) => from === "encoder" && names.has(name)),
      `--protocol ${protocol} has no figure in the space of one encoder`,
      other,
    ]],
    imageSize: [[
      () => parts.includes("tokenizer"),
      `--protocol ${protocol} fixes how images are resized`,
      "leave --protocol out",
    ]],
  };
}

/** LPIPS compares pairs: it is selected by name, and of a tokenizer without --metrics too. */
function lpipsConditions(
  { protocol, metrics }: Pick<EvalConfig, "protocol" | "metrics">,
  parts: readonly Subject[],
  scored: string,
): readonly Condition<EvalConfig>[] {
  const names = metrics ?? (protocol && PROTOCOLS[protocol].metrics), remedy = "add lpips to --metrics";
  return [
    [
      () => protocol === undefined || PROTOCOLS[protocol].metrics.includes("lpips"),
      `--protocol ${protocol} has no LPIPS`,
      "leave --protocol out",
    ],
    [() => parts.some((part) => part !== "model"), `it is for pairs of images, and this scores ${scored}`],
    [() => names?.includes("lpips") ?? parts.includes("tokenizer"), "no LPIPS is selected", remedy],
  ];
}

/**
 * Options about samples, which only a model has, latents of a tokenizer, and real images: where they have an effect.
 * @param given what the options name
 * @param parts of these, those with a selected metric
 */
export function evalConditions(
  given: readonly Subject[],
  c: Pick<EvalConfig, "protocol" | "inceptionInput" | "metrics">,
  parts: readonly Subject[] = given,
): Conditions<EvalConfig> {
  const by = c.metrics ? "--metrics" : "--protocol", left = given.filter((part) => !parts.includes(part));
  const scored = parts.map((part) => SUBJECTS[part]).join(" and ") +
    left.map((part) => `, not ${SUBJECTS[part]}, of which ${by} selects nothing`).join("");
  const only = (what: string, needed: Subject) => {
    const reason = `it is for the ${what} of a ${needed}, and this scores ${scored}`;
    const remedy = given.includes(needed) ? `choose other ${by}` : `score a --${needed}`;
    return [[() => parts.includes(needed), reason, remedy] as const];
  };
  const sampled = ["latents", "ema", ...Object.keys(sampling)].map((
    name,
  ) => [name, only("samples", "model")]);
  const reason = `it is for the real images that others are compared with, and this scores ${scored}`;
  const saved = [[() => parts.some((part) => part !== "tokenizer"), reason] as const];
  return {
    ...protocolConditions(c, parts),
    ...Object.fromEntries(sampled),
    featureCache: [[
      () => parts.some((part) => part !== "tokenizer"),
      `it is for sets of images, and this scores ${scored}`,
    ]],
    encoders: [[
      ({ metrics, protocol }) =>
        protocol === "fdr6" || given.length > 1 && protocol === undefined && metrics === undefined ||
        METRICS.some(({ name, from }) => from === "six" && metrics?.includes(name)),
      "it is for fdr6 and mind6",
      "add --metrics fdr6",
    ]],
    ...{ latentNoise: only("latents", "tokenizer"), saveStats: saved, saveFeatures: saved },
    lpips: lpipsConditions(c, parts, scored),
    intervals: [[
      () =>
        METRICS.some(({ name, of, interval }) =>
          (interval === "groups" || interval === "hits") && of.some((part) => parts.includes(part)) &&
          (c.metrics?.includes(name) ?? true)
        ),
      "it is for figures that are no means over images, and none is selected",
      "choose other --metrics",
    ]],
  };
}
