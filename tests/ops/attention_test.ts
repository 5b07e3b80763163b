// Softmax, cross entropy, attention, rotary positions, embedding and the parts of a DiT block against f64 loops.

import { assert, assertEquals } from "@std/assert";
import { grad } from "../../src/tensor/autograd.ts";
import { capture } from "../../src/gpu/program.ts";
import { attention, chunkedAttention } from "../../src/ops/attention.ts";
import { embedding, timestepEmbedding } from "../../src/ops/embedding.ts";
import { gatedAdd, modulate, swiglu } from "../../src/ops/modulate.ts";
import { rotary, rotaryTables2d, rotaryTablesCentred } from "../../src/ops/rotary.ts";
import { crossEntropy, softmax } from "../../src/ops/softmax.ts";
import { reshape } from "../../src/ops/layout.ts";
import { constant, input, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp, evaluate, PROFILES, randomArray, relativeError, testDevice } from "../helpers/check.ts";
import { at, build, elementwise, type Nd } from "../helpers/reference.ts";

Deno.test("softmax() and its gradient match the reference", async () => {
  await checkOp({
    op: softmax,
    reference: (x) =>
      build(x.shape, (...index) => {
        const row = index.slice(0, -1);
        let sum = 0;
        for (let c = 0; c < (x.shape.at(-1) as number); c++) sum += Math.exp(at(x, ...row, c));
        return Math.exp(at(x, ...index)) / sum;
      }),
    shapes: [[[3, 1]], [[5, 7]], [[2, 3, 64]], [[3, 260]]],
  });
});

Deno.test("softmax() of huge logits is finite and sums to one", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const { y } = await evaluate(
      { x: { shape: [2, 4], data: new Float32Array([1e30, -1e30, 0, 1, 3e4, 3e4, -3e4, 0]) } },
      ({ x }) => ({ y: softmax(x as Tensor) }),
    );
    assert(relativeError(y, [1, 0, 0, 0, 0.5, 0.5, 0, 0]) < 1e-6);
  }
});

Deno.test("crossEntropy() and its gradient match the reference", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const [R, K] = [37, 10], data = randomArray(R * K, 2);
    const labels = Uint32Array.from({ length: R }, (_, r) => (r * 7) % K);
    const { loss, dx } = await evaluate(
      { x: { shape: [R, K], data }, labels: { shape: [R], data: labels } },
      (t) => {
        const x = t.x as Tensor;
        x.requiresGrad = true;
        const loss = crossEntropy(x, t.labels as Tensor);
        return { loss, dx: grad(loss, [x])[0] as Tensor };
      },
    );
    let expected = 0;
    const gradient = new Float64Array(R * K);
    for (let r = 0; r < R; r++) {
      const row = data.subarray(r * K, (r + 1) * K), sum = row.reduce((s, v) => s + Math.exp(v), 0);
      expected += (Math.log(sum) - (row[labels[r] as number] as number)) / R;
      row.forEach((v, k) => gradient[r * K + k] = (Math.exp(v) / sum - (k === labels[r] ? 1 : 0)) / R);
    }
    assert(relativeError(loss, [expected]) < 2e-6);
    assert(relativeError(dx, gradient) < 1e-5);
  }
});

function attentionReference(q: Nd, k: Nd, v: Nd): Nd {
  const [B, T, NH, HS] = q.shape as [number, number, number, number], S = k.shape[1] as number;
  const y = build([B, T, NH * HS], () => 0);
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < NH; h++) {
      for (let i = 0; i < T; i++) {
        const p = Array.from({ length: S }, (_, j) => {
          let s = 0;
          for (let d = 0; d < HS; d++) s += at(q, b, i, h, d) * at(k, b, j, h, d);
          return Math.exp(s / Math.sqrt(HS));
        });
        const sum = p.reduce((a, c) => a + c, 0);
        for (let d = 0; d < HS; d++) {
          y.data[((b * T + i) * NH + h) * HS + d] = p.reduce((a, w, j) => a + w / sum * at(v, b, j, h, d), 0);
        }
      }
    }
  }
  return y;
}

