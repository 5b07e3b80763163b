// Opens a diffusion model for sampling: with the tokenizer of its latents and their statistics. A model identifies its tokenizer
// by the fingerprint of the weights, so that another one in the same place is not mistaken for it.

import { dirname, isAbsolute, join, relative, resolve } from "@std/path";
import { UsageError } from "../errors.ts";
import { exists } from "../formats/files.ts";
import { checkStatistics } from "../formats/finite.ts";
import { cachedModel, isModelName } from "../formats/hub.ts";
import { readStatistics } from "../formats/latents.ts";
import { differences, fingerprintOf, type Identity } from "../formats/provenance.ts";
import type { LatentStatistics } from "../models/tokenizer.ts";
import { type GuideOptions, openGuide } from "./guide.ts";
import {
  type DiffusionModel,
  type KnownTokenizer,
  type ModelConfig,
  openDit,
  openTokenizer,
  savedFingerprint,
} from "./runs.ts";

/**
 * Opens a diffusion model with the tokenizer of its latents and their statistics.
 * @param options.tokenizer instead of the model's; it must make the same latents
 * @param options.latents folder with the statistics of the training latents, instead of the model's or the tokenizer's
 * @param options.ema width of the average of the weights to rebuild, see `openDit()`
 * @param options.guide,ig of guidance, see `openGuide()`
 * @param options.say called with a line that names the tokenizer, and one about the average
 * @returns also what pictures of it are made from, for records
 * @throws UsageError if the two do not match, the model's tokenizer is not found, the statistics are unknown, or the guide does
 * not fit
 */
export async function openGenerator(
  path: string,
  options: {
    tokenizer?: string | undefined;
    latents?: string | undefined;
    ema?: number | undefined;
    say?: (line: string) => void;
  } & Partial<GuideOptions> = {},
): Promise<
  {
    model: DiffusionModel;
    tokenizer: KnownTokenizer;
    origin: string;
    guide: DiffusionModel | undefined;
    madeFrom: Record<"model" | "tokenizer" | "latent statistics", Identity>;
  }
> {
  const model = await openDit(path, options);
  const { say = () => {} } = options;
  model.notes?.forEach(say);
  const tokenizer = await tokenizerOf(path, model, options.tokenizer, say);
  const C = model.config.dit.in_channels;
  if (C !== tokenizer.channels) {
    throw new UsageError(
      `Cannot sample from "${path}": it makes latents of ${C} channels, those of the tokenizer ` +
        `"${tokenizer.identity.name}" have ${tokenizer.channels}; name another with --tokenizer`,
    );
  }
  const { mean, std, origin } = await statisticsOf(path, model.config, tokenizer, options.latents);
  if (mean.length !== C || std.length !== C) {
    throw new UsageError(
      `Cannot sample from "${path}": it makes latents of ${C} channels, and the statistics (${origin}) are ` +
        `${mean.length} means and ${std.length} deviations; name the folder of its latents with --latents`,
    );
  }
  checkStatistics(`"${path}" (${origin})`, mean, std);
  const config = { ...model.config, latent_mean: [...mean], latent_std: [...std] };
  const known = { ...model, config }, { name, fingerprint } = tokenizer.identity;
  const madeFrom = {
    model: model.identity,
    tokenizer: { name, fingerprint },
    "latent statistics": {
      name: origin,
      fingerprint: fingerprintOf(JSON.stringify([config.latent_mean, config.latent_std])),
    },
  };
  return { model: known, tokenizer, origin, guide: await openGuide(known, options), madeFrom };
}

/** Where a model in `folder` looks for the tokenizer `path`: the absolute path, and the one relative to the model. */
export function placesOf(path: string, folder: string): string[] {
  return exists(path) ? [resolve(path), relative(resolve(folder), resolve(path))] : [path];
}

