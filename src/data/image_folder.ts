// A folder of images as a source: searched recursively, in name order; the first level of sub-folders are the classes.
// Hidden files are skipped, and so is "grid.png" next to other images, tok's own overview. Images next to
// class folders make a class "." of their own rather than taking a wrong label, and a class without images is an error.

import { createHash } from "node:crypto";
import { basename, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { explained, openRegular } from "../formats/files.ts";
import { type Foreign, foreign } from "../formats/foreign.ts";
import { FORMATS } from "../image/header.ts";
import type { InputSource, Sizes, View } from "./network_input.ts";
import type { Job, PixelsOf } from "./decode_task.ts";
import type { Pixels } from "./preprocess.ts";
import type { Identity } from "../formats/provenance.ts";
import { type Found, LeftOut, searchImages } from "./find_images.ts";
import { Workers } from "./decode_pool.ts";

/** Name of the overview that tok writes into a folder of images. */
const OVERVIEW = "grid.png";

/** Number of images from which damaged ones are skipped by default. */
const MIN_TO_SKIP = 1000;

/** Handling of a file that cannot be decoded: stop, or use another image of its class instead. */
export type BadImage = "skip" | "error";

export interface FolderOptions {
  /** "error" for fewer than 1,000 images, otherwise "skip". */
  badImage?: BadImage | undefined;
  /** Called once for each skipped file and once for each kind of note on decoding. */
  onBad?: (message: string) => void;
  /** Threads that decode images [the calling thread]. */
  workers?: Workers | undefined;
  /** Counts the original sizes of the images that {@link Folder.bytes} reads. */
  sizes?: Sizes | undefined;
}

const NONE = new Workers(0);

interface Entry extends Found {
  readonly label: number;
}

export class Folder implements InputSource {
  /** Names of the images that could not be decoded so far. */
  readonly bad = new Set<string>();
  /** Kinds of notes already reported. */
  readonly #noted = new Set<string>();

  constructor(
    readonly root: string,
    readonly classes: readonly string[],
    private readonly entries: readonly Entry[],
    private readonly options: FolderOptions = {},
    /** Files of the folder that are not part of the source. */
    readonly leftOut: LeftOut = new LeftOut(),
  ) {}

  get length(): number {
    return this.entries.length;
  }

  label(i: number): number {
    return this.#entry(i).label;
  }

  /** Path from the root, for example "cats/1.png". */
  name(i: number): string {
    return this.#entry(i).name;
  }

  /** A hash of all names and sizes: changes when files are added, removed, renamed or replaced by others. */
  fingerprint(): string {
    const hash = createHash("sha256");
    for (const { name, size } of this.entries) hash.update(`${name}\0${size}\n`);
    return hash.digest("hex").slice(0, 16);
  }

  identity(): Identity {
    return { name: this.root, fingerprint: this.fingerprint() };
  }

  get parallel(): number {
    return this.options.workers?.count ?? 0;
  }

  /** Resizes the shorter side to `size` (bicubic) and crops the central square. @throws UsageError for a damaged file, see FolderOptions */
  async bytes(i: number, size: number): Promise<Uint8Array> {
    const { data, original } = await this.#pixels(i, (path) => ({ kind: "square", image: path, size }));
    if (original) this.options.sizes?.add(i, original);
    return data;
  }

  /** @throws UsageError for a damaged file, see FolderOptions */
  input(i: number, view: View): Promise<Pixels> {
    return this.#pixels(i, (path) => ({ kind: "input", image: path, view }));
  }

  /** Runs the job that `jobOf` returns for image `i`. @throws UsageError for a damaged file, see FolderOptions */
  async #pixels<J extends Job>(i: number, jobOf: (path: string) => J): Promise<PixelsOf<J>> {
    const { badImage = this.length < MIN_TO_SKIP ? "error" : "skip", onBad, workers = NONE } = this.options;
    for (let k = 0; k < this.length; k++) {
      const { name, path, label } = this.#entry((i + k) % this.length);
      if (label !== this.label(i) || this.bad.has(name)) continue;
      try {
        const pixels = await workers.run(jobOf(path));
        for (const { kind, text } of pixels.notes ?? []) {
          if (this.#noted.has(kind)) continue;
          this.#noted.add(kind);
          onBad?.(text);
        }
        return pixels;
      } catch (error) {
        if (badImage === "error" || !(error instanceof UsageError)) throw error;
        if (this.bad.has(name)) continue; // found damaged meanwhile
        this.bad.add(name);
        onBad?.(error.message);
      }
    }
    throw new UsageError(
      `Cannot use "${this.root}": no image of the class "${
        this.classes[this.label(i)] ?? ""
      }" can be decoded`,
    );
  }

  #entry(i: number): Entry {
    const entry = this.entries[i];
    if (!entry) throw new RangeError(`There is no image ${i}: the folder has ${this.length}`);
    return entry;
  }
}

