// --init: the parts of an alignment that begin with weights of a file instead of random ones. The parts are those that the file
// has, under the names of this tokenizer; all of a part's tensors must fit. For diffusion, a complete model but for the label
// table, which is made anew where the classes are others.

import type { AlignConfig } from "../cli/config.ts";
import { UsageError } from "../errors.ts";
import { type Provenance, WeightsFingerprint } from "../formats/provenance.ts";
import { inFileLayout, loadProblems, loadState, state, type TensorSource } from "../nn/layers.ts";
import type { Log } from "../run/log.ts";
import type { Dit } from "../models/dit.ts";
import { PROJECTORS } from "../models/dit_config.ts";
import type { Prediction } from "../models/prediction.ts";
import { readTensor, type Tensor } from "../tensor/tensor.ts";
import { type InitialDit, openInitialWeights } from "../zoo/initial_weights.ts";
import { ALIGN_RECIPES } from "./align_recipes.ts";
import type { Alignment } from "./alignment.ts";

const PARTS = ["encoder", "adapter", "decoder", "discriminator"] as const;
type InitPart = typeof PARTS[number];

/** The part that a tensor belongs to, by the first word of its name. */
const PART_OF: Readonly<Record<string, InitPart>> = {
  encoder: "encoder",
  adapter: "adapter",
  quant_conv: "adapter",
  decoder: "decoder",
  post_quant_conv: "decoder",
  discriminator: "discriminator",
};
const partOf = (key: string): InitPart | undefined => PART_OF[key.split(".")[0] as string];
/** Characters of a message that lists every tensor of a large tokenizer. */
const MAX_MESSAGE = 100_000;
/** Tensors that no module needs: statistics of latents are measured when a tokenizer is saved; PyTorch counts batches. */
const UNUSED = /^latent_(mean|std)$|\.num_batches_tracked$/;

/**
 * Loads what --init names into the models, then makes them what the losses compare with: the frozen reference is the encoder, and
 * without stage 1 the anchor is the adapter, as they are when the run begins.
 * @param log undefined in a dry run: names and shapes are checked, nothing is read
 * @returns the identity of the weights
 * @throws UsageError that lists every key that does not fit
 */
export async function initialise(
  alignment: Alignment,
  c: Pick<AlignConfig, "init" | "initParts" | "recipe" | "stages">,
  log: Log | undefined,
): Promise<Provenance> {
  const found = c.init === undefined ? undefined : await loadFrom(c.init, c.initParts, alignment, log);
  if (log && found?.parts.includes("encoder") && ALIGN_RECIPES[c.recipe].encoder === "pretrained") {
    await alignment.setReference();
  }
  if (log && !c.stages.includes(1)) await alignment.setAnchor();
  return found ? { initialisation: { name: `${c.init}`, fingerprint: found.fingerprint } } : {};
}

async function loadFrom(
  path: string,
  asked: readonly InitPart[] | undefined,
  { tokenizer, discriminator }: Alignment,
  log: Log | undefined,
): Promise<{ parts: readonly InitPart[]; fingerprint: string }> {
  const targets = new Map<string, Tensor>();
  for (const [key, tensor] of state(tokenizer)) if (partOf(key)) targets.set(key, tensor);
  for (const [key, tensor] of state(discriminator ?? {})) targets.set(`discriminator.${key}`, tensor);
  const weights = await openInitialWeights(path);
  try {
    const parts = chosenParts(path, asked, targets, weights);
    const own = (key: string) => parts.includes(partOf(key) as InitPart);
    const module = Object.fromEntries([...targets].filter(([key]) => own(key)));
    // Tensors of no part stay, so that loading reports them.
    const shapes = [...weights.shapes].filter(([key]) => !UNUSED.test(key) && (own(key) || !partOf(key)));
    const source: TensorSource = { ...weights, shapes: new Map(shapes) };
    const view = weights.deviceLayout ? inFileLayout(module, source) : source;
    const problems = loadProblems(module, view);
    if (problems.length) {
      throw new UsageError(
        `Cannot initialise ${parts.join(", ")} from "${path}": ${
          problems.join(", ")
        }; choose options of the same sizes, ` +
          `or other --init-parts`,
        { maxLength: MAX_MESSAGE },
      );
    }
    const fingerprint = new WeightsFingerprint();
    if (log) {
      await loadState(module, fingerprint.through(view));
      const others = PARTS.filter((part) =>
        !parts.includes(part) && [...weights.shapes.keys()].some((key) => partOf(key) === part)
      );
      log.line(
        `init: ${parts.join(", ")} from ${path}${
          others.length ? ` (it also has: ${others.join(", ")})` : ""
        }`,
      );
    }
    return { parts, fingerprint: fingerprint.value() };
  } finally {
    weights.close();
  }
}

/** The parts to initialise. A file has a part if it has one of its tensors: parts of other architectures have other names. */
function chosenParts(
  path: string,
  asked: readonly InitPart[] | undefined,
  targets: ReadonlyMap<string, Tensor>,
  { shapes }: Pick<TensorSource, "shapes">,
): readonly InitPart[] {
  const has = (part: InitPart) => [...targets.keys()].some((key) => partOf(key) === part && shapes.has(key));
  const missing = asked?.filter((part) => !has(part)) ?? [];
  const parts = PARTS.filter((part) => has(part) && (asked?.includes(part) ?? true));
  if (missing.length === 0 && parts.length > 0) return parts;
  const [first] = shapes.keys();
  throw new UsageError(
    `Cannot initialise ${
      missing.join(", ") || "anything"
    } from "${path}": it has no such part of this tokenizer ` +
      (first === undefined ? "(no tensor)" : `(its first tensor is "${first}")`) +
      `; check --init${asked ? " and --init-parts" : ""}, --recipe and --gan`,
  );
}

