// The discriminator that the options of `tok align` describe, what it sees, and when it begins to train.

import type { AlignConfig } from "../cli/config.ts";
import { UsageError } from "../errors.ts";
import type { Provenance } from "../formats/provenance.ts";
import { DinoDiscriminator } from "../models/dino_discriminator.ts";
import { type Discriminator, PatchDiscriminator } from "../models/discriminator.ts";
import { Encoder } from "../models/tokenizer.ts";
import { Vit } from "../models/vit.ts";
import { type Augmentation, AUGMENTATIONS } from "../ops/diffaug.ts";
import type { EncoderSource } from "../zoo/encoders.ts";
import type { Log } from "../run/log.ts";
import { ganStartOf } from "./align_config.ts";

type Source = Pick<EncoderSource, "config" | "preprocessor">;
type Maker = (reference: Encoder | undefined) => Discriminator;

/** The discriminator of an alignment, before the weights of its frozen encoder are read. */
export interface DiscriminatorSource {
  /** Makes it, given the alignment's frozen encoder; undefined where the adversarial loss is off. */
  make: Maker | undefined;
  /** Augmentations of what it sees. */
  augmentations: readonly Augmentation[];
  /** Reads the weights of an encoder that is not the alignment's. @returns where they come from */
  load(discriminator: Discriminator | undefined): Promise<Provenance>;
}

/**
 * Checks the options and opens the frozen encoder of --gan dino, unless it is the alignment's.
 * @param open opens an encoder by name, folder or file
 * @throws UsageError for options that do not fit, and as `open`
 */
export async function openDiscriminator(
  c: AlignConfig,
  encoder: EncoderSource | undefined,
  open: (spec: string) => Promise<EncoderSource>,
  log: Log,
): Promise<DiscriminatorSource> {
  const { ganEncoder: name } = c;
  const own = c.wGan > 0 && name !== undefined && name !== c.encoder ? await open(name) : undefined;
  const make = discriminatorOf(c, encoder, own);
  if (make && c.gan === "dino") {
    log.line(
      `discriminator: heads on features of ${own ? name : `${c.encoder ?? "the embedded encoder"}, frozen`}`,
    );
  }
  return {
    make,
    augmentations: augmentationsOf(c),
    async load(discriminator) {
      if (!own || !discriminator?.encoder) return {};
      const fingerprint = await own.load(discriminator.encoder.vit);
      return { "encoder of the discriminator": { name: `${name}`, fingerprint } };
    },
  };
}

/** What makes the discriminator. @param encoder the alignment's @param own the discriminator's, if it has one */
export function discriminatorOf(
  c: AlignConfig,
  encoder: Source | undefined,
  own?: Source,
): Maker | undefined {
  if (c.gan === "none" || c.wGan === 0) return undefined;
  if (c.gan === "patch") {
    return () => new PatchDiscriminator({ ndf: c.discriminatorChannels, n_layers: c.discriminatorLayers });
  }
  const side = gridOf((own ?? encoder) as Source); // the options use an encoder
  return (reference) => {
    const frozen = own
      ? new Encoder(new Vit(own.config), own.preprocessor.mean, own.preprocessor.std)
      : reference;
    if (!frozen) {
      throw new UsageError(
        `Cannot build the discriminator: --gan dino needs --gan-encoder, since this tokenizer has no frozen vision encoder`,
      );
    }
    return new DinoDiscriminator(frozen, side);
  };
}

/** Patches along a side of the images that the encoder's preprocessing makes. */
function gridOf(
  { config, preprocessor: { crop, resize } }: Pick<EncoderSource, "config" | "preprocessor">,
): number {
  const pixels = crop?.height ?? (resize && ("shorter" in resize ? resize.shorter : resize.height)) ??
    config.image_size;
  const side = Math.floor(pixels / config.patch_size);
  if (side < 2) {
    throw new UsageError(
      `Cannot build the discriminator: the encoder of --gan dino sees ${pixels} pixels as ${side} x ${side} patches of ` +
        `${config.patch_size}, at least 2 x 2 are needed; choose another --gan-encoder`,
    );
  }
  return side;
}

/** Augmentations of what the discriminator sees. */
function augmentationsOf(
  { gan, diffaug }: Pick<AlignConfig, "gan" | "diffaug">,
): readonly Augmentation[] {
  if (diffaug === undefined) return gan === "dino" ? AUGMENTATIONS : [];
  return AUGMENTATIONS.filter((name) => diffaug.includes(name));
}

/** @param c with the steps of --epochs @throws UsageError for a warm-up that is longer than the steps before --gan-start */
export function checkWarmup(c: AlignConfig): void {
  const { ganWarmup: warmup } = c;
  if (warmup === 0) return;
  const first = [...c.stages].sort().find((n) => ganStartOf(c, n) < (c.steps[n - 1] ?? 0));
  const start = first === undefined ? undefined : ganStartOf(c, first);
  if (start === undefined || start < warmup) {
    throw new UsageError(
      `Cannot warm up the discriminator for ${warmup} steps: ` +
        (start === undefined
          ? `no stage has the adversarial loss (--gan-start ${c.ganStart}); `
          : `the adversarial loss counts from step ${start} of stage ${first}; `) +
        `use a smaller --gan-warmup or another --gan-start`,
    );
  }
}
