// Numbered pictures in a folder: those that are missing are made and the others kept; samples.npz and grid.png hold all of them,
// in order. The text chunk "tok" of each PNG says how it was made.

import { join } from "@std/path";
import metadata from "../../deno.json" with { type: "json" };
import { exists, writeAtomic } from "../formats/files.ts";
import { type NpzArray, writeNpz } from "../formats/npz.ts";
import type { Identity } from "../formats/provenance.ts";
import { encodePng, grid, type Image, readImage, writePng } from "../image/image.ts";
import { withText } from "../image/png_text.ts";
import { MAX_COLUMNS } from "./labels.ts";

/** Keyword of the text chunk. */
export const RECIPE = "tok";

/** Pictures in the grid. */
const SHOWN = 200;

/** How a picture was made, as JSON in ASCII: equal recipes give equal bytes. */
export function recipeText(recipe: Readonly<Record<string, unknown>>): string {
  const escaped = (c: string) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(recipe).replace(/[\u007f-\uffff]/g, escaped);
}

/** What decides about a picture. @param madeFrom its sources, by their fingerprints */
export const recipeOf = (
  madeFrom: Readonly<Record<string, Identity>>,
  options: Readonly<Record<string, unknown>>,
): Readonly<Record<string, unknown>> => ({
  tok: metadata.version,
  ...Object.fromEntries(Object.entries(madeFrom).map(([source, is]) => [source, is.fingerprint])),
  ...options,
});

/** Writes a picture that says how it was made. */
export async function writePicture(
  path: string,
  image: Image,
  recipe: Readonly<Record<string, unknown>>,
): Promise<void> {
  writeAtomic(path, withText(await encodePng(image), RECIPE, recipeText(recipe)));
}

/** Names of the folders by class: number and name. */
export const classFolders = (names: readonly string[]): string[] =>
  names.map((name, k) => `${String(k).padStart(4, "0")}_${name.replace(/[^\w.-]/g, "_")}`);

/** A picture and its number. */
export interface Numbered {
  index: number;
  /** RGB bytes. */
  image: Uint8Array<ArrayBuffer>;
}

export interface PictureOptions {
  folder: string;
  /** Side of each, pixels. */
  size: number;
  /** Number of the first picture, and of pictures. */
  first: number;
  count: number;
  /** Class of each picture, if they have classes. */
  labels?: readonly number[] | undefined;
  /** Folder of each class; by default all are in `folder`. */
  folders?: readonly string[];
  /** Whether samples.npz is written too. */
  npz: boolean;
  /** How picture `i` is made. */
  recipe: (i: number) => Readonly<Record<string, unknown>>;
}

/** Pictures `first` to `first + count - 1`. One that exists is complete, since files appear complete or not at all. */
export class Pictures {
  /** Numbers of the pictures that exist already. */
  readonly there: ReadonlySet<number>;

  constructor(readonly options: PictureOptions) {
    const { first, count } = options;
    this.there = new Set(
      Array.from({ length: count }, (_, i) => first + i).filter((i) => exists(this.path(i))),
    );
  }

  path(i: number): string {
    const { folder, folders, labels, first } = this.options;
    return join(folder, folders?.[labels?.[i - first] ?? -1] ?? "", `${String(i).padStart(6, "0")}.png`);
  }

  /**
   * Writes the missing pictures, samples.npz if asked for, and grid.png.
   * @param made pictures by number in ascending order, those that are missing at least
   */
  async write(made: AsyncIterable<Numbered>): Promise<void> {
    const { folder, size, count, labels, npz } = this.options, shown: Uint8Array[] = [];
    const all = this.#inOrder(made, shown);
    if (npz) {
      const arrays: NpzArray[] = [{ name: "arr_0", shape: [count, size, size, 3], data: all }];
      if (labels) arrays.push({ name: "arr_1", shape: [count], data: BigInt64Array.from(labels, BigInt) });
      await writeNpz(join(folder, "samples.npz"), arrays);
    } else for await (const _ of all);
    const classes = new Set(labels).size;
    const columns = classes >= 5 && classes <= MAX_COLUMNS ? classes : 10;
    await writePng(join(folder, "grid.png"), grid(shown, size, columns));
  }

  /** All pictures in order. Earlier ones are read where the archive or the grid needs them; only the grid's are kept. */
  async *#inOrder(
    made: AsyncIterable<Numbered>,
    shown: Uint8Array[],
  ): AsyncGenerator<Uint8Array> {
    const { first, count, npz, size, recipe } = this.options, end = first + count;
    let at = first;
    const isShown = (i: number) => i < first + SHOWN;
    const earlier = async function* (this: Pictures, to: number) {
      for (; at < to; at++) {
        if (!npz && !isShown(at)) continue;
        const { data } = await readImage(this.path(at));
        if (isShown(at)) shown.push(data);
        yield data;
      }
    }.bind(this);
    for await (const { index, image } of made) {
      yield* earlier(index);
      if (!this.there.has(index)) {
        await writePicture(this.path(index), { width: size, height: size, data: image }, recipe(index));
      }
      if (isShown(index)) shown.push(image);
      at = index + 1;
      yield image;
    }
    yield* earlier(end);
  }
}