const LABEL_TABLE = "y_embedder.embedding_table.weight";

/**
 * Loads a diffusion model into `dit`, which is initialised and belongs to a parameter set already, and has the time of the source,
 * see `ditOf()`. The label table of another number of classes is not loaded, but for its last row, which means "no class".
 * @param options.prediction of the training
 * @param options.read false for a dry run: names and shapes are checked, nothing is read
 * @returns the identity of the weights
 * @throws UsageError that lists every key that does not fit, or says which option the outputs of the source need
 */
export async function initialiseDit(
  dit: Dit,
  weights: InitialDit,
  log: Log,
  { prediction, read }: { prediction: Prediction; read: boolean },
): Promise<Provenance> {
  const { path, parametrization } = weights, table = dit.y_embedder.embedding_table.weight;
  checkParametrization(weights, dit, prediction);
  const [rows = 0, width] = weights.shapes.get(LABEL_TABLE) ?? [], others = rows !== table.dim(0);
  const anew = others && rows > 0 && width === table.dim(1);
  const kept = <T>(all: Iterable<readonly [string, T]>) =>
    [...all].filter(([key]) => !(anew && key === LABEL_TABLE) && !PROJECTORS.test(key));
  const module = Object.fromEntries(kept(state(dit)));
  const source: TensorSource = { ...weights, shapes: new Map(kept(weights.shapes)) };
  const { view, halved } = withoutVariance(weights.deviceLayout ? inFileLayout(module, source) : source, dit);
  const problems = loadProblems(module, view);
  if (problems.length) {
    throw new UsageError(
      `Cannot initialise from "${path}": ${
        problems.join(", ")
      }; choose options of the same sizes, or another file`,
      { maxLength: MAX_MESSAGE },
    );
  }
  const counted = (rows: number) => `${rows - 1} ${rows === 2 ? "class" : "classes"}`;
  const notes = [
    ...anew
      ? [
        `class embeddings re-initialised: the file has ${counted(rows)}, this run ${counted(table.dim(0))} ` +
        '("no class" is kept)',
      ]
      : [],
    ...halved ? ["read as SiT's, which predicts a velocity, without the variance that it also makes"] : [],
    ...parametrization.reversed ? ["its time is reversed, and so is this model's"] : [],
  ];
  log.line([`init: ${path}`, ...notes].join("; "));
  const fingerprint = new WeightsFingerprint();
  if (!read) return {};
  const through = fingerprint.through(view);
  await loadState(module, through);
  if (anew) {
    const before = await through.read(LABEL_TABLE, new Float32Array(rows * table.dim(1)));
    const made = (await readTensor(table)).slice();
    made.set(before.subarray(-table.dim(1)), made.length - table.dim(1));
    table.storage.write(made);
  }
  return { initialisation: { name: path, fingerprint: fingerprint.value() } };
}

/** @throws UsageError where tensors of equal shapes would mean something else */
function checkParametrization(
  { path, parametrization }: InitialDit,
  { config }: Dit,
  prediction: Prediction,
): void {
  const { innerHead = config.inner_head } = parametrization;
  const [what, now, option] = parametrization.prediction !== prediction
    ? [
      `its network predicts the ${parametrization.prediction}`,
      prediction,
      `--prediction ${parametrization.prediction}`,
    ]
    : innerHead && config.inner_head && innerHead !== config.inner_head
    ? [`its inner head follows block ${innerHead}`, config.inner_head, `--inner-head ${innerHead}`]
    : [];
  if (option === undefined) return;
  const [name] = option.split(" ");
  throw new UsageError(`Cannot initialise from "${path}": ${what}, and ${name} is ${now}; use ${option}`);
}

/** Linear layers that make the outputs. */
const OUTPUTS = /^final_layer(_xr)?\.linear\./;

/**
 * The tensors without the variance that SiT's output layers make as well: the second half of the channels of each cell.
 * @returns also whether there was one
 */
function withoutVariance(source: TensorSource, dit: Dit): { view: TensorSource; halved: boolean } {
  const own = state(dit), { in_channels: C } = dit.config;
  const isTwice = (key: string) =>
    OUTPUTS.test(key) && source.shapes.get(key)?.[0] === 2 * (own.get(key)?.dim(0) ?? NaN);
  const shapes = [...source.shapes].map(([key, shape]) => {
    const [rows = 0, ...others] = shape;
    return [key, isTwice(key) ? [rows / 2, ...others] : shape] as const;
  });
  const view: TensorSource = {
    ...source,
    shapes: new Map(shapes),
    read: async (key, into) => {
      if (!isTwice(key)) return await source.read(key, into);
      const [rows = 0, width = 1] = source.shapes.get(key) ?? [], data = await source.read(key);
      const half = new Float32Array(data.length / 2), each = C * width;
      for (let cell = 0; cell < rows / (2 * C); cell++) {
        half.set(data.subarray(2 * cell * each, (2 * cell + 1) * each), cell * each);
      }
      return half;
    },
  };
  return { view, halved: [...source.shapes.keys()].some(isTwice) };
}
