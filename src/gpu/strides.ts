// How elementwise work walks through an array: element i of the index space stands at offset + sum of digit times stride,
// where the digits of i belong to axes, the outermost first. Broadcasts have strides of 0; views have strides and an
// offset of their own; a view of a view is again one where its digits do not run across the axes of the first.

/** Size and stride, in elements. */
export type Axis = readonly [n: number, stride: number];

export interface View {
  readonly axes: readonly Axis[];
  readonly offset: number;
}

/** The walk with axes of one element dropped, and neighbours joined that are one axis. */
export function view(axes: readonly Axis[], offset = 0): View {
  const joined: Axis[] = [];
  for (const [n, stride] of axes) {
    if (n === 1) continue;
    const before = joined.at(-1);
    if (before && before[1] === n * stride) joined[joined.length - 1] = [before[0] * n, stride];
    else joined.push([n, stride]);
  }
  return { axes: joined, offset };
}

/** All `count` elements one after another. */
export const straight = (count: number): View => view([[count, 1]]);

export function isContiguous({ axes, offset }: View, count: number): boolean {
  return offset === 0 &&
    (axes.length === 0 ? count === 1 : axes.length === 1 && axes[0]?.[0] === count && axes[0][1] === 1);
}

/** One element for the whole index space. */
export const isConstant = ({ axes }: View): boolean => axes.every(([, stride]) => stride === 0);

/**
 * Where `outer` leads when what it walks through is itself walked by `inner` (over `count` elements): undefined where that is no walk.
 */
export function compose(outer: View, inner: View, count: number): View | undefined {
  if (isContiguous(inner, count)) return outer;
  if (isConstant(inner)) return view(outer.axes.map(([n]) => [n, 0]), inner.offset);
  // The digits of an element of the middle space: size, weight in its number, stride beyond.
  const digits: { n: number; weight: number; stride: number; most: number }[] = [];
  let weight = 1;
  for (const [n, stride] of [...inner.axes].reverse()) {
    digits.unshift({ n, weight, stride, most: 0 });
    weight *= n;
  }
  let offset = inner.offset, rest = outer.offset;
  for (const d of digits) {
    d.most = Math.floor(rest / d.weight);
    rest -= d.most * d.weight;
    offset += d.most * d.stride;
  }
  const follow = (n: number, step: number): Axis[] | undefined => {
    if (step === 0 || n === 1) return [[n, 0]];
    const d = digits.find(({ weight }) => weight <= step);
    if (!d || step % d.weight) return undefined;
    const k = step / d.weight;
    if ((n - 1) * k < d.n) {
      d.most += (n - 1) * k;
      return d.most < d.n ? [[n, k * d.stride]] : undefined;
    }
    if (d.n % k || n % (d.n / k)) return undefined;
    const low = d.n / k;
    const high = follow(n / low, step * low);
    d.most += (low - 1) * k;
    return high && d.most < d.n ? [...high, [low, k * d.stride]] : undefined;
  };
  const axes: Axis[] = [];
  for (const [n, step] of outer.axes) {
    const found = follow(n, step);
    if (!found) return undefined;
    axes.push(...found);
  }
  return view(axes, offset);
}
