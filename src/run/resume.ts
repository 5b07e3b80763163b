// Resuming: which checkpoint, and which options may differ from the run that saved it. In the same folder only the number of
// steps may. --resume FILE with another folder begins a new run there, whose options may differ as long as the weights fit;
// differences are logged.

import { dirname, resolve } from "@std/path";
import { UsageError } from "../errors.ts";
import type { Schema } from "../cli/flags.ts";
import { freeOptions } from "../cli/about.ts";
import { type Checkpoint, listCheckpoints, newestCheckpoint, openCheckpoint } from "./checkpoint.ts";
import { optionChanges } from "./existing_output.ts";
import { exists } from "../formats/files.ts";
import type { Log } from "./log.ts";
import { differences, type Provenance, provenanceSchema } from "../formats/provenance.ts";

/** The checkpoint that a run is resumed from. */
export interface Resumed extends Checkpoint {
  /** Whether it belongs to a run in another folder. */
  elsewhere: boolean;
}

/**
 * The checkpoint that --resume names; undefined, with a warning, if the run has none.
 * @throws UsageError when it is of another command, or a new run would begin where there is one already
 */
export async function openResumed(
  asked: string | undefined,
  { out, command, log }: { out: string; command: string; log: Log },
): Promise<Resumed | undefined> {
  if (asked === undefined) return undefined;
  const checkpoint = asked === ""
    ? await newestCheckpoint(out, (message) => log.warn(message))
    : await openCheckpoint(asked);
  if (!checkpoint) {
    log.warn(`there is no checkpoint in "${out}"; starting anew`);
    return undefined;
  }
  const { path, config } = checkpoint;
  const elsewhere = placeOf(dirname(dirname(path))) !== placeOf(out);
  const problem = commandOf(config) !== command
    ? `it is of "tok ${commandOf(config)}"; choose a checkpoint of "tok ${command}"`
    : elsewhere && listCheckpoints(out).length
    ? `"${out}" holds another run already; continue that one with --resume alone, or choose another --out`
    : undefined;
  if (problem === undefined) return { ...checkpoint, elsewhere };
  checkpoint.file.close();
  throw new UsageError(`Cannot resume from "${path}": ${problem}`);
}

/** Checkpoints of tok 0.2.0 do not say it. */
function commandOf(config: unknown): unknown {
  const { command, stages } = config as { command?: unknown; stages?: unknown };
  return command ?? (stages === undefined ? "train-dit" : "align");
}

const placeOf = (folder: string) => exists(folder) ? Deno.realPathSync(folder) : resolve(folder);

/** Paths whose contents are compared instead, if the checkpoint has their fingerprints. */
const BY_FINGERPRINT = new Set(["tokenizer", "latents"]);
/** Options that both runs may have: the name of their source. Where one run is without it, the options differ. */
const SOURCES: Readonly<Record<string, string>> = {
  init: "initialisation",
  repa: "alignment encoder",
};

/**
 * Compares the options of a run with those of its checkpoint.
 * @param now `schema` has the defaults of options that the checkpoint lacks, and which ones are free
 * @param except options that the caller checks
 * @throws UsageError if one differs that must not
 */
export function checkResumedOptions(
  resumed: Resumed,
  now: { config: Record<string, unknown>; schema: Schema },
  except: readonly string[],
  log: Log,
): void {
  const { config } = resumed,
    before: Record<string, unknown> = { ...now.schema.parse({}), ...config as object };
  const free = freeOptions(now.schema), recorded = sourcesOf(resumed);
  const byContents = (key: string) => {
    if (BY_FINGERPRINT.has(key)) return recorded !== undefined || now.config[key] === undefined;
    return (SOURCES[key] ?? "") in (recorded ?? {}) && now.config[key] !== undefined;
  };
  // Options that are not given count, too.
  const keys = new Set([...Object.keys(now.config), ...Object.keys(now.schema.shape)]);
  const compared = [...keys].filter((key) => !(free.has(key) || except.includes(key) || byContents(key))).map(
    (key) => [key, now.config[key]] as const,
  );
  const changes = optionChanges(before, Object.fromEntries(compared));
  refuseChanges(resumed, changes, log, microBatchOf(before, now.config));
}

/**
 * Compares what a run is made from with what the run of its checkpoint was.
 * @throws UsageError if something differs
 */
export function checkResumedSources(resumed: Resumed, madeFrom: Provenance, log: Log): void {
  const recorded = sourcesOf(resumed);
  if (recorded) return refuseChanges(resumed, differences(recorded, madeFrom), log);
  log.line(`"${resumed.path}" does not say what it was made from (tok 0.2.0): that is taken to be the same`);
}

/** Undefined for checkpoints of tok 0.2.0. */
const sourcesOf = ({ config }: Resumed): Provenance | undefined =>
  provenanceSchema.safeParse((config as { made_from?: unknown }).made_from).data;

/**
 * What to use where the batch is the same in other micro-batches: sums of gradients in another order round differently, so a run
 * would not resume to the same bits.
 */
function microBatchOf(
  before: Record<string, unknown>,
  { batchSize, accumulate }: Record<string, unknown>,
): string | undefined {
  const { batchSize: size, accumulate: times } = before;
  if (size === batchSize || Number(size) * Number(times) !== Number(batchSize) * Number(accumulate)) {
    return undefined;
  }
  return `use --batch-size ${size} --accumulate ${times} without --memory, since other micro-batches of the same batch round ` +
    `differently`;
}

function refuseChanges(
  { path, step, elsewhere }: Resumed,
  changes: readonly string[],
  log: Log,
  remedy = "use the same",
): void {
  if (changes.length && !elsewhere) {
    throw new UsageError(
      `Cannot resume from "${path}": ${changes[0]}; ${remedy}, or go on in a new run with ` +
        `--resume ${path} and another --out`,
    );
  }
  for (const change of changes) log.line(`from step ${step} on: ${change}`);
}

/**
 * The command line that resumes this one.
 * @param out the folder, if the line does not name it
 * @param resume adds --resume, in place of a --resume FILE of another run
 */
export function resumeCommandOf(
  { commandLine }: { commandLine: string },
  out: string | undefined,
  resume = false,
): string {
  const file = / (?:--resume(?:[= ](?:'[^']*'|[^\s'-]\S*))?|'--resume=[^']*')(?= |$)/;
  const again = resume ? commandLine.replace(file, "") : commandLine;
  return `${again}${out === undefined ? "" : ` --out ${quoted(out)}`}${resume ? " --resume" : ""}`;
}

/** An argument as a shell takes it. */
export const quoted = (text: string): string => /^[\w./:=,+-]+$/.test(text) ? text : `'${text}'`;
