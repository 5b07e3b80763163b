// The latents of generated images in a folder that `tok decode` and `tok train-dit --latents` read. They are appended in order, so
// that an interrupted job goes on after the last one that was saved.

import { join } from "@std/path";
import { exists } from "../formats/files.ts";
import { LatentsWriter, readStatistics, refuseOtherLatents } from "../formats/latents.ts";
import type { Provenance } from "../formats/provenance.ts";
import type { Numbered } from "./pictures.ts";

/** A picture with its latent [C,S,S], as the tokenizer decodes it. */
export type WithLatent = Numbered & { latent?: Float32Array };

export class SavedLatents {
  private constructor(
    private readonly writer: LatentsWriter | undefined,
    private readonly images: { first: number; labels: readonly number[] },
  ) {}

  /**
   * Starts or continues a folder of the latents of images `first`, first + 1, ... in these classes.
   * @param shape [C,S,S]
   * @param about.madeFrom the sources and sampling options that decide about each latent
   * @throws UsageError if it holds latents of something else, which stay as they are
   */
  static async open(
    folder: string,
    shape: readonly [number, number, number],
    images: { first: number; labels: readonly number[] },
    { madeFrom, classes }: { madeFrom: Provenance; classes: readonly string[] },
  ): Promise<SavedLatents> {
    const record = {
      made_from: { ...madeFrom, "first image": images.first, flip: false },
      classes: [...classes],
    };
    const complete = exists(folder) ? await readStatistics(folder) : undefined;
    if (complete?.record && complete.count !== undefined) {
      refuseOtherLatents(folder, complete, record);
      if (complete.count >= images.labels.length) return new SavedLatents(undefined, images);
      Deno.removeSync(complete.path); // the folder is continued
    }
    return new SavedLatents(await LatentsWriter.open(folder, shape, record), images);
  }

  /** Whether the latent of an image is missing. */
  lacks(index: number): boolean {
    return this.writer !== undefined && index - this.images.first >= this.writer.length;
  }

  /** Passes pictures on and saves their latents; what is done is saved when it ends early. */
  async *tee<T extends WithLatent>(made: AsyncIterable<T>): AsyncGenerator<T> {
    const { writer, images: { first, labels } } = this;
    if (!writer) return yield* made;
    let complete = false;
    try {
      for await (const item of made) {
        const { index, latent } = item;
        if (latent && this.lacks(index)) await writer.add(latent, latent, [labels[index - first] as number]);
        yield item;
      }
      complete = true;
    } finally {
      await (complete ? writer.close() : writer.save());
    }
  }
}

/** The folder of latents next to pictures. */
export const latentsFolder = (out: string): string => join(out, "latents");
