// The optimizer against f64 loops: clipping, decay, bias correction, averaging, and skipped steps.

import { assert, assertEquals } from "@std/assert";
import { capture } from "../../src/gpu/program.ts";
import { adamw, hyperVariable, packHyper, progressVariable, squaredNorm } from "../../src/ops/adamw.ts";
import { input, readTensor, variable } from "../../src/tensor/tensor.ts";
import { PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";

const N = 1000;
const HYPER = { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1, clip: 5, emaDecay: 0.9 };

async function build(withEma: boolean) {
  const flat = (label: string, init?: Float32Array) =>
    variable([N], { label, ...(init ? { init: () => init } : {}) });
  const start = randomArray(N, 1);
  const set = {
    parameters: flat("p", start),
    gradients: input([N]),
    m: flat("m"),
    v: flat("v"),
    lrFactor: 0.5,
    ...(withEma ? { ema: flat("ema", start) } : {}),
  };
  const hyper = hyperVariable(), progress = progressVariable(false);
  hyper.storage.write(packHyper(HYPER));
  const program = await capture("adamw", { g: set.gradients }, () => {
    adamw([set], hyper, squaredNorm([set.gradients]), progress);
    return { progress };
  }).prepare();
  return { set, progress, program, start };
}

Deno.test("adamw() follows the f64 loop for twenty steps, with clipping, decay and averaging", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const { set, program, start } = await build(true);
    const p = Float64Array.from(start),
      m = new Float64Array(N),
      v = new Float64Array(N),
      ema = Float64Array.from(start);
    for (let t = 1; t <= 20; t++) {
      const g = randomArray(N, 100 + t).map((x) => x * (t % 3 ? 0.01 : 1));
      program.run({ g });
      const norm = Math.sqrt(g.reduce((s, x) => s + x * x, 0)), clip = norm > 5 ? 5 / norm : 1;
      for (let i = 0; i < N; i++) {
        const gi = (g[i] as number) * clip, pi = p[i] as number;
        const mi = m[i] = 0.9 * (m[i] as number) + 0.1 * gi,
          vi = v[i] = 0.95 * (v[i] as number) + 0.05 * gi * gi;
        const ratio = mi / (1 - 0.9 ** t) / (Math.sqrt(vi / (1 - 0.95 ** t)) + 1e-8);
        p[i] = pi - 0.005 * (ratio + 0.1 * pi);
        ema[i] = 0.9 * (ema[i] as number) + 0.1 * (p[i] as number);
      }
    }
    assert(relativeError(await readTensor(set.parameters), p) < 1e-5);
    assert(relativeError(await readTensor(set.ema as typeof set.m), ema) < 1e-5);
    program.destroy();
  }
});

Deno.test("a step with a gradient that is not finite changes nothing and is counted", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    for (const poison of [NaN, Infinity]) {
      const { set, program, progress } = await build(false);
      program.run({ g: randomArray(N, 5) });
      const before = await Promise.all([set.parameters, set.m, set.v].map(readTensor));
      const g = randomArray(N, 6);
      g[777] = poison;
      program.run({ g });
      assertEquals(await Promise.all([set.parameters, set.m, set.v].map(readTensor)), before);
      assertEquals([...await readTensor(progress)], [1, 1, 1, -1]);
      program.destroy();
    }
  }
});
