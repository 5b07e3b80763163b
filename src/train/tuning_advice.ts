// Says once in a run that tuning may help: when steps on a software adapter without measured GEMM tiles stay far below its
// multiply-adds. The rate comes from steps that run anyway; the multiply-adds are measured in 0.1 s, at most once in a run.

import { adapterKey, rememberedTiles, tilesFile } from "../bench/gemm_tuning.ts";
import { measureMultiplyAdds } from "../bench/peak.ts";
import { device } from "../gpu/device.ts";
import type { LogRow } from "./loop.ts";
import type { Recipe } from "./recipe.ts";

/** Share of the multiply-adds below which a step is slow: with suitable tiles, steps reach 7 to 18 % on llvmpipe. */
const SLOW = 0.025;
/** FLOPs of a step below which launches, not GEMMs, decide. */
const LARGE = 1e9;
/** Intervals between log rows, of which the fastest counts: validation or another process may slow one. */
const INTERVALS = 3;

/** Told of every log row of a run. */
export class TuningAdvice {
  #left = INTERVALS;
  /** GFLOP/s of the fastest interval. */
  #rate = 0;
  #last: { recipe: unknown; flops: number | undefined; step: number; at: number } | undefined;

  /**
   * @param multiplyAdds measures GFLOP/s in registers
   * @param now milliseconds
   * @param path file of measured tiles
   */
  constructor(
    private readonly warn: (text: string) => void,
    private readonly multiplyAdds: () => Promise<number> = () => measureMultiplyAdds(3, 20, 2),
    private readonly now: () => number = () => performance.now(),
    path: string = tilesFile(),
  ) {
    const { facts, profile } = device();
    const tuned = () => rememberedTiles(path, adapterKey(facts, profile), () => {});
    if (!facts.software || profile !== "cpu" || tuned()) this.#left = 0;
  }

  /** @param row logged when all steps before it were done */
  async row(recipe: Pick<Recipe, "plan">, { step, data_wait = 0 }: LogRow): Promise<void> {
    if (this.#left === 0) return;
    const last = this.#last, at = this.now();
    // A plan may capture the step again, for seconds: once for a recipe, and between intervals.
    const flops = last?.recipe === recipe ? last.flops ?? recipe.plan().flops : undefined;
    this.#last = { recipe, flops, step, at: this.now() };
    if (!last || flops === undefined) return;
    if (flops < LARGE) {
      this.#left = 0;
      return;
    }
    const seconds = (at - last.at) / 1e3 * (1 - data_wait);
    this.#rate = Math.max(this.#rate, flops * (step - last.step) / Math.max(1e-3, seconds) / 1e9);
    if (--this.#left > 0) return;
    const peak = await this.multiplyAdds().catch(() => undefined); // advice ends no run
    if (peak === undefined || this.#rate >= SLOW * peak) return;
    this.warn(
      `steps run at ${this.#rate.toFixed(1)} GFLOP/s, ${
        (100 * this.#rate / peak).toFixed(1)
      } % of this adapter's multiply-adds; "tok doctor --tune" measures in about 30 s which GEMM tiles are fast on it`,
    );
  }
}
