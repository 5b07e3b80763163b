// jax-js timed on the cases of ../bench.ts; one JSON object a line. Run by `deno task bench --peers` in a package folder
// of its own. It computes only what is read, so calls are chained, and the cost of the one read is taken off.

// deno-lint-ignore-file no-explicit-any
const jax: any = await import("@jax-js/jax" as string);
const { numpy: np, random, jit, nn, lax } = jax;
await jax.init("webgpu");
jax.defaultDevice("webgpu");

async function measure(name: string, from: any, fn: (x: any) => any) {
  const run = async (n: number) => {
    const began = performance.now();
    let x = from.ref;
    for (let i = 0; i < n; i++) x = fn(x);
    await x.data();
    return performance.now() - began;
  };
  await run(1);
  const single = Math.min(await run(1), await run(1));
  const n = Math.max(2, Math.min(40, Math.ceil(200 / Math.max(1, single - 12))));
  let best = Infinity;
  for (let round = 0; round < 4; round++) {
    const one = Math.min(await run(1), await run(1));
    best = Math.min(best, (await run(n + 1) - one) / n);
  }
  console.log(JSON.stringify({ case: name, ms: best }));
}

const draw = (seed: number, shape: number[]) => random.uniform(random.key(seed), shape);
/** Weights that keep the size of what passes through them. */
const weights = (seed: number, shape: number[], fanIn: number) =>
  draw(seed, shape).sub(0.5).mul(Math.sqrt(12 / fanIn));

for (const S of [512, 1024]) {
  const b = weights(2, [S, S], S);
  await measure(`GEMM NN ${S}`, draw(1, [S, S]), (x) => np.matmul(x, b.ref));
}
const w = weights(4, [64, 64, 3, 3], 576);
const conv = jit((x: any, w: any) => lax.convGeneralDilated(x, w, [1, 1], "SAME"));
await measure("conv 3x3 64x64x64 -> 64", draw(3, [1, 64, 64, 64]), (x) => conv(x, w.ref));
const rows = draw(5, [1024, 768]), gain = draw(6, [768]), bias = draw(7, [768]);
const norm = jit((x: any, gain: any, bias: any) => {
  const centred = x.ref.sub(np.mean(x, -1, { keepdims: true }));
  const variance = np.mean(np.square(centred.ref), -1, { keepdims: true });
  return centred.div(np.sqrt(variance.add(1e-5))).mul(gain).add(bias);
});
await measure("layer norm 1024x768", rows.ref, (x) => norm(x, gain.ref, bias.ref));
const softmax = jit((x: any) => nn.softmax(x, -1));
await measure("softmax 1024x768", rows.ref, (x) => softmax(x));
await measure("add 1024x768", rows.ref, (x) => x.add(rows.ref));
const silu = jit((x: any) => x.ref.mul(nn.sigmoid(x)));
await measure("SiLU 1024x768", rows.ref, (x) => silu(x));
Deno.exit(0);
