// What a sampling command makes: numbers of the images, what decides about each, and the ends of an interpolation.

import {
  type Condition,
  type Conditions,
  needs,
  type Origins,
  refuseWithoutEffect,
} from "../cli/conditions.ts";
import { type SampleConfig, sampleConfig } from "../cli/config.ts";
import { kebab, show } from "../cli/flags.ts";
import { keySteps } from "../cli/key_steps.ts";
import { parseRange, sampling } from "../cli/options.ts";
import { UsageError } from "../errors.ts";
import { fingerprintOf, type Identity } from "../formats/provenance.ts";
import { quoted } from "../run/resume.ts";
import type { Ends } from "./interpolate.ts";
import { labelsOf } from "./labels.ts";
import { SAMPLERS } from "./samplers.ts";

type Deciding = Pick<SampleConfig, "seed" | "ema" | keyof typeof sampling>;

/**
 * The options that decide about each picture; with more pictures, or another batch size, the first ones are the same.
 * @param guide fingerprint of the model that guides
 * @param noise fingerprint of the given noise
 */
export function decidingOptions(c: Deciding, guide?: string, noise?: string): Record<string, unknown> {
  const keys = ["seed", "ema", ...Object.keys(sampling)] as (keyof Deciding)[];
  // With key steps only, --reuse-encoder changes no bit.
  const reuses = keySteps(c.reuseEncoder, c.steps).includes(false);
  const options = Object.fromEntries(keys.map((key) => [key, c[key]]));
  return { ...options, reuseEncoder: reuses ? c.reuseEncoder : undefined, guide, noise };
}

/** Options of `tok sample` as it takes them, those with default values left out. */
export function flagsOf(options: Readonly<Record<string, unknown>>): string[] {
  const defaults = sampleConfig.parse({}) as Record<string, unknown>;
  return Object.entries(options).flatMap(([name, value]) => {
    if (value === undefined || JSON.stringify(value) === JSON.stringify(defaults[name])) return [];
    if (typeof value === "boolean") return [`--${value ? "" : "no-"}${kebab(name)}`];
    return [`--${kebab(name)} ${quoted(show(value))}`];
  });
}

/** What {@link decidingOptions} gives, for a record. */
export function optionsIdentity(options: Readonly<Record<string, unknown>>): Identity {
  const flags = flagsOf(options).sort();
  return { name: flags.join(" ") || "defaults", fingerprint: fingerprintOf(...flags) };
}

const SEPARATE: Condition<SampleConfig> = [
  ({ interpolate }) => interpolate === undefined,
  "--interpolate writes one picture of --frames",
  "drop --interpolate",
];

/** Options about the images of a job. */
const IMAGES: Conditions<SampleConfig> = {
  num: [SEPARATE, [({ seeds }) => seeds === undefined, "--seeds says which images to make", "drop --seeds"]],
  seeds: [SEPARATE],
  folders: [SEPARATE],
  npz: [SEPARATE],
  noise: [SEPARATE],
  saveLatents: [SEPARATE],
  trajectory: [SEPARATE],
  frames: [needs("--interpolate", ({ interpolate }) => interpolate !== undefined)],
};

/** What an interpolation cannot be made with, and why. */
function obstacle({ sampler, guide }: SampleConfig): string | undefined {
  if (sampler !== "dopri5" && SAMPLERS[sampler].stochastic) {
    return `--sampler ${sampler}: its noise is that of an image number, and images in between have none; choose another sampler`;
  }
  return guide === undefined ? undefined : "--guide: a guide has no classes in between; leave it out";
}

/**
 * Numbers of the images.
 * @throws UsageError for options without effect, and for what --interpolate and --trajectory cannot take
 */
export function imagesOf(c: SampleConfig, origins?: Origins): { first: number; count: number } {
  refuseWithoutEffect(c, IMAGES, origins);
  const unfit = c.interpolate === undefined ? undefined : obstacle(c);
  if (unfit !== undefined) throw new UsageError(`Cannot use --interpolate with ${unfit}`);
  if (c.trajectory && c.sampler === "dopri5") {
    throw new UsageError(
      "Cannot draw a --trajectory of --sampler dopri5: its times differ from image to image; choose another sampler",
    );
  }
  const range = c.seeds === undefined ? undefined : parseRange(c.seeds);
  if (!range) return { first: 0, count: c.num };
  return { first: range[0], count: range[1] - range[0] + 1 };
}

/** What decides about the class of each image. */
export function labelsIdentity(c: SampleConfig, chosen: readonly number[]): Identity {
  const order = c.labels === "equal"
    ? labelsOf({ count: chosen.length, classes: chosen })
    : [c.labels, ...chosen];
  const name = c.labels === "equal" ? c.classes.join() : `${c.classes.join()} at random`;
  return { name, fingerprint: fingerprintOf(order.join()) };
}

/**
 * The ends of --interpolate A-B: the images A and B; with one number twice its noise, from the first class to the last.
 * @throws UsageError if both ends are the same
 */
export function endsOf(c: SampleConfig, chosen: readonly number[]): [Ends, Ends] {
  const [a, b] = parseRange(c.interpolate ?? "") as [number, number];
  const endOf = (first: number): Ends => {
    const [label] = labelsOf({ first, count: 1, classes: chosen, labeling: c.labels, seed: c.seed });
    return { number: first, label: label as number };
  };
  if (a !== b) return [endOf(a), endOf(b)];
  const [from, to] = [chosen[0] as number, chosen.at(-1) as number];
  if (from !== to) return [{ number: a, label: from }, { number: a, label: to }];
  throw new UsageError(
    `Cannot interpolate from image ${a} to itself: there is one class; name two with --classes, or two images`,
  );
}
