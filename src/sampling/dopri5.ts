// Dormand and Prince (1980), RK5(4)7M: order 5 with an embedded estimate of order 4, first same as last, and the step size control
// of Hairer, Norsett and Wanner (Solving Ordinary Differential Equations I, II.4). Every image has its own time and step size, so
// that it does not depend on its batch: control is on the device, an attempt of a step is one program for all images, and the
// host reads 16 bytes per image after it to see who is done. A batch takes as many attempts as its slowest image.

import { UsageError } from "../errors.ts";
import { copy } from "../gpu/memory.ts";
import { capture, type Program } from "../gpu/program.ts";
import { concat, reshape, slice } from "../ops/layout.ts";
import { sqrt } from "../ops/math.ts";
import { pointwise } from "../ops/pointwise.ts";
import { mean } from "../ops/reduce.ts";
import { noGrad } from "../tensor/autograd.ts";
import { type Tensor, variable } from "../tensor/tensor.ts";
import type { Terms } from "./guidance.ts";
import type { Stretch } from "./plan.ts";

/** c, a and the differences of the weights of orders 5 and 4; the last row of a is the step. */
const C = [1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1];
const A = [
  [1 / 5],
  [3 / 40, 9 / 40],
  [44 / 45, -56 / 15, 32 / 9],
  [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
  [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
  [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
];
const E = [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40];

/** Evaluations at the start of a segment (the slope, and one for the first step size), and of an attempt. */
const START_EVALUATIONS = 2, ATTEMPT_EVALUATIONS = 6;
/** Attempts of a segment after which integration is given up. */
const MAX_ATTEMPTS = 1000;

export interface Dopri5Options {
  /** The state [B,S,S,C]. */
  x: Tensor;
  /** Records dx/dt at x [B,S,S,C] and times [B]. */
  velocity(x: Tensor, t: Tensor, terms: Terms): Tensor;
  /** In each of them the velocity is smooth. */
  segments: readonly Stretch[];
  atol: number;
  rtol: number;
  /** Inputs of the programs, which `velocity` reads. */
  inputs: Record<string, Tensor>;
  batches?: number | undefined;
}

type ControlProgram = Program<Record<string, Tensor>, Record<string, Tensor>>;

/** Rows of the control table [4,B]. */
const ROWS = { t: 0, h: 1, error: 2, attempts: 3 };

export class Dopri5 {
  /** Slope at x and t: the last stage of the step before. */
  readonly #slope: Tensor;
  /** {@link ROWS} of each image. */
  readonly #control: Tensor;
  /** End of the segment [1]. */
  readonly #end: Tensor = variable([1], { label: "end of the segment" });
  readonly #programs = new Map<string, { start: ControlProgram; attempt: ControlProgram }>();

  constructor(readonly options: Dopri5Options) {
    this.#slope = variable(options.x.shape, { label: "slope" });
    this.#control = variable([4, options.x.dim(0)], { label: "step control" });
  }

  async prepare(): Promise<void> {
    const { inputs, batches } = this.options;
    const runs = batches === undefined ? {} : { runs: batches * 10 };
    const record = (label: string, key: string, fn: () => void) =>
      capture(key ? `${label} with ${key}` : label, inputs, () => noGrad(() => (fn(), {})), {
        ...runs,
        batchInvariant: true,
      });
    for (const { terms } of this.options.segments) {
      const { key } = terms;
      if (this.#programs.has(key)) continue;
      const start = record("dopri5 start", key, () => this.#recordStart(terms));
      const attempt = record("dopri5 step", key, () => this.#recordAttempt(terms));
      this.#programs.set(key, { start, attempt });
      await start.prepare();
      await attempt.prepare();
    }
  }

  /**
   * Integrates x through all segments. @returns evaluations of the network for each image
   * @param first number of the first image, for errors
   * @param count number of images; the rows after them are padding, which is not integrated
   * @throws UsageError when an image does not reach the end
   */
  async run(first: number, count: number): Promise<number[]> {
    const { segments, x } = this.options, B = x.dim(0);
    const evaluations: number[] = Array(count).fill(0);
    for (const { from, to, terms, evaluations: perVelocity } of segments) {
      const { start, attempt } = this.#programs.get(terms.key) as {
        start: ControlProgram;
        attempt: ControlProgram;
      };
      const end = Math.fround(to);
      this.#end.storage.write(new Float32Array([to]));
      this.#control.storage.write(new Float32Array(4 * B).fill(from, 0, count).fill(to, count, B));
      start.run();
      for (let n = 1;; n++) {
        attempt.run();
        const rows = new Float32Array(await this.#control.storage.read());
        const at = (row: number, i: number) => rows[row * B + i] as number;
        const behind = evaluations.findIndex((_, i) => !(at(ROWS.t, i) >= end));
        if (behind < 0) {
          for (let i = 0; i < count; i++) {
            const evaluated = START_EVALUATIONS + ATTEMPT_EVALUATIONS * at(ROWS.attempts, i);
            evaluations[i] = (evaluations[i] as number) + perVelocity * evaluated;
          }
          break;
        }
        const lost = evaluations.findIndex((_, i) => Number.isNaN(at(ROWS.error, i)));
        if (lost >= 0) {
          throw new UsageError(
            `Cannot generate image ${first + lost}: the error of dopri5 at t = ${at(ROWS.t, lost)} is NaN; ` +
              `use a smaller --cfg or another model`,
          );
        }
        if (n === MAX_ATTEMPTS) {
          throw new UsageError(
            `Cannot generate image ${first + behind}: dopri5 is at t = ${
              at(ROWS.t, behind)
            } after ${n} steps; ` +
              `use a larger --atol or --rtol`,
          );
        }
      }
    }
    return evaluations;
  }

  destroy(): void {
    for (const { start, attempt } of this.#programs.values()) {
      start.destroy();
      attempt.destroy();
    }
    for (const { storage } of [this.#slope, this.#control, this.#end]) storage.destroy();
  }

  /** A row of the control table, [B,1,1,1]. */
  #row(row: number): Tensor {
    return reshape(slice(this.#control, 0, row, row + 1), [-1, 1, 1, 1]);
  }

  #keep(rows: readonly Tensor[]): void {
    copy(concat(rows.map((row) => reshape(row, [1, row.size])), 0), this.#control);
  }

  #velocity(x: Tensor, t: Tensor, terms: Terms): Tensor {
    return this.options.velocity(x, reshape(t, [t.size]), terms);
  }

  /** The root mean square over an image, [B,1,1,1]. */
  #norm(ratio: Tensor): Tensor {
    return sqrt(mean(pointwise(["x0 * x0"], [ratio]), [1, 2, 3], { keepDims: true }));
  }

  /** The slope and the first step size: Hairer, Norsett and Wanner, II.4, "starting step size". */
  #recordStart(terms: Terms): void {
    const { x, atol, rtol } = this.options;
    const t = this.#row(ROWS.t), left = pointwise(["x1 - x0"], [t, this.#end]);
    const slope = this.#velocity(x, t, terms);
    const scaled = "x0 / (s0 + s1 * abs(x1))";
    const d0 = this.#norm(pointwise([scaled], [x, x], [atol, rtol]));
    const d1 = this.#norm(pointwise([scaled], [slope, x], [atol, rtol]));
    const trial = "min(x2, select(0.01 * x0 / x1, T(1e-6), (x0 < T(1e-5)) | (x1 < T(1e-5))))";
    const h0 = pointwise([trial], [d0, d1, left]);
    const moved = this.#velocity(
      pointwise(["x0 + x2 * x1"], [x, slope, h0]),
      pointwise(["x0 + x1"], [t, h0]),
      terms,
    );
    const change = pointwise(["(x0 - x1) / (s0 + s1 * abs(x2))"], [moved, slope, x], [atol, rtol]);
    const d2 = pointwise(["x0 / x1"], [this.#norm(change), h0]);
    const size = [
      "max(x0, x1)",
      "select(pow(0.01 / t0, T(0.2)), max(T(1e-6), 1e-3 * x2), t0 <= T(1e-15))",
      "min(100.0 * x2, t1)",
    ];
    const h = pointwise(size, [d1, d2, h0]);
    copy(slope, this.#slope);
    this.#keep([t, h, this.#row(ROWS.error), this.#row(ROWS.attempts)]);
  }

  /** One attempt of a step. Images that are at the end keep everything. */
  #recordAttempt(terms: Terms): void {
    const { x, atol, rtol } = this.options;
    const t = this.#row(ROWS.t), wanted = this.#row(ROWS.h), end = this.#end;
    const h = pointwise(["min(x0, x2 - x1)"], [wanted, t, end]);
    const velocity = (x: Tensor, t: Tensor) => this.#velocity(x, t, terms);
    const { y, slope: nextSlope, difference } = dormandPrince(velocity, { x, t, h, slope: this.#slope });
    const ratio = pointwise(
      ["x0 / (s0 + s1 * max(abs(x1), abs(x2)))"],
      [difference, x, y],
      [atol, rtol],
    );
    const error = this.#norm(ratio);
    // 1 where the step is taken, and where there was a step to take.
    const active = pointwise(["select(T(0.0), T(1.0), x0 < x1)"], [t, end]);
    const taken = pointwise(["select(T(0.0), x1, x0 <= T(1.0))"], [error, active]);
    const factor = "clamp(0.9 * pow(max(x1, T(1e-10)), T(-0.2)), T(0.2), T(10.0))";
    const rows = [
      // The end is reached exactly.
      pointwise(["select(x0, select(x0 + x1, x2, x1 >= x2 - x0), x3 > T(0.5))"], [t, h, end, taken]),
      pointwise([factor, "select(x0, x2 * t0, x3 > T(0.5))"], [wanted, error, h, active]),
      pointwise(["select(x0, x1, x2 > T(0.5))"], [this.#row(ROWS.error), error, active]),
      pointwise(["x0 + x1"], [this.#row(ROWS.attempts), active]),
    ];
    const chosen = (now: Tensor, then: Tensor) =>
      pointwise(["select(x0, x1, x2 > T(0.5))"], [now, then, taken]);
    const state = chosen(x, y), slope = chosen(this.#slope, nextSlope);
    copy(state, x);
    copy(slope, this.#slope);
    this.#keep(rows);
  }
}

/**
 * Records a step of length `h` of Dormand and Prince's method.
 * @param start.slope velocity at x and t
 * @returns x at t + h by the weights of order 5, its velocity, and its difference from that of order 4
 */
export function dormandPrince(
  velocity: (x: Tensor, t: Tensor) => Tensor,
  { x, t, h, slope }: Record<"x" | "t" | "h" | "slope", Tensor>,
): Record<"y" | "slope" | "difference", Tensor> {
  const k: Tensor[] = [slope];
  let y = x;
  A.forEach((row, stage) => {
    y = combined(k, row, h, x);
    k.push(velocity(y, pointwise(["x0 + s0 * x1"], [t, h], [C[stage] as number])));
  });
  return { y, slope: k[6] as Tensor, difference: combined(k, E, h) };
}

/** x + h (w0 k0 + w1 k1 + ...), without x where there is none. */
function combined(k: readonly Tensor[], weights: readonly number[], h: Tensor, x?: Tensor): Tensor {
  const used = k.map((tensor, i) => ({ tensor, weight: weights[i] ?? 0 })).filter(({ weight }) =>
    weight !== 0
  );
  const sum = used.map((_, i) => `s${i} * x${i + 1}`).join(" + ");
  const inputs = [h, ...used.map(({ tensor }) => tensor), ...x ? [x] : []];
  return pointwise(
    [x ? `x${used.length + 1} + x0 * (${sum})` : `x0 * (${sum})`],
    inputs,
    used.map(({ weight }) => weight),
  );
}
