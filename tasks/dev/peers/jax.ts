// jax-js timed on the cases of ../bench.ts; one JSON object a line. Run by `deno task bench --peers` in a package folder
// of its own, whose path is the first argument. Everything is jitted. It computes only what is read, so one element of
// each result is; the cost of the one wait is taken off.

// deno-lint-ignore-file no-explicit-any
const jax: any = await import("@jax-js/jax" as string);
const { numpy: np, random, jit, grad, valueAndGrad, nn, lax, tree } = jax;
await jax.init("webgpu");
jax.defaultDevice("webgpu");
const cases: any[] = JSON.parse(await Deno.readTextFile(`${Deno.args[0]}/cases.json`));

let seeds = 0;
/** Uniform in -0.5..0.5; `size` scales it. */
const draw = (shape: number[], size = 1) => random.uniform(random.key(seeds++), shape).sub(0.5).mul(size);
/** Weights that keep the size of what passes through them. */
const weights = (...shape: number[]) => draw(shape, Math.sqrt(12 / (shape[0] as number)));

/** Median milliseconds of `call`, which gives arrays, or of a chain of calls where it takes what it gave before. */
async function time(call: (before: any) => any): Promise<number> {
  const run = async (n: number) => {
    const began = performance.now();
    let sum: any, before: any;
    for (let i = 0; i < n; i++) {
      before = call(before);
      for (const y of before.read ?? before) {
        const first = y.ref.reshape([-1]).slice([0, 1]);
        sum = sum ? sum.add(first) : first;
      }
    }
    await sum.data();
    before.done?.();
    return performance.now() - began;
  };
  await run(1);
  const alone = [await run(1), await run(1), await run(1)].sort((a, b) => a - b), single = alone[0] as number;
  if (single > 400) return alone[1] as number;
  const n = Math.max(2, Math.min(40, Math.ceil(100 / Math.max(1, single - 12))));
  const times: number[] = [];
  for (let round = 0; round < 5; round++) times.push((await run(n + 1) - single) / n);
  return times.sort((a, b) => a - b)[2] as number;
}

/** Times a jitted function of fixed arrays; its gradients by all of them, of the sum of y dy, where `dy` is given. */
function fixed(fn: (...x: any[]) => any, inputs: any[], dy?: any, wrt = inputs.map((_, i) => i)) {
  const loss = (...x: any[]) => {
    const last = x.pop();
    return np.sum(fn(...x).mul(last));
  };
  const f = jit(dy ? grad(loss, { argnums: wrt }) : fn), all = dy ? [...inputs, dy] : inputs;
  return time(() => {
    const y = [f(...all.map((x) => x.ref))].flat();
    return { read: y, done: () => y };
  });
}

const mean = (x: any, axis: number | number[]) => np.mean(x, axis, { keepdims: true });
function layerNorm(x: any, w: any, b: any, eps = 1e-6) {
  const centred = x.ref.sub(mean(x, -1));
  const variance = mean(np.square(centred.ref), -1);
  return centred.div(np.sqrt(variance.add(eps))).mul(w).add(b);
}
const rmsNorm = (x: any, w: any) => x.ref.div(np.sqrt(mean(np.square(x), -1).add(1e-6))).mul(w);
const silu = (x: any) => x.ref.mul(nn.sigmoid(x));
function groupNormSilu(x: any, w: any, b: any, groups: number) {
  const [B, H, W, C] = x.shape;
  const y = x.reshape([B, H * W, groups, C / groups]);
  const centred = y.ref.sub(mean(y, [1, 3]));
  const variance = mean(np.square(centred.ref), [1, 3]);
  return silu(centred.div(np.sqrt(variance.add(1e-6))).reshape([B, H, W, C]).mul(w).add(b));
}

const heads = (x: any, NH: number) => {
  const [B, T, C] = x.shape;
  return x.reshape([B, T, NH, C / NH]);
};
const linear = (x: any, { w, b }: any) => np.matmul(x, w).add(b);
const newLinear = (i: number, o: number) => ({ w: weights(i, o), b: np.zeros([o]) });

