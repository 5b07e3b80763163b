// Latents in one safetensors file, of any program: `latents` [N,C,H,W], `labels` [N] where they have classes, and `mean` and
// `std` (C elements each) where the metadata "normalised" is "true". tok's provenance is in the metadata "tok_latents", as in a
// folder of latents. Also noise to start sampling from: `noise` [N,C,H,W].

import { createHash } from "node:crypto";
import { UsageError } from "../errors.ts";
import { checkStatistics, notFinite } from "./finite.ts";
import { type LatentsRecord, recordIn } from "./latents.ts";
import { fingerprintOf } from "./provenance.ts";
import { openSafetensors, type SafetensorsFile, writeSafetensors } from "./safetensors.ts";

/** Metadata key: "true" if the latents are (z - mean) / std, "false" or absent if they are z. */
const NORMALISED = "normalised";

/** Rows [C,H,W] of a tensor [N,C,H,W], read on demand. */
export class LatentRows {
  constructor(
    readonly name: string,
    private readonly file: SafetensorsFile,
    private readonly key: string,
    readonly shape: readonly [number, number, number],
    readonly length: number,
  ) {}

  /** Row `i`. @throws UsageError if it is not finite */
  async latent(i: number): Promise<Float32Array<ArrayBuffer>> {
    const row = await this.file.readRows(this.key, i, i + 1), fault = notFinite(row);
    if (fault === undefined) return row;
    throw new UsageError(
      `Cannot use "${this.name}": row ${i} of "${this.key}" holds ${fault}; make it again`,
    );
  }

  /** Hash of all rows. */
  async fingerprint(): Promise<string> {
    const hash = createHash("blake2b512");
    for (let i = 0; i < this.length; i++) hash.update(new Uint8Array((await this.latent(i)).buffer));
    return fingerprintOf(`${this.shape}`, hash.digest("hex"));
  }

  close(): void {
    this.file.close();
  }
}

/** A file of latents. */
export interface LatentsFile {
  rows: LatentRows;
  labels: Int32Array | undefined;
  /** Statistics that the latents are normalised with; undefined if they are not normalised. */
  statistics: { mean: Float32Array; std: Float32Array } | undefined;
  record: LatentsRecord | undefined;
}

/** Opens a file of latents; the caller closes its rows. @throws UsageError if it is not one */
export async function openLatentsFile(path: string): Promise<LatentsFile> {
  const file = await openSafetensors(path);
  const refuse = (reason: string) =>
    new UsageError(`Cannot use the latents "${path}": ${reason}; write "latents" [N,C,H,W] to it`);
  try {
    const rows = rowsOf(file, "latents");
    if (!rows) throw refuse(`it has no tensor "latents" of four axes`);
    const C = rows.shape[0], has = (key: string) => file.shapes.has(key);
    const labels = has("labels") ? await file.readIntegers("labels") : undefined;
    if (labels && labels.length !== rows.length) {
      throw refuse(`it has ${labels.length} labels for ${rows.length} latents`);
    }
    const odd = labels?.find((label) => label < 0);
    if (odd !== undefined) throw refuse(`it has the label ${odd}, which is not a class`);
    const normalised = file.metadata.get(NORMALISED) ?? "false";
    if (normalised !== "true" && normalised !== "false") {
      throw refuse(`its metadata "${NORMALISED}" is "${normalised}", neither "true" nor "false"`);
    }
    let statistics: LatentsFile["statistics"];
    if (normalised === "true") {
      if (!has("mean") || !has("std")) throw refuse(`they are normalised, and it has no "mean" and "std"`);
      statistics = { mean: await file.read("mean"), std: await file.read("std") };
      if (statistics.mean.length !== C || statistics.std.length !== C) {
        throw refuse(
          `its statistics are for ${statistics.mean.length} channels, the latents have ${C}`,
        );
      }
      checkStatistics(`"${path}"`, statistics.mean, statistics.std);
    }
    return { rows, labels, statistics, record: recordIn(file) };
  } catch (error) {
    file.close();
    throw error;
  }
}

/** Opens a file of noise for latents of `shape`; the caller closes it. @throws UsageError if it does not fit */
export async function openNoise(path: string, shape: readonly number[]): Promise<LatentRows> {
  const file = await openSafetensors(path), rows = rowsOf(file, "noise");
  if (rows && rows.shape.join() === shape.join()) return rows;
  const found = file.shapes.get("noise");
  file.close();
  throw new UsageError(
    `Cannot start from "${path}": ${found ? `its "noise" is [${found}]` : 'it has no tensor "noise"'}, ` +
      `and the model takes [N,${shape}]; write that to it`,
  );
}

/** Writes noise [N,C,H,W], as {@link openNoise} reads it. */
export async function writeNoise(path: string, shape: readonly number[], noise: Float32Array): Promise<void> {
  await writeSafetensors(path, [{ name: "noise", shape, data: noise }]);
}

function rowsOf(file: SafetensorsFile, key: string): LatentRows | undefined {
  const [N = 0, ...shape] = file.shapes.get(key) ?? [];
  if (shape.length !== 3 || N === 0) return undefined;
  return new LatentRows(file.name, file, key, shape as [number, number, number], N);
}
