// Trains the independent classifier of generated shapes (src/models/toy_classifier.ts) and stores it next to the tiny encoder.
// Run: deno run -A tasks/dev/pretrain_toy_classifier.ts [steps]

import { closeDevice, openDevice } from "../../src/gpu/device.ts";
import { capture } from "../../src/gpu/program.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";
import { gather } from "../../src/data/image_source.ts";
import { collect, imageProgram } from "../../src/metrics/batched.ts";
import { ToyClassifier } from "../../src/models/toy_classifier.ts";
import { TOY_CLASSIFIER_FILE } from "../../src/zoo/networks.ts";
import { accuracy } from "../../src/metrics/linear_probe.ts";
import { saveState } from "../../src/nn/layers.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { Initializer } from "../../src/nn/init.ts";
import { crossEntropy } from "../../src/ops/softmax.ts";
import { imageInput, pixels } from "../../src/ops/pixels.ts";
import { input } from "../../src/tensor/tensor.ts";
import { schedule } from "../../src/train/recipe.ts";
import { Optimizer } from "../../src/train/optimizer.ts";

const BATCH = 64, STEPS = Number(Deno.args[0] ?? 1200);
const ADAMW = { beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.01, clip: 1, emaDecay: 0 };
const SCHEDULE = { warmup: 50, lrSchedule: "linear", lrEnd: 0.02 } as const;
await openDevice();
const classifier = new ToyClassifier();
classifier.init(new Initializer(7));
const optimizer = new Optimizer("classifier", [{ set: new ParameterSet("classifier", classifier) }]);
const inputs = { x: imageInput(BATCH, 32), labels: input([BATCH], "u32") };
const train = await capture("classifier", inputs, ({ x, labels }) => {
  const loss = crossEntropy(classifier.forward(pixels(x)), labels);
  optimizer.minimise(loss);
  return { loss };
}).prepare();
const images = new Shapes(1_000_000, 31);
for (let step = 0; step < STEPS; step++) {
  const batch = await gather(images, Array.from({ length: BATCH }, (_, i) => step * BATCH + i), 32);
  optimizer.set({ lr: 2e-3 * schedule(step, STEPS, SCHEDULE), ...ADAMW });
  train.run({ x: batch.images, labels: batch.labels });
  if (step % 200 === 199) {
    console.log(`step ${step + 1}: loss ${(await train.read(train.outputs.loss))[0]?.toFixed(4)}`);
  }
}
const test = await imageProgram("test", (x) => ({ y: classifier.forward(x) }), {
  batchSize: BATCH,
  size: 32,
});
const { features, labels } = await collect(test, "y", new Shapes(1000, 999));
const predicted = Array.from({ length: features.rows }, (_, r) => {
  const row = features.data.subarray(10 * r, 10 * r + 10);
  return row.indexOf(Math.max(...row));
});
console.log(`held-out accuracy ${(100 * accuracy(predicted, labels)).toFixed(1)} %`);
await writeSafetensors(TOY_CLASSIFIER_FILE, await saveState(classifier), {
  made: "tasks/dev/pretrain_toy_classifier.ts",
});
closeDevice();