/** The tree's leaves are consumed where they are used, once each. */
function newVit(c: any) {
  const T = (c.image / c.patch) ** 2;
  return {
    patch: newLinear(3 * c.patch ** 2, c.C),
    cls: draw([1, 1, c.C]),
    positions: draw([1, T + 1, c.C]),
    blocks: Array.from({ length: c.depth }, () => ({
      norm1: { w: np.ones([c.C]), b: np.zeros([c.C]) },
      q: newLinear(c.C, c.C),
      k: newLinear(c.C, c.C),
      v: newLinear(c.C, c.C),
      out: newLinear(c.C, c.C),
      scale1: np.ones([c.C]),
      norm2: { w: np.ones([c.C]), b: np.zeros([c.C]) },
      fc1: newLinear(c.C, 4 * c.C),
      fc2: newLinear(4 * c.C, c.C),
      scale2: np.ones([c.C]),
    })),
    norm: { w: np.ones([c.C]), b: np.zeros([c.C]) },
  };
}
function vit(c: any, m: any, x: any) {
  const side = c.image / c.patch, T = side * side, { B, C, NH } = c;
  const patches = np.transpose(x.reshape([B, side, c.patch, side, c.patch, 3]), [0, 1, 3, 2, 4, 5])
    .reshape([B, T, 3 * c.patch ** 2]);
  const cls = np.zeros([B, 1, C]).add(m.cls);
  let h = np.concatenate([cls, linear(patches, m.patch)], 1).add(m.positions);
  for (const b of m.blocks) {
    const y = layerNorm(h.ref, b.norm1.w, b.norm1.b);
    const [q, k, v] = [linear(y.ref, b.q), linear(y.ref, b.k), linear(y, b.v)].map((t) => heads(t, NH));
    const attended = nn.dotProductAttention(q, k, v).reshape([B, T + 1, C]);
    h = h.add(linear(attended, b.out).mul(b.scale1));
    const z = nn.gelu(linear(layerNorm(h.ref, b.norm2.w, b.norm2.b), b.fc1), { approximate: false });
    h = h.add(linear(z, b.fc2).mul(b.scale2));
  }
  return layerNorm(h.slice([], [1, T + 1]), m.norm.w, m.norm.b);
}

function newDit(c: any) {
  const hidden = Math.floor(8 * c.C / 3);
  return {
    embed: newLinear(c.channels, c.C),
    time1: newLinear(256, c.C),
    time2: newLinear(c.C, c.C),
    classes: draw([c.classes + 1, c.C]),
    blocks: Array.from({ length: c.depth }, () => ({
      norm1: np.ones([c.C]),
      qkv: newLinear(c.C, 3 * c.C),
      proj: newLinear(c.C, c.C),
      norm2: np.ones([c.C]),
      w12: newLinear(c.C, 2 * hidden),
      w3: newLinear(hidden, c.C),
      modulation: newLinear(c.C, 6 * c.C),
    })),
    norm: np.ones([c.C]),
    modulation: newLinear(c.C, 2 * c.C),
    last: newLinear(c.C, c.channels),
  };
}
/** Part i of n along the last axis. */
const part = (x: any, i: number, n: number) => {
  const size = x.shape.at(-1) / n;
  return x.slice(...x.shape.slice(0, -1).map(() => []), [i * size, (i + 1) * size]);
};
const modulate = (x: any, shift: any, scale: any) => x.mul(scale.add(1)).add(shift);
function rotary(x: any, cos: any, sin: any) {
  const [B, T, NH, HS] = x.shape;
  const pairs = x.reshape([B, T, NH, HS / 2, 2]);
  const a = pairs.ref.slice([], [], [], [], 0), b = pairs.slice([], [], [], [], 1);
  const first = a.ref.mul(cos.ref).sub(b.ref.mul(sin.ref)), second = a.mul(sin).add(b.mul(cos));
  return np.stack([first, second], -1).reshape([B, T, NH, HS]);
}
/** `tables`: positions, and rotary cos and sin of [T, 1, HS / 2]. */
function dit(c: any, m: any, tables: any, x: any, t: any, labels: any) {
  const { B, C, NH } = c, T = c.side ** 2, hidden = Math.floor(8 * C / 3);
  const frequencies = np.exp(np.arange(128).astype(np.float32).mul(-Math.log(10000) / 128));
  const angles = t.reshape([B, 1]).mul(frequencies);
  const features = np.concatenate([np.cos(angles.ref), np.sin(angles)], 1);
  const time = linear(silu(linear(features, m.time1)), m.time2);
  const classes = np.matmul(nn.oneHot(labels, c.classes + 1), m.classes);
  const condition = silu(time.add(classes));
  let h = linear(x.reshape([B, T, c.channels]), m.embed).add(tables.positions);
  for (const b of m.blocks) {
    const all = linear(condition.ref, b.modulation).reshape([B, 1, 6 * C]);
    const [shift1, scale1, gate1, shift2, scale2, gate2] = [0, 1, 2, 3, 4, 5].map((i) => part(all.ref, i, 6));
    all.dispose();
    const qkv = linear(modulate(rmsNorm(h.ref, b.norm1), shift1, scale1), b.qkv);
    const [q, k, v] = [0, 1, 2].map((i) => heads(part(qkv.ref, i, 3), NH));
    qkv.dispose();
    const turned = [q, k].map((y) => rotary(y, tables.cos.ref, tables.sin.ref));
    const attended = nn.dotProductAttention(turned[0], turned[1], v).reshape([B, T, C]);
    h = h.add(linear(attended, b.proj).mul(gate1));
    const w12 = linear(modulate(rmsNorm(h.ref, b.norm2), shift2, scale2), b.w12);
    const gated = silu(w12.ref.slice([], [], [0, hidden])).mul(w12.slice([], [], [hidden, 2 * hidden]));
    h = h.add(linear(gated, b.w3).mul(gate2));
  }
  tables.cos.dispose();
  tables.sin.dispose();
  const last = linear(condition, m.modulation).reshape([B, 1, 2 * C]);
  const shift = part(last.ref, 0, 2), scale = part(last, 1, 2);
  return linear(modulate(rmsNorm(h, m.norm), shift, scale), m.last);
}
const newTables = (c: any) => ({
  positions: draw([1, c.side ** 2, c.C]),
  cos: draw([c.side ** 2, 1, c.C / c.NH / 2]),
  sin: draw([c.side ** 2, 1, c.C / c.NH / 2]),
});

