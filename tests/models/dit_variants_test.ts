// Every option of the diffusion transformer against an independent PyTorch implementation, and the architecture of published
// files from their tensors. fixtures/make_dit_variants.py says where the architectures are from.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { trainDitConfig } from "../../src/cli/config.ts";
import { UsageError } from "../../src/errors.ts";
import { countDit, Dit } from "../../src/models/dit.ts";
import { DIT_SIZES, type DitConfig, ditConfig, inferDit } from "../../src/models/dit_config.ts";
import { fileShape, loadProblems, parameters, state } from "../../src/nn/layers.ts";
import { concat } from "../../src/ops/layout.ts";
import { readTensor, type Shape, type Tensor } from "../../src/tensor/tensor.ts";
import { checkDitOptions, ditOf } from "../../src/train/dit_training.ts";
import { openDit } from "../../src/zoo/runs.ts";
import { relativeError, testDevice } from "../helpers/check.ts";
import { compare, nchw, nhwc, open } from "../helpers/compare.ts";
import { formulaWeights, shapesOf, writeFormula } from "../helpers/formula.ts";

const VARIANTS = [
  "dit_sit",
  "dit_scales",
  "dit_inner",
  "dit_patches",
  "dit_fourier",
  "dit_wide",
  "dit_wide_plain",
];

/** Configuration, shapes of the weights and stored tables of a fixture. */
async function fixture(name: string) {
  const file = await open(name);
  const metadata = (key: string) => JSON.parse(file.metadata.get(key) as string);
  const tables = new Map<string, Float32Array>();
  const shapes = new Map<string, Shape>(Object.entries(metadata("formula")));
  for (const [key, shape] of file.shapes) {
    if (!key.startsWith("weights.")) continue;
    tables.set(key.slice(8), await file.read(key));
    shapes.set(key.slice(8), shape);
  }
  file.close();
  return { config: ditConfig.parse(metadata("config")), tables, shapes };
}

for (const name of VARIANTS) {
  // Not with gpu kernels, which are slow on a CPU: models_test.ts has LightningDiT with both.
  Deno.test(`Dit equals the published architecture (${name}), gradients too`, async () => {
    await testDevice();
    const { config, tables } = await fixture(name), dit = new Dit(config);
    for (const [key, table] of tables) {
      const own = state(dit).get(key) as Tensor;
      await own.storage.materialise();
      assert(relativeError(await readTensor(own), table) < 1e-6, key);
    }
    await compare(name, "output", dit, ["input.x", "input.t", "input.y"], (x, t, y) => {
      const { velocity, inner } = dit.outputs(nhwc(x), t, y);
      return nchw(inner ? concat([velocity, inner], 3) : velocity);
    });
  });
}

Deno.test("the architecture of each variant is inferred from its tensors, or refused where they do not say it", async () => {
  for (const name of ["dit_scales", "dit_patches", "dit_wide"]) {
    const { config, shapes } = await fixture(name);
    assertEquals(inferDit(name, shapes), config, name);
  }
  const refused = async (name: string, reason: string, more: [string, Shape][] = []) => {
    const { shapes } = await fixture(name);
    const { message } = assertThrows(() => inferDit(name, new Map([...shapes, ...more])), UsageError);
    assert(message.startsWith("Cannot") && message.includes(reason) && !message.includes("\n"), message);
  };
  await refused("dit_sit", "how many heads it has, and 2 blocks of width 48 are no published size");
  await refused("dit_wide_plain", '"dec_feat_rope.freqs_cos"');
  await refused("dit_wide_plain", "nothing says where it begins", [["dec_feat_rope.freqs_cos", [16, 12]]]);
  await refused("dit_inner", "the inner head must come before the last block");
  await refused("dit_scales", "makes 7 values a token instead of 4, or 8 with a variance", [
    ["final_layer.linear.weight", [7, 48]],
  ]);
  await refused("dit_patches", "patches of 1, 2, 4 or 8 cells", [["x_embedder.proj.weight", [48, 4, 3, 3]], [
    "final_layer.linear.weight",
    [36, 48],
  ]]);
});

const SIT = { use_swiglu: false, use_rmsnorm: false, use_rope: false };
const FOURIER = { use_gembed: true, reversed_time: true };
const RAE = { in_channels: 768, ...FOURIER };
const WIDE = { head: { hidden_size: 2048, depth: 2, num_heads: 16 } };
/** Published models and their millions of parameters, fixed tables included, where they are known. */
const PUBLISHED: Record<string, [config: Partial<DitConfig>, millions?: number]> = {
  "LightningDiT-XL/1 with QK-norm": [{ ...DIT_SIZES["XL/1"], use_qknorm: true }, 675.26],
  "SiT-XL/2": [{ ...DIT_SIZES["XL/2"], ...SIT, input_size: 32, in_channels: 4, learn_sigma: true }, 675.13],
  "REPA-SiT-XL/2": [
    { ...DIT_SIZES["XL/2"], ...SIT, input_size: 32, in_channels: 4, reversed_time: true },
  ],
  "DiT-DH-XL": [{ ...DIT_SIZES["XL/1"], ...RAE, ...WIDE }, 838.68], // published as 839 M
  "DiT-DH-S": [{ ...DIT_SIZES["S/1"], ...RAE, ...WIDE }],
  "Internal Guidance XL/1": [{ ...DIT_SIZES["XL/1"], inner_head: 8 }],
};

