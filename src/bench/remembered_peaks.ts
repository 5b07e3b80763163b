// The rates that `tok doctor --bench` measured, remembered in the user's cache folder: dry runs turn FLOPs into hours with them.

import { dirname, join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import { exists, makeFolder, readJson, validated, writeJson } from "../formats/files.ts";
import { tilesFile } from "./gemm_tuning.ts";

const rates = z.strictObject({
  /** GFLOP/s of a large GEMM, and of multiply-adds in registers. */
  gemm: z.number().positive(),
  fma: z.number().positive(),
});
export type Rates = z.infer<typeof rates>;
const fileSchema = z.strictObject({ adapters: z.record(z.string(), rates) });

/** The file, next to that of the GEMM tiles. */
export const ratesFile = (): string => join(dirname(tilesFile()), "rates.json");

/** Rates by adapter (the key of the GEMM tiles). A damaged file counts as none. */
function readAll(path: string): Record<string, Rates> {
  try {
    return exists(path) ? validated(fileSchema, readJson(path), path).adapters : {};
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    return {};
  }
}

/** The rates that were measured on the adapter `key`, if any. */
export const rememberedRates = (key: string, path: string = ratesFile()): Rates | undefined =>
  readAll(path)[key];

/** Remembers rates next to those of other adapters. @param warn told if the file cannot be written */
export function rememberRates(
  key: string,
  { gemm, fma }: Rates,
  warn: (text: string) => void,
  path: string = ratesFile(),
): void {
  try {
    makeFolder(dirname(path));
    writeJson(path, { adapters: { ...readAll(path), [key]: { gemm, fma } } });
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    warn(error.message);
  }
}
