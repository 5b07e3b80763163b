// A subcommand: name, purpose, schema of options, presets, examples and a function. Also what all commands do in the same way:
// open the device, choose the run directory, find and open inputs.

import type { z } from "zod";
import { UsageError } from "../src/errors.ts";
import type { Schema } from "../src/cli/flags.ts";
import { type Device, device, openDevice } from "../src/gpu/device.ts";
import { diagnose, noAdapter } from "../src/gpu/diagnose.ts";
import { newestRun, type RunKind } from "../src/run/checkpoint.ts";
import { type BadImage, type Folder, openFolder } from "../src/data/image_folder.ts";
import type { Log } from "../src/run/log.ts";
import { Output } from "../src/run/output.ts";
import { drawnBy, Workers } from "../src/data/decode_pool.ts";
import { Shapes } from "../src/data/toy_shapes.ts";
import type { ImageSource } from "../src/data/image_source.ts";
import { type EncoderSource, openEncoder } from "../src/zoo/encoders.ts";
import { type KnownTokenizer, openTokenizer } from "../src/zoo/runs.ts";
import { prepareTiles } from "../src/bench/gemm_tuning.ts";

export const RUNS = "runs";

/** Context of a command, from run.ts. */
export interface Context {
  log: Log;
  /** The command line, for reports. */
  line: string;
  /** Whether Ctrl-C or SIGTERM came: save and return. */
  stopping(): boolean;
  /** The command line that resumes after an interruption, once there is something to resume. */
  goOn?: string;
}

export interface Command<S extends Schema = Schema> {
  name: string;
  purpose: string;
  schema: S;
  /** Options by the name of --preset. */
  presets?: Readonly<Record<string, object>>;
  /** Command lines for help; a test parses them. */
  examples: readonly string[];
  /** Field that the positional argument fills. */
  argument?: string;
  /** @returns results for the last JSON line */
  run(config: z.infer<S>, context: Context): Promise<Record<string, unknown>>;
}

/** Defines a command; infers the type of its config. */
export function command<S extends Schema>(definition: Command<S>): Command {
  return definition as unknown as Command;
}

/**
 * Opens the adapter that the options select, warns about a software adapter, and loads the GEMM tuning of the adapter.
 * @param tune measure it first on an unknown GPU, for long runs
 */
export async function openAdapter(
  config: { cpu: boolean; kernels: "auto" | "cpu" | "gpu" },
  log: Log,
  { tune = false }: { tune?: boolean } = {},
): Promise<Device> {
  const opened = await openDevice({
    cpu: config.cpu,
    ...(config.kernels === "auto" ? {} : { profile: config.kernels }),
  }).catch((error) => {
    throw error instanceof UsageError && !config.cpu ? noAdapter() : error;
  });
  const { description, software } = opened.facts;
  log.line(`adapter: ${description} (${opened.profile} kernels)`);
  log.event("adapter", { description, software, kernels: opened.profile });
  if (software && !config.cpu) {
    for (const { problem, remedy } of diagnose(opened.facts)) log.warn(`${problem}; ${remedy}`);
  }
  // GPU kernels on a software adapter are for tests only: no tuning.
  await prepareTiles(tune && opened.profile === "gpu" && !software ? "once" : "never", {
    line: (text) => {
      log.begin(); // measuring takes a while
      log.line(text);
    },
    warn: (text) => log.warn(text),
  });
  return opened;
}

/** Default limit of image threads; a software adapter needs the cores itself. */
const MAX_WORKERS = { gpu: 8, software: 1 };

/** Starts the image threads: --workers, else one per core but one, up to the limit. Needs an open device. */
export function openWorkers(
  { workers, imageMemory }: { workers?: number | undefined; imageMemory?: number | undefined },
): Workers {
  const most = device().facts.software ? MAX_WORKERS.software : MAX_WORKERS.gpu;
  const count = workers ?? Math.max(0, Math.min(most, navigator.hardwareConcurrency - 1));
  return new Workers(count, imageMemory === undefined ? undefined : imageMemory * 1e6);
}

/** Opens the encoder that the options select. @throws UsageError as openEncoder() */
export async function chosenEncoder(
  c: {
    encoder?: string | undefined;
    download: boolean;
    interpolateOffset?: number | undefined;
    dryRun?: boolean;
  },
  log: Log,
): Promise<EncoderSource> {
  const { download, interpolateOffset, dryRun = false } = c;
  const say = (line: string) => {
    log.begin(); // a download takes a while
    log.line(line);
  };
  return await openEncoder(c.encoder, { download, interpolateOffset, planOnly: dryRun, say });
}

/**
 * Opens the tokenizer `run` for images of side --image-size, else of its training size.
 * @throws UsageError if it cannot tokenize images of that side
 */
export async function openTokenizerFor(
  { imageSize }: { imageSize?: number | undefined },
  run: string,
): Promise<{ tokenizer: KnownTokenizer; size: number }> {
  const tokenizer = await openTokenizer(run), size = imageSize ?? tokenizer.config.image_size;
  tokenizer.side(size);
  return { tokenizer, size };
}

/**
 * The locked output folder: --out, or the first free number under ./runs. Opened before the work, so that an unwritable folder
 * is an error at once.
 */
export function openOutput(out: string | undefined, name: string): Output {
  return out === undefined ? Output.numbered(RUNS, name) : Output.folder(out);
}

/** The given run, or the newest one of this kind. @throws UsageError if there is none */
export function inputRun(given: string | undefined, kind: RunKind, log: Log): string {
  if (given !== undefined) return given;
  const run = newestRun(RUNS, kind);
  if (run === undefined) {
    const maker = kind === "tokenizer" ? "tok align" : "tok train-dit";
    throw new UsageError(
      `Cannot find a ${kind} under "${RUNS}": run "${maker}" first, or name one with --${kind}`,
    );
  }
  log.line(`${kind}: ${run} (the newest)`);
  return run;
}

/** The given folder of images, or `length` generated shapes from `seed`. */
export async function imageSource(
  data: string | undefined,
  generated: { length: number; seed: number },
  badImage: BadImage | undefined,
  workers: Workers,
  log: Log,
): Promise<ImageSource> {
  if (data === undefined) {
    log.line(`data: generated shapes`);
    return drawnBy(workers, new Shapes(generated.length, generated.seed));
  }
  return await imageFolder(data, badImage, workers, log);
}

/** Maximum number of class names in a log line. */
const NAMED_CLASSES = 10;

/** Opens a folder of images; logs its contents and what is left out. */
export async function imageFolder(
  data: string,
  badImage: BadImage | undefined,
  workers: Workers,
  log: Log,
): Promise<Folder> {
  const folder = await openFolder(data, { badImage, workers, onBad: (message) => log.warn(message) });
  await folder.image(0, 16); // a file that is no image is an error before any output
  const { length, classes, leftOut } = folder;
  const first = classes.slice(0, NAMED_CLASSES).join(", "), more = classes.length - NAMED_CLASSES;
  const named = `, ${classes.length} classes: ${first}${more > 0 ? `, and ${more} more` : ""}`;
  log.line(`data: ${length} images in "${data}"${classes.length ? named : ""}`);
  if (leftOut.names.length > 0) log.warn(`left out of "${data}": ${leftOut}`);
  return folder;
}

/** Seeds of generated images; held-out images differ from training images. */
export const SEEDS = { train: 1, heldOut: 999, probe: 555 };
