// L-BFGS (Liu and Nocedal 1989) in f64: the two-loop recursion over the latest steps and a line search for the strong Wolfe
// conditions (Nocedal and Wright 2006, algorithms 3.5 and 3.6). Deterministic.

import { NotFiniteError } from "../errors.ts";

/** A smooth function of x: returns its value and writes its gradient. */
export type Objective = (x: Float64Array, gradient: Float64Array) => number | Promise<number>;

export interface MinimiseOptions {
  /** Converged once the gradient's norm is at most this share of that at the start. */
  tolerance: number;
  maxIterations: number;
  /** Number of steps that approximate the Hessian [10]. */
  history?: number;
  /** Called after each iteration, with the gradient's norm as a share of that at the start. */
  onIteration?(iterations: number, gradient: number): void;
}

export interface Minimum {
  x: Float64Array;
  value: number;
  /** Norm of the gradient at `x`, relative to that at the start. */
  gradient: number;
  iterations: number;
  /** Calls of the objective. */
  evaluations: number;
  /** Whether the tolerance is reached. Otherwise the iterations were too few, or rounding allows no further decrease. */
  converged: boolean;
}

/** A point on the line x + step * direction. */
interface Point {
  step: number;
  x: Float64Array;
  gradient: Float64Array;
  value: number;
  /** Derivative along the direction. */
  slope: number;
}

/**
 * Minimises a function from `start`, which is not changed. Points where it is not finite are never accepted.
 * @throws NotFiniteError if its value or its gradient is not finite at the start
 */
export async function minimise(
  objective: Objective,
  start: Float64Array,
  options: MinimiseOptions,
): Promise<Minimum> {
  const { tolerance, maxIterations, history = 10 } = options, n = start.length;
  let evaluations = 0, iterations = 0;
  const evaluate = async (x: Float64Array): Promise<Omit<Point, "step" | "slope">> => {
    evaluations++;
    const gradient = new Float64Array(n);
    return { x, gradient, value: await objective(x, gradient) };
  };
  let at = await evaluate(start.slice());
  const first = norm(at.gradient), latest: Update[] = [];
  if (!Number.isFinite(at.value) || !Number.isFinite(first)) {
    throw new NotFiniteError(
      `Cannot minimise: at the start the value is ${at.value} and the norm of the gradient ${first}`,
    );
  }
  const small = () => norm(at.gradient) <= tolerance * first;
  let converged = small();
  for (; !converged && iterations < maxIterations; iterations++) {
    const from = at, direction = descent(from.gradient, latest);
    const along = async (step: number): Promise<Point> => {
      const next = await evaluate(from.x.map((v, i) => v + step * (direction[i] as number)));
      return { ...next, step, slope: dot(next.gradient, direction) };
    };
    const initial = { ...from, step: 0, slope: dot(from.gradient, direction) };
    const next = await wolfePoint(initial, along, latest.length ? 1 : 1 / first);
    if (!next) break;
    const s = next.x.map((v, i) => v - (from.x[i] as number));
    const y = next.gradient.map((v, i) => v - (from.gradient[i] as number)), curvature = dot(s, y);
    if (curvature > 1e-14 * norm(s) * norm(y)) { // else the Hessian's approximation is kept
      if (latest.length === history) latest.shift();
      latest.push({ s, y, curvature });
    }
    at = next;
    converged = small();
    options.onIteration?.(iterations + 1, norm(at.gradient) / first);
  }
  const { x, value, gradient } = at;
  return { x, value, gradient: first > 0 ? norm(gradient) / first : 0, iterations, evaluations, converged };
}

/** A step, the change of the gradient over it, and their product. */
interface Update {
  s: Float64Array;
  y: Float64Array;
  curvature: number;
}

/** -H g with the approximate inverse Hessian H of the latest steps, oldest first. */
function descent(gradient: Float64Array, latest: readonly Update[]): Float64Array {
  const q = gradient.map((v) => -v), weights: number[] = [];
  for (const { s, y, curvature } of latest.toReversed()) {
    const weight = dot(s, q) / curvature;
    weights.push(weight);
    addScaled(q, -weight, y);
  }
  const newest = latest.at(-1);
  if (newest) {
    const scale = newest.curvature / dot(newest.y, newest.y);
    q.forEach((v, i) => q[i] = scale * v);
  }
  for (const { s, y, curvature } of latest) {
    addScaled(q, (weights.pop() as number) - dot(y, q) / curvature, s);
  }
  return q;
}

/** Sufficient decrease and curvature of the strong Wolfe conditions. */
const DECREASE = 1e-4, CURVATURE = 0.9;
/** Maximum of evaluations on a line. */
const MAX_POINTS = 30;

/** A point that fulfils the strong Wolfe conditions; undefined if rounding hides the decrease. @param step that is tried first */
async function wolfePoint(
  start: Point,
  along: (step: number) => Promise<Point>,
  step: number,
): Promise<Point | undefined> {
  if (!(start.slope < 0)) return undefined;
  const slack = 4 * Number.EPSILON * Math.abs(start.value); // values differ by rounding near the minimum
  const decreases = (p: Point) => p.value <= start.value + DECREASE * p.step * start.slope + slack;
  const flat = (p: Point) => Math.abs(p.slope) <= -CURVATURE * start.slope;
  /** The ends of an interval that holds such a point: `low` has the smaller value and its slope points to `high`. */
  let low = start, high: Point | undefined;
  for (let points = 0; points < MAX_POINTS; points++) {
    const p = await along(step), finite = Number.isFinite(p.value) && Number.isFinite(p.slope);
    if (!finite || !decreases(p) || p.value > low.value + slack) high = p;
    else if (flat(p)) return p;
    else {
      if (p.slope * ((high?.step ?? Infinity) - low.step) >= 0) high = low;
      low = p;
    }
    step = high ? between(low, high) : 2 * low.step;
  }
  return undefined;
}

/** The minimum of the cubic through two points with their slopes (equation 3.59), kept off the ends of the interval. */
function between(a: Point, b: Point): number {
  const width = b.step - a.step, middle = a.step + width / 2;
  const d1 = a.slope + b.slope - 3 * (b.value - a.value) / width;
  const root = Math.sqrt(d1 * d1 - a.slope * b.slope), d2 = Math.sign(width) * root;
  const step = b.step - width * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2);
  const share = (step - a.step) / width;
  return share > 0.1 && share < 0.9 ? step : middle; // also where a value, a slope or the root is not finite
}

export function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

const norm = (a: Float64Array) => Math.sqrt(dot(a, a));

function addScaled(y: Float64Array, scale: number, x: Float64Array): void {
  for (let i = 0; i < y.length; i++) y[i] = (y[i] as number) + scale * (x[i] as number);
}