/** One training step: noise, loss of velocity and direction, gradients, clipping, AdamW and the weight average. */
function trainingStep(c: any) {
  const T = c.side ** 2;
  const loss = (m: any, tables: any, x1: any, x0: any, t: any, labels: any) => {
    const at = t.ref.reshape([c.B, 1, 1]);
    const v = x1.ref.sub(x0.ref);
    const xt = at.ref.mul(x1).add(x0.mul(np.subtract(1, at)));
    const predicted = dit(c, m, tables, xt, t, labels);
    const velocity = np.mean(np.square(predicted.ref.sub(v.ref)));
    const dot = np.sum(predicted.ref.mul(v.ref), -1);
    const lengths = np.sqrt(np.sum(np.square(predicted), -1).add(1e-12)).mul(
      np.sqrt(np.sum(np.square(v), -1)),
    );
    return velocity.add(np.subtract(1, np.mean(dot.div(lengths))));
  };
  const f = valueAndGrad(loss);
  return jit((state: any, tables: any, x1: any, key: any, labels: any) => {
    const [key0, key1] = [key.ref.slice(0), key.slice(1)];
    const x0 = random.normal(key0, [c.B, T, c.channels]), t = nn.sigmoid(random.normal(key1, [c.B]));
    const [value, g] = f(tree.ref(state.m), tables, x1, x0, t, labels);
    const norm2 = tree.leaves(g).map((d: any) => np.sum(np.square(d.ref))).reduce((a: any, b: any) =>
      a.add(b)
    );
    const clip = np.minimum(1, np.reciprocal(np.sqrt(norm2)));
    const [beta1, beta2, lr, decay] = [0.9, 0.95, 1e-3, 0.99];
    const old = [state.m, g, state.first, state.second, state.average].map((t) => tree.flatten(t));
    const structure = old[0][1];
    const made = old[0][0].map((p: any, i: number) => {
      const d = old[1][0][i].mul(clip.ref);
      const first = old[2][0][i].mul(beta1).add(d.ref.mul(1 - beta1));
      const second = old[3][0][i].mul(beta2).add(np.square(d).mul(1 - beta2));
      const m = p.mul(1 - lr * 0.01).sub(first.ref.div(np.sqrt(second.ref).add(1e-8)).mul(lr));
      const average = old[4][0][i].mul(decay).add(m.ref.mul(1 - decay));
      return { m, first, second, average };
    });
    clip.dispose();
    const back = (name: string) => tree.unflatten(structure, made.map((o: any) => o[name]));
    return [value, { m: back("m"), first: back("first"), second: back("second"), average: back("average") }];
  });
}

