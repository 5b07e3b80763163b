// Averages of the weights that are chosen after training: two power-function averages are tracked and saved now and then, and any
// other average is rebuilt from these snapshots by least squares. Karras et al. (2024), "Analyzing and Improving the Training
// Dynamics of Diffusion Models", arXiv 2312.02696, section 3 and appendix C. Profiles here are those of the discrete updates, not of
// the continuous limit: after t steps, the average with beta_t = (1 - 1/t)^(gamma + 1) weighs the weights of step k by
// (k/t)^(gamma + 1) - ((k - 1)/t)^(gamma + 1).

import { basename, dirname, join, resolve } from "@std/path";
import { UsageError } from "../errors.ts";
import { damaged } from "../formats/bytes.ts";
import { exists, makeFolder } from "../formats/files.ts";
import { openSafetensors, RowsWriter, type SafetensorsFile } from "../formats/safetensors.ts";

/** Relative widths sigma_rel of the averages that are tracked; the last one is the result of a run. */
export const TRACKED_WIDTHS = [0.05, 0.1] as const;

/** The width of a power function of exponent 0, the plain mean; wider ones do not exist. */
export const MAX_WIDTH = 1 / Math.sqrt(12);

/** The exponent gamma of the power function of relative width `sigmaRel`, in 0..{@link MAX_WIDTH} (arXiv 2312.02696, eq. 123). */
export function gammaOf(sigmaRel: number): number {
  const width = (gamma: number) => Math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)));
  let low = 0, high = 1 / sigmaRel; // width(gamma) < 1 / gamma
  for (let i = 0; i < 100; i++) {
    const middle = (low + high) / 2;
    if (width(middle) > sigmaRel) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** Number of bins of steps that profiles are compared over; up to as many steps each is one of its own. */
const BINS = 4096;

/** Ends of the bins of `steps` steps, beginning with 0. */
function binsOf(steps: number): number[] {
  const width = Math.ceil(steps / BINS);
  return Array.from({ length: Math.ceil(steps / width) + 1 }, (_, i) => Math.min(steps, i * width));
}

/** Weights that an average gives to the bins: differences of the weight of all steps until each end. */
const profile = (ends: readonly number[], until: (end: number) => number) =>
  Float64Array.from(
    { length: ends.length - 1 },
    (_, i) => until(ends[i + 1] as number) - until(ends[i] as number),
  );

/** @param t steps that had been done */
const powerProfile = (ends: readonly number[], t: number, sigmaRel: number) => {
  const power = gammaOf(sigmaRel) + 1;
  return profile(ends, (end) => Math.min(1, end / t) ** power);
};

/** An average with a constant decay over `steps` steps, without what remains of the initial weights. */
const exponentialProfile = (ends: readonly number[], steps: number, decay: number) =>
  profile(ends, (end) => (decay ** (steps - end) - decay ** steps) / (1 - decay ** steps));

/** An average that was tracked: steps that had been done, and its width. */
export interface Tracked {
  steps: number;
  sigmaRel: number;
}

/**
 * The coefficients of tracked averages, of sum 1, whose profile is nearest to that of another average.
 * @param width below {@link MAX_WIDTH} the relative width of a power-function average, else the decay of an exponential one; it ends
 * where the last of `tracked` does
 * @returns `error`: the norm of the difference of the two profiles, relative to that of the one that was asked for
 */
export function fitAverage(
  tracked: readonly Tracked[],
  width: number,
): { coefficients: Float64Array; error: number } {
  const steps = Math.max(...tracked.map((t) => t.steps)), ends = binsOf(steps);
  const profiles = tracked.map((t) => powerProfile(ends, t.steps, t.sigmaRel));
  const target = width < MAX_WIDTH
    ? powerProfile(ends, steps, width)
    : exponentialProfile(ends, steps, width);
  const last = profiles.at(-1) as Float64Array;
  const beyond = (p: Float64Array) => p.map((x, i) => x - (last[i] as number));
  // With the last coefficient as 1 minus the others, the sum is 1 whatever these are.
  const others = leastSquares(profiles.slice(0, -1).map(beyond), beyond(target));
  const coefficients = Float64Array.of(...others, 1 - others.reduce((a, b) => a + b, 0));
  const off = target.map((x, i) =>
    x - coefficients.reduce((sum, c, k) => sum + c * ((profiles[k] as Float64Array)[i] as number), 0)
  );
  return { coefficients, error: Math.sqrt(dot(off, off) / dot(target, target)) };
}

const dot = (a: Float64Array, b: Float64Array) => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
};