Deno.test("attention() and its gradients match the reference", async () => {
  const shape = (...s: number[]) => [s, s, s];
  await checkOp({
    op: attention,
    reference: attentionReference,
    shapes: [shape(1, 1, 1, 4), shape(2, 5, 3, 6), shape(1, 17, 2, 32), shape(1, 70, 1, 16), [[2, 3, 1, 8], [
      2,
      9,
      1,
      8,
    ], [2, 9, 1, 8]]],
    wrong: [[[1, 2, 1, 4], [1, 2, 1, 8], [1, 2, 1, 8]], [[1, 2, 4], [1, 2, 4], [1, 2, 4]]],
    accumulates: true,
  });
});

Deno.test("attention() to many keys, which does not store the weights, matches the reference", async () => {
  await checkOp({
    op: attention,
    reference: attentionReference,
    shapes: [[3, 2, 8], [70, 1, 4], [5, 1, 6]].map(([T, NH, HS]) =>
      [T, 520, 520].map((n) => [1, n, NH, HS]) as number[][]
    ),
    accumulates: true,
  });
});

Deno.test("chunkedAttention() matches the reference in chunks of a part of an image, one image and several images", async () => {
  // Blocks of 16 and of 32 queries, of two images, and all at once.
  for (const bytes of [1, 4 * 2 * 33 * 52, 4 * 2 * 2 * 50 * 52, 4 * 3 * 2 * 50 * 52]) {
    await checkOp({
      op: (q, k, v) => chunkedAttention(q as Tensor, k as Tensor, v as Tensor, bytes),
      reference: attentionReference,
      shapes: [[[3, 50, 2, 4], [3, 50, 2, 4], [3, 50, 2, 4]], [[2, 1, 1, 8], [2, 21, 1, 8], [2, 21, 1, 8]]],
      accumulates: true,
    });
  }
});

Deno.test("the score matrix of an attention chunk stays within its limit of bytes", async () => {
  await testDevice();
  for (const [B, T, NH] of [[3, 519, 6], [2, 700, 5], [1, 1025, 3], [4, 520, 1]] as const) {
    for (const bytes of [1 << 18, 1 << 20, 3_000_001, 1 << 23]) {
      const { plan } = capture("attention", {}, () => {
        const [q, k, v] = [0, 1, 2].map(() => input([B, T, NH, 8])) as [Tensor, Tensor, Tensor];
        return { y: chunkedAttention(q, k, v, bytes) };
      });
      const weights = plan.launches.filter(({ kernel }) => kernel.entry === "attention_rows")
        .map(({ storages }) => Math.max(...storages.map((s) => s.bytes)));
      assert(weights.every((n) => n <= bytes), `${Math.max(...weights)} of ${bytes}, ${[B, T, NH]}`);
      assert(weights.length <= 2 + 2 * B * T * NH * T * 4 / bytes, `${weights.length} blocks`);
    }
  }
});

Deno.test("attention() to many keys stores no weights for the backward pass", async () => {
  const T = 640, shape = [1, T, 2, 16], weights = 4 * 2 * T * T;
  for (const profile of PROFILES) {
    await testDevice(profile);
    const x = Object.assign(input(shape), { requiresGrad: true });
    const { plan } = capture("attention", { x }, ({ x }) => {
      let y = x as Tensor;
      for (let i = 0; i < 6; i++) y = reshape(attention(y, y, y), shape);
      return { dx: grad(y, [x as Tensor])[0] as Tensor };
    });
    const { activations } = plan.bytes;
    assert(activations < 6 * weights, `${activations} bytes for six of ${weights}`);
  }
});

Deno.test("attention() of wide heads matches the reference", async () => {
  await checkOp({
    op: attention,
    reference: attentionReference,
    shapes: [[[1, 3, 1, 132], [1, 520, 1, 132], [1, 520, 1, 132]], [[2, 5, 1, 132], [2, 5, 1, 132], [
      2,
      5,
      1,
      132,
    ]], [[1, 3, 2, 160], [1, 7, 2, 160], [
      1,
      7,
      2,
      160,
    ]]],
    accumulates: true,
  });
});

Deno.test("attention() stays finite for logits in the thousands", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const data = randomArray(2 * 6 * 8, 4).map((v) => v * 100);
    const { y } = await evaluate(
      { x: { shape: [2, 6, 1, 8], data } },
      ({ x }) => ({ y: attention(x as Tensor, x as Tensor, x as Tensor) }),
    );
    assert(y.every(Number.isFinite));
  }
});

