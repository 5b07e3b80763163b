// A folder of images as a source: searched recursively, in name order; the first level of sub-folders are the classes.
// Hidden files are left out, and so is "grid.png" beside other images: it is tok's own overview of a folder. Images beside
// class folders make a class "." of their own rather than taking a wrong label.

import { createHash } from "node:crypto";
import { basename, extname, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { explained } from "./files.ts";
import type { InputSource, View } from "./inputs.ts";
import type { Job } from "./jobs.ts";
import { Workers } from "./workers.ts";
import type { Pixels } from "./preprocess.ts";
import type { Identity } from "./provenance.ts";

const EXTENSIONS = new Set([".png", ".jpg", ".jpeg", ".webp"]);

/** Below this many images a damaged one is an error unless the caller says otherwise. */
const FEW = 1000;

/** What to do with a file that cannot be decoded: stop, or take another image of its class instead. */
export type BadImage = "skip" | "error";

export interface FolderOptions {
  /** "error" for fewer than 1,000 images, otherwise "skip". */
  badImage?: BadImage | undefined;
  /** Told once about each file that is skipped, and once about each kind of note on how images are decoded. */
  onBad?: (message: string) => void;
  /** Where images are decoded; on the calling thread when absent. */
  workers?: Workers | undefined;
}

const NONE = new Workers(0);

/** An image file: its path from the root with "/" between the parts. */
interface Entry {
  readonly name: string;
  readonly path: string;
  readonly size: number;
  readonly label: number;
}

export class Folder implements InputSource {
  /** Names of the images that could not be decoded so far. */
  readonly bad = new Set<string>();
  /** Kinds of notes that have been passed on. */
  readonly #noted = new Set<string>();

  constructor(
    readonly root: string,
    readonly classes: readonly string[],
    private readonly entries: readonly Entry[],
    private readonly options: FolderOptions = {},
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

  path(i: number): string {
    return this.#entry(i).path;
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

  /** Shorter side to `size` (bicubic), central square. @throws UsageError for a damaged file, see FolderOptions */
  async image(i: number, size: number): Promise<Float32Array> {
    return (await this.pixels(i, (path) => ({ kind: "square", path, size }))).data;
  }

  /** @throws UsageError for a damaged file, see FolderOptions */
  input(i: number, view: View): Promise<Pixels> {
    return this.pixels(i, (path) => ({ kind: "input", image: path, view }));
  }

  /** What `jobOf` says to make of image `i`. @throws UsageError for a damaged file, see FolderOptions */
  async pixels(i: number, jobOf: (path: string) => Job): Promise<Pixels> {
    const { badImage = this.length < FEW ? "error" : "skip", onBad, workers = NONE } = this.options;
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
        if (this.bad.has(name)) continue; // another image has met it meanwhile
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

/** Opens a folder of images, or a single file. @throws UsageError when it is not there or holds no image */
export async function openFolder(path: string, options: FolderOptions = {}): Promise<Folder> {
  let info: Deno.FileInfo;
  try {
    info = Deno.statSync(path);
  } catch (error) {
    throw explained(error, "use", path);
  }
  if (!info.isDirectory) {
    return new Folder(path, [], [{ name: basename(path), path, size: info.size, label: 0 }], options);
  }
  let found = [...search(path, "", new Set())];
  if (found.length > 1) found = found.filter(({ name }) => name !== "grid.png");
  if (found.length === 0) {
    throw new UsageError(
      `Cannot use "${path}": there is no PNG, JPEG or WebP image in it or below it; choose another folder`,
    );
  }
  found.sort((a, b) => a.name < b.name ? -1 : 1);
  const classOf = (name: string) => name.includes("/") ? name.slice(0, name.indexOf("/")) : ".";
  const names = [...new Set(found.map(({ name }) => classOf(name)))].sort();
  const classes = names.length === 1 && names[0] === "." ? [] : names;
  const labels = new Map(names.map((name, label) => [name, label]));
  const entries = found.map((entry) => ({ ...entry, label: labels.get(classOf(entry.name)) ?? 0 }));
  return new Folder(path, classes, entries, options);
}

/** Image files below `folder`, in no order. Symbolic links are followed, but never in a circle (`above`). */
function* search(
  folder: string,
  prefix: string,
  above: ReadonlySet<string>,
): Generator<Omit<Entry, "label">> {
  let inside: Deno.DirEntry[], real: string;
  try {
    real = Deno.realPathSync(folder);
    inside = [...Deno.readDirSync(folder)];
  } catch (error) {
    throw explained(error, "list the folder", folder);
  }
  if (above.has(real)) return;
  for (const { name } of inside) {
    if (name.startsWith(".")) continue;
    const path = join(folder, name);
    let info: Deno.FileInfo;
    try {
      info = Deno.statSync(path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound || (error as { code?: string }).code === "ELOOP") continue; // a dead link
      throw explained(error, "read", path);
    }
    if (info.isDirectory) yield* search(path, `${prefix}${name}/`, new Set([...above, real]));
    else if (EXTENSIONS.has(extname(name).toLowerCase())) {
      yield { name: prefix + name, path, size: info.size };
    }
  }
}
