// TensorFlow.js timed on the cases of ../bench.ts; one JSON object a line. Run by `deno task bench --peers` in a package
// folder of its own. Chained calls, ended by the part of mapAsync that blocks until the device is idle.

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

async function measure(name: string, fn: () => any) {
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
  console.log(JSON.stringify({ case: name, ms: best }));
}

for (const S of [512, 1024]) {
  const a = tf.randomUniform([S, S]), b = tf.randomUniform([S, S]);
  await measure(`GEMM NN ${S}`, () => tf.matMul(a, b));
}
const x = tf.randomUniform([1, 64, 64, 64]), w = tf.randomUniform([3, 3, 64, 64]);
await measure("conv 3x3 64x64x64 -> 64", () => tf.conv2d(x, w, 1, "same"));
const r = tf.randomUniform([1024, 768]), gain = tf.randomUniform([768]), bias = tf.randomUniform([768]);
await measure("layer norm 1024x768", () =>
  tf.tidy(() => {
    const { mean, variance } = tf.moments(r, 1, true);
    return tf.add(tf.mul(tf.mul(tf.sub(r, mean), tf.rsqrt(tf.add(variance, 1e-5))), gain), bias);
  }));
await measure("softmax 1024x768", () => tf.softmax(r));
await measure("add 1024x768", () => tf.add(r, r));
await measure("SiLU 1024x768", () => tf.tidy(() => tf.mul(r, tf.sigmoid(r))));
Deno.exit(0);
