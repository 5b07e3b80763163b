// Measures kernels and whole steps on this adapter, each against the adapter's own ceiling measured in the same run: an
// FMA loop for arithmetic, a copy for bytes. Run: deno task bench [--json] [--peers]
// --peers runs TensorFlow.js, jax-js and onnxruntime-web on the same adapter beside it (see peers/); their packages live
// in a temporary folder, not in the project.

import { parseArgs } from "@std/cli/parse-args";
import { grad } from "../../src/autograd.ts";
import { device, openDevice } from "../../src/gpu/device.ts";
import { capture } from "../../src/gpu/program.ts";
import { Tokenizer, tokenizerConfig } from "../../src/models/tokenizer.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { attention } from "../../src/ops/attention.ts";
import { conv2d } from "../../src/ops/conv.ts";
import { adamw, hyperVariable, packHyper, squaredNorm } from "../../src/ops/adamw.ts";
import { add, silu } from "../../src/ops/math.ts";
import { matmul } from "../../src/ops/matmul.ts";
import { groupNorm, layerNorm } from "../../src/ops/norm.ts";
import { softmax } from "../../src/ops/softmax.ts";
import { input, type Shape, type Tensor, variable } from "../../src/tensor.ts";
import { Alignment, StageRun } from "../../src/train/alignment.ts";
import { openEncoder } from "../../src/train/encoders.ts";
import { measureCeiling, timeOf } from "../../src/train/ceiling.ts";
import { Diffusion } from "../../src/train/diffusion.ts";

/** Packages of each peer, for `--peers`. */
const PEERS: Readonly<Record<string, readonly string[]>> = {
  tfjs: ["@tensorflow/tfjs-core@4.22.0", "@tensorflow/tfjs-backend-webgpu@4.22.0"],
  jax: ["@jax-js/jax@0.1.25"],
  ort: ["onnxruntime-web@1.30.0"],
};

/** Milliseconds of each case. */
const own = new Map<string, number>();
const args = parseArgs(Deno.args, { boolean: ["json", "peers"] });
await openDevice();
const ceiling = await measureCeiling();
const print = (row: Record<string, unknown>, text: string) =>
  console.log(args.json ? JSON.stringify(row) : text);
print(
  { case: "ceiling", adapter: device().facts.description, ...ceiling },
  `${device().facts.description} (${device().profile} kernels)\nceiling: ${
    ceiling.fma.toFixed(1)
  } GFLOP/s of multiply-adds, ${ceiling.copy.toFixed(1)} GB/s of copying\n`,
);

/** Times one program; `bytes` are what the kernel must move at least. */
async function measure(
  name: string,
  shapes: readonly Shape[],
  fn: (...x: Tensor[]) => Tensor | Tensor[],
  bytes?: number,
) {
  const inputs = Object.fromEntries(shapes.map((s, i) => [`x${i}`, input(s)]));
  const program = await capture(name, inputs, (t) => {
    const y = fn(...shapes.map((_, i) => t[`x${i}`] as Tensor));
    return Object.fromEntries([y].flat().map((v, i) => [`y${i}`, v]));
  }).prepare();
  report(
    name,
    await timeOf(program),
    program.plan.flops,
    bytes,
    program.plan.launches.length,
    program.plan.totalBytes,
  );
  program.destroy();
}

function report(
  name: string,
  ms: number,
  flops: number,
  bytes: number | undefined,
  launches: number,
  planned: number,
) {
  own.set(name, ms);
  const gflops = flops / ms / 1e6, gbps = bytes ? bytes / ms / 1e6 : undefined;
  const share = gbps !== undefined ? gbps / ceiling.copy : gflops / ceiling.fma;
  print(
    { case: name, ms, gflops, gbps, launches, planned, share },
    `${name.padEnd(38)} ${ms.toFixed(3).padStart(9)} ms ${
      gbps !== undefined
        ? `${gbps.toFixed(2).padStart(7)} GB/s   `
        : `${gflops.toFixed(1).padStart(7)} GFLOP/s`
    } ${(100 * share).toFixed(0).padStart(4)} % of ceiling, ${launches} launches`,
  );
}

for (const S of [256, 512, 1024]) await measure(`GEMM NN ${S}`, [[S, S], [S, S]], (a, b) => matmul(a, b));
await measure("GEMM NT 512", [[512, 512], [512, 512]], (a, b) => matmul(a, b, { transposeB: true }));
await measure("GEMM TN 512", [[512, 512], [512, 512]], (a, b) => matmul(a, b, { transposeA: true }));
await measure(
  "GEMM NT 256x1536x384 (DiT-S)",
  [[256, 384], [1536, 384]],
  (a, b) => matmul(a, b, { transposeB: true }),
);
await measure(
  "GEMM NT 512x128x128 (tiny)",
  [[512, 128], [128, 128]],
  (a, b) => matmul(a, b, { transposeB: true }),
);
const x = [1, 64, 64, 64], w = [64, 3, 3, 64];
const through = (wrt: 0 | 1) => (a: Tensor, b: Tensor, dy: Tensor) => {
  const leaf = [a, b][wrt] as Tensor;
  leaf.requiresGrad = true;
  return grad(conv2d(a, b, undefined, { padding: 1 }), [leaf], dy);
};
await measure("conv 3x3 64x64x64 -> 64", [x, w], (a, b) => conv2d(a, b, undefined, { padding: 1 }));
await measure("conv 3x3 dx", [x, w, x], through(0));
await measure("conv 3x3 dweight", [x, w, x], through(1));
const rows = [1024, 768], bytes = 8 * 1024 * 768;
await measure("layer norm 1024x768", [rows, [768], [768]], (a, g, b) => layerNorm(a, g, b), bytes);
await measure("softmax 1024x768", [rows], (a) => softmax(a), bytes);
await measure("add 1024x768", [rows, rows], (a, b) => add(a, b), 1.5 * bytes);
await measure("SiLU 1024x768", [rows], (a) => silu(a), bytes);
await measure(
  "group norm + SiLU 16x32x32x16",
  [[16, 32, 32, 16], [16], [16]],
  (a, g, b) => groupNorm(a, 4, g, b, 1e-6, { silu: true }),
  2 * 4 * 16 * 1024 * 16,
);
for (const [B, T] of [[16, 64], [4, 256], [1, 1024]] as const) {
  const shape = [B, T, 6, 64];
  await measure(`attention ${shape.join("x")}`, [shape, shape, shape], attention);
  await measure(
    `attention ${shape.join("x")} backward`,
    [shape, shape, shape, [B, T, 384]],
    (q, k, v, dy) => {
      const leaves = [q, k, v].map((t) => Object.assign(t as Tensor, { requiresGrad: true }));
      return grad(attention(q as Tensor, k as Tensor, v as Tensor), leaves, dy);
    },
  );
}
await updates();

