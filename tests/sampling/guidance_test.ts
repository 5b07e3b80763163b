// Guidance: every form against its formula in f64, the forms that reduce to others, the number of evaluations, and the same bits
// in any batch. The networks here give velocities from a table, by class.

import { assert, assertEquals } from "@std/assert";
import { capture } from "../../src/gpu/program.ts";
import type { Denoiser } from "../../src/models/denoiser.ts";
import { embedding } from "../../src/ops/embedding.ts";
import { pointwise } from "../../src/ops/pointwise.ts";
import { normal } from "../../src/philox.ts";
import { Guidance, type GuidanceOptions, termsAt } from "../../src/sampling/guidance.ts";
import { type ScheduleName, weightAt } from "../../src/sampling/guidance_forms.ts";
import { passes, planOf } from "../../src/sampling/plan.ts";
import { Sampler } from "../../src/sampling/sampler.ts";
import { constant, input, readTensor, type Tensor, viewAs } from "../../src/tensor/tensor.ts";
import { randomArray, relativeError, testDevice } from "../helpers/check.ts";

/** Side and channels of a latent, elements of it, classes. */
const S = 3, C = 4, N = S * S * C, K = 3;
const ALL: readonly [number, number] = [0, 1];
const PLAIN = { cfg: 1, cfgInterval: ALL };

/** A network with velocity table[y] (1 + t) + 0.1 x, and half of another table at its inner head. */
class Network implements Denoiser {
  readonly config = {
    input_size: S,
    in_channels: C,
    num_classes: K,
    inner_head: 1,
    depth: 2,
    hidden_size: 8,
  };
  /** Latents that were passed to it while programs were recorded. */
  rows = 0;

  constructor(readonly table: Float32Array, readonly innerTable = table) {}

  forward(x: Tensor, t: Tensor, y: Tensor): Tensor {
    this.rows += x.dim(0);
    return this.#look(this.table, x, t, y);
  }

  outputs(x: Tensor, t: Tensor, y: Tensor) {
    return { velocity: this.forward(x, t, y), inner: this.#look(this.innerTable, x, t, y) };
  }

  #look(table: Float32Array, x: Tensor, t: Tensor, y: Tensor): Tensor {
    const B = x.dim(0), values = embedding(constant(table, [K + 1, N]), y);
    return pointwise(["x0 * (1.0 + x1) + 0.1 * x2"], [viewAs(values, x.shape), viewAs(t, [B, 1, 1, 1]), x]);
  }

  /** The velocity of one image in f64. */
  at(table: Float32Array, x: ArrayLike<number>, t: number, y: number): number[] {
    return Array.from(
      { length: N },
      (_, i) => (table[y * N + i] as number) * (1 + t) + 0.1 * (x[i] as number),
    );
  }
}

const table = (seed: number) => randomArray((K + 1) * N, seed);
const model = () => new Network(table(1), table(2));
const guide = () => new Network(table(3));

const termsOf = ({ model, options }: Guidance, t: number) => termsAt(model.config, options, t);

/** Runs the recorded velocity at x for each of `times`. */
async function velocities(
  guidance: Guidance,
  x: Float32Array,
  labels: readonly number[],
  times: readonly number[],
): Promise<Float32Array[]> {
  const B = labels.length;
  const inputs = { x: input([B, S, S, C]), t: input([B]), y: input([B], "u32") };
  const terms = termsOf(guidance, times[0] as number);
  const program = await capture(
    "velocity",
    inputs,
    ({ x, t, y }) => ({ v: guidance.velocity(x, t, y, terms) }),
    { batchInvariant: true },
  ).prepare();
  const results: Float32Array[] = [];
  for (const t of times) {
    program.run({ x, t: new Float32Array(B).fill(t), y: Uint32Array.from(labels) });
    results.push(await program.read(program.outputs.v));
  }
  program.destroy();
  guidance.destroy();
  return results;
}

const LABELS = [2, 0, 1];
const X = randomArray(LABELS.length * N, 7);
const velocity = async (options: GuidanceOptions, t = 0.6, network = model()) =>
  (await velocities(new Guidance(network, options), X, LABELS, [t]))[0] as Float32Array;

