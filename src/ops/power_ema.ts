// Power-function averages of flat sets of parameters, recorded after their update; see kernels/power_ema.wgsl.

import source from "../../kernels/power_ema.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { check, type Tensor } from "../tensor/tensor.ts";

/**
 * Moves `ema` towards `parameters`: ema = b ema + (1 - b) p with b = (1 - 1/t)^(gamma + 1) (arXiv 2312.02696, eq. 4), unless the
 * step is skipped.
 * @param parameters f32 [n], n a multiple of 4, as is `ema`
 * @param progress of `progressVariable()`: t is its number of applied steps
 * @param norm2 what `adamw()` returned
 */
export function powerEma(
  parameters: Tensor,
  ema: Tensor,
  { gamma, progress, norm2 }: { gamma: number; progress: Tensor; norm2: Tensor },
): void {
  check(
    parameters.size === ema.size && ema.size % 4 === 0,
    "average parameters",
    "both must be [n], n a multiple of 4",
    parameters,
    ema,
  );
  const size = ema.size / 4;
  launch(
    kernel(source, "power_ema"),
    { p: parameters, ema, norm2, progress },
    { size, power: gamma + 1 },
    fold(Math.ceil(size / 256)),
    { flops: 3 * ema.size },
  );
}
