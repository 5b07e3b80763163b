// The engine: dead launches, memory reuse, elided copies, errors, and that a step creates nothing.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { grad, noGrad, recompute, store } from "../../src/tensor/autograd.ts";
import { GpuError } from "../../src/errors.ts";
import { launch } from "../../src/gpu/bind.ts";
import { device, openDevice } from "../../src/gpu/device.ts";
import { kernel } from "../../src/gpu/kernel.ts";
import { addInPlace, copy } from "../../src/gpu/memory.ts";
import { capture } from "../../src/gpu/program.ts";
import { Storage } from "../../src/gpu/storage.ts";
import { Linear, parameters } from "../../src/nn/layers.ts";
import { ParameterSet } from "../../src/nn/parameter_set.ts";
import { add, mul, scale, shift, silu, square } from "../../src/ops/math.ts";
import { linear, matmul } from "../../src/ops/matmul.ts";
import { mean, sum } from "../../src/ops/reduce.ts";
import { empty, input, readTensor, type Tensor, variable } from "../../src/tensor/tensor.ts";
import { Optimizer } from "../../src/train/optimizer.ts";
import { evaluate, PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";
import { testInOwnProcess } from "../helpers/own_process.ts";

Deno.test("launches with unused results are removed", async () => {
  await testDevice();
  const program = capture("t", { x: input([8, 8]) }, ({ x }) => {
    matmul(x, x);
    return { y: matmul(x, x, { transposeB: true }) };
  });
  assertEquals(program.plan.recorded, 2);
  assertEquals(program.plan.launches.length, 1);
});

Deno.test("intermediates with disjoint lifetimes share memory", async () => {
  await testDevice();
  const bytes = 4 * 64 * 64;
  const chain = capture("t", { x: input([64, 64]) }, ({ x }) => {
    let y = x;
    for (let i = 0; i < 10; i++) y = matmul(y, x);
    return { y: sum(y) };
  });
  const pool = chain.plan.slots.reduce((a, b) => a + b, 0);
  assert(pool <= 2 * bytes + 4096, `${pool} bytes`);
});

Deno.test("a gradient is computed in its final place: the copy is elided", async () => {
  await testDevice();
  const layer = new Linear(8, 4);
  const set = new ParameterSet("t", layer);
  const program = await capture("t", { x: input([16, 8]) }, ({ x }) => {
    const list = set.list;
    const gradients = grad(sum(square(layer.forward(x))), list);
    store(gradients, list.map((p) => set.gradients().of.get(p) as Tensor));
    return {};
  }).prepare();
  assertEquals(program.plan.launches.filter((l) => l.kernel.entry === "copy").length, 0);
  layer.weight.storage.write(randomArray(32, 1));
  layer.bias?.storage.write(randomArray(4, 2));
  const x = randomArray(128, 3);
  program.run({ x });
  const got = await readTensor(set.gradients().of.get(layer.weight) as Tensor);
  const w = randomArray(32, 1), b = randomArray(4, 2);
  const expected = new Float64Array(32);
  for (let r = 0; r < 16; r++) {
    for (let o = 0; o < 4; o++) {
      let y = b[o] as number;
      for (let k = 0; k < 8; k++) y += (x[r * 8 + k] as number) * (w[o * 8 + k] as number);
      for (let k = 0; k < 8; k++) {
        expected[o * 8 + k] = (expected[o * 8 + k] as number) + 2 * y * (x[r * 8 + k] as number);
      }
    }
  }
  assert(relativeError(got, expected) < 1e-5);
  program.destroy();
});

Deno.test("a copy is kept if a launch would otherwise read and write one buffer", async () => {
  await testDevice();
  const n = 64, flat = variable([2 * n]); // parts of 256 bytes
  const parts = [0, 1].map((i) => {
    const storage = new Storage(4 * n, { persistent: true, label: `part ${i}` });
    storage.place(flat.storage, 4 * n * i);
    return storage;
  }) as [Storage, Storage];
  device().fusing = false;
  try {
    const program = await capture("t", { x: input([n]) }, ({ x }) => {
      const u = scale(x, 2), v = shift(u, 1); // the launch of v reads what is copied into the first part
      copy(u, { storage: parts[0] });
      copy(v, { storage: parts[1] });
      return {};
    }).prepare();
    assertEquals(program.plan.launches.filter((l) => l.kernel.entry === "copy").length, 1);
    const x = randomArray(n, 1);
    program.run({ x });
    assertEquals([...await readTensor(flat)], [...x.map((v) => 2 * v), ...x.map((v) => 2 * v + 1)]);
    program.destroy();
  } finally {
    device().fusing = true;
  }
});

testInOwnProcess(import.meta.url)(
  "a training step creates no buffer, bind group or pipeline after it is prepared, and memory stays flat over 1,000 steps",
  async () => {
    await testDevice();
    const layers = [new Linear(16, 32), new Linear(32, 16)] as const;
    const set = new ParameterSet("t", layers);
    const optimizer = new Optimizer("t", [{ set, ema: true }]);
    const program = await capture("t", { x: input([32, 16]) }, ({ x }) => {
      const loss = mean(square(layers[1].forward(silu(layers[0].forward(x)))));
      optimizer.minimise(loss);
      return { loss };
    }).prepare();
    const x = randomArray(512, 1);
    const step = () => {
      optimizer.set({ lr: 1e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, clip: 1, emaDecay: 0.9 });
      program.run({ x });
    };
    for (let i = 0; i < 200; i++) step();
    await program.read(program.outputs.loss);
    const before = { ...device().counters }, rss = Deno.memoryUsage().rss;
    for (let i = 0; i < 1000; i++) {
      step();
      if (i % 50 === 49) await device().gpu.queue.onSubmittedWorkDone();
    }
    const after = device().counters;
    assertEquals([after.buffers, after.bindGroups, after.pipelines], [
      before.buffers,
      before.bindGroups,
      before.pipelines,
    ]);
    assertEquals(after.submits - before.submits, 1000);
    const grown = (Deno.memoryUsage().rss - rss) / 2 ** 20;
    assert(grown < 32, `RSS grew by ${grown.toFixed(1)} MiB`);
    program.destroy();
  },
);

Deno.test("recompute() gives the gradients of the plain pass with less memory", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const shape = [64, 64],
      w = { shape, data: randomArray(64 * 64, 1).map((v) => v / 8) },
      x = { shape, data: randomArray(64 * 64, 2) };
    const block = (h: Tensor, weight: Tensor) => silu(matmul(silu(matmul(h, weight)), weight));
    const deep = (again: boolean) => (t: Record<string, Tensor>) => {
      const weight = t.w as Tensor;
      weight.requiresGrad = true;
      let h = t.x as Tensor;
      for (let i = 0; i < 6; i++) {
        h = again ? recompute((y) => block(y, weight), [h], [weight]) : block(h, weight);
      }
      return { d: grad(mean(square(h)), [weight])[0] as Tensor };
    };
    const [plain, again] = [await evaluate({ x, w }, deep(false)), await evaluate({ x, w }, deep(true))];
    assert(relativeError(again.d, plain.d) < 1e-6);
    const bytes = [false, true].map((r) =>
      capture("t", { x: input(shape), w: input(shape) }, deep(r)).plan.bytes.activations
    );
    assert((bytes[1] as number) < 0.75 * (bytes[0] as number), `${bytes}`);
  }
});

