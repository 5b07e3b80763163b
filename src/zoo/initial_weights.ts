// Opens weights that a training begins with, under the names of tok's modules: encoder, adapter or quant_conv, post_quant_conv,
// decoder, discriminator. Each part may come from a tokenizer of a run, a checkpoint of a run, a published autoencoder, or a
// file of such tensors alone. Also diffusion models, for the training of another one.

import { UsageError } from "../errors.ts";
import { exists, isFile } from "../formats/files.ts";
import { cachedModel, isModelName, snapshotIn } from "../formats/hub.ts";
import { type Renamed, renamed } from "../formats/mapped_store.ts";
import { openModel } from "../formats/shards.ts";
import type { TensorStore } from "../formats/tensors.ts";
import { AUTOENCODER_ANCHOR, autoencoderIn } from "../models/autoencoder_names.ts";
import { DIT_ANCHOR, isReversed } from "../models/dit_config.ts";
import type { Prediction } from "../models/prediction.ts";
import { underNote, unwrapped, wrapperOf } from "../models/wrappers.ts";
import { autoencoderPlace, holdsAutoencoder } from "./published.ts";
import { openSavedDit, openSavedTokenizer } from "./runs.ts";

/** Weights under the names of tok's modules. Close them after reading. */
export interface InitialWeights extends Renamed {
  /** Whether tensors are in the layout of the device, as in checkpoints of runs. */
  readonly deviceLayout: boolean;
  close(): void;
}

/**
 * Opens a run, its tokenizer or a checkpoint of it; a published autoencoder as openTokenizer() does; or a file of tensors.
 * @throws UsageError if there is none
 */
export async function openInitialWeights(path: string): Promise<InitialWeights> {
  const saved = await openSavedTokenizer(path);
  if (saved) return opened(saved, saved);
  const named = !exists(path) && isModelName(path);
  const cached = named ? cachedModel(path, holdsAutoencoder) : snapshotIn(path)?.path;
  const place = autoencoderPlace(cached ?? path);
  if (!place) {
    throw new UsageError(
      `Cannot initialise from "${path}": ${
        exists(path) ? "it holds no tokenizer" : "there is no such path"
      }; name a ` +
        `finished run, its best/, a file of its checkpoints/, a diffusers folder, or a file of tensors`,
    );
  }
  const store = await openModel(place.weights);
  try {
    if (store.metadata.get("format") === "tok-checkpoint-1") return opened(store, ofCheckpoint(store), true);
    const isAutoencoder = wrapperOf(store.shapes.keys(), AUTOENCODER_ANCHOR) !== undefined;
    return opened(store, isAutoencoder ? ofAutoencoder(store) : store);
  } catch (error) {
    store.close();
    throw error;
  }
}

/** What a diffusion network's outputs mean, which shapes of tensors do not show. */
export interface Parametrization {
  /** Its time is 1 - t and its velocity noise - data. */
  reversed: boolean;
  prediction: Prediction;
  /** The block that its inner head follows; 0 for none, undefined where the file does not say it. */
  innerHead?: number;
}

/** The weights of a diffusion model that a training begins with. */
export interface InitialDit extends InitialWeights, Disposable {
  readonly path: string;
  readonly parametrization: Parametrization;
}

/**
 * Opens a diffusion model: a run, its `model` or best/, a checkpoint of it (its weights are not averaged), or a published file
 * in LightningDiT's names, of which EMA weights come first.
 * @throws UsageError if there is none
 */
