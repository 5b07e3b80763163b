// Opens published encoders: a folder in Hugging Face layout, a model name in the local Hugging Face cache, or the authors' torch
// file. Reads architecture and preprocessing; weights are read on load(). The embedded encoder is opened the same way.

import { fromFileUrl, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { exists, isFile, readJson, validated } from "../formats/files.ts";
import {
  cachedModel,
  cacheProblem,
  downloadModel,
  hubCache,
  isModelName,
  snapshotIn,
} from "../formats/hub.ts";
import { type Preprocessor, preprocessorOf } from "../data/preprocess.ts";
import { fingerprintOf, WeightsFingerprint } from "../formats/provenance.ts";
import { renamed } from "../formats/mapped_store.ts";
import { openModel } from "../formats/shards.ts";
import { type TensorStore, unreadNote } from "../formats/tensors.ts";
import { publishedEncoder } from "../models/sizes.ts";
import { ConvNext, type ConvNextConfig, convNextConfig, convNextKeys } from "../models/convnext.ts";
import { Vit, type VitConfig, type VitOutput } from "../models/vit.ts";
import { AUTHORS_ANCHOR, authorsModel } from "../models/vit_authors.ts";
import { type PoolingHead, poolingHead } from "../models/vit_pooling.ts";
import { architectureOf, FAMILIES, publishedKeys } from "../models/vit_families.ts";
import { underNote } from "../models/wrappers.ts";
import { loadState, type TensorSource } from "../nn/layers.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** The encoder that comes with tok: trained by tasks/dev/pretrain_encoder.ts on generated images. */
export const EMBEDDED_ENCODER = fromFileUrl(new URL("../models/tiny", import.meta.url));

export type EncoderConfig = VitConfig | ConvNextConfig;

/** The network of a configuration, without weights. */
export const encoderNetwork = (config: EncoderConfig): { forward(x: Tensor): VitOutput } =>
  config.model_type === "convnextv2" ? new ConvNext(config) : new Vit(config);

/** An encoder before its weights are read: a vision transformer, or any network that makes features. */
export interface EncoderSource<C extends EncoderConfig = VitConfig> {
  /** Folder or file. */
  path: string;
  config: C;
  preprocessor: Preprocessor;
  /**
   * Loads the weights into a model built from `config`.
   * @returns the fingerprint of the weights and the pixel normalisation
   * @throws UsageError listing every wrong key
   */
  load(network: object): Promise<string>;
  /** Its pooling head with its weights (models/vit_pooling.ts); undefined if the file has none. */
  head(): Promise<PoolingHead | undefined>;
  /** The fingerprint of the head's weights; undefined if the file has none. */
  headFingerprint(): Promise<string | undefined>;
  /** The fingerprint of all that decides about the tokens: weights, preprocessing and interpolation of positions. */
  fingerprint(): Promise<string>;
}

export interface EncoderOptions {
  /** Download a model that is not in the Hugging Face cache. */
  download?: boolean;
  /**
   * Offset in position-embedding interpolation, scale = (n + offset) / N. Default: 0.1 for the DINOv2 authors' files without
   * registers, else 0.
   */
  interpolateOffset?: number | undefined;
  /** For a dry run: a published encoder that is not in the cache is described by its known sizes, without weights. */
  planOnly?: boolean;
  /** Called with a line for each file that is downloaded. */
  say?: (line: string) => void;
}

/**
 * Finds a vision transformer and reads its configuration.
 * @throws UsageError as openFeatureEncoder(), and for other networks
 */
export async function openEncoder(spec?: string, options?: EncoderOptions): Promise<EncoderSource> {
  const encoder = await openFeatureEncoder(spec, options), { config } = encoder;
  if (config.model_type !== "convnextv2") return { ...encoder, config };
  throw new UsageError(
    `Cannot use the encoder "${spec}" here: a ConvNeXt is for features and metrics only (tok features, tok eval); ` +
      `give a vision transformer`,
  );
}

/**
 * Finds an encoder of any kind and reads its configuration.
 * @param spec a folder, a file, or a name such as "facebook/dinov2-large"; default: the embedded encoder
 * @throws UsageError if it is not found, incomplete, or not supported
 */
export async function openFeatureEncoder(
  spec: string = EMBEDDED_ENCODER,
  options: EncoderOptions = {},
): Promise<EncoderSource<EncoderConfig>> {
  const published = options.planOnly && !exists(spec) ? publishedEncoder(spec) : undefined;
  if (published && cachedModel(spec) === undefined) return planned(spec, published);
  const path = await locate(spec, options);
  const encoder = isFile(path) ? await openFile(path) : openFolder(path);
  const { interpolateOffset: offset } = options, { config } = encoder;
  if (offset === undefined) return encoder;
  const positions = config.model_type === "convnextv2" ? "none" : FAMILIES[config.model_type].positions;
  if (config.model_type === "convnextv2" || positions === "rotary") {
    throw new UsageError(
      `Cannot use "--interpolate-offset" with "${spec}": ` +
        `${
          positions === "none" ? "it has no positions" : "its positions are rotations"
        }, and nothing is interpolated`,
    );
  }
  return { ...encoder, config: { ...config, interpolate_offset: offset } };
}

/** A published encoder without its weights. */
function planned(path: string, config: VitConfig): EncoderSource {
  const load = () =>
    Promise.reject(new UsageError(`Cannot load the encoder "${path}": it was opened for a dry run`));
  return {
    path,
    config,
    preprocessor: preprocessorIn(undefined, config),
    load,
    head: load,
    headFingerprint: load,
    fingerprint: load,
  };
}

async function locate(spec: string, { download = false, say }: EncoderOptions): Promise<string> {
  // A model's folder in the cache means its snapshot.
  if (exists(spec)) {
    return isFile(spec) || exists(join(spec, "config.json")) ? spec : snapshotIn(spec)?.path ?? spec;
  }
  if (!isModelName(spec)) {
    throw new UsageError(
      `Cannot find the encoder "${spec}": there is no such file or folder; check the path, or give a name such as ` +
        `facebook/dinov2-large`,
    );
  }
  const cached = cachedModel(spec);
  if (cached !== undefined) return cached;
  if (download) return await downloadModel(spec, say);
  const problem = cacheProblem(spec);
  throw new UsageError(
    `Cannot find the encoder "${spec}": there is no such path, and ${
      problem === undefined
        ? `it is not in the Hugging Face cache "${hubCache()}"`
        : `the Hugging Face cache has it incompletely: ${problem}`
    }; fetch it with --download`,
  );
}

function openFolder(path: string): EncoderSource<EncoderConfig> {
  const file = join(path, "config.json");
  if (!exists(file)) {
    throw new UsageError(
      `Cannot load the encoder "${path}": there is no "config.json" in it; check the path`,
    );
  }
  const json = readJson(file);
  if ((json as { model_type?: unknown } | null)?.model_type === "convnextv2") {
    const config = validated(convNextConfig, json, file);
    const view = (store: TensorStore) => renamed(store, convNextKeys(store.shapes.keys()));
    return sourceOf(path, config, preprocessorIn(path, config), view);
  }
  const config = architectureOf(json, file);
  const view = (store: TensorStore) => renamed(store, publishedKeys(config.model_type, store.shapes.keys()));
  return sourceOf(path, config, preprocessorIn(path, config), view);
}

async function openFile(path: string): Promise<EncoderSource> {
  const store = await openModel(path);
  store.close();
  const model = authorsModel(store);
  if (!model) {
    throw new UsageError(
      `Cannot load the encoder "${path}": it has no "${AUTHORS_ANCHOR}"` +
        `${underNote(store.shapes.keys(), AUTHORS_ANCHOR)}, as the files of DINOv2's, ` +
        `DINOv3's and MAE's authors have; for another layout give the folder with its ` +
        `config.json${unreadNote(store.unread)}`,
    );
  }
  const { config, entries, shapes: leading } = model;
  return sourceOf(path, config, preprocessorIn(undefined, config), (store) => {
    const source = renamed(store, entries);
    return { ...source, shapes: new Map([...source.shapes, ...leading]) };
  });
}

/** The folder's preprocessor_config.json, or the family's default. */
function preprocessorIn(folder: string | undefined, { model_type }: EncoderConfig): Preprocessor {
  const { type, published } = model_type === "convnextv2"
    ? { type: "ConvNextImageProcessor", published: {} }
    : FAMILIES[model_type].processor;
  const file = join(folder ?? "", "preprocessor_config.json");
  const found = folder !== undefined && exists(file);
  return preprocessorOf(found ? readJson(file) : published, type, file);
}

/** @param view the encoder's tensors in its open file */
function sourceOf<C extends EncoderConfig>(
  path: string,
  config: C,
  preprocessor: Preprocessor,
  view: (store: TensorStore) => TensorSource,
): EncoderSource<C> {
  const weightsRead = async (read: (source: TensorSource) => Promise<void>) => {
    const store = await openModel(path), weights = new WeightsFingerprint();
    try {
      await read(weights.through(view(store)));
      return weights.value();
    } finally {
      store.close();
    }
  };
  return {
    path,
    config,
    preprocessor,
    async load(network) {
      const weights = await weightsRead((source) => loadState(network, source));
      return fingerprintOf(weights, `${preprocessor.mean}`, `${preprocessor.std}`);
    },
    async head() {
      const store = await openModel(path);
      try {
        const found = poolingHead(config, store.shapes);
        if (found) await loadState(found.head, renamed(store, found.entries));
        return found?.head;
      } finally {
        store.close();
      }
    },
    async headFingerprint() {
      const store = await openModel(path), weights = new WeightsFingerprint();
      try {
        const found = poolingHead(config, store.shapes);
        if (!found) return undefined;
        const source = weights.through(renamed(store, found.entries));
        for (const name of source.shapes.keys()) await source.read(name);
        return weights.value();
      } finally {
        store.close();
      }
    },
    async fingerprint() {
      const weights = await weightsRead(async (source) => {
        for (const name of source.shapes.keys()) await source.read(name);
      });
      const { config } = this; // with the caller's offset
      const offset = config.model_type === "convnextv2" ? 0 : config.interpolate_offset;
      return fingerprintOf(weights, JSON.stringify(preprocessor), String(offset));
    },
  };
}