/** The x for which sum x_k columns_k is nearest to b; 0 for columns that depend on those before them. */
function leastSquares(columns: readonly Float64Array[], b: Float64Array): Float64Array {
  const basis: { k: number; q: Float64Array; r: number[] }[] = [], x = new Float64Array(columns.length);
  const subtract = (from: Float64Array, factor: number, q: Float64Array) => {
    for (let i = 0; i < q.length; i++) from[i] = (from[i] as number) - factor * (q[i] as number);
  };
  columns.forEach((column, k) => {
    const q = column.slice(), r = basis.map(() => 0);
    for (let pass = 0; pass < 2; pass++) { // Gram-Schmidt, twice for orthogonality
      basis.forEach(({ q: other }, j) => {
        const along = dot(other, q);
        r[j] = (r[j] as number) + along;
        subtract(q, along, other);
      });
    }
    const length = Math.sqrt(dot(q, q));
    if (length <= 1e-9 * Math.sqrt(dot(column, column))) return;
    basis.push({ k, q: q.map((v) => v / length), r: [...r, length] });
  });
  const rest = b.slice();
  const along = basis.map(({ q }) => {
    const a = dot(q, rest);
    subtract(rest, a, q);
    return a;
  });
  for (let j = basis.length - 1; j >= 0; j--) {
    const { k, r } = basis[j] as typeof basis[number];
    x[k] = (along[j] as number) / (r[j] as number);
    for (let i = 0; i < j; i++) along[i] = (along[i] as number) - (x[k] as number) * (r[i] as number);
  }
  return x;
}

const folderOf = (run: string) => join(run, "ema");
const NAME = /^step_(\d{8,})\.safetensors$/;
const FORMAT = "tok-ema-1";

/** A snapshot of the tracked averages in a run's folder. */
export interface Snapshot {
  path: string;
  /** The step of the run. */
  step: number;
  /** Steps that had changed the weights; others were skipped. */
  applied: number;
  widths: readonly number[];
  bytes: number;
}

/** An average as it is saved: the trained tensors, in the layout of files. */
export interface SavedAverage {
  sigmaRel: number;
  tensors: readonly { name: string; shape: readonly number[]; read(): Promise<Float32Array> }[];
}

/**
 * Saves the tracked averages after `step` steps, of which `applied` were not skipped, to RUN/ema/step_*.safetensors; one tensor at
 * a time is in memory.
 */
export async function saveSnapshot(
  run: string,
  { step, applied, averages }: { step: number; applied: number; averages: readonly SavedAverage[] },
): Promise<void> {
  makeFolder(folderOf(run));
  const tensors = averages.flatMap(({ sigmaRel, tensors }) =>
    tensors.map((tensor) => ({ ...tensor, name: nameOf(sigmaRel, tensor.name) }))
  );
  const file = new RowsWriter(
    join(folderOf(run), `step_${String(step).padStart(8, "0")}.safetensors`),
    tensors,
    {
      format: FORMAT,
      step: String(step),
      applied: String(applied),
      sigma_rel: averages.map(({ sigmaRel }) => sigmaRel).join(),
    },
  );
  try {
    for (const { name, read } of tensors) file.add(name, await read());
    file.commit();
  } catch (error) {
    file.abort();
    throw error;
  }
}

const nameOf = (sigmaRel: number, name: string) => `ema_${sigmaRel}.${name}`;

/** Steps and paths of the snapshots of a run, in order. */
function snapshotFiles(run: string): { step: number; path: string }[] {
  const folder = folderOf(run);
  if (!exists(folder)) return [];
  return [...Deno.readDirSync(folder)].flatMap(({ name }) => {
    const step = NAME.exec(name)?.[1];
    return step === undefined ? [] : [{ step: Number(step), path: join(folder, name) }];
  }).sort((a, b) => a.step - b.step);
}

/** Removes the snapshots of later steps: they are of before the run was resumed from an earlier one. */
export function removeSnapshotsAfter(run: string, step: number): void {
  for (const { path } of snapshotFiles(run).filter((s) => s.step > step)) Deno.removeSync(path);
}

