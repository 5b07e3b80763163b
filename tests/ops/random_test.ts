// The counter-based generator: known answers, host and device agree, and the numbers have the right distribution.

import { assert, assertEquals } from "@std/assert";
import { capture } from "../../src/gpu/program.ts";
import { normal, RandomState, uniform } from "../../src/ops/random.ts";
import * as host from "../../src/philox.ts";
import { PROFILES, relativeError, testDevice } from "../helpers/check.ts";

Deno.test("philox() gives the known answers of Random123", () => {
  assertEquals(host.philox([0, 0, 0, 0], [0, 0]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  const ones = 0xffffffff;
  assertEquals(host.philox([ones, ones, ones, ones], [ones, ones]), [
    0x408f276d,
    0x41c83b0e,
    0xa20bc7c6,
    0x6d5451fd,
  ]);
});

Deno.test("random tensors equal the host's, row by row, for any seed, stream and step", async () => {
  for (const profile of PROFILES) {
    await testDevice(profile);
    const state = new RandomState(0x1234567890);
    const program = await capture("random", {}, () => ({
      u: uniform([3, 7], state, 5),
      n: normal([2, 4, 3], state, 6),
    })).prepare();
    state.set(42, 10);
    program.run();
    const u = await program.read(program.outputs.u), n = await program.read(program.outputs.n);
    for (let row = 0; row < 3; row++) {
      assertEquals(u.subarray(row * 7, row * 7 + 7), host.uniform(0x1234567890, 5, 7, 42, 10 + row));
    }
    for (let row = 0; row < 2; row++) {
      assert(
        relativeError(n.subarray(row * 12, row * 12 + 12), host.normal(0x1234567890, 6, 12, 42, 10 + row)) <
          2e-6,
      );
    }
    program.destroy();
  }
});

Deno.test("uniform and normal numbers have the moments of their distributions", () => {
  const count = 100_000;
  const u = host.uniform(1, 2, count), n = host.normal(1, 3, count);
  const moment = (x: Float32Array, k: number) => x.reduce((s, v) => s + v ** k, 0) / count;
  assert(Math.abs(moment(u, 1) - 1 / 2) < 0.004 && Math.abs(moment(u, 2) - 1 / 3) < 0.004);
  assert(
    Math.abs(moment(n, 1)) < 0.013 && Math.abs(moment(n, 2) - 1) < 0.02 && Math.abs(moment(n, 4) - 3) < 0.15,
  );
  assert(u.every((v) => v > 0 && v < 1) && n.every(Number.isFinite));
});

Deno.test("permutation() has every number once, in another order for another stream", () => {
  const a = host.permutation(7, 1, 100), b = host.permutation(7, 2, 100);
  assertEquals([...a].sort((x, y) => x - y), Array.from({ length: 100 }, (_, i) => i));
  assertEquals(a, host.permutation(7, 1, 100));
  assert(a.some((v, i) => v !== b[i]));
});