async function timeOf(c: any): Promise<number | undefined> {
  switch (c.op) {
    case "gemm": {
      const [ta, tb] = [...c.layout].map((l) => l === "T");
      const a = draw(ta ? [c.K, c.M] : [c.M, c.K]), b = draw(tb ? [c.N, c.K] : [c.K, c.N]);
      const turn = (x: any, t?: boolean) => t ? np.transpose(x) : x;
      return await fixed((a, b) => np.matmul(turn(a, ta), turn(b, tb)), [a, b]);
    }
    case "conv": {
      const x = draw([c.B, c.C, c.H, c.W]), w = draw([c.Co, c.C, 3, 3]);
      const conv = (x: any, w: any) => lax.convGeneralDilated(x, w, [1, 1], "SAME");
      if (c.wrt === "y") return await fixed(conv, [x, w]);
      return await fixed(conv, [x, w], draw([c.B, c.Co, c.H, c.W]), [c.wrt === "x" ? 0 : 1]);
    }
    case "attention": {
      const shape = [c.B, c.T, c.NH, c.HS], qkv = [draw(shape), draw(shape), draw(shape)];
      return await fixed(nn.dotProductAttention, qkv, c.pass === "forward" ? undefined : draw(shape));
    }
    case "layer norm":
    case "rms norm":
    case "softmax":
    case "silu":
    case "add": {
      const x = draw([c.R, c.C]), w = () => draw([c.C]);
      const dy = c.pass === "forward" ? undefined : draw([c.R, c.C]);
      if (c.op === "layer norm") return await fixed((x, w, b) => layerNorm(x, w, b), [x, w(), w()], dy);
      if (c.op === "rms norm") return await fixed(rmsNorm, [x, w()], dy);
      if (c.op === "add") return await fixed((a, b) => a.add(b), [x, draw([c.R, c.C])], dy);
      return await fixed(c.op === "silu" ? silu : (x) => nn.softmax(x, -1), [x], dy);
    }
    case "group norm": {
      const x = draw([c.B, c.H, c.W, c.C]);
      return await fixed((x, w, b) => groupNormSilu(x, w, b, c.groups), [x, draw([c.C]), draw([c.C])]);
    }
    case "vit": {
      if (c.pass !== "forward") return undefined; // compiling it takes minutes
      const m = newVit(c), x = draw([c.B, c.image, c.image, 3]);
      const f = jit((m: any, x: any) => vit(c, m, x));
      return await time(() => [f(tree.ref(m), x.ref)]);
    }
    case "dit training": {
      if (c.C > 256) return undefined; // likewise
      const step = trainingStep(c), tables = newTables(c), x1 = draw([c.B, c.side ** 2, c.channels]);
      const labels = np.zeros([c.B]).astype(np.int32);
      let key = random.key(1);
      const zeros = () => tree.map((p: any) => np.zeros(p.shape), m);
      const m = newDit(c);
      let state = { m, first: zeros(), second: zeros(), average: tree.map((p: any) => p.ref.add(0), m) };
      return await time(() => {
        const keys = random.split(key, 3);
        key = keys.ref.slice(2);
        const [value, next] = step(state, tree.ref(tables), x1.ref, keys.slice([0, 2]), labels.ref);
        state = next;
        // A state whose parts are not read would be computed again and again, deeper each time.
        return { read: [value, ...tree.leaves(next)] };
      });
    }
  }
}

const wanted = cases.filter((c) => c.precision === "f32");
for (const c of wanted) {
  try {
    const ms = await timeOf(c);
    if (ms !== undefined) console.log(JSON.stringify({ case: c.title, ms }));
  } catch (error) {
    console.error(`${c.title}: ${error instanceof Error ? error.stack : error}`);
  }
}
Deno.exit(0);
