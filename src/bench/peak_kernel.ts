// Peak arithmetic throughput as an op: multiply-adds in registers, in as many independent chains as an adapter can overlap.
// Not differentiable.

import { PEAK_DEPTH, PEAK_WORKGROUP, peakWgsl } from "../../kernels/peak.ts";
import { launch } from "../gpu/bind.ts";
import { kernel } from "../gpu/kernel.ts";
import { check, empty, type Tensor } from "../tensor/tensor.ts";

/** The sum of `chains` independent chains of `16 rounds` multiply-adds for each element of x [n], n a multiple of 256. */
export function multiplyAdds(x: Tensor, chains: number, rounds: number): Tensor {
  const perGroup = 4 * PEAK_WORKGROUP;
  check(x.rank === 1 && x.size % perGroup === 0, "measure", `x must be [n], n a multiple of ${perGroup}`, x);
  const y = empty(x.shape);
  const params = { rounds, a: 0.999, b: 0.001 };
  launch(kernel(peakWgsl(chains), "multiply_adds"), { x, y }, params, [x.size / perGroup], {
    flops: 2 * x.size * chains * PEAK_DEPTH * rounds,
    iterations: rounds,
  });
  return y;
}