const dot = (a: readonly number[], b: readonly number[]) =>
  a.reduce((s, v, i) => s + v * (b[i] as number), 0);
const deviation = (v: readonly number[]) => {
  const mean = v.reduce((s, x) => s + x, 0) / v.length;
  return Math.sqrt(v.reduce((s, x) => s + (x - mean) ** 2, 0) / v.length);
};
const map = (f: (...values: number[]) => number, ...vs: readonly (readonly number[])[]) =>
  (vs[0] as number[]).map((_, i) => f(...vs.map((v) => v[i] as number)));

/** An image's velocities with and without classes, of the inner head and of the guide, in f64. */
interface Outputs {
  c: number[];
  u: number[];
  innerC: number[];
  innerU: number[];
  b: number[];
}

const outputsOf = (image: number, t: number): Outputs => {
  const m = model(), g = guide(), x = X.subarray(image * N, (image + 1) * N), y = LABELS[image] as number;
  return {
    c: m.at(m.table, x, t, y),
    u: m.at(m.table, x, t, K),
    innerC: m.at(m.innerTable, x, t, y),
    innerU: m.at(m.innerTable, x, t, K),
    b: g.at(g.table, x, t, y),
  };
};

/** The textbook form, by image. */
const FORMS: Record<string, [options: GuidanceOptions, form: (o: Outputs) => number[]]> = {
  none: [PLAIN, ({ c }) => c],
  "classifier-free": [{ ...PLAIN, cfg: 3 }, ({ c, u }) => map((c, u) => u + 3 * (c - u), c, u)],
  "on the first two channels": [
    { ...PLAIN, cfg: 3, cfgChannels: 2 },
    ({ c, u }) => map((c, u, i) => i % C < 2 ? u + 3 * (c - u) : c, c, u, c.map((_, i) => i)),
  ],
  "linear schedule": [
    { ...PLAIN, cfg: 3, schedule: { name: "linear", power: 0 } },
    ({ c, u }) => map((c, u) => u + (1 + 2 * 0.6) * (c - u), c, u),
  ],
  "cosine schedule": [
    { ...PLAIN, cfg: 3, schedule: { name: "cosine", power: 0 } },
    ({ c, u }) => map((c, u) => u + (2 - Math.cos(0.6 * Math.PI)) * (c - u), c, u),
  ],
  "power schedule on one channel": [
    { ...PLAIN, cfg: 3, cfgChannels: 1, schedule: { name: "power", power: 1.5 } },
    ({ c, u }) =>
      map((c, u, i) => i % C < 1 ? u + (1 + 2 * 0.6 ** 1.5) * (c - u) : c, c, u, c.map((_, i) => i)),
  ],
  rescale: [{ ...PLAIN, cfg: 3, rescale: 0.7 }, ({ c, u }) => {
    const v = map((c, u) => u + 3 * (c - u), c, u), ratio = deviation(c) / deviation(v);
    return v.map((x) => 0.7 * x * ratio + 0.3 * x);
  }],
  "CFG-Zero*": [{ ...PLAIN, cfg: 3, zeroStar: { init: 0 } }, ({ c, u }) => {
    const s = dot(c, u) / dot(u, u);
    return map((c, u) => (1 - 3) * s * u + 3 * c, c, u);
  }],
  "projected, with a norm": [{ ...PLAIN, cfg: 3, apg: { eta: 0.25, norm: 2, momentum: 0 } }, ({ c, u }) => {
    const d = map((c, u) => c - u, c, u), norm = Math.sqrt(dot(d, d));
    assert(norm > 2);
    const limited = d.map((x) => x * 2 / norm), k = dot(limited, c) / dot(c, c);
    const along = c.map((x) => k * x), across = map((d, p) => d - p, limited, along);
    return map((c, p, o) => c + 2 * (o + 0.25 * p), c, along, across);
  }],
  "projected, on three channels": [
    { ...PLAIN, cfg: 3, cfgChannels: 3, apg: { eta: 0, norm: Infinity, momentum: 0 } },
    ({ c, u }) => {
      const d = map((c, u) => c - u, c, u), k = dot(d, c) / dot(c, c);
      return map((c, d, i) => i % C < 3 ? c + 2 * (d - k * c) : c, c, d, c.map((_, i) => i));
    },
  ],
  autoguidance: [
    { ...PLAIN, guide: { model: guide(), weight: 1.6 } },
    ({ c, b }) => map((c, b) => b + 1.6 * (c - b), c, b),
  ],
  "autoguidance, classifier-free and rescale": [
    { ...PLAIN, cfg: 3, rescale: 0.5, guide: { model: guide(), weight: 1.6 } },
    ({ c, u, b }) => {
      const v = map((c, u, b) => c + 2 * (c - u) + 0.6 * (c - b), c, u, b),
        ratio = deviation(c) / deviation(v);
      return v.map((x) => 0.5 * x * ratio + 0.5 * x);
    },
  ],
  internal: [
    { ...PLAIN, internal: { weight: 1.4, interval: ALL } },
    ({ c, innerC }) => map((c, b) => b + 1.4 * (c - b), c, innerC),
  ],
  "internal, then classifier-free": [
    { ...PLAIN, cfg: 1.45, internal: { weight: 1.4, interval: ALL } },
    ({ c, u, innerC, innerU }) => {
      const full = map((c, b) => b + 1.4 * (c - b), c, innerC),
        none = map((u, b) => b + 1.4 * (u - b), u, innerU);
      return map((c, u) => u + 1.45 * (c - u), full, none);
    },
  ],
};

