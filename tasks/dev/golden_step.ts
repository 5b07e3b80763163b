// Compares one training step of VA-VAE's decoder (random weights, mean squared error) with PyTorch in fp64, in both kernel
// profiles: loss, gradient of every parameter, squared gradient norm. Takes minutes on a CPU: not a test.
// Run: deno run -A tasks/dev/golden_step.ts [--size 256] [--batch 1] [--profile cpu|gpu]; needs python3 (TORCH_PYTHON) with PyTorch.

import { parseArgs } from "@std/cli/parse-args";
import { fromFileUrl, join } from "@std/path";
import { device, openDevice, type Profile } from "../../src/gpu/device.ts";
import { within } from "../../src/gpu/scope.ts";
import { capture } from "../../src/gpu/program.ts";
import { Initializer } from "../../src/nn/init.ts";
import { type NpzArray, writeNpz } from "../../src/formats/npz.ts";
import { Decoder, decoderConfig } from "../../src/models/decoder.ts";
import { mean } from "../../src/ops/reduce.ts";
import { square, sub } from "../../src/ops/math.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { normal, uniform } from "../../src/philox.ts";
import { input, readTensor, type Tensor } from "../../src/tensor/tensor.ts";
import { Optimizer } from "../../src/train/optimizer.ts";
import { findTorch } from "./bench/peers.ts";

/** Maximum relative difference allowed. */
const TOLERANCE = 1e-5;

const args = parseArgs(Deno.args, { string: ["size", "batch", "profile"] });
const size = Number(args.size ?? 256), batch = Number(args.batch ?? 1);
const profiles = (args.profile ? [args.profile] : ["cpu", "gpu"]) as Profile[];
const side = size / 16;

const z = normal(1, 0, batch * side * side * 32),
  x = uniform(2, 0, batch * size * size * 3).map((v) => 2 * v - 1);
const images: NpzArray[] = [
  { name: "z", shape: [batch, side, side, 32], data: z },
  { name: "x", shape: [batch, size, size, 3], data: x },
];

/** Runs the step in one profile and returns its inputs and results. */
async function step(profile: Profile): Promise<{ from: NpzArray[]; gave: NpzArray[] }> {
  device().profile = profile;
  const decoder = new Decoder(decoderConfig.parse({}));
  const init = new Initializer(3), set = new ParameterSet("decoder", decoder);
  decoder.init(init);
  // Norm weights that are not 1, and residual branches as large as those of a trained decoder.
  for (const [name, t] of set.tensors) if (/norm/.test(name)) init.uniform(t, 1);
  const optimizer = new Optimizer("golden", [{ set }]);
  const [latents, target] = images.map(({ shape }) => input(shape)) as [Tensor, Tensor];
  const program = capture(
    "golden step",
    { latents, target },
    ({ latents, target }) =>
      within({ recompute: true }, () => {
        const loss = mean(square(sub(decoder.forward(latents), target)));
        return { loss, norm2: optimizer.minimise(loss) };
      }),
  );
  await program.prepare((done, total) =>
    done === total && console.error(`${profile}: compiled ${total} kernels`)
  );
  await set.materialise();
  const from: NpzArray[] = [];
  for (const [name, t] of set.tensors) from.push({ name, shape: t.shape, data: await readTensor(t) });
  const began = performance.now();
  program.run({ latents: z, target: x });
  const gave: NpzArray[] = [];
  for (const name of ["loss", "norm2"] as const) {
    gave.push({ name, shape: [1], data: await program.read(program.outputs[name]) });
  }
  console.error(`${profile}: ${((performance.now() - began) / 1000).toFixed(0)} s`);
  for (const [name, t] of set.tensors) {
    gave.push({ name, shape: t.shape, data: await readTensor(set.gradients().of.get(t) as Tensor) });
  }
  program.destroy();
  optimizer.destroy();
  set.destroy();
  return { from, gave };
}

const torch = await findTorch();
await openDevice();
const folder = await Deno.makeTempDir({ prefix: "tok-golden-" });
try {
  for (const profile of profiles) {
    const { from, gave } = await step(profile);
    await writeNpz(join(folder, "inputs.npz"), [...images, ...from]);
    await writeNpz(join(folder, `${profile}.npz`), gave);
  }
  const script = fromFileUrl(new URL("./peers/golden_step.py", import.meta.url));
  const { code } = await new Deno.Command(torch.python, {
    args: [script, folder, String(TOLERANCE), ...profiles],
    stdout: "inherit",
    stderr: "inherit",
  }).output();
  if (code) Deno.exitCode = 1;
} finally {
  await Deno.remove(folder, { recursive: true });
}
Deno.exit(); // the driver's threads would keep the process
