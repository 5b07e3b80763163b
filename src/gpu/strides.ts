// Strided views: element i of an index space is at offset + sum of index_d * stride_d of an array, where (index_0, index_1, ...)
// is the multi-index of i over the axes, outermost first. Broadcasts have strides of 0, flips negative ones, and a padded
// axis has bounds outside which elements are zero.

/** Size and stride in elements; where the axis is padded, the part lo..hi-1 that has data. */
export type Axis = readonly [n: number, stride: number, lo?: number, hi?: number];

export interface View {
  readonly axes: readonly Axis[];
  readonly offset: number;
}

/** The view without axes of size one and with adjacent axes coalesced where they are one. */
export function view(axes: readonly Axis[], offset = 0): View {
  const coalesced: Axis[] = [];
  for (const [n, stride, lo = 0, hi = n] of axes) {
    if (n === 1) continue;
    const padded = lo > 0 || hi < n, outer = coalesced.at(-1);
    if (outer && outer[1] === n * stride && !padded) {
      const [m, , outerLo = 0, outerHi = m] = outer;
      coalesced.pop();
      coalesced.push(outer.length === 2 ? [m * n, stride] : [m * n, stride, outerLo * n, outerHi * n]);
    } else coalesced.push(padded ? [n, stride, lo, hi] : [n, stride]);
  }
  return { axes: coalesced, offset };
}

/** All `count` elements in order. */
export const contiguous = (count: number): View => view([[count, 1]]);

/** Strides of a contiguous array of `shape`, in elements. */
export function stridesOf(shape: readonly number[]): number[] {
  const strides: number[] = [];
  shape.reduceRight((step, n, a) => step * (strides[a] = step, n), 1);
  return strides;
}

/** A contiguous array of shape `from` broadcast to `shape` by NumPy's rule. */
export function broadcast(from: readonly number[], shape: readonly number[]): View {
  const strides = stridesOf(from), leading = shape.length - from.length;
  return view(shape.map((n, a) => [n, (from[a - leading] ?? 1) === 1 ? 0 : strides[a - leading] as number]));
}

/** Number of elements of the index space. */
export const countOf = ({ axes }: View): number => axes.reduce((count, [n]) => count * n, 1);

export function isContiguous({ axes, offset }: View, count: number): boolean {
  return offset === 0 &&
    (axes.length === 0
      ? count === 1
      : axes.length === 1 && axes[0]?.[0] === count && axes[0][1] === 1 && axes[0].length === 2);
}

/** One element for the whole index space. */
export const isConstant = ({ axes }: View): boolean =>
  axes.every((axis) => axis[1] === 0 && axis.length === 2);

/** Whether it has neither padding nor negative strides. Only such views are composed. */
export const isPlain = ({ axes }: View): boolean => axes.every((axis) => axis[1] >= 0 && axis.length === 2);

/** An array viewed through `inner` (over `count` elements), then `outer`, both plain; undefined if no strided view. */
export function compose(outer: View, inner: View, count: number): View | undefined {
  if (isContiguous(inner, count)) return outer;
  if (isConstant(inner)) return view(outer.axes.map(([n]) => [n, 0]), inner.offset);
  // The multi-index over the axes of `inner`: size, elements of the index space per step, stride, and the largest index.
  const index: { n: number; weight: number; stride: number; max: number }[] = [];
  let weight = 1;
  for (const [n, stride] of [...inner.axes].reverse()) {
    index.unshift({ n, weight, stride, max: 0 });
    weight *= n;
  }
  let offset = inner.offset, rest = outer.offset;
  for (const d of index) {
    d.max = Math.floor(rest / d.weight);
    rest -= d.max * d.weight;
    offset += d.max * d.stride;
  }
  // The axes that n steps of `step` elements become: one where they stay inside an axis of `inner`, else several.
  const follow = (n: number, step: number): Axis[] | undefined => {
    if (step === 0 || n === 1) return [[n, 0]];
    const d = index.find(({ weight }) => weight <= step);
    if (!d || step % d.weight) return undefined;
    const k = step / d.weight;
    if ((n - 1) * k < d.n) {
      d.max += (n - 1) * k;
      return d.max < d.n ? [[n, k * d.stride]] : undefined;
    }
    if (d.n % k || n % (d.n / k)) return undefined;
    const low = d.n / k;
    const high = follow(n / low, step * low);
    d.max += (low - 1) * k;
    return high && d.max < d.n ? [...high, [low, k * d.stride]] : undefined;
  };
  const axes: Axis[] = [];
  for (const [n, step] of outer.axes) {
    const found = follow(n, step);
    if (!found) return undefined;
    axes.push(...found);
  }
  return view(axes, offset);
}