Deno.test("rotary() rotates pairs, and its gradient rotates back", async () => {
  const { cos, sin } = rotaryTables2d(2, 3, 8);
  await checkOp({
    op: (x) => rotary(x, constant(cos, [6, 8]), constant(sin, [6, 8])),
    reference: (x) =>
      build(x.shape, (...[b, t, h, d]) => {
        const [n, token, head, c] = [b, t, h, d] as [number, number, number, number];
        const other = c % 2 === 0 ? -at(x, n, token, head, c + 1) : at(x, n, token, head, c - 1);
        return at(x, n, token, head, c) * (cos[token * 8 + c] as number) +
          other * (sin[token * 8 + c] as number);
      }),
    shapes: [[[1, 6, 1, 8]], [[3, 6, 2, 8]]],
    wrong: [[[1, 5, 1, 8]]],
  });
});

Deno.test("rotary() by half heads rotates channel i with channel i + HS / 2, and its gradient rotates back", async () => {
  const { cos, sin } = rotaryTablesCentred(1, 2, 3, 8);
  await checkOp({
    op: (x) => rotary(x, constant(cos, [7, 8]), constant(sin, [7, 8]), "half"),
    reference: (x) =>
      build(x.shape, (...[b, t, h, d]) => {
        const [n, token, head, c] = [b, t, h, d] as [number, number, number, number];
        const other = c < 4 ? -at(x, n, token, head, c + 4) : at(x, n, token, head, c - 4);
        return at(x, n, token, head, c) * (cos[token * 8 + c] as number) +
          other * (sin[token * 8 + c] as number);
      }),
    shapes: [[[1, 7, 1, 8]], [[5, 7, 3, 8]]],
    wrong: [[[1, 6, 1, 8]], [[1, 7, 1, 6]]],
  });
});

Deno.test("rotaryTablesCentred() leaves the leading tokens alone and spans -1 to 1 along each axis", () => {
  const { cos, sin } = rotaryTablesCentred(1, 2, 4, 8, 100);
  assertEquals([...cos.subarray(0, 8)], Array(8).fill(1));
  assertEquals([...sin.subarray(0, 8)], Array(8).fill(0));
  const t = 1 + 1 * 4 + 3; // row 1 of 2 is at 0.5, column 3 of 4 at 0.75
  const angles = [0.5, 0.05, 0.75, 0.075, 0.5, 0.05, 0.75, 0.075].map((turn) => 2 * Math.PI * turn);
  assert(relativeError(cos.subarray(t * 8, t * 8 + 8), angles.map(Math.cos)) < 1e-6);
  assert(relativeError(sin.subarray(t * 8, t * 8 + 8), angles.map(Math.sin)) < 1e-6);
});

Deno.test("rotaryTables2d() rotates the first half of a head by the row and the second by the column", () => {
  const { cos, sin } = rotaryTables2d(3, 4, 8, 100);
  const t = 2 * 4 + 3; // row 2, column 3
  assert(
    relativeError(cos.subarray(t * 8, t * 8 + 8), [2, 2, 0.2, 0.2, 3, 3, 0.3, 0.3].map(Math.cos)) < 1e-6,
  );
  assert(
    relativeError(sin.subarray(t * 8, t * 8 + 8), [2, 2, 0.2, 0.2, 3, 3, 0.3, 0.3].map(Math.sin)) < 1e-6,
  );
});

Deno.test("embedding() selects rows and accumulates the gradients of equal ids", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const table = randomArray(5 * 3, 1), dy = randomArray(4 * 3, 2);
    const { y, d } = await evaluate(
      {
        table: { shape: [5, 3], data: table },
        ids: { shape: [4], data: new Uint32Array([2, 0, 2, 4]) },
        dy: { shape: [4, 3], data: dy },
      },
      (t) => {
        const w = t.table as Tensor;
        w.requiresGrad = true;
        const y = embedding(w, t.ids as Tensor);
        return { y, d: grad(y, [w], t.dy as Tensor)[0] as Tensor };
      },
    );
    assertEquals([...y], [2, 0, 2, 4].flatMap((r) => [...table.subarray(3 * r, 3 * r + 3)]));
    const expected = [0, 0, 0, 0, 0].flatMap((_, r) =>
      [0, 1, 2].map((c) => [2, 0, 2, 4].reduce((s, id, i) => s + (id === r ? dy[3 * i + c] as number : 0), 0))
    );
    assert(relativeError(d, expected) < 1e-6);
  }
});

