// TensorFlow.js timed on the cases of ../bench.ts; one JSON object a line. Run by `deno task bench --peers` in a package
// folder of its own, whose path is the first argument. Calls follow each other, ended by the part of mapAsync that blocks
// until the device is idle.

// deno-lint-ignore-file no-explicit-any
const tf: any = await import("@tensorflow/tfjs-core" as string);
await import("@tensorflow/tfjs-backend-webgpu" as string);
await tf.setBackend("webgpu");
await tf.ready();
const backend: any = tf.backend();
const tiny = backend.device.createBuffer({ size: 16, usage: 9 });
const cases: any[] = JSON.parse(await Deno.readTextFile(`${Deno.args[0]}/cases.json`));

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

/** Median milliseconds of `fn`, whose results are dropped. */
async function time(fn: () => any): Promise<number> {
  const batch = async (n: number) => {
    await idle();
    const began = performance.now();
    for (let i = 0; i < n; i++) tf.dispose(fn());
    return (await idle() - began) / n;
  };
  await batch(1);
  const single = await batch(1);
  const n = Math.max(1, Math.min(60, Math.ceil(100 / single)));
  const times: number[] = [];
  for (let round = 0; round < (single > 400 ? 3 : 5); round++) times.push(await batch(n));
  return times.sort((a, b) => a - b)[Math.floor(times.length / 2)] as number;
}

const draw = (shape: number[]) => tf.randomUniform(shape, -0.5, 0.5);

/** `fn`, or the gradients of the sum of its result times a fixed dy. */
function passOf(pass: string, fn: (...x: any[]) => any, inputs: any[], y: number[]) {
  if (pass === "forward") return () => tf.tidy(() => fn(...inputs));
  const dy = draw(y), gradients = tf.grads(fn);
  return () => tf.tidy(() => gradients(inputs, dy));
}

function norm(x: any, axes: number[], centre: boolean) {
  const { mean, variance } = tf.moments(x, axes, true);
  if (!centre) return tf.mul(x, tf.rsqrt(tf.add(tf.mean(tf.square(x), axes, true), 1e-6)));
  return tf.mul(tf.sub(x, mean), tf.rsqrt(tf.add(variance, 1e-6)));
}

/** The op, ready to be called; undefined where TensorFlow.js has none. */
function make(c: any): (() => any) | undefined {
  switch (c.op) {
    case "gemm": {
      const [ta, tb] = [...c.layout].map((l) => l === "T");
      const a = draw(ta ? [c.K, c.M] : [c.M, c.K]), b = draw(tb ? [c.N, c.K] : [c.K, c.N]);
      return () => tf.matMul(a, b, ta, tb);
    }
    case "conv": {
      const x = draw([c.B, c.H, c.W, c.C]), w = draw([3, 3, c.C, c.Co]), dy = draw([c.B, c.H, c.W, c.Co]);
      if (c.wrt === "y") return () => tf.conv2d(x, w, 1, "same");
      if (c.wrt === "x") return () => tf.conv2dTranspose(dy, w, [c.B, c.H, c.W, c.C], 1, "same");
      const attributes = { strides: [1, 1], pad: "same", dataFormat: "NHWC", filterShape: w.shape };
      return () => tf.engine().runKernel("Conv2DBackpropFilter", { x, dy }, attributes);
    }
    case "attention": {
      const shape = [c.B, c.NH, c.T, c.HS];
      const fn = (q: any, k: any, v: any) =>
        tf.matMul(tf.softmax(tf.mul(tf.matMul(q, k, false, true), c.HS ** -0.5)), v);
      return passOf(c.pass, fn, [draw(shape), draw(shape), draw(shape)], shape);
    }
    case "layer norm":
    case "rms norm":
    case "softmax":
    case "silu":
    case "add": {
      const shape = [c.R, c.C], x = draw(shape), w = draw([c.C]), b = draw([c.C]);
      const fns: Record<string, [(...x: any[]) => any, any[]]> = {
        "layer norm": [(x, w, b) => tf.add(tf.mul(norm(x, [1], true), w), b), [x, w, b]],
        "rms norm": [(x, w) => tf.mul(norm(x, [1], false), w), [x, w]],
        "softmax": [(x) => tf.softmax(x), [x]],
        "silu": [(x) => tf.mul(x, tf.sigmoid(x)), [x]],
        "add": [(a, b) => tf.add(a, b), [x, draw(shape)]],
      };
      const [fn, inputs] = fns[c.op] as [(...x: any[]) => any, any[]];
      return passOf(c.pass, fn, inputs, shape);
    }
    case "group norm": {
      const x = draw([c.B, c.H, c.W, c.C]), w = draw([c.C]), b = draw([c.C]);
      return () =>
        tf.tidy(() => {
          const y = norm(tf.reshape(x, [c.B, c.H * c.W, c.groups, c.C / c.groups]), [1, 3], true);
          const scaled = tf.add(tf.mul(tf.reshape(y, x.shape), w), b);
          return tf.mul(scaled, tf.sigmoid(scaled));
        });
    }
  }
}

for (const c of cases.filter((c) => c.precision === "f32")) {
  try {
    const fn = make(c);
    if (fn) console.log(JSON.stringify({ case: c.title, ms: await time(fn) }));
  } catch (error) {
    console.error(`${c.title}: ${error instanceof Error ? error.message : error}`);
  }
}
Deno.exit(0);