Deno.test("each form of guidance equals its formula in f64", async () => {
  await testDevice();
  for (const [name, [options, form]] of Object.entries(FORMS)) {
    const got = await velocity(options), expected = LABELS.flatMap((_, i) => form(outputsOf(i, 0.6)));
    const error = relativeError(got, expected);
    assert(error < 1e-6, `${name}: ${error}`);
  }
});

Deno.test("forms without effect are plain guidance or none, to the bit", async () => {
  await testDevice();
  const same = async (a: GuidanceOptions, b: GuidanceOptions, name: string) =>
    assertEquals(await velocity(a), await velocity(b), name);
  const plain = { ...PLAIN, cfg: 3 };
  await same({ ...plain, rescale: 0 }, plain, "rescale 0");
  await same({ ...plain, schedule: { name: "power", power: 0 } }, plain, "power 0");
  await same({ ...plain, schedule: { name: "constant", power: 9 } }, plain, "constant schedule");
  await same({ ...plain, guide: { model: guide(), weight: 1 } }, plain, "guide 1");
  await same({ ...plain, internal: { weight: 1, interval: ALL } }, plain, "internal 1");
  await same({ ...plain, guide: { model: guide(), weight: 2 }, cfgInterval: [0.7, 1] }, PLAIN, "interval");
  await same({ ...PLAIN, internal: { weight: 2, interval: [0, 0.5] } }, PLAIN, "interval of the inner head");
  for (const name of ["linear", "cosine", "power"] as const) {
    await same({ ...PLAIN, schedule: { name, power: 2 } }, PLAIN, `${name} schedule of weight 1`);
  }
  await same(
    { ...PLAIN, zeroStar: { init: 0 }, rescale: 0.7, apg: { eta: 0, norm: 1, momentum: 0 } },
    PLAIN,
    "cfg 1",
  );
  // With all of the parallel part, no norm and no momentum, only the rounding differs.
  const projected = await velocity({ ...plain, apg: { eta: 1, norm: Infinity, momentum: 0 } });
  assert(relativeError(projected, await velocity(plain)) < 1e-6);
});

Deno.test("CFG-Zero* is plain guidance, to the bit, where c - u is orthogonal to u", async () => {
  await testDevice();
  const u = Array.from({ length: N }, (_, i) => i % 2 ? 3 : 1), d = u.map((_, i) => i % 2 ? -1 : 3);
  const exact = new Network(
    Float32Array.from(
      [...LABELS, K].sort().flatMap((k) => u.map((x, i) => k < K ? x + (d[i] as number) : x)),
    ),
  );
  const still = async (options: GuidanceOptions) =>
    (await velocities(new Guidance(exact, options), new Float32Array(X.length), LABELS, [1]))[0];
  assertEquals(
    await still({ ...PLAIN, cfg: 3, zeroStar: { init: 0 } }),
    await still({ ...PLAIN, cfg: 3 }),
  );
});