Deno.test("ops under noGrad() get no gradient", async () => {
  await testDevice();
  const { d } = await evaluate({ x: { shape: [4], data: randomArray(4, 1) } }, (t) => {
    const x = t.x as Tensor;
    x.requiresGrad = true;
    return { d: grad(sum(mul(x, noGrad(() => square(x)))), [x])[0] as Tensor };
  });
  assert(relativeError(d, randomArray(4, 1).map((v) => v * v)) < 1e-6);
});

Deno.test("an intermediate of another program is refused", async () => {
  await testDevice();
  let stray: Tensor | undefined;
  capture("a", { x: input([4]) }, ({ x }) => ({ y: stray = square(x) }));
  assertThrows(
    () => capture("b", {}, () => ({ y: square(stray as Tensor) })),
    GpuError,
    "before anything in this program wrote it",
  );
});

Deno.test("an op outside a capture is refused", async () => {
  await testDevice();
  assertThrows(() => square(input([4])), GpuError, "capture");
});

const SOURCE = `
struct Params { n: u32 }
var<storage> x: array<f32>;
var<storage> y: array<f32>;
@compute @workgroup_size(64) fn twice(@builtin(global_invocation_id) id: vec3<u32>) { if (id.x < params.n) { store_y(id.x, 2.0 * x(id.x)); } }
`;

Deno.test("a missing or unknown kernel argument throws", async () => {
  await testDevice();
  const call = (buffers: Record<string, Tensor>, params: Record<string, number>) =>
    capture("t", {}, () => (launch(kernel(SOURCE, "twice"), buffers, params, [1]), {}));
  const x = input([4]), y = empty([4]);
  assertThrows(() => call({ x }, { n: 4 }), GpuError, `"y" is missing`);
  assertThrows(() => call({ x, y, z: x }, { n: 4 }), GpuError, `"z"`);
  assertThrows(() => call({ x, y }, {}), GpuError, `"n" is missing`);
  assertThrows(() => call({ x, y }, { n: 4, m: 1 }), GpuError, `"m"`);
  assertThrows(() => call({ x, y }, { n: -1 }), GpuError, "not a u32");
  assertThrows(() => kernel(SOURCE, "thrice"), GpuError, "no such function");
});

Deno.test("a kernel that does not compile is a GpuError with the line of its source", async () => {
  await testDevice();
  const wrong = SOURCE.replace("x(id.x)", "missing[id.x]");
  const program = capture("t", { x: input([4]) }, () => {
    const y = empty([4]);
    launch(kernel(wrong, "twice"), { y }, { n: 4 }, [1]); // its text no longer names x
    return { y };
  });
  const error = await assertRejects(() => program.prepare(), GpuError);
  assert(
    /twice/.test((error as Error).message) && /missing/.test((error as Error).message),
    (error as Error).message,
  );
});

