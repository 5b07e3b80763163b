// What guidance needs of models: the inner head of internal guidance, and for autoguidance a second model of the same latents and
// classes.

import { UsageError } from "../errors.ts";
import { type DiffusionModel, openDit } from "./runs.ts";

/** Largest difference of the latents' normalisations, in standard deviations: between parts of one data set it is smaller. */
const TOLERANCE = 0.05;

export interface GuideOptions {
  /** The guide of autoguidance. */
  guide?: string | undefined;
  /** Weight of internal guidance; 1 for none. */
  ig: number;
  /** Number of guided channels. */
  cfgChannels: number | "all";
  /** Called with lines about what a published guide does not say. */
  say: (line: string) => void;
}

/**
 * Opens the guide of a diffusion model, if the options name one.
 * @param model with the statistics of its latents
 * @throws UsageError for a guide of other latents, classes or prediction, for internal guidance of a model without an inner head,
 * and for more guided channels than its latents have
 */
export async function openGuide(
  model: DiffusionModel,
  { guide: path, ig = 1, cfgChannels = "all", say = () => {} }: Partial<GuideOptions>,
): Promise<DiffusionModel | undefined> {
  const { name } = model.identity, { in_channels: C } = model.config.dit;
  if (cfgChannels !== "all" && cfgChannels > C) {
    throw new UsageError(
      `Cannot use --cfg-channels ${cfgChannels} with "${name}": its latents have ${C} channels; choose at most ${C}, or all`,
    );
  }
  if (ig !== 1 && !model.config.dit.inner_head) {
    throw new UsageError(
      `Cannot use --ig ${ig} with "${name}": it has no inner head; train a model with "tok train-dit --inner-head N", or ` +
        `leave --ig out`,
    );
  }
  if (path === undefined) return undefined;
  const guide = await openDit(path), difference = differenceOf(model, guide);
  if (difference === undefined) {
    guide.notes?.forEach(say);
    return guide;
  }
  throw new UsageError(
    `Cannot guide "${name}" by "${path}": ${difference}; name a model of the same latents, classes and prediction`,
  );
}

/** As {@link openGuide}, for lists of options: the guides by their paths. */
export async function openGuides(
  model: DiffusionModel,
  { guide, ig, cfgChannels }: {
    guide: readonly (string | undefined)[];
    ig: readonly number[];
    cfgChannels: readonly (number | "all")[];
  },
  say?: (line: string) => void,
): Promise<Map<string, DiffusionModel>> {
  const guides = new Map<string, DiffusionModel>();
  await openGuide(model, { ig: ig.find((weight) => weight !== 1) ?? 1 });
  for (const channels of cfgChannels) await openGuide(model, { cfgChannels: channels });
  for (const path of guide) {
    const opened = await openGuide(model, { guide: path, ...say && { say } });
    if (opened && path !== undefined) guides.set(path, opened);
  }
  return guides;
}

/** What makes a model unfit as a guide; undefined for a fit one. Published models do not say their classes and latents. */
function differenceOf({ config }: DiffusionModel, { config: guide }: DiffusionModel): string | undefined {
  const shapeOf = ({ input_size: S, in_channels: C }: typeof config.dit) => `${S} x ${S} x ${C}`;
  const shape = shapeOf(config.dit), other = shapeOf(guide.dit);
  if (shape !== other) return `its latents are ${other}, those of the model ${shape}`;
  const { num_classes: K } = config.dit, count = guide.dit.num_classes;
  if (K !== count) return `it has ${count} classes, the model ${K}`;
  const [own, others] = [config, guide].map(({ prediction = "velocity" }) => prediction);
  if (own !== others) return `it predicts the ${others}, the model the ${own}`;
  const latents = config.made_from?.tokenizer, guideLatents = guide.made_from?.tokenizer;
  if (latents && guideLatents) {
    const k = config.classes.findIndex((name, k) => name !== guide.classes[k]);
    if (k >= 0) return `its class ${k} is "${guide.classes[k]}", that of the model "${config.classes[k]}"`;
    if (latents.latents !== guideLatents.latents) {
      return `it works on latents of the tokenizer "${guideLatents.name}" (${guideLatents.latents}), the model on those of ` +
        `"${latents.name}" (${latents.latents})`;
    }
  }
  const channel = differentChannel(config, guide);
  return channel === undefined ? undefined : `channel ${channel} of its latents was normalised differently`;
}

type Statistics = Pick<DiffusionModel["config"], "latent_mean" | "latent_std">;

/** The first channel whose statistics differ; undefined where one of the models does not know them. */
function differentChannel(a: Statistics, b: Statistics): number | undefined {
  const { latent_mean: mean, latent_std: std } = a, { latent_mean: otherMean, latent_std: otherStd } = b;
  if (!mean || !std || !otherMean || !otherStd) return undefined;
  const channel = std.findIndex((s, c) => {
    const shift = Math.abs((mean[c] as number) - (otherMean[c] as number)) / s;
    return !(shift <= TOLERANCE && Math.abs((otherStd[c] as number) / s - 1) <= TOLERANCE);
  });
  return channel < 0 ? undefined : channel;
}
