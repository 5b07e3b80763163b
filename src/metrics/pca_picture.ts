// A picture of what an encoder and a tokenizer's latents tell apart: images, the first three principal components of the
// encoder's patch tokens as red, green and blue, and those of the latents, one row each.

import { join } from "@std/path";
import type { InputSource } from "../data/network_input.ts";
import { grid, writePng } from "../image/image.ts";
import type { Log } from "../run/log.ts";
import type { EncoderSource } from "../zoo/encoders.ts";
import { patchTokens } from "./encoder_features.ts";
import type { Features } from "./moments.ts";
import { componentColors, principalComponents } from "./principal.ts";

/** Images in the picture. */
const SHOWN = 8;
/** Smallest side of an image in the picture, pixels. */
const SIDE = 64;

/** Evenly spaced images with their latents, kept while all pass by. */
export class ShownImages {
  readonly chosen: readonly number[];
  readonly originals: Uint8Array[] = [];
  readonly latents: Float32Array[] = [];

  /** @param n number of all images */
  constructor(n: number) {
    const count = Math.min(SHOWN, n);
    this.chosen = Array.from({ length: count }, (_, k) => Math.floor(k * n / count));
  }

  /** Adds a batch: bytes and latents of `count` images from number `first` on. */
  add(
    { first, count, originals, latents }: {
      first: number;
      count: number;
      originals: Uint8Array;
      latents: Float32Array;
    },
  ): void {
    const part = <T extends Uint8Array | Float32Array>(all: T, i: number) =>
      all.slice(i * all.length / count, (i + 1) * all.length / count) as T;
    for (const i of this.chosen) {
      if (i < first || i >= first + count) continue;
      this.originals.push(part(originals, i - first));
      this.latents.push(part(latents, i - first));
    }
  }

  /** The latents as maps. @param side of a latent */
  maps(side: number): FeatureMaps {
    const rows = this.latents.length * side * side, each = this.latents[0]?.length ?? 0;
    const data = new Float32Array(this.latents.length * each);
    this.latents.forEach((latent, k) => data.set(latent, k * each));
    return { features: { data, rows, columns: data.length / rows }, side };
  }
}

/** Feature maps of images, [images * side * side, channels]. */
export interface FeatureMaps {
  features: Features;
  side: number;
}

/** Maps of colors [images, side, side, 3] as pictures of `size`, [size, size, 3] each. */
function pictures(colors: Uint8Array, side: number, size: number): Uint8Array[] {
  return Array.from({ length: colors.length / (3 * side ** 2) }, (_, n) => {
    const picture = new Uint8Array(3 * size * size);
    for (let i = 0; i < size * size; i++) {
      const y = Math.floor(Math.floor(i / size) * side / size), x = Math.floor(i % size * side / size);
      const from = 3 * ((n * side + y) * side + x);
      picture.set(colors.subarray(from, from + 3), 3 * i);
    }
    return picture;
  });
}

/**
 * Writes pca.png into a folder.
 * @param size of the images
 * @param side of their latents
 * @param tokens of the encoder that the tokenizer was made from, of the same images [none]
 */
export async function writePcaPicture(
  folder: string,
  size: number,
  images: ShownImages,
  side: number,
  tokens: FeatureMaps | undefined,
  log: Pick<Log, "line">,
): Promise<void> {
  const shown = size * Math.max(1, Math.ceil(SIDE / size));
  const { originals } = images, latents = images.maps(side);
  const rows = originals.flatMap((image) => pictures(image, size, shown));
  const tokenComponents = tokens && principalComponents(tokens.features);
  if (tokens && tokenComponents) rows.push(...pictures(componentColors(tokenComponents), tokens.side, shown));
  const like = tokens?.side === latents.side ? tokenComponents : undefined;
  const colors = componentColors(principalComponents(latents.features), like);
  rows.push(...pictures(colors, latents.side, shown));
  const path = join(folder, "pca.png");
  await writePng(path, grid(rows, shown, originals.length, 1));
  log.line(
    `principal components${tokens ? " of the encoder's patch tokens and" : ""} of the latents: ${path}`,
  );
}

/** The patch tokens of some images by an encoder, as the features of `fd-encoder` are made. */
export async function tokenMaps(
  encoder: EncoderSource,
  images: InputSource,
  chosen: readonly number[],
  square: number,
): Promise<FeatureMaps> {
  const features = await patchTokens(encoder, images, chosen, square);
  return { features, side: Math.round(Math.sqrt(features.rows / chosen.length)) };
}
