// The options of `tok sweep`: a model and what it is scored against, as in `tok eval`, and every sampling option as a list.

import { z } from "zod";
import { count } from "../bounds.ts";
import { PROTOCOLS } from "../metrics/protocols.ts";
import { METRIC_NAMES, METRICS } from "../metrics/table.ts";
import { type About, aboutOption, GROUPS } from "./about.ts";
import type { Conditions } from "./conditions.ts";
import { evalConfig, protocolConditions } from "./eval_config.ts";
import { inner, placeholder, show } from "./flags.ts";
import { encoder, general, reading, sampling } from "./options.ts";
import { generator } from "./sample_config.ts";

const { output, metrics, data, sample } = GROUPS;

/** Writes "not given" in a list of an option without a default. */
const NONE = "none";
/** Ends the help of a list of intervals. */
const INTERVALS = "; a list of intervals, such as 0-1,0.1-1";
/** Separates the parts of a value that is a list itself, such as an interval. */
const WITHIN = "-";

/** The value of an option from its text in a list. */
function read(type: z.ZodType, text: string): unknown {
  const t = inner(type);
  if (type instanceof z.ZodOptional && text === NONE) return undefined;
  if (t instanceof z.ZodArray) return text.split(WITHIN).map((part) => read(t.element as z.ZodType, part));
  if (t instanceof z.ZodBoolean) return text === "on" || (text === "off" ? false : text);
  if (t instanceof z.ZodNumber || t instanceof z.ZodUnion) {
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  }
  return text;
}

/** A value as it is written in a list. */
export const written = (value: unknown): string =>
  value === undefined
    ? NONE
    : typeof value === "boolean"
    ? value ? "on" : "off"
    : Array.isArray(value)
    ? value.map(written).join(WITHIN)
    : show(value);

/** What the list of an option takes, for help. */
function listed(type: z.ZodType): string {
  const t = inner(type), one = placeholder(type);
  if (t instanceof z.ZodBoolean) return "off|on,...";
  return `${
    t instanceof z.ZodEnum ? "NAME" : t instanceof z.ZodArray ? one.replaceAll(",", WITHIN) : one
  },...`;
}

/** Lists of more than the option's default value. */
const STANDARD: Readonly<Record<string, readonly unknown[]>> = { cfg: [1, 1.5, 2, 4] };
/** Flags that are shorter than in other commands. */
const FLAGS: Readonly<Record<string, string>> = { cfgInterval: "interval" };

/** An option as a list of its values. */
function listOf(name: string, type: z.ZodType): z.ZodType {
  const standard = STANDARD[name] ?? [type.safeParse(undefined).data];
  const about = aboutOption(type) as About, t = inner(type);
  const element = z.preprocess(
    (value) => typeof value === "string" ? read(type, value) : value,
    type instanceof z.ZodOptional ? t.optional() : t,
  );
  const list = z.array(element).min(1).refine(
    (values) => new Set(values.map(written)).size === values.length,
    "name each value once",
  ).default([...standard]);
  const { group: _, help, ...more } = about,
    names = t instanceof z.ZodEnum
      ? `; NAME: ${t.options.join(", ")}`
      : t instanceof z.ZodArray
      ? INTERVALS
      : "";
  return sample(list, help + names, {
    ...more,
    ...name in FLAGS ? { flag: FLAGS[name] } : {},
    value: listed(type),
    otherwise: about.otherwise ?? standard.map(written).join(),
  });
}

const ONE = { ema: generator.ema, ...sampling };

/** Values of the options that decide the images of a cell. */
export type Swept = { [K in keyof typeof ONE]: z.output<(typeof ONE)[K]> };
type Lists = { [K in keyof Swept]: z.ZodType<Swept[K][]> };

const LISTS = Object.fromEntries(
  Object.entries(ONE).map(([name, type]) => [name, listOf(name, type)]),
) as unknown as Lists;

/** The names of the swept options, in the order of help. */
export const SWEPT = Object.keys(LISTS) as (keyof Swept)[];

const { inception, inceptionInput, protocol, real } = evalConfig.shape;
const SCORES = METRIC_NAMES.filter((name) =>
  METRICS.some((metric) => metric.name === name && metric.of.includes("model") && metric.from !== "six")
);

export const sweepConfig = z.strictObject({
  ...generator,
  real,
  out: output(
    z.string().optional(),
    "Folder for the table, the charts and the page; goes on where it stopped",
    {
      value: "DIR",
      otherwise: "a new one under ./runs",
    },
  ),
  metrics: metrics(z.array(z.enum(SCORES)).min(1).optional(), `Any of ${SCORES.join(", ")}`, {
    otherwise: "those of --protocol, else fd-encoder and classes, with --inception fid",
  }),
  inception,
  protocol,
  inceptionInput,
  ...encoder,
  num: data(count("images").default(200), "Images per combination of options, classes in turn"),
  batchSize: data(count("batch").default(50), "Images at a time; does not change them"),
  ...reading,
  ...LISTS,
  ...general,
});
export type SweepConfig = z.infer<typeof sweepConfig>;

/** Options that the protocol or --metrics fixes or does not read, and protocols of which a sweep has no metric. */
export function sweepConditions(c: SweepConfig): Conditions<SweepConfig> {
  const metrics: readonly string[] = c.protocol === undefined ? SCORES : PROTOCOLS[c.protocol].metrics;
  const { imageSize: _, inceptionInput = [], ...conditions } = protocolConditions(c, ["model"]);
  return {
    ...conditions,
    inceptionInput: [...inceptionInput, [
      () => c.inception !== undefined,
      "it is for figures of Inception, and there is no --inception",
      "add --inception FILE",
    ]],
    protocol: [[
      () => SCORES.some((name) => metrics.includes(name)),
      `${c.protocol} is of six spaces, and a sweep scores in that of Inception and of one encoder`,
      "choose another --protocol",
    ]],
  };
}