export async function openInitialDit(path: string): Promise<InitialDit> {
  const saved = await openSavedDit(path);
  const of = (weights: InitialWeights, parametrization: Parametrization): InitialDit => ({
    ...weights,
    path,
    parametrization,
    [Symbol.dispose]: () => weights.close(),
  });
  if (saved) {
    const { store, config: { dit, prediction = "velocity" } } = saved;
    const parametrization = { reversed: dit.reversed_time, prediction, innerHead: dit.inner_head };
    return of(opened(store, store), parametrization);
  }
  if (!isFile(path)) {
    throw new UsageError(
      `Cannot initialise from "${path}": ${
        exists(path) ? "it holds no diffusion model" : "there is no such path"
      }; name a finished run, its best/, a file of its checkpoints/, or a checkpoint of LightningDiT`,
    );
  }
  const store = await openModel(path);
  try {
    const checkpoint = store.metadata.get("format") === "tok-checkpoint-1";
    const keys = [...store.shapes.keys()], prefix = "model.";
    if (!(checkpoint ? keys.includes(prefix + DIT_ANCHOR) : wrapperOf(keys, DIT_ANCHOR) !== undefined)) {
      throw new UsageError(
        `Cannot initialise from "${path}": it has no "${DIT_ANCHOR}"${underNote(keys, DIT_ANCHOR)}; name a ` +
          `diffusion model`,
      );
    }
    if (!checkpoint) {
      const source = unwrapped(store, DIT_ANCHOR);
      return of(opened(store, source), { reversed: isReversed(source.shapes), prediction: "velocity" });
    }
    const own = keys.filter((key) => key.startsWith(prefix));
    const source = renamed(store, new Map(own.map((key) => [key.slice(prefix.length), key])));
    return of(opened(store, source, true), parametrizationOf(store));
  } catch (error) {
    store.close();
    throw error;
  }
}

/** Of a checkpoint, from the options of its run. */
function parametrizationOf(store: TensorStore): Parametrization {
  const { reversed_time, headWidth = 0, prediction = "velocity", innerHead = 0 } = JSON.parse(
    store.metadata.get("config") ?? "{}",
  ) as { reversed_time?: boolean; headWidth?: number; prediction?: Prediction; innerHead?: number };
  return { reversed: reversed_time ?? headWidth > 0, prediction, innerHead };
}

function opened(store: TensorStore, source: Renamed, deviceLayout = false): InitialWeights {
  const { name, shapes, unread } = source;
  const read: Renamed["read"] = (key, into) => source.read(key, into);
  return { name, shapes, ...unread ? { unread } : {}, read, deviceLayout, close: () => store.close() };
}

/** The models of a run, without what else its checkpoint has: optimizers, frozen copies. */
function ofCheckpoint(store: TensorStore): Renamed {
  const entries = [...store.shapes.keys()].flatMap((key) => {
    if (key.startsWith("tokenizer.")) return [[key.slice("tokenizer.".length), key] as const];
    return key.startsWith("discriminator.") ? [[key, key] as const] : [];
  });
  return renamed(store, new Map(entries));
}

/** Its tensors in tok's files and in LDM's, which keep it with the loss. */
const DISCRIMINATOR = /^(?:loss\.)?(discriminator\..+)$/;

/** A convolutional autoencoder, or tok's tensors of any tokenizer with a decoder, and the discriminator that it was trained with. */
function ofAutoencoder(store: TensorStore): Renamed {
  const { source, layout, prefix } = autoencoderIn(store);
  const entries = new Map<string, string>();
  for (const key of store.shapes.keys()) {
    const [, name] = key.startsWith(prefix) && DISCRIMINATOR.exec(key.slice(prefix.length)) || [];
    if (name !== undefined) entries.set(name, key);
  }
  const discriminator = renamed(store, entries);
  const identities = layout === "diffusers" ? identityConvs(source.shapes) : new Map<string, Identity>();
  const shapes = [...identities].map(([key, { shape }]) => [key, shape] as const);
  return {
    ...source,
    shapes: new Map([...source.shapes, ...discriminator.shapes, ...shapes]),
    read: async (key, into) => {
      const identity = identities.get(key);
      if (identity) return identity.data;
      return await (discriminator.shapes.has(key) ? discriminator : source).read(key, into);
    },
  };
}

interface Identity {
  shape: readonly number[];
  data: Float32Array<ArrayBuffer>;
}

/** The 1x1 convolutions around the latent that a diffusers autoencoder is without, as identities. */
function identityConvs(shapes: ReadonlyMap<string, readonly number[]>): Map<string, Identity> {
  const found = new Map<string, Identity>();
  for (
    const [name, C] of [
      ["quant_conv", shapes.get("encoder.conv_out.weight")?.[0]],
      ["post_quant_conv", shapes.get("decoder.conv_in.weight")?.[1]],
    ] as const
  ) {
    if (C === undefined || shapes.has(`${name}.weight`)) continue;
    const data = Float32Array.from({ length: C * C }, (_, i) => i % (C + 1) === 0 ? 1 : 0);
    found.set(`${name}.weight`, { shape: [C, C, 1, 1], data });
    found.set(`${name}.bias`, { shape: [C], data: new Float32Array(C) });
  }
  return found;
}