async function openSnapshots(run: string): Promise<{ snapshot: Snapshot; file: SafetensorsFile }[]> {
  const opened: { snapshot: Snapshot; file: SafetensorsFile }[] = [];
  try {
    for (const { path } of snapshotFiles(run)) {
      const file = await openSafetensors(path), text = (key: string) => file.metadata.get(key) ?? "";
      const [step, applied] = [Number(text("step")), Number(text("applied"))];
      const widths = text("sigma_rel").split(",").map(Number);
      opened.push({ snapshot: { path, step, applied, widths, bytes: Deno.statSync(path).size }, file });
      if (text("format") !== FORMAT || !(applied > 0) || !widths.every((w) => w > 0 && w < MAX_WIDTH)) {
        throw damaged(path, "it is no snapshot of averages");
      }
    }
  } catch (error) {
    for (const { file } of opened) file.close();
    throw error;
  }
  return opened;
}

/** The model of a run with an average of the weights that was rebuilt from its snapshots, as loadState() reads it. */
export interface RebuiltEma {
  readonly name: string;
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** The path of config.json of the run's model. */
  readonly config: string;
  readonly snapshots: readonly Snapshot[];
  /** How far its profile is from that of the average; see {@link fitAverage}. */
  readonly error: number;
  /** A line that says what it is. */
  readonly about: string;
  read(key: string, into?: Float32Array<ArrayBuffer>): Promise<Float32Array<ArrayBuffer>>;
  close(): void;
}

/**
 * Rebuilds an average of a run's weights that ends at its last snapshot.
 * @param path the run's folder, or its "model" folder
 * @param width as in {@link fitAverage}
 * @throws UsageError where there are no snapshots or no model
 */
export async function rebuiltEma(path: string, width: number): Promise<RebuiltEma> {
  const run = basename(resolve(path)) === "model" ? dirname(resolve(path)) : path, what = textOfWidth(width);
  if (!(width > 0 && width < 1)) {
    throw new UsageError(`Cannot rebuild the ${what}: choose a width or a decay between 0 and 1`);
  }
  const model = join(run, "model", "model.safetensors");
  if (!snapshotFiles(run).length) throw noSnapshots(path);
  if (!exists(model)) {
    throw new UsageError(
      `Cannot rebuild the ${what} of "${path}": there is no "${model}"; finish the run with --resume`,
    );
  }
  const opened = await openSnapshots(run);
  const tracked = opened.flatMap(({ snapshot: { applied: steps, widths }, file }) =>
    widths.map((sigmaRel) => ({ steps, sigmaRel, file }))
  );
  const { coefficients, error } = fitAverage(tracked, width), base = await openSafetensors(model);
  const averaged = (key: string) =>
    tracked.some(({ file, sigmaRel }) => file.tensors.has(nameOf(sigmaRel, key)));
  const off = (100 * error).toPrecision(2);
  return {
    name: run,
    shapes: base.shapes,
    config: join(run, "model", "config.json"),
    snapshots: opened.map(({ snapshot }) => snapshot),
    error,
    about: `${what}, rebuilt from ${opened.length} snapshots, its profile within ${off} %` +
      (error > POOR ? "; that is poor: choose a wider average, or train with a smaller --ema-every" : ""),
    async read(key, into) {
      const stored = await base.read(key, into);
      if (!averaged(key)) return stored;
      const sum = new Float64Array(stored.length), part = new Float32Array(stored.length);
      for (const [k, { file, sigmaRel }] of tracked.entries()) {
        const c = coefficients[k] as number, x = await file.read(nameOf(sigmaRel, key), part);
        for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + c * (x[i] as number);
      }
      stored.set(sum);
      return stored;
    },
    close() {
      for (const { file } of [...opened, { file: base }]) file.close();
    },
  };
}

/** The error for a model without snapshots. */
export const noSnapshots = (path: string) =>
  new UsageError(
    `Cannot rebuild an average of the weights of "${path}": there are no snapshots, as RUN/ema has them; choose a run of ` +
      `"tok train-dit --ema posthoc"`,
  );

/** An error of a rebuilt profile that is worth a word. */
const POOR = 0.1;

const textOfWidth = (width: number) =>
  width < MAX_WIDTH
    ? `power-function average of sigma_rel ${width}`
    : `exponential average of decay ${width}`;
