// Trains the embedded tiny encoder on generated images and stores it in Hugging Face layout under src/models/tiny.
// Losses: the class, and the pixels of every patch with a quarter of the patches masked; features trained on the class alone
// would lose the colors that a tokenizer needs. Run: deno run -A tasks/dev/pretrain_encoder.ts [steps]

import { closeDevice, openDevice } from "../../src/gpu/device.ts";
import { capture } from "../../src/gpu/program.ts";
import { gather } from "../../src/data/image_source.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { writeAtomic } from "../../src/formats/files.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { Vit, vitConfig } from "../../src/models/vit.ts";
import { Linear, saveState } from "../../src/nn/layers.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { Initializer } from "../../src/nn/init.ts";
import { add, square, sub } from "../../src/ops/math.ts";
import { imageInput, pixels } from "../../src/ops/pixels.ts";
import { pointwise } from "../../src/ops/pointwise.ts";
import { RandomState, uniform } from "../../src/ops/random.ts";
import { mean } from "../../src/ops/reduce.ts";
import { permute, reshape } from "../../src/ops/layout.ts";
import { crossEntropy } from "../../src/ops/softmax.ts";
import { input, type Tensor } from "../../src/tensor/tensor.ts";
import { Optimizer } from "../../src/train/optimizer.ts";

const SIZE = 32, P = 8, BATCH = 64, LR = 2e-3, MASKED = 0.25;
const STEPS = Number(Deno.args[0] ?? 4000);
const folder = new URL("../../src/models/tiny/", import.meta.url);

const config = vitConfig.parse({
  hidden_size: 96,
  num_hidden_layers: 4,
  num_attention_heads: 3,
  patch_size: P,
  image_size: SIZE,
});
const ADAMW = { beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.02, clip: 1, emaDecay: 0 };
await openDevice();
const vit = new Vit(config);
const heads = { classes: new Linear(96, 10), pixels: new Linear(96, P * P * 3) };
const init = new Initializer(1);
vit.init(init);
for (const { weight, bias } of Object.values(heads)) {
  init.xavier(weight);
  init.constant(bias, 0);
}
const sets = { vit: new ParameterSet("vit", vit), heads: new ParameterSet("heads", heads) };
const optimizer = new Optimizer("encoder", [{ set: sets.vit }, { set: sets.heads }]);
const state = new RandomState(1);
const G = SIZE / P, T = G * G;

/** Splits [B, H, W, 3] into patches [B, T, P * P * 3]. */
const patches = (x: Tensor) =>
  reshape(permute(reshape(x, [-1, G, P, G, P, 3]), [0, 1, 3, 2, 4, 5]), [x.dim(0), T, P * P * 3]);

const train = await capture(
  "pretrain",
  { images: imageInput(BATCH, SIZE), labels: input([BATCH], "u32") },
  ({ images, labels }) => {
    const x = pixels(images);
    const mask = pointwise(["select(T(0.0), T(1.0), x0 < s0)"], [uniform([BATCH, T, 1], state, 1)], [MASKED]);
    const tokens = vit.forward(x, { mask }).patches; // [B, T, C]
    const classLoss = crossEntropy(heads.classes.forward(mean(tokens, [1])), labels);
    const pixelLoss = mean(square(sub(heads.pixels.forward(tokens), patches(x))));
    optimizer.minimise(add(classLoss, pixelLoss));
    return { classLoss, pixelLoss };
  },
).prepare();
console.log(
  `${STEPS} steps of ${(train.plan.flops / 1e9).toFixed(2)} GFLOP, ${train.plan.launches.length} launches`,
);

const images = new Shapes(1_000_000, 11);
const began = Date.now();
for (let step = 0; step < STEPS; step++) {
  const batch = await gather(images, Array.from({ length: BATCH }, (_, i) => step * BATCH + i), SIZE);
  const warm = Math.min(1, (step + 1) / 100), cosine = 0.5 + 0.5 * Math.cos(Math.PI * step / STEPS);
  optimizer.set({ lr: LR * warm * (0.02 + 0.98 * cosine), ...ADAMW });
  state.set(step);
  train.run({ images: batch.images, labels: batch.labels });
  if (step % 200 === 199 || step === 49) {
    const [a, b] = [await train.read(train.outputs.classLoss), await train.read(train.outputs.pixelLoss)];
    console.log(
      `step ${step + 1}: class ${a[0]?.toFixed(4)}, pixels ${b[0]?.toFixed(4)}, ` +
        `${((Date.now() - began) / 1000).toFixed(0)} s`,
    );
  }
}

const test = await capture("test", { images: imageInput(BATCH, SIZE) }, ({ images }) => {
  const x = pixels(images);
  const tokens = vit.forward(x).patches;
  return {
    logits: heads.classes.forward(mean(tokens, [1])),
    error: mean(square(sub(heads.pixels.forward(tokens), patches(x)))),
  };
}).prepare();
const heldOut = new Shapes(1024, 999);
let hits = 0, error = 0;
for (let at = 0; at < heldOut.length; at += BATCH) {
  const batch = await gather(heldOut, Array.from({ length: BATCH }, (_, i) => at + i), SIZE);
  test.run({ images: batch.images });
  const logits = await test.read(test.outputs.logits);
  error += (await test.read(test.outputs.error))[0] as number;
  for (let i = 0; i < BATCH; i++) {
    const row = logits.subarray(i * 10, i * 10 + 10);
    if (row.indexOf(Math.max(...row)) === batch.labels[i]) hits++;
  }
}
console.log(`held-out: classes ${(100 * hits / 1024).toFixed(1)} %, pixel error ${(error / 16).toFixed(4)}`);

Deno.mkdirSync(folder, { recursive: true });
const json = (value: unknown) => JSON.stringify(value, undefined, 2) + "\n";
await writeSafetensors(new URL("model.safetensors", folder).pathname, await saveState(vit), { format: "pt" });
writeAtomic(new URL("config.json", folder).pathname, json({ architectures: ["Dinov2Model"], ...config }));
writeAtomic(
  new URL("preprocessor_config.json", folder).pathname,
  json({
    do_resize: true,
    size: { shortest_edge: SIZE },
    do_center_crop: true,
    crop_size: { height: SIZE, width: SIZE },
    resample: 3,
    do_normalize: true,
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
  }),
);
closeDevice();
