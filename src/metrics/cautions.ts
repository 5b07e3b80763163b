// What makes scores of two sets hard to compare with others: few images, labels that are not balanced, file formats.

import type { InputSource } from "../data/network_input.ts";
import type { Provenance } from "../formats/provenance.ts";

/** Number of images from which Frechet distances are commonly reported. */
const MANY = 5000;

interface NamedSet {
  name: string;
  images?: Pick<InputSource, "length" | "name" | "label" | "classes"> | undefined;
  /** What stored features were computed with. */
  about?: Provenance;
}

/** A caution for Frechet distances of these numbers of images; undefined if none is small. */
export function cautionOfFew(...counts: readonly number[]): string | undefined {
  const least = Math.min(...counts);
  if (least >= MANY) return undefined;
  return `${least} image${
    least === 1 ? " is" : "s are"
  } few: Frechet distances of fewer than 5,000 compare only at ` +
    `equal numbers`;
}

/** Cautions about labels and formats. */
export function cautionsOf(real: NamedSet, fake: NamedSet): string[] {
  return [cautionOfLabels(real, fake), cautionOfFormats(real, fake)].filter((text) => text !== undefined);
}

/** Images of each class. */
function countsOf({ images }: NamedSet): Map<string, number> {
  const counts = new Map((images?.classes ?? []).map((name) => [name, 0]));
  for (let i = 0; images && counts.size > 0 && i < images.length; i++) {
    const name = images.classes[images.label(i)] as string;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return counts;
}

/** Balanced are equal numbers, but for one image, and the shares of the real set. */
function cautionOfLabels(real: NamedSet, fake: NamedSet): string | undefined {
  const counts = countsOf(fake), [low, high] = [Math.min(...counts.values()), Math.max(...counts.values())];
  if (counts.size < 2 || high - low <= 1) return undefined;
  const others = countsOf(real), n = fake.images?.length as number, m = real.images?.length ?? 0;
  const alike = others.size === counts.size &&
    counts.entries().every(([name, count]) => Math.abs(count / n - (others.get(name) ?? 0) / m) < 1 / n);
  if (alike) return undefined;
  return `the labels of "${fake.name}" are not balanced: ${low} to ${high} images a class; compare only with samples of ` +
    `such labels`;
}

/** Maximum number of names that are looked at. */
const LOOKED_AT = 1000;

/** Key of what is stored of features: whether their images were JPEG files. */
export const JPEG = "JPEG files";

/** Whether half the images of a set are JPEG files; of stored features, whether theirs were, where that is known. */
export function holdsJpegs({ images, about }: Pick<NamedSet, "images" | "about">): boolean {
  return images ? shareOfJpegs(images) >= 0.5 : about?.[JPEG] === true;
}

function shareOfJpegs(images: Pick<InputSource, "length" | "name">): number {
  const n = images.length, looked = Math.min(n, LOOKED_AT);
  const names = Array.from({ length: looked }, (_, k) => images.name(Math.floor(k * n / looked)));
  return names.filter((name) => /\.jpe?g$/i.test(name)).length / Math.max(1, looked);
}

function cautionOfFormats(real: NamedSet, fake: NamedSet): string | undefined {
  const none = fake.images ? shareOfJpegs(fake.images) === 0 : fake.about?.[JPEG] === false;
  if (!holdsJpegs(real) || !none) return undefined;
  return `"${real.name}" ${real.images ? "holds" : "was made of"} JPEG files and "${fake.name}" ${
    fake.images ? "does" : "was"
  } not: artefacts of compression are part of the distance; compare only with scores of the same formats`;
}

/** Where the encoder of a distance is the one behind the latents. */
export const PARTIAL =
  "the encoder is the one that the tokenizer was made from, a partial judge: also score by another " +
  "--encoder, or by --inception";