Deno.test("one program follows the schedule over time, and 1 at the noise grows to the weight at the data", async () => {
  await testDevice();
  const times = [0.25, 0, 0.5, 1];
  for (const name of ["linear", "cosine", "power"] as ScheduleName[]) {
    const guidance = new Guidance(model(), { ...PLAIN, cfg: 5, schedule: { name, power: 2 } });
    const got = await velocities(guidance, X, LABELS, times);
    const weights = times.map((t) => weightAt({ w: 5, schedule: name, power: 2 }, t));
    assertEquals([weights[1], weights[3]], [1, 5]);
    for (const [i, t] of times.entries()) {
      const w = weights[i] as number;
      const expected = LABELS.flatMap((_, k) => {
        const { c, u } = outputsOf(k, t);
        return map((c, u) => u + w * (c - u), c, u);
      });
      assert(relativeError(got[i] as Float32Array, expected) < 1e-6, `${name} at ${t}`);
    }
  }
});

Deno.test("the momentum of projected guidance advances once a step, with its first velocity, and starts anew with the next image", async () => {
  await testDevice();
  const apg = { eta: 0, norm: Infinity, momentum: -0.5 };
  const guidance = new Guidance(model(), { ...PLAIN, cfg: 3, apg });
  const B = LABELS.length, times = [0.2, 0.4]; // two velocities a step, as Heun's method has them
  const inputs = { x: input([B, S, S, C]), y: input([B], "u32") };
  const start = await capture("start", {}, () => (guidance.reset([B, S, S, C]), {})).prepare();
  const program = await capture("step", inputs, ({ x, y }) => {
    const velocity = (t: number) =>
      guidance.velocity(x, constant(new Float32Array(B).fill(t), [B]), y, termsOf(guidance, t));
    const [v0, v1] = times.map(velocity) as [Tensor, Tensor];
    guidance.endStep();
    return { v0, v1 };
  }).prepare();
  const step = async () => {
    program.run({ x: X, y: Uint32Array.from(LABELS) });
    return [...await program.read(program.outputs.v0), ...await program.read(program.outputs.v1)];
  };
  start.run();
  const steps = [await step(), await step(), await step()];
  start.run();
  assertEquals(await step(), steps[0], "the next image starts without a mean");
  let means = LABELS.map(() => Array<number>(N).fill(0));
  for (const got of steps) {
    const differences = times.map((t) =>
      LABELS.map((_, i) => {
        const { c, u } = outputsOf(i, t);
        return { c, d: map((c, u, r) => c - u - 0.5 * r, c, u, means[i] as number[]) };
      })
    );
    const expected = differences.flat().flatMap(({ c, d }) => {
      const k = dot(d, c) / dot(c, c);
      return map((c, d) => c + 2 * (d - k * c), c, d);
    });
    means = (differences[0] as { d: number[] }[]).map(({ d }) => d);
    assert(relativeError(got, expected) < 2e-6);
  }
  assert(relativeError(steps[1] as number[], steps[0] as number[]) > 0.05, "the mean does something");
  for (const p of [start, program]) p.destroy();
  guidance.destroy();
});

