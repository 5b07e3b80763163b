// What `tok inspect` lists of files that hold no weights: arrays of .npz files, and how a PNG was made.

import { printable } from "../src/errors.ts";
import { parseJson } from "../src/formats/json.ts";
import { openNpz } from "../src/formats/npz.ts";
import { readPngTexts } from "../src/image/png_text.ts";
import type { Log } from "../src/run/log.ts";
import { RECIPE } from "../src/sampling/pictures.ts";

/** Maximum length of a printed text; --json has all of it. */
const SHOWN = 200;

export async function arrays(path: string, log: Log) {
  const file = await openNpz(path);
  file.close();
  log.line(log.bold(path));
  const tensors = [...file.arrays].map(([name, { kind, shape }]) => ({ name, dtype: kind, shape }));
  for (const { name, dtype, shape } of tensors) {
    log.line(`  ${printable(name).padEnd(64)} ${dtype.padEnd(5)} [${shape.join(", ")}]`);
  }
  return { path, tensors };
}

/** The texts of a PNG. That of tok is JSON with one field for each option. */
export function texts(path: string, log: Log) {
  const found = Object.fromEntries(readPngTexts(path)), recipe = recipeIn(found[RECIPE]);
  log.line(log.bold(path));
  const rows = { ...found, ...recipe };
  if (recipe) delete rows[RECIPE];
  for (const [key, value] of Object.entries(rows)) {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    log.line(printable(`  ${key}: ${text.length > SHOWN ? `${text.slice(0, SHOWN)}...` : text}`));
  }
  if (!Object.keys(rows).length) log.line("  no texts");
  return { path, texts: found, ...recipe ? { recipe } : {} };
}

/** Undefined if another program has written something else under the keyword. */
function recipeIn(text: string | undefined): Record<string, unknown> | undefined {
  try {
    const value = text === undefined ? undefined : parseJson(new TextEncoder().encode(text));
    return typeof value === "object" && value !== null ? value as Record<string, unknown> : undefined;
  } catch {
    return undefined;
  }
}