async function tokenizerOf(
  path: string,
  { config, path: folder }: DiffusionModel,
  given: string | undefined,
  say: (line: string) => void,
): Promise<KnownTokenizer> {
  const recorded = config.made_from?.tokenizer;
  if (given === undefined && recorded) return await recordedTokenizer(path, folder, recorded, say);
  const named = given ?? config.tokenizer;
  const known = (name: string) => exists(name) || isModelName(name) && cachedModel(name) !== undefined;
  if (given === undefined && named !== undefined && !known(named)) {
    throw new UsageError(
      `Cannot find the tokenizer of "${path}": the model only says "${named}" (tok 0.2.0), and there is nothing of ` +
        `that name here; name it with --tokenizer`,
    );
  }
  const tokenizer = await openTokenizer(named), { identity } = tokenizer;
  if (!recorded) {
    say(
      `tokenizer: ${identity.name}${
        given === undefined
          ? ", as seen from this folder: the model does not say which weights it had (tok 0.2.0)"
          : ""
      }`,
    );
    return tokenizer;
  }
  const [difference] = differences(
    { tokenizer: { name: recorded.name, fingerprint: recorded.latents } },
    { tokenizer: { name: identity.name, fingerprint: identity.latents } },
  );
  if (difference !== undefined) {
    throw new UsageError(
      `Cannot sample from "${path}": ${difference}; leave --tokenizer out, or remove "made_from" from ` +
        `"${join(folder, "config.json")}" to mix the two on purpose`,
    );
  }
  const other = identity.fingerprint !== recorded.fingerprint;
  say(`tokenizer: ${identity.name}${other ? `, with another decoder than "${recorded.name}"` : ""}`);
  return tokenizer;
}

function listed(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].map(({ name }) => join(folder, name)).sort();
  } catch {
    return []; // no permission to list it
  }
}

type Recorded = NonNullable<ModelConfig["made_from"]>["tokenizer"];

/** The tokenizer with the recorded weights: at its place, or under another name next to the model's run. */
async function recordedTokenizer(
  path: string,
  folder: string,
  recorded: Recorded,
  say: (line: string) => void,
): Promise<KnownTokenizer> {
  // Paths start with "/" or ".."; others are names in a cache.
  const places = recorded.places
    .map((place) => place.startsWith(".") ? join(folder, place) : place)
    .filter((place, i) => place === recorded.places[i] && !isAbsolute(place) || exists(place));
  const runs = dirname(dirname(resolve(folder)));
  const siblings = listed(runs).filter((run) => savedFingerprint(run) === recorded.fingerprint);
  const others: string[] = [];
  for (const place of new Set([...places, ...siblings])) {
    const saved = savedFingerprint(place);
    if (saved === undefined || saved === recorded.fingerprint) {
      const tokenizer = await openTokenizer(place);
      if (tokenizer.identity.fingerprint === recorded.fingerprint) {
        say(`tokenizer: ${place}`);
        return tokenizer;
      }
      others.push(`"${place}" is another one (${tokenizer.identity.fingerprint})`);
    } else others.push(`"${place}" is another one (${saved})`);
  }
  throw new UsageError(
    `Cannot find the tokenizer of "${path}": it was "${recorded.name}" (${recorded.fingerprint}), and ` +
      `${others[0] ?? `there is nothing at "${recorded.places[0]}"`}; name it with --tokenizer`,
  );
}

async function statisticsOf(
  path: string,
  { latent_mean: mean, latent_std: std, made_from: madeFrom }: ModelConfig,
  tokenizer: KnownTokenizer,
  latents: string | undefined,
): Promise<LatentStatistics> {
  if (latents !== undefined) {
    const measured = await readStatistics(latents);
    if (measured) {
      const { name, latents: fingerprint } = tokenizer.identity;
      // The statistics do not include mirrored images.
      const { flip: _, ...measuredFrom } = measured.record?.made_from ?? {};
      const [difference] = differences(
        madeFrom?.latents ?? { tokenizer: { name, fingerprint } },
        measuredFrom,
      );
      if (difference === undefined) return { ...measured, origin: `"${measured.path}"` };
      throw new UsageError(
        `Cannot use the latents "${latents}" with "${path}": ${difference}; name the folder that the model was ` +
          `trained on, or leave --latents out`,
      );
    }
    throw new UsageError(
      `Cannot use the latents "${latents}": there is no "latents_stats.safetensors" or ".pt"`,
    );
  }
  if (mean && std) {
    return { mean: Float32Array.from(mean), std: Float32Array.from(std), origin: "the model's own" };
  }
  const own = await tokenizer.statistics();
  if (own) return own;
  throw new UsageError(
    `Cannot sample from "${path}": nothing says how its latents were normalised; put LightningDiT's ` +
      `"latents_stats.pt" next to the tokenizer, or name its folder with --latents`,
  );
}
