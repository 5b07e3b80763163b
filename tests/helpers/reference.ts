// Reference implementations of all ops: plain loops over f64 that the kernels are compared with.

/** A row-major array of f64. */
export interface Nd {
  shape: number[];
  data: Float64Array;
}

export const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

/** An array of the given shape, element by element from its multi-index. */
export function build(shape: readonly number[], value: (...index: number[]) => number): Nd {
  const data = new Float64Array(size(shape));
  const index = shape.map(() => 0);
  for (let i = 0; i < data.length; i++) {
    data[i] = value(...index);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index[axis] = (index[axis] as number) + 1;
      if ((index[axis] as number) < (shape[axis] as number)) break;
      index[axis] = 0;
    }
  }
  return { shape: [...shape], data };
}

/** Element at a multi-index; axes of size 1 are broadcast, leading axes may be missing. */
export function at(x: Nd, ...index: number[]): number {
  const own = index.slice(index.length - x.shape.length);
  let offset = 0;
  x.shape.forEach((n, axis) => offset = offset * n + (n === 1 ? 0 : own[axis] as number));
  return x.data[offset] as number;
}

export function broadcast(shapes: readonly (readonly number[])[]): number[] {
  const rank = Math.max(0, ...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, i) => Math.max(...shapes.map((s) => s[s.length - rank + i] ?? 1)));
}

/** f applied elementwise with broadcasting. */
export const elementwise = (f: (...x: number[]) => number) => (...inputs: Nd[]): Nd =>
  build(broadcast(inputs.map((x) => x.shape)), (...index) => f(...inputs.map((x) => at(x, ...index))));

/** `combine` folded over the given axes, from `start`; axes are kept with size 1 when keepDims. */
export function reduce(
  x: Nd,
  axes: readonly number[],
  combine: (a: number, b: number) => number,
  start: number,
  keepDims = false,
): Nd {
  const kept = x.shape.map((n, a) => axes.includes(a) ? 1 : n);
  const y = { shape: kept, data: new Float64Array(size(kept)).fill(start) };
  let i = 0;
  build(x.shape, (...index) => {
    let offset = 0;
    kept.forEach((n, a) => offset = offset * n + (n === 1 ? 0 : index[a] as number));
    y.data[offset] = combine(y.data[offset] as number, x.data[i++] as number);
    return 0;
  });
  return keepDims ? y : { shape: x.shape.filter((_, a) => !axes.includes(a)), data: y.data };
}

/** erf by its Taylor series (|x| < 3) or continued fraction: good to 1e-12. */
export function erf(x: number): number {
  const a = Math.abs(x);
  if (a < 3) {
    let term = a, total = a;
    for (let n = 1; n < 100; n++) {
      term *= -a * a / n;
      total += term / (2 * n + 1);
    }
    return Math.sign(x) * total * 2 / Math.sqrt(Math.PI);
  }
  let f = 0;
  for (let n = 60; n > 0; n--) f = n / 2 / (a + f);
  return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + f));
}