/** Opens a folder of images, or a single file. @throws UsageError for a folder or a class folder without images */
export async function openFolder(path: string, options: FolderOptions = {}): Promise<Folder> {
  let info: Deno.FileInfo;
  try {
    info = Deno.statSync(path);
  } catch (error) {
    throw explained(error, "use", path);
  }
  if (!info.isDirectory) {
    openRegular(path).file.close(); // reports what it is instead
    return new Folder(path, [], [{ name: basename(path), path, size: info.size, label: 0 }], options);
  }
  const { files: found, folders, leftOut } = searchImages(path);
  if (found.length === 0) {
    throw new UsageError(
      `Cannot use "${path}": there is no image (${FORMATS}) in it or below it${insteadOf(path, leftOut)}`,
    );
  }
  const files = found.length > 1 ? found.filter(({ name }) => name !== OVERVIEW) : found;
  if (files.length < found.length) leftOut.add("overview", OVERVIEW);
  files.sort((a, b) => a.name < b.name ? -1 : 1);
  const classOf = (name: string) => name.includes("/") ? name.slice(0, name.indexOf("/")) : ".";
  const names = [...new Set(files.map(({ name }) => classOf(name)))].sort();
  checkClasses(path, folders.filter((name) => !names.includes(name)).sort(), leftOut);
  const classes = names.length === 1 && names[0] === "." ? [] : names;
  const labels = new Map(names.map((name, label) => [name, label]));
  const entries = files.map((entry) => ({ ...entry, label: labels.get(classOf(entry.name)) ?? 0 }));
  return new Folder(path, classes, entries, options, leftOut);
}

/** A class without images would shift the labels of those after it. */
function checkClasses(root: string, empty: readonly string[], leftOut: LeftOut): void {
  const [first] = empty;
  if (first === undefined) return;
  const others = empty.length > 1 ? `, and ${empty.length - 1} more (${empty.slice(1, 4).join(", ")})` : "";
  throw new UsageError(
    `Cannot use "${root}": the class folder "${first}" has no image (${FORMATS})${others}` +
      insteadOf(root, leftOut.within(first), "remove the folder, or put its images there"),
  );
}

/** Describes what the folder holds instead of images, and what to do. */
function insteadOf(root: string, leftOut: LeftOut, remedy = "choose another folder"): string {
  const [name] = leftOut.names.sort();
  if (name === undefined) return `; ${remedy}`;
  const other = foreignFile(join(root, name));
  const what = other ? `; "${name}" is ${other.what}: ${other.remedy}, or ${remedy}` : `; ${remedy}`;
  return `, but ${leftOut}${what}`;
}

/** The kind of a file, if it is recognised. */
function foreignFile(path: string): Foreign | undefined {
  try {
    const { file } = openRegular(path);
    try {
      const start = new Uint8Array(1024);
      return foreign(start.subarray(0, file.readSync(start) ?? 0));
    } finally {
      file.close();
    }
  } catch {
    return undefined; // left out for another reason
  }
}
