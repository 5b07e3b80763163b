// Images in files as a source: decoded by worker threads, cropped to squares, damaged ones skipped or refused.

import { UsageError } from "../errors.ts";
import type { Crop } from "./crops.ts";
import type { InputSource, Sizes, View } from "./network_input.ts";
import type { Job, PixelsOf } from "./decode_task.ts";
import type { Pixels } from "./preprocess.ts";
import type { Identity } from "../formats/provenance.ts";
import type { ImageFile, ImageSet } from "./entries.ts";
import type { LeftOut } from "./left_out.ts";
import { digestOf } from "./digest.ts";
import { Workers } from "./decode_pool.ts";

/** Number of images from which damaged ones are skipped by default. */
const MIN_TO_SKIP = 1000;

/** Handling of a file that cannot be decoded: stop, or use another image of its class instead. */
export type BadImage = "skip" | "error";

export interface ImagesOptions {
  /** "error" for fewer than 1,000 images, otherwise "skip". */
  badImage?: BadImage | undefined;
  /** Called once for each skipped file and once for each kind of note on decoding. */
  onBad?: (message: string) => void;
  /** Threads that decode images [the calling thread]. */
  workers?: Workers | undefined;
  /** Counts the original sizes of the images that {@link Images.bytes} reads. */
  sizes?: Sizes | undefined;
}

const NONE = new Workers(0);

export class Images implements InputSource {
  /** Names of the images that could not be decoded so far. */
  readonly bad = new Set<string>();
  /** Kinds of notes already reported. */
  readonly #noted = new Set<string>();
  #fingerprint: string | undefined;

  constructor(
    readonly root: string,
    private readonly set: ImageSet,
    private readonly options: ImagesOptions = {},
  ) {}

  get length(): number {
    return this.set.entries.length;
  }

  get classes(): readonly string[] {
    return this.set.classes;
  }

  /** Files that are not part of the source. */
  get leftOut(): LeftOut {
    return this.set.leftOut;
  }

  /** What makes reading slow, and the remedy. */
  get note(): string | undefined {
    return this.set.note;
  }

  label(i: number): number {
    return this.set.entries.label(this.#checked(i));
  }

  /** Path from the root, for example "cats/1.png". */
  name(i: number): string {
    return this.set.entries.name(this.#checked(i));
  }

  /** A hash of all names and sizes: changes when images are added, removed, renamed or replaced by others. */
  fingerprint(): string {
    return this.#fingerprint ??= this.set.fingerprint();
  }

  identity(): Identity {
    return { name: this.root, fingerprint: this.fingerprint() };
  }

  get parallel(): number {
    return this.options.workers?.count ?? 0;
  }

  /**
   * By default resizes the shorter side to `size` (bicubic) and crops the central square.
   * @throws UsageError for a damaged file, see ImagesOptions
   */
  async bytes(i: number, size: number, crop?: Crop): Promise<Uint8Array> {
    const { data, original } = await this.#pixels(i, (file) => ({ kind: "square", image: file, size, crop }));
    if (original) this.options.sizes?.add(i, original);
    return data;
  }

  /** @throws UsageError for a damaged file, see ImagesOptions */
  input(i: number, view: View): Promise<Pixels> {
    return this.#pixels(i, (file) => ({ kind: "input", image: file, view }));
  }

  /** Hash of its bytes; undefined for an image that cannot be read or decoded. */
  digest(i: number): Promise<string | undefined> {
    const { entries } = this.set, name = entries.name(this.#checked(i));
    try {
      return Promise.resolve(this.bad.has(name) ? undefined : digestOf(entries.file(i)));
    } catch (error) {
      if (error instanceof UsageError) return Promise.resolve(undefined); // loading it says why
      throw error;
    }
  }

  /** Runs the job that `jobOf` returns for image `i`. @throws UsageError for a damaged file, see ImagesOptions */
  async #pixels<J extends Job>(i: number, jobOf: (file: ImageFile) => J): Promise<PixelsOf<J>> {
    const { badImage = this.length < MIN_TO_SKIP ? "error" : "skip", onBad, workers = NONE } = this.options;
    for (let k = 0; k < this.length; k++) {
      const { entries } = this.set, at = (i + k) % this.length;
      if (entries.label(at) !== this.label(i)) continue;
      const name = entries.name(at);
      if (this.bad.has(name)) continue;
      try {
        const pixels = await workers.run(jobOf(entries.file(at)));
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
        onBad?.(`${error.message}; another image of its class stands in for it`);
      }
    }
    throw new UsageError(
      `Cannot use "${this.root}": no image of the class "${
        this.classes[this.label(i)] ?? ""
      }" can be decoded`,
    );
  }

  #checked(i: number): number {
    if (i >= 0 && i < this.length) return i;
    throw new RangeError(`There is no image ${i}: the set has ${this.length}`);
  }
}
