// The networks that losses and metrics use, read from their published files: Inception-v3 (pytorch-fid's), LPIPS-VGG, and
// the toy classifier that comes with tok.

import { fromFileUrl } from "@std/path";
import { UsageError } from "../errors.ts";
import type { Renamed } from "../formats/mapped_store.ts";
import { WeightsFingerprint } from "../formats/provenance.ts";
import { openSafetensors } from "../formats/safetensors.ts";
import { openModel } from "../formats/shards.ts";
import type { TensorStore } from "../formats/tensors.ts";
import { folded, Inception } from "../models/inception.ts";
import { Lpips, LPIPS_FILES } from "../models/lpips.ts";
import { ToyClassifier } from "../models/toy_classifier.ts";
import { unwrapped } from "../models/wrappers.ts";
import { loadState, type TensorSource } from "../nn/layers.ts";

export const TOY_CLASSIFIER_FILE = fromFileUrl(
  new URL("../models/tiny/toy_classifier.safetensors", import.meta.url),
);

export async function openToyClassifier(): Promise<ToyClassifier> {
  const classifier = new ToyClassifier(), file = await openSafetensors(TOY_CLASSIFIER_FILE);
  try {
    await loadState(classifier, file);
  } finally {
    file.close();
  }
  return classifier;
}

/** Opens pytorch-fid's Inception-v3. @throws UsageError for the weights of another network */
export async function openInception(path: string): Promise<Inception> {
  const store = await openModel(path);
  try {
    const inception = new Inception(), weights = new WeightsFingerprint();
    await loadState(inception, weights.through(folded(unwrapped(store, "Conv2d_1a_3x3.conv.weight"))), {
      ignore: /\.num_batches_tracked$/,
    });
    inception.identity = { name: path, fingerprint: weights.value() };
    return inception;
  } finally {
    store.close();
  }
}

/** First tensor of VGG-16, in both namings, and of the linear layers. */
const ANCHORS = new Set(["features.0.weight", "net.slice1.0.weight", "lin0.model.1.weight"]);

/**
 * Opens LPIPS from one or more files: torchvision's vgg16 and the linear layers, or the lpips package's state with both.
 * @throws UsageError for missing or duplicate tensors, and for another network
 */
export async function openLpips(paths: readonly string[]): Promise<Lpips> {
  const stores: TensorStore[] = [];
  try {
    for (const path of paths) stores.push(await openModel(path));
    const lpips = new Lpips();
    const source = together(stores.map((store) => unwrapped(store, (name) => ANCHORS.has(name))));
    const has = (pattern: RegExp) => [...source.shapes.keys()].some((key) => pattern.test(key));
    for (const [pattern, what] of [[/^features\./, "no VGG-16"], [/^lin\d\./, "no linear layers"]] as const) {
      if (!has(pattern)) {
        throw new UsageError(`Cannot load LPIPS: "${source.name}" has ${what}; give ${LPIPS_FILES}`);
      }
    }
    // Ignored: vgg16's classifier, and the package's second list of the linear layers and its constants.
    const weights = new WeightsFingerprint();
    await loadState(lpips, weights.through(source), { ignore: /^(classifier|lins\.\d|scaling_layer)\./ });
    lpips.fingerprint = weights.value();
    return lpips;
  } finally {
    stores.forEach((store) => store.close());
  }
}

/** Several files as one source; the package's names of VGG's layers (`net.slice1.0`) become torchvision's (`features.0`). */
function together(stores: readonly Renamed[]): TensorSource {
  const origins = new Map<string, { store: Renamed; key: string }>();
  for (const store of stores) {
    for (const key of store.shapes.keys()) {
      const name = key.replace(/^net\.slice\d\./, "features.");
      const other = origins.get(name);
      if (other) {
        throw new UsageError(
          `Cannot load LPIPS: "${key}" is in both "${other.store.name}" and "${store.name}"; give one of them`,
        );
      }
      origins.set(name, { store, key });
    }
  }
  return {
    name: stores.map(({ name }) => name).join(","),
    shapes: new Map([...origins].map(([name, { store, key }]) => [name, store.shapes.get(key) ?? []])),
    read(name) {
      const origin = origins.get(name);
      if (!origin) throw new UsageError(`Cannot read "${name}": no file of LPIPS has that tensor`);
      return origin.store.read(origin.key);
    },
  };
}