Deno.test("a step evaluates only the networks that its guidance needs", async () => {
  await testDevice();
  const interval = { cfgInterval: [0.2, 0.8] as const };
  const internal = { weight: 1.4, interval: [0, 0.5] as const };
  const cases: [
    Partial<GuidanceOptions> & { weight?: number },
    time: number,
    own: number,
    ofGuide: number,
  ][] = [
    [{}, 0.5, 1, 0],
    [{ cfg: 3 }, 0.5, 2, 0],
    [{ cfg: 3 }, 0.1, 1, 0],
    [{ cfg: 3, apg: { eta: 0, norm: 1, momentum: 0.5 }, rescale: 0.5 }, 0.5, 2, 0],
    [{ cfg: 3, schedule: { name: "linear", power: 0 }, cfgInterval: ALL }, 0, 1, 0],
    [{ weight: 1.6 }, 0.5, 1, 1],
    [{ weight: 1.6 }, 0.9, 1, 0],
    [{ weight: 1 }, 0.5, 1, 0],
    [{ cfg: 3, weight: 1.6 }, 0.5, 2, 1],
    [{ internal }, 0.1, 1, 0],
    [{ internal, cfg: 3, weight: 1.6 }, 0.6, 2, 1],
  ];
  for (const [{ weight, ...options }, time, own, guidePasses] of cases) {
    const network = model(), other = guide();
    const guidance = new Guidance(network, {
      ...PLAIN,
      ...interval,
      ...options,
      ...weight === undefined ? {} : { guide: { model: other, weight } },
    });
    await velocities(guidance, X, LABELS, [time]);
    const name = JSON.stringify([options, time]);
    assertEquals([network.rows / LABELS.length, other.rows / LABELS.length], [own, guidePasses], name);
    assertEquals(passes(termsOf(guidance, time)), own + guidePasses, name);
  }
});

/** The latents of three images, after two steps of Euler's method. */
async function sampled(options: Partial<GuidanceOptions>, batchSize: number, network: Denoiser = model()) {
  const sampler = await new Sampler(network, {
    ...{ ...PLAIN, ...options, batchSize },
    ...{ steps: 2, sampler: "euler", shift: 1, seed: 3 },
  }).prepare();
  const latents: number[] = [];
  for (let first = 0; first < 3; first += batchSize) {
    const labels = Uint32Array.from({ length: batchSize }, (_, i) => (first + i) % K);
    latents.push(...await readTensor(await sampler.run(labels, first)));
  }
  const evaluations = sampler.evaluations[0];
  sampler.destroy();
  return { latents, evaluations };
}

Deno.test("guided samples have the same bits in batches of 1 and 3", async () => {
  await testDevice();
  const cases: [options: Partial<GuidanceOptions>, evaluations: number][] = [
    [{
      cfg: 3,
      rescale: 0.5,
      apg: { eta: 0, norm: 2, momentum: -0.5 },
      guide: { model: guide(), weight: 1.5 },
      internal: { weight: 1.4, interval: ALL },
    }, 6],
    [{ cfg: 3, zeroStar: { init: 0 }, schedule: { name: "cosine", power: 0 } }, 3], // the weight is 1 in the first step
  ];
  for (const [options, evaluations] of cases) {
    const three = await sampled(options, 3);
    assertEquals(three, await sampled(options, 1));
    assertEquals(three.evaluations, evaluations);
  }
});

Deno.test("--zero-init leaves the noise as it is for a share of the steps, but never in the last one", async () => {
  await testDevice();
  const zero = (init: number) => ({ cfg: 3, zeroStar: { init } });
  const zeroed = (steps: number, init: number) => {
    const options = { ...PLAIN, ...zero(init), sampler: "euler", steps, shift: 1 } as const;
    return planOf(model().config, options).filter(({ terms, evaluations }) => {
      assertEquals(evaluations, terms.zeroed ? 0 : 2);
      return terms.zeroed;
    }).length;
  };
  assertEquals([10, 20, 25, 50, 250].map((n) => zeroed(n, 0.04)), [1, 1, 1, 2, 10]);
  assertEquals([1, 2, 4].map((n) => zeroed(n, 0.99)), [0, 1, 3]);
  // Half of the steps: one guided step from the noise.
  const network = model(), { latents, evaluations } = await sampled(zero(0.5), 3, network);
  assertEquals([network.rows, evaluations], [2 * 3, 2]);
  const expected = LABELS.flatMap((_, i) => {
    const m = model(), x = normal(3, 0, N, 0, i);
    const c = m.at(m.table, x, 0.5, i), u = m.at(m.table, x, 0.5, K), s = dot(c, u) / dot(u, u);
    return map((x, c, u) => x + 0.5 * (s * u + 3 * (c - s * u)), [...x], c, u);
  });
  assert(relativeError(latents, expected) < 2e-6);
});