Deno.test("timestepEmbedding() is cosines then sines of geometric frequencies", async () => {
  await testDevice();
  const times = [0, 0.25, 1];
  const { y } = await evaluate(
    { t: { shape: [3], data: new Float32Array(times) } },
    ({ t }) => ({ y: timestepEmbedding(t as Tensor, 8) }),
  );
  const f = [0, 1, 2, 3].map((i) => 10000 ** (-i / 4));
  assert(
    relativeError(
      y,
      times.flatMap((t) => [...f.map((w) => Math.cos(t * w)), ...f.map((w) => Math.sin(t * w))]),
    ) < 1e-6,
  );
});

Deno.test("features of times have small relative errors, also where they are small", async () => {
  const times = Float32Array.from({ length: 64 }, (_, i) => i < 32 ? (i + 1) / 32 : 31 * (i - 31)),
    half = 128;
  for (const profile of ["cpu", "gpu"] as const) {
    await testDevice(profile);
    const { y } = await evaluate(
      { t: { shape: [times.length], data: times } },
      ({ t }) => ({ y: timestepEmbedding(t as Tensor, 2 * half) }),
    );
    for (const [b, t] of times.entries()) {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround(t * Math.fround(10000 ** (-i / half)));
        for (const [k, exact] of [Math.cos(angle), Math.sin(angle)].entries()) {
          const value = y[2 * half * b + half * k + i] as number;
          // Relative for small angles; near the zeros of large ones what pi / 2 in three parts leaves.
          const bound = 3e-7 * Math.abs(exact) + (angle < 1 ? 0 : 1e-7 + 2e-10 * angle);
          assert(
            Math.abs(value - exact) <= bound,
            `${["cos", "sin"][k]}(${angle}) is ${value}, not ${exact}`,
          );
        }
      }
    }
  }
});

Deno.test("modulate(), gatedAdd() and their gradients match the reference", async () => {
  // The last in chunks of tokens, in both profiles.
  const shapes: [number, number, number][] = [[2, 5, 8], [1, 3, 6], [1, 600, 12], [2, 513, 3]];
  await checkOp({
    op: modulate,
    reference: (x, m) =>
      build(x.shape, (b, t, c) => {
        const C = x.shape[2] as number;
        return at(x, b, t, c) * (1 + at(m, b, 0, C + (c as number))) + at(m, b, 0, c);
      }),
    shapes: shapes.map(([B, T, C]) => [[B, T, C], [B, 1, 2 * C]]),
    wrong: [[[2, 5, 8], [2, 1, 12]], [[2, 5, 8], [1, 1, 16]], [[2, 5, 8], [2, 4, 16]]],
  });
  // Of each token, and scale alone.
  await checkOp({
    op: modulate,
    reference: (x, m) =>
      build(x.shape, (b, t, c) => {
        const [, T, channels] = m.shape as [number, number, number], C = x.shape[2] as number;
        const value = (c: number) => at(m, b, T === 1 ? 0 : t, c);
        const i = c as number;
        return channels === C
          ? at(x, b, t, i) * (1 + value(i))
          : at(x, b, t, i) * (1 + value(C + i)) + value(i);
      }),
    shapes: [[[2, 5, 8], [2, 5, 16]], [[1, 70, 6], [1, 70, 12]], [[2, 5, 8], [2, 1, 8]], [[2, 5, 8], [
      2,
      5,
      8,
    ]]],
  });
  await checkOp({
    op: gatedAdd,
    reference: elementwise((x, y, g) => x + (y as number) * (g as number)),
    shapes: shapes.map(([B, T, C]) => [[B, T, C], [B, T, C], [B, 1, C]]),
  });
});

Deno.test("swiglu() and its gradient match the reference", async () => {
  await checkOp({
    op: swiglu,
    reference: (x) => {
      const H = (x.shape.at(-1) as number) / 2;
      return build([...x.shape.slice(0, -1), H], (...index) => {
        const row = index.slice(0, -1), c = index.at(-1) as number, a = at(x, ...row, c);
        return a / (1 + Math.exp(-a)) * at(x, ...row, H + c);
      });
    },
    shapes: [[[2, 3, 16]], [[5, 6]], [[70, 24]]],
    wrong: [[[2, 3]]],
  });
});
