// The models of an alignment by its recipe: which networks there are, and their initial weights.

import type { AlignConfig } from "../cli/config.ts";
import { UsageError } from "../errors.ts";
import type { TrainableAutoencoder } from "../models/autoencoder.ts";
import type { Lpips } from "../models/lpips.ts";
import { Encoder, Tokenizer } from "../models/tokenizer.ts";
import { Vit } from "../models/vit.ts";
import { FAMILIES } from "../models/vit_families.ts";
import type { Initializer } from "../nn/init.ts";
import { countParameters, Linear } from "../nn/layers.ts";
import type { EncoderSource } from "../zoo/encoders.ts";
import { autoencoderOf, comparesFeatures, tokenizerOf } from "./align_config.ts";
import { ALIGN_RECIPES } from "./align_recipes.ts";
import { Alignment } from "./alignment.ts";
import type { DiscriminatorSource } from "./discriminators.ts";

/** A tokenizer that a recipe trains, and a run saves. */
export type RecipeTokenizer = Tokenizer | TrainableAutoencoder;

/**
 * The tokenizer of the chosen recipe.
 * @param encoder undefined if {@link usesEncoder} says no
 * @throws UsageError for sizes that do not fit, and for an encoder that the recipe cannot use
 */
export function recipeTokenizer(c: AlignConfig, encoder: EncoderSource | undefined): RecipeTokenizer {
  const { encoder: kind } = ALIGN_RECIPES[c.recipe];
  if (kind === "convolutional" || !encoder) return autoencoderOf(c);
  if (kind === "frozen" && FAMILIES[encoder.config.model_type].normed === "cls") {
    throw new UsageError(
      `Cannot use the encoder "${c.encoder}" with --recipe ${c.recipe}: its patch tokens have no final norm; choose DINOv2, ` +
        `DINOv3, SigLIP or MAE`,
    );
  }
  return tokenizerOf(c, encoder.config, encoder.preprocessor);
}

/** Number of parameters of each model, frozen copies left out. */
export function countModels({ tokenizer, lora, discriminator, lpips }: Alignment): Record<string, number> {
  const { encoder, adapter, decoder } = tokenizer.parts;
  const models = { encoder, lora, adapter, decoder, discriminator, lpips };
  return Object.fromEntries(
    Object.entries(models).flatMap(([name, model]) => model ? [[name, countParameters(model)]] : []),
  );
}

/** The models around a tokenizer. @param lpips the network of the perceptual loss, if that is LPIPS */
export function alignmentOf(
  c: AlignConfig,
  tokenizer: RecipeTokenizer,
  encoder: EncoderSource | undefined,
  discriminator: DiscriminatorSource["make"],
  lpips: Lpips | undefined,
): Alignment {
  // A tokenizer with an adapter makes the reference as a copy of its encoder.
  const own = tokenizer instanceof Tokenizer && tokenizer.adapter !== undefined;
  const reference = encoder && !own && comparesFeatures(c)
    ? new Encoder(new Vit(encoder.config), encoder.preprocessor.mean, encoder.preprocessor.std, c.layers)
    : undefined;
  const projection = encoder && c.wVf > 0
    ? new Linear(tokenizer.channels, encoder.config.hidden_size, false)
    : undefined;
  return new Alignment(tokenizer, discriminator, lpips, c.precision, reference, projection);
}

/** Initialises all but the vision encoder. */
export function initModels(
  { tokenizer, discriminator, lora, projection }: Alignment,
  init: Initializer,
): void {
  tokenizer.init(init);
  discriminator?.init(init);
  lora?.init(init);
  if (projection) init.torchDefault(projection);
}

/**
 * Loads the vision encoder into the models that have it.
 * @param init for an encoder from scratch, which only has the pretrained one's sizes and fixed tables
 * @returns the encoder's fingerprint; undefined if there is none
 */
export async function loadEncoder(
  c: AlignConfig,
  alignment: Alignment,
  encoder: EncoderSource | undefined,
  init: Initializer,
): Promise<string | undefined> {
  const { tokenizer, reference, anchor } = alignment, { encoder: kind } = ALIGN_RECIPES[c.recipe];
  let fingerprint = reference && !anchor ? await encoder?.load(reference.vit) : undefined;
  if (tokenizer instanceof Tokenizer) {
    fingerprint = await encoder?.load(tokenizer.encoder);
    await alignment.setReference();
    if (kind === "scratch") tokenizer.encoder.init(init);
    if (kind === "frozen") init.norm(tokenizer.encoder.layernorm); // RAE: tokens of mean 0 and variance 1
  }
  return fingerprint;
}