Deno.test("a plan knows its bytes and FLOPs before anything is allocated", async () => {
  await testDevice();
  const before = device().counters.buffers;
  const layer = new Linear(32, 16);
  const set = new ParameterSet("t", layer);
  const { plan } = capture("t", { x: input([8, 32]) }, ({ x }) => ({ y: linear(x, layer.weight) }));
  assertEquals(device().counters.buffers, before);
  assertEquals(plan.flops, 2 * 8 * 16 * 32);
  assertEquals(plan.bytes.inputs, 4 * 8 * 32);
  assertEquals(plan.bytes.parameters, set.flats.reduce((n, f) => n + f.storage.bytes, 0));
  assertEquals([...parameters(layer).keys()], ["weight", "bias"]);
});

Deno.test("a variable is updated in place by every run", async () => {
  await testDevice();
  const total = variable([3]);
  const program = await capture("t", { x: input([3]) }, ({ x }) => {
    addInPlace(add(x, x), total);
    return {};
  }).prepare();
  for (let i = 0; i < 3; i++) program.run({ x: new Float32Array([1, 2, 3]) });
  assertEquals([...await readTensor(total)], [6, 12, 18]);
  program.destroy();
});

Deno.test("a program repeated in one submission equals the same number of runs", async () => {
  const n = 24, first = randomArray(n * n, 3), matrix = randomArray(n * n, 4).map((v) => v / n);
  for (const profile of PROFILES) {
    await testDevice(profile);
    const state = variable([n, n], { init: () => first });
    const program = await capture("t", { w: input([n, n]) }, ({ w }) => {
      copy(matmul(state, w), state); // read as a texture where matmul operands are staged, and written
      return {};
    }).prepare();
    program.run({ w: matrix });
    for (let i = 0; i < 2; i++) program.run();
    const expected = await readTensor(state);
    state.storage.write(first);
    const before = device().counters.submits;
    program.repeat(3);
    assertEquals(device().counters.submits, before + 1);
    assertEquals(await readTensor(state), expected);
    program.destroy();
    state.storage.destroy();
  }
});

Deno.test("a program refuses unknown inputs and inputs of the wrong length", async () => {
  await testDevice();
  const program = await capture("t", { x: input([4]) }, ({ x }) => ({ y: square(x) })).prepare();
  const wild = program as unknown as { run(data: Record<string, Float32Array>): void };
  assertThrows(() => wild.run({ z: new Float32Array(4) }), GpuError, `no input "z"`);
  assertThrows(() => program.run({ x: new Float32Array(5) }), GpuError, "holds 16 bytes, got 20");
  program.destroy();
  assertThrows(() => program.run(), GpuError, "prepare() was not called");
});

Deno.test("two runs of a training program from the same state give the same bits", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const train = async () => {
      const layer = new Linear(16, 24);
      layer.weight.storage.write(randomArray(16 * 24, 1));
      const optimizer = new Optimizer("t", [{ set: new ParameterSet("t", layer), ema: true }]);
      const program = await capture("t", { x: input([37, 16]) }, ({ x }) => {
        const loss = mean(square(silu(layer.forward(x))));
        optimizer.minimise(loss);
        return { loss };
      }).prepare();
      for (let step = 0; step < 5; step++) {
        optimizer.set({
          lr: 1e-2,
          beta1: 0.9,
          beta2: 0.99,
          eps: 1e-8,
          weightDecay: 0,
          clip: 1,
          emaDecay: 0.9,
        });
        program.run({ x: randomArray(37 * 16, step + 2) });
      }
      const bits = [await program.readBytes(program.outputs.loss), await layer.weight.storage.read()];
      program.destroy();
      return bits.map((b) => new Uint32Array(b));
    };
    assertEquals(await train(), await train());
  }
});

/** Runs `fn` on a device of its own, which it may break; the next test opens another. */
async function onOwnDevice(fn: () => Promise<void>): Promise<void> {
  await openDevice();
  try {
    await fn();
  } finally {
    device().destroy();
    await openDevice();
  }
}

Deno.test("prepare() throws a GpuError for a buffer that cannot be bound", async () => {
  await testDevice();
  await onOwnDevice(async () => {
    const x = variable([4]), whole = new Storage(64, { persistent: true });
    x.storage.place(whole, 4); // bindings begin at multiples of 16 bytes at the very least
    const program = capture("t", {}, () => ({ y: square(x) }));
    await assertRejects(() => program.prepare(), GpuError, `Cannot bind the buffers of "t"`);
  });
});

Deno.test("after the device is lost, running, reading and preparing throw a GpuError that says so", async () => {
  await testDevice();
  await onOwnDevice(async () => {
    const make = () => capture("t", { x: input([4]) }, ({ x }) => ({ y: square(x) }));
    const program = await make().prepare();
    program.run({ x: randomArray(4, 1) });
    device().destroy();
    await device().gpu.lost;
    assertThrows(() => program.run(), GpuError, "the device was lost");
    await assertRejects(() => program.read(program.outputs.y), GpuError, "the device was lost");
    await assertRejects(() => make().prepare(), GpuError, "the device was lost");
  });
});
