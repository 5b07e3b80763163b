// Comparison with golden trainings (tests/fixtures/make_golden.py): weights and batches by the formula, metrics of a step, changes
// of parameters.

import { assert, assertEquals } from "@std/assert";
import { loadState, saveState } from "../../src/nn/layers.ts";
import { packImages, wordsOf } from "../../src/ops/pixels.ts";
import { readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { formulaSource, formulaWeights, shapesOf, units } from "./formula.ts";

const TOLERANCE = 1e-4;

/** Softmax does not see a bias of the keys: its gradient is rounding, which AdamW makes steps of. */
const WITHOUT_GRADIENT = /\.(k|key)\.bias$/;

/** Tables that training does not change. */
const TABLES = /^(pos_embed|feat_rope\.|latent_)/;

/** Fills a module's tensors by the formula, but for its tables. */
export async function loadFormula(module: object): Promise<void> {
  const source = formulaSource(shapesOf(module));
  const saved = (await saveState(module)).filter(({ name }) => TABLES.test(name));
  const tables = new Map(saved.map(({ name, data }) => [name, data]));
  await loadState(module, { ...source, read: async (key) => tables.get(key) ?? await source.read(key) });
}

/** A batch as make_golden.py makes it: uniform in -bound..bound. */
export const batch = (name: string, size: number, bound: number) =>
  Float32Array.from(units(name, size), (u) => bound * (2 * u - 1));

/** Latents [B,C,P] as files hold them, which normalise to a batch x [B,P,C]. */
export function storedLatents(
  x: Float32Array,
  P: number,
  { mean, std }: Record<"mean" | "std", Float32Array>,
) {
  const C = mean.length;
  return Float32Array.from(x, (_, i) => {
    const b = Math.floor(i / (C * P)), c = Math.floor(i / P) % C, p = i % P;
    return (mean[c] as number) + (std[c] as number) * (x[(b * P + p) * C + c] as number);
  });
}

/** A batch of images as make_golden.py makes it: uniform bytes. */
export function imageBatch(name: string, B: number, S: number): Uint32Array {
  const images = new Uint32Array(B * S * wordsOf(S));
  packImages(Uint8Array.from(units(name, B * S * S * 3), (u) => 256 * u), S, images);
  return images;
}

/** A number may be wrong by 1e-4 of `scale`, and by what ten roundings of a f32 parameter of this magnitude make. */
const isNear = (got: number, expected: number, scale: number, magnitude = 0) =>
  Math.abs(got - expected) <= TOLERANCE * scale + 5e-7 * magnitude;

/**
 * The change of each tensor of `module` against a row of make_golden.py's `fingerprints`: its norm, its dot product with a
 * direction, and 14 elements from the first to the last, with errors relative to the change's norm and RMS.
 */
export async function compareChange(where: string, module: object, expected: Float32Array): Promise<void> {
  const tensors = (await saveState(module)).filter(({ name }) => !TABLES.test(name))
    .toSorted((a, b) => a.name < b.name ? -1 : 1);
  assertEquals(expected.length, 16 * tensors.length, `numbers for ${where}`);
  const wrong: string[] = [];
  for (const [row, { name, shape, data }] of tensors.entries()) {
    if (WITHOUT_GRADIENT.test(name)) continue;
    const first = formulaWeights(name, shape), n = data.length;
    const change = Float64Array.from(data, (v, i) => v - (first[i] as number));
    const direction = units(`direction.${name}`, n).map((u) => 2 * u - 1);
    const dot = (other: Float64Array) => change.reduce((sum, v, i) => sum + v * (other[i] as number), 0);
    const magnitude = Math.sqrt(first.reduce((sum, v) => sum + v * v, 0));
    const [norm, along, ...elements] = expected.subarray(16 * row, 16 * row + 16);
    if (norm === undefined || along === undefined) throw new Error("no row");
    const complain = (what: string, got: number, want: number) =>
      wrong.push(`${what} of the change of ${where} "${name}": ${got} instead of ${want} (norm ${norm})`);
    const gotNorm = Math.sqrt(dot(change)), gotAlong = dot(direction);
    if (!isNear(gotNorm, norm, norm, magnitude)) complain("norm", gotNorm, norm);
    if (!isNear(gotAlong, along, norm, magnitude)) complain("direction", gotAlong, along);
    elements.forEach((want, k) => {
      const i = Math.trunc(k * (n - 1) / 13), got = change[i] as number;
      if (!isNear(got, want, norm / Math.sqrt(n), Math.abs(first[i] as number))) {
        complain(`[${i}]`, got, want);
      }
    });
  }
  assert(wrong.length === 0, `${wrong.length} are wrong:\n${wrong.slice(0, 12).join("\n")}`);
}

/** The metrics of one step, which are cleared, against those of PyTorch. */
export async function compareMetrics(
  where: string,
  names: readonly string[],
  sums: Tensor,
  expected: Float32Array,
) {
  const got = await readTensor(sums);
  sums.storage.write(new Float32Array(names.length));
  names.forEach((name, i) => {
    const want = expected[i] as number;
    assert(
      isNear(got[i] as number, want, Math.max(Math.abs(want), 1e-2)),
      `${name} of ${where}: ${got[i]} instead of ${want}`,
    );
  });
}

/**
 * The numbers that golden fixtures keep of a large tensor: its norm, its product with the direction that belongs to `name`, and
 * 14 elements.
 */
export function fingerprint(name: string, data: Float32Array): number[] {
  const direction = units(`direction.${name}`, data.length);
  const norm = Math.sqrt(data.reduce((sum, v) => sum + v * v, 0));
  const along = data.reduce((sum, v, i) => sum + v * (2 * (direction[i] as number) - 1), 0);
  const elements = Array.from(
    { length: 14 },
    (_, k) => data[Math.trunc(k * (data.length - 1) / 13)] as number,
  );
  return [norm, along, ...elements];
}

/** Asserts that a fingerprint is within 1e-4 of the tensor's norm, its elements of their root mean square. */
export function compareFingerprint(
  what: string,
  got: readonly number[],
  expected: Float32Array,
  size: number,
): void {
  const scale = Math.max(expected[0] as number, 1e-4);
  got.forEach((v, i) => {
    const want = expected[i] as number;
    const allowed = TOLERANCE * (i < 2 ? scale : scale / Math.sqrt(size) + Math.abs(want));
    assert(Math.abs(v - want) <= allowed, `${what} [${i}]: ${v} instead of ${want} (${allowed})`);
  });
}