// Whole steps of the tiny preset.
const encoder = await openEncoder();
const tokenizer = new Tokenizer(tokenizerConfig.parse({
  image_size: 32,
  encoder: encoder.config,
  image_mean: encoder.preprocessor.mean,
  image_std: encoder.preprocessor.std,
  adapter_hidden: 96,
  decoder: {
    ch: 16,
    ch_mult: [1, 1, 2, 4],
    num_res_blocks: 0,
    attn_resolutions: [],
    resolution: 32,
    z_channels: 16,
    groups: 4,
  },
}));
const stage = new StageRun(new Alignment(tokenizer, undefined), {
  name: "perceptual",
  train: ["encoder", "adapter", "decoder"],
  losses: { l1: 1, perceptual: 0.01, gan: 0, semantic: 0.5 },
  steps: 1,
  lr: 1e-3,
  encoderLr: 1,
  ema: 0.98,
  ganStart: 1,
}, { batchSize: 8, accumulate: 1, imageSize: 32, semanticLoss: "l2", semanticAt: "after" });
const steps = {
  "alignment step, stage 2, tiny": await stage.program(0),
  "DiT training step, tiny": await new Diffusion(
    new Dit(
      ditConfig.parse({
        input_size: 4,
        in_channels: 16,
        hidden_size: 144,
        depth: 4,
        num_heads: 4,
        num_classes: 10,
      }),
    ),
    { batchSize: 24, labelDropout: 0.1, directionWeight: 1, ema: true, seed: 0 },
  ).capture().prepare(),
};
for (const [name, program] of Object.entries(steps)) {
  const { flops, launches, totalBytes } = program.plan;
  report(name, await timeOf(program as never, 1000, 3), flops, undefined, launches.length, totalBytes);
}
if (args.peers) await peers();

/** AdamW with clipping and a weight average over 8 million parameters: six values read and four written for each. */
async function updates(): Promise<void> {
  const n = 8 << 20, make = () => variable([n]);
  const [parameters, gradients, m, v, ema] = [make(), make(), make(), make(), make()];
  const program = await capture("adamw", {}, () => {
    const hyper = hyperVariable();
    hyper.storage.write(
      packHyper({ lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.01, clip: 1, emaDecay: 0.99 }),
    );
    const norm2 = squaredNorm([gradients]);
    adamw([{ parameters, gradients, m, v, ema, lrFactor: 1 }], hyper, norm2, variable([2]));
    return { norm2 };
  }).prepare();
  const { flops, launches, totalBytes } = program.plan;
  report("AdamW, clip, EMA 8 M", await timeOf(program), flops, 4 * n * 10, launches.length, totalBytes);
  program.destroy();
  for (const t of [parameters, gradients, m, v, ema]) t.storage.destroy();
}

/** Each peer in a process and package folder of its own; how many times longer each of its cases takes than ours. */
async function peers(): Promise<void> {
  for (const [name, packages] of Object.entries(PEERS)) {
    print({ peer: name, packages }, `\n${packages.join(", ")} on the same adapter`);
    const folder = await Deno.makeTempDir({ prefix: "tok-peers-" });
    try {
      const imports = Object.fromEntries(packages.map((p) => [p.slice(0, p.lastIndexOf("@")), `npm:${p}`]));
      await Deno.writeTextFile(`${folder}/deno.json`, JSON.stringify({ imports, nodeModulesDir: "auto" }));
      await Deno.copyFile(new URL(`peers/${name}.ts`, import.meta.url), `${folder}/${name}.ts`);
      await run(folder, ["install", "--quiet"]);
      const lines = await run(folder, ["run", "--no-check", "-A", `${name}.ts`, folder]);
      for (const line of lines.split("\n").filter((l) => l.startsWith(`{"case"`))) {
        const { case: which, ms } = JSON.parse(line) as { case: string; ms: number };
        const ratio = ms / (own.get(which) ?? NaN);
        const text = `${which.padEnd(38)} ${ms.toFixed(3).padStart(9)} ms  ${
          ratio.toFixed(1).padStart(6)
        } x ours`;
        print({ case: which, peer: name, ms, ratio }, text);
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  }
}

/** Standard output of a Deno command; what it says on failure is shown. */
async function run(cwd: string, args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args, cwd }).output();
  if (!success) console.error(new TextDecoder().decode(stderr).trim());
  return new TextDecoder().decode(stdout);
}
Deno.exit(0);
