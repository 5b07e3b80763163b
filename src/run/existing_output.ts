// Checks of existing outputs: results of another command or run are never overwritten or mixed with new ones, and the same
// command with the same options continues where it stopped. config.json describes a folder of pictures; it is written before
// the first picture.

import { join } from "@std/path";
import { UsageError } from "../errors.ts";
import { kebab } from "../cli/flags.ts";
import { exists, readJson, writeJson } from "../formats/files.ts";
import { differences, type Provenance, provenanceSchema } from "../formats/provenance.ts";

type Fields = Readonly<Record<string, unknown>>;

const CONFIG = "config.json";
const PICTURE = /\.(png|jpe?g|webp|gif|bmp|tiff?)$/i;

/** @throws UsageError if the folder holds results of another command */
export function refuseOthers(folder: string, command: string): void {
  if (!exists(join(folder, CONFIG))) return;
  const { command: made } = (readJson(join(folder, CONFIG)) ?? {}) as { command?: unknown };
  if (made === command) return;
  const what = typeof made === "string" ? `the results of "tok ${made}"` : `a "${CONFIG}" of something else`;
  throw new UsageError(`Cannot write to "${folder}": it holds ${what}; choose another --out`);
}

/**
 * Starts or continues a folder of pictures.
 * @param about.options options that determine the pictures; stored in config.json together with `others`, which do not
 * @param about.defaults values of options that an earlier version did not have
 * @param about.folders folders of the pictures, relative to `folder`
 * @throws UsageError if the folder holds other pictures
 */
export function beginPictures(
  folder: string,
  command: string,
  { options, defaults = {}, madeFrom, others = {}, folders = [] }: {
    options: Fields;
    defaults?: Fields;
    madeFrom: Provenance;
    others?: Fields;
    folders?: readonly string[];
  },
): void {
  refuseOthers(folder, command);
  const goesOn = exists(join(folder, CONFIG));
  const places = new Set(["", ...folders.map((sub) => sub === "." ? "" : sub)]);
  const found = [...places].flatMap((sub) => pictures(folder, sub));
  if (goesOn && found.length) {
    const [change] = changes(
      { ...defaults, ...readJson(join(folder, CONFIG)) as Fields },
      options,
      madeFrom,
    );
    if (change !== undefined) {
      throw new UsageError(
        `Cannot go on in "${folder}": it holds ${counted(found)} of an earlier run, and ${change}; ` +
          `use the same, or another --out`,
      );
    }
  } else if (found.length) {
    throw new UsageError(
      `Cannot write to "${folder}": it holds ${counted(found)} already (${
        found.slice(0, 3).map((name) => `"${name}"`).join(", ")
      }${found.length > 3 ? ", ..." : ""}), which would be mixed with the new ones; choose another --out`,
    );
  }
  writeJson(join(folder, CONFIG), { command, ...options, ...others, made_from: madeFrom });
}

function changes(before: Fields, options: Fields, madeFrom: Provenance): string[] {
  const recorded = provenanceSchema.safeParse(before.made_from);
  if (!recorded.success) return ["its config.json does not say what they were made from (tok 0.2.0)"];
  return [...optionChanges(before, options), ...differences(recorded.data, madeFrom)];
}

/** Describes the options that differ from the stored ones. */
export function optionChanges(before: Fields, options: Fields): string[] {
  return Object.entries(options).flatMap(([key, is]) => {
    const [a, b] = [before[key], is].map((value) => JSON.stringify(value) ?? "not given");
    return a === b ? [] : [`--${kebab(key)} was ${a} and is ${b}`];
  });
}

const counted = (found: readonly unknown[]) =>
  `${found.length} ${found.length === 1 ? "picture" : "pictures"}`;

function pictures(folder: string, sub: string): string[] {
  const at = join(folder, sub);
  if (!exists(at)) return [];
  return [...Deno.readDirSync(at)].filter(({ name, isDirectory }) => !isDirectory && PICTURE.test(name))
    .map(({ name }) => join(sub, name)).sort();
}
