// TensorFlow.js timed on the cases of bench.ts; run by `deno task bench --peers` in a package folder of its own.
// Chained calls, ended by the part of mapAsync that blocks until the device is idle.

// deno-lint-ignore-file no-explicit-any
const tf: any = await import("@tensorflow/tfjs-core" as string);
await import("@tensorflow/tfjs-backend-webgpu" as string);
await tf.setBackend("webgpu");
await tf.ready();
const backend: any = tf.backend();
const tiny = backend.device.createBuffer({ size: 16, usage: 9 });

async function idle(): Promise<number> {
  if (backend.commandEncoder) {
    backend.endComputePassEncoder();
    backend.submitQueue();
  }
  const mapped = tiny.mapAsync(1);
  const now = performance.now();
  await mapped;
  tiny.unmap();
  return now;
}

async function measure(name: string, flops: number, fn: () => any) {
  fn().dispose();
  await idle();
  let best = Infinity;
  for (let round = 0; round < 5; round++) {
    const n = Math.max(1, Math.min(60, Math.ceil(200 / (best === Infinity ? 100 : best))));
    await idle();
    const began = performance.now();
    for (let i = 0; i < n; i++) fn().dispose();
    best = Math.min(best, (await idle() - began) / n);
  }
  console.log(
    `${name.padEnd(38)} ${best.toFixed(3).padStart(9)} ms ${
      flops ? `${(flops / best / 1e6).toFixed(1).padStart(7)} GFLOP/s` : ""
    }`,
  );
}

for (const S of [512, 1024]) {
  const a = tf.randomUniform([S, S]), b = tf.randomUniform([S, S]);
  await measure(`GEMM NN ${S}`, 2 * S ** 3, () => tf.matMul(a, b));
}
const x = tf.randomUniform([1, 64, 64, 64]), w = tf.randomUniform([3, 3, 64, 64]);
await measure("conv 3x3 64x64x64 -> 64", 2 * 64 ** 4 * 9, () => tf.conv2d(x, w, 1, "same"));
const r = tf.randomUniform([1024, 768]);
await measure("softmax 1024x768", 0, () => tf.softmax(r));
await measure("add 1024x768", 0, () => tf.add(r, r));
Deno.exit(0);
