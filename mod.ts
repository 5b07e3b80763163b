/**
 * tok as a library: the engine, the models and the recipes behind the commands.
 *
 * ```ts
 * import { capture, input, linear, openDevice } from "./mod.ts";
 * await openDevice();
 * const program = capture("example", { x: input([2, 4]), w: input([3, 4]) }, ({ x, w }) => ({ y: linear(x, w) }));
 * ```
 * @module
 */
export { detach, grad, gradOf, noGrad, recompute } from "./src/tensor/autograd.ts";
export { GpuError, ShapeError, UsageError } from "./src/errors.ts";
export { closeDevice, device, openDevice } from "./src/gpu/device.ts";
export { capture, Program } from "./src/gpu/program.ts";
export { within } from "./src/gpu/scope.ts";
export { Autoencoder } from "./src/models/autoencoder.ts";
export { Decoder } from "./src/models/decoder.ts";
export { type Discriminator, PatchDiscriminator } from "./src/models/discriminator.ts";
export { Dit } from "./src/models/dit.ts";
export { Encoder, type ImageTokenizer, Tokenizer } from "./src/models/tokenizer.ts";
export { Vit } from "./src/models/vit.ts";
export { Initializer } from "./src/nn/init.ts";
export { loadState, saveState } from "./src/nn/layers.ts";
export { ParameterSet } from "./src/nn/parameter_set.ts";
export { attention } from "./src/ops/attention.ts";
export { conv2d } from "./src/ops/conv.ts";
export { linear, matmul } from "./src/ops/matmul.ts";
export { constant, input, parameter, readTensor, Tensor, variable } from "./src/tensor/tensor.ts";
export { Alignment } from "./src/train/alignment.ts";
export { StageRun } from "./src/train/stage_run.ts";
export { openDit, openTokenizer } from "./src/zoo/runs.ts";
export { openEncoder } from "./src/zoo/encoders.ts";
export { Diffusion } from "./src/train/diffusion.ts";
export { generate } from "./src/sampling/generate.ts";
export { openGenerator } from "./src/zoo/generator.ts";
export { Optimizer } from "./src/train/optimizer.ts";
export { Sampler } from "./src/sampling/sampler.ts";
