// A folder of images as a source: searched recursively in name order, classes are the first level of sub-folders.
// Every file is checked by its header when it is first needed; what to do with a broken one is the caller's choice.

import { extname, join, relative, SEPARATOR } from "@std/path";
import { UsageError } from "../errors.ts";
import { explained } from "./files.ts";
import { readImage, toFloat } from "./image.ts";
import { resizeAndCrop } from "./resize.ts";
import type { ImageSource } from "./source.ts";

const EXTENSIONS = new Set([".png", ".jpg", ".jpeg", ".webp"]);

/** Below this many images a broken one is an error unless the caller says otherwise. */
const FEW = 1000;

export type BadImage = "skip" | "error";

export class Folder implements ImageSource {
  readonly classes: readonly string[];
  /** Files that could not be decoded, in the order of discovery. */
  readonly bad = new Set<string>();
  readonly #paths: string[];
  readonly #labels: Int32Array;
  readonly #policy: BadImage;
  readonly #onBad: (message: string) => void;

  constructor(
    readonly root: string,
    paths: string[],
    options: { badImage?: BadImage | undefined; onBad?: (message: string) => void },
  ) {
    this.#paths = paths;
    const first = paths.map((path) => {
      const parts = relative(root, path).split(SEPARATOR);
      return parts.length > 1 ? parts[0] as string : "";
    });
    const names = [...new Set(first)].sort();
    // A folder without sub-folders has no classes; loose files beside class folders form none either.
    this.classes = names.filter((name) => name !== "");
    this.#labels = Int32Array.from(first, (name) => Math.max(0, this.classes.indexOf(name)));
    this.#policy = options.badImage ?? (paths.length < FEW ? "error" : "skip");
    this.#onBad = options.onBad ?? (() => {});
  }

  get length(): number {
    return this.#paths.length;
  }

  label(i: number): number {
    return this.#labels[i] ?? 0;
  }

  name(i: number): string {
    return relative(this.root, this.path(i)) || (this.path(i).split(SEPARATOR).at(-1) as string);
  }

  path(i: number): string {
    return this.#paths[i] as string;
  }

  /** Shorter side to `size` (bicubic), centre crop. A broken image is replaced by the next good one where that is allowed. */
  async image(i: number, size: number): Promise<Float32Array> {
    for (let k = 0; k < this.length; k++) {
      const path = this.path((i + k) % this.length);
      if (this.bad.has(path)) continue;
      try {
        return toFloat(resizeAndCrop(await readImage(path), size, size, "bicubic").data);
      } catch (error) {
        if (this.#policy === "error" || !(error instanceof UsageError)) throw error;
        this.bad.add(path);
        this.#onBad(error.message);
      }
    }
    throw new UsageError(`Cannot use "${this.root}": not one of its ${this.length} images can be decoded`);
  }
}

/** Opens a folder, or one file. @throws UsageError when there is nothing in it */
export async function openFolder(
  path: string,
  options: { badImage?: BadImage | undefined; onBad?: (message: string) => void } = {},
): Promise<Folder> {
  const info = await Deno.stat(path).catch((error) => {
    throw explained(error, "open", path);
  });
  const paths = info.isDirectory ? await list(path) : [path];
  if (paths.length === 0) {
    throw new UsageError(`Cannot use "${path}": no PNG, JPEG or WebP image is in it or below it`);
  }
  return new Folder(path, paths, options);
}

async function list(folder: string): Promise<string[]> {
  const found: string[] = [];
  const entries = await Array.fromAsync(Deno.readDir(folder)).catch((error) => {
    throw explained(error, "list", folder);
  });
  for (const { name, isDirectory, isFile, isSymlink } of entries) {
    if (name.startsWith(".")) continue;
    const path = join(folder, name);
    const kind = isSymlink ? await Deno.stat(path).catch(() => undefined) : { isDirectory, isFile };
    if (kind?.isDirectory && !isSymlink) found.push(...await list(path));
    else if (kind?.isFile && EXTENSIONS.has(extname(name).toLowerCase())) found.push(path);
  }
  return found.sort();
}