Deno.test("published models are recognised by their tensors, and have their numbers of parameters", async () => {
  await testDevice();
  for (const [name, [config, millions]] of Object.entries(PUBLISHED)) {
    const dit = new Dit(ditConfig.parse(config)), shapes = shapesOf(dit);
    const file = name.startsWith("REPA")
      ? new Map([...shapes, ["projectors.0.0.weight", [2048, 1152]]])
      : shapes;
    const found = inferDit(name, file as typeof shapes);
    assertEquals(found, dit.config, name);
    assertEquals(loadProblems(new Dit(found), { shapes }), [], name);
    const counted = Math.round(countDit(dit) / 1e4) / 100;
    assertEquals(counted, millions ?? counted, name);
  }
});

const SMALL = { input_size: 4, in_channels: 4, hidden_size: 32, depth: 2, num_heads: 2, num_classes: 3 };
const FILES: [config: Partial<DitConfig>, note?: string][] = [
  [{}],
  [{ patch_size: 2, use_qknorm: true, use_rope: false, use_swiglu: false, wo_shift: true }],
  [{ use_rmsnorm: false, learn_sigma: true }, "a file of DiT's has the same tensors"],
  [
    { depth: 9, inner_head: 8 },
    "which block its inner head follows: it is read as Internal Guidance's, block 8",
  ],
  [{ use_gembed: true, reversed_time: true }],
  [{ use_gembed: true, reversed_time: true, head: { hidden_size: 48, depth: 2, num_heads: 2 } }],
];

Deno.test("a file of each kind opens, with notes about what it does not say", async () => {
  await testDevice();
  const folder = await Deno.makeTempDir();
  try {
    for (const [i, [config, note]] of FILES.entries()) {
      const path = `${folder}/${i}.safetensors`, made = new Dit(ditConfig.parse({ ...SMALL, ...config }));
      const shapes = new Map([...shapesOf(made)].map(([key, shape]) => [`ema.${key}`, shape]));
      await writeFormula(path, shapes, (key) => key.slice(4));
      const { dit, notes = [] } = await openDit(path);
      assertEquals(dit.config, made.config);
      assertEquals(notes.length, note === undefined ? 0 : 1);
      if (note !== undefined) assert(notes[0]?.includes(note) && notes[0].includes(path), notes[0]);
      for (const [key, tensor] of parameters(dit)) {
        if (tensor.rank > 2) continue; // convolutions are channels-last
        assertEquals(await readTensor(tensor), formulaWeights(key, tensor.shape), key);
      }
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

/** The architecture that options of train-dit make on latents [4, 8, 8] of 10 classes. */
const made = (options: Record<string, unknown>) => ditOf(trainDitConfig.parse(options), [4, 8, 8], 10);

Deno.test("each option of train-dit changes the architecture as its name says", async () => {
  await testDevice();
  const plain = made({}).config;
  const cases: [Record<string, unknown>, Partial<DitConfig>][] = [
    [{ model: "tiny/2" }, { patch_size: 2 }],
    [{ model: "1p6B/2" }, { patch_size: 2, hidden_size: 1792, depth: 28, num_heads: 28 }],
    [{ qkNorm: true }, { use_qknorm: true }],
    [{ mlp: "plain" }, { use_swiglu: false }],
    [{ norm: "layer" }, { use_rmsnorm: false }],
    [{ woShift: true }, { wo_shift: true }],
    [{ rope: false }, { use_rope: false }],
    [{ innerHead: 2 }, { inner_head: 2 }],
    [{ headWidth: 256 }, { ...FOURIER, head: { hidden_size: 256, depth: 2, num_heads: 2 } }],
    [{ headWidth: 96, headDepth: 3 }, {
      ...FOURIER,
      head: { hidden_size: 96, depth: 3, num_heads: 1 },
    }],
  ];
  for (const [options, expected] of cases) {
    assertEquals(made(options).config, { ...plain, ...expected }, JSON.stringify(options));
  }
  const refusals: [Record<string, unknown>, string][] = [
    [{ headWidth: 200 }, "Cannot use --head-width 200: heads of attention have 128 channels"],
    [{ headWidth: 30 }, "choose a multiple of 4"],
    [{ innerHead: 4 }, "the inner head must come before the last block"],
  ];
  for (const [options, part] of refusals) {
    const { message } = assertThrows(() => made(options), UsageError);
    assert(message.startsWith("Cannot") && message.includes(part) && !message.includes("\n"), message);
  }
  assertThrows(
    () => checkDitOptions(trainDitConfig.parse({ headDepth: 3 }), { headDepth: "command line" }),
    UsageError,
    "Cannot use --head-depth: it needs --head-width; add it, or leave --head-depth out",
  );
  const odd = trainDitConfig.parse({ model: "tiny/2" });
  assertThrows(() => ditOf(odd, [4, 7, 7], 10), UsageError, "must be a multiple of the patch size");
});

Deno.test("tensors of a wide head have RAE's names", async () => {
  await testDevice();
  const { shapes } = await fixture("dit_wide"), { config } = await fixture("dit_wide");
  const own = new Map([...state(new Dit(config))].map(([key, tensor]) => [key, [...fileShape(tensor)]]));
  assertEquals(Object.fromEntries([...own].sort()), Object.fromEntries([...shapes].sort()));
});
