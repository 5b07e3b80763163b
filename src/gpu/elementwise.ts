// Elementwise expressions: bound as a kernel of their own, fused with each other, or fused into another kernel as the prologue
// of a load or the epilogue of a store. fusion.ts decides which; kernels/pointwise.ts prints the WGSL.

import {
  type ExpressionSpec,
  expressionWgsl,
  helpersWgsl,
  type PlaceSpec,
  pointwiseTiling,
  pointwiseWgsl,
} from "../../kernels/pointwise.ts";
import { accessorNames, widthOf } from "./accessors.ts";
import { bind, record } from "./bind.ts";
import { type Axis, compose, contiguous, isConstant, isContiguous, isPlain, type View } from "./strides.ts";
import { device } from "./device.ts";
import { fold, kernel } from "./kernel.ts";
import { parseKernel, replaceAccessors } from "./kernel_text.ts";
import type { Expression, FusedWork, Launch, Operand, Output } from "./launch.ts";
import type { Bindable, Storage } from "./storage.ts";

/** Records the launch of an expression. */
export function launchExpression(expression: Expression): void {
  record(bindExpression(expression) as Launch);
}

/** The kernel launch of an expression; undefined where fp16 outputs cannot be stored. Only plain f32 views are fused. */
export function bindExpression(expression: Expression): Launch | undefined {
  const { count, body, element } = expression, { profile, simdWidth: vector } = device();
  const width = [4, 1].find((width) => fits(expression, width));
  if (!width) return undefined;
  const vectors = count / width;
  const { spec, params, buffers } = print(expression, width, "");
  const { threads, steps } = pointwiseTiling(profile, vector, vectors);
  const plain = element !== "u32" &&
    [...expression.inputs, ...expression.outputs].every((o) => isPlain(o.view));
  return bind(
    kernel(pointwiseWgsl(spec, profile, vector), "pointwise"),
    buffers,
    { count: vectors, steps, ...params },
    fold(Math.ceil(vectors / (threads * steps))),
    { flops: count * body.length, iterations: steps, ...plain ? { fusion: { expression } } : {} },
  );
}

/** The launch `core` with prologues and epilogues; undefined where an expression does not fit the width of its array. */
export function bindFused(core: Launch, fused: FusedWork): Launch | undefined {
  const { text, entry, constants, forms, bindings } = core.kernel;
  const operands: Record<string, Bindable | number> = {};
  for (const [name, form] of forms) if (typeof form === "number") operands[name] = form;
  bindings.forEach(({ name }, i) => operands[name] = { storage: core.storages[i] as Storage });
  const params = core.kernel.unpack(core.params);
  const replaced = new Set<string>(), added: string[] = [];
  const bodies = new Map<number, string[]>();
  for (const [kind, list] of Object.entries(fused) as [keyof FusedWork, FusedWork["loads"]][]) {
    for (const [name, expression] of list) {
      const array = text.arrays.find((a) => a.name === name), width = array ? widthOf(array) : 0;
      if (!width || !fits(expression, width)) return undefined;
      const loads = kind === "loads", prefix = `f${replaced.size}_`;
      const printed = print(expression, width, prefix, loads);
      const accessor = loads ? accessorNames(name).load : accessorNames(name).store;
      added.push(expressionWgsl(printed.spec, accessor, prefix, loads));
      bodies.set(width, [...bodies.get(width) ?? [], ...expression.body]);
      replaced.add(name);
      delete operands[name];
      Object.assign(operands, printed.buffers);
      Object.assign(params, printed.params);
    }
  }
  for (const [width, list] of bodies) added.push(helpersWgsl(list, width));
  const source = replaceAccessors(text, replaced, added.map(parseKernel));
  const extra = [...fused.loads.values(), ...fused.stores.values()]
    .reduce((sum, e) => sum + e.count * e.body.length, 0);
  return bind(kernel(source, entry, { ...constants }), operands, params, core.grid, {
    flops: core.flops + extra,
    iterations: core.iterations,
    fusion: { ...core.fusion, core, fused },
  });
}

const MAX_INPUTS = 8;
const MAX_STEPS = 24;

/** `consumer` with `producer` in place of its results, `outputs` of which are still stored; undefined where that fails. */
export function fuseExpressions(
  producer: Expression,
  consumer: Expression,
  outputs: readonly Output[] = [],
): Expression | undefined {
  const inputs: Operand[] = [], scalars: number[] = [], body: string[] = [];
  const once = <X>(list: X[], item: X, key: (x: X) => string) => {
    const at = list.findIndex((x) => key(x) === key(item));
    return at >= 0 ? at : list.push(item) - 1;
  };
  const inputKey = ({ storage, view: { axes, offset } }: Operand) =>
    `${storage?.id} ${axes.join(";")} ${offset}`;
  /** Appends an expression; returns the new names of its values. */
  const append = (e: Expression, read: (o: Operand) => string | undefined) => {
    const names = new Map<string, string>();
    for (const [k, operand] of e.inputs.entries()) {
      const name = read(operand);
      if (name === undefined) return undefined;
      names.set(`x${k}`, name);
    }
    e.scalars.forEach((s, k) => names.set(`s${k}`, `s${once(scalars, s, String)}`));
    e.body.forEach((text, k) => {
      const renamed = text.replace(/\b[xst]\d+\b/g, (name) => names.get(name) ?? name);
      names.set(`t${k}`, /^[xst]\d+$/.test(renamed) ? renamed : `t${once(body, renamed, String)}`);
    });
    return names;
  };
  const place = (operand: Operand) => `x${once(inputs, operand, inputKey)}`;
  let kept: Map<string, string> | undefined;
  const through = (view: View) =>
    append(producer, ({ storage, view: inner }) => {
      const whole = storage
        ? compose(view, inner, producer.count)
        : isContiguous(view, producer.count) && inner;
      return whole ? place({ storage, view: whole }) : undefined;
    });
  if (outputs.length && !(kept = through(contiguous(producer.count)))) return undefined;
  const later = append(consumer, (operand) => {
    const from = operand.storage && producer.outputs.find(({ storage }) => storage === operand.storage);
    if (!from) return place(operand);
    return isContiguous(from.view, producer.count) ? through(operand.view)?.get(from.value) : undefined;
  });
  if (!later || inputs.length > MAX_INPUTS || body.length > MAX_STEPS) return undefined;
  const renamed = (list: readonly Output[], names: Map<string, string>) =>
    list.map((o) => ({ ...o, value: names.get(o.value) as string }));
  return {
    count: consumer.count,
    inputs,
    scalars,
    body,
    outputs: [...kept ? renamed(outputs, kept) : [], ...renamed(consumer.outputs, later)],
  };
}

/** Whether recomputing it costs no more than reading its result: one load per element, and hardly any arithmetic. */
export function isCheap({ inputs, body }: Expression): boolean {
  return inputs.filter(({ view }) => !isConstant(view)).length <= 1 && body.length <= 2 &&
    !body.some((text) => /\w\(/.test(text.replace(/\bT\(/g, "")));
}

/** The storages that an expression reads. */
export const reads = ({ inputs }: Expression): Storage[] => inputs.flatMap(({ storage }) => storage ?? []);

/** Whether a kernel can compute `width` elements at a time. */
function fits(e: Expression, width: number): boolean {
  return vectorizable([...e.inputs, ...e.outputs].map(({ view }) => view), e.count, width) &&
    (width > 1 || e.outputs.every(({ storage }) => !storage.half));
}

/** Whether views of one index space can be accessed in aligned vectors. */
export function vectorizable(views: readonly View[], count: number, width = 4): boolean {
  return count % width === 0 && views.every((view) => accessOf(view, count, width));
}

/** How a kernel indexes a view `width` elements at a time: sizes and bounds in vectors, strides and offset. */
interface ViewAccess {
  access: PlaceSpec["access"];
  row?: number;
  sizes?: number[];
  strides?: number[];
  /** Bounds of the padded axes, by their number. */
  bounds?: Map<number, [lo: number, hi: number]>;
  at?: number;
}

function accessOf(whole: View, count: number, width: number): ViewAccess | undefined {
  const { axes, offset } = whole;
  if (isConstant(whole)) return offset ? { access: "at", at: offset } : { access: "scalar" };
  if (isContiguous(whole, count)) return { access: "same" };
  const [last, stride] = axes.at(-1) as [number, number];
  const two = axes.length === 2 && offset === 0;
  if (last % width && two && stride === 1 && axes[0]?.[1] === 0) return { access: "cycle", row: last };
  if (last % width) return undefined;
  const sizes = axes.map(([n], d) => d === axes.length - 1 ? n / width : n);
  if (stride === 0) {
    if (two && axes[0]?.[1] === 1) return { access: "column", row: last / width };
    return { access: "splat", sizes, strides: axes.map(([, s]) => s), at: offset };
  }
  if (width > 1 && (stride !== 1 || offset % width || axes.slice(0, -1).some(([, s]) => s % width))) {
    return undefined;
  }
  if (two && stride === 1 && axes[0]?.[1] === 0) return { access: "row", row: last / width };
  const [, , lo = 0, hi = 0] = axes.at(-1) as Axis;
  if (lo % width || hi % width) return undefined;
  const unit = (d: number) => d === axes.length - 1 ? width : 1;
  const bounds = new Map<number, [number, number]>();
  axes.forEach(([, , lo, hi], d) => {
    if (lo !== undefined && hi !== undefined) bounds.set(d, [lo / unit(d), hi / unit(d)]);
  });
  const strides = axes.map(([, s], d) => d === axes.length - 1 ? s : s / width);
  return { access: "vector", sizes, strides, bounds, at: offset / width };
}

/** What the generator of the text needs, and the values of its parameters and arrays. */
function print(e: Expression, width: number, prefix: string, loads = false) {
  const grids: number[][] = [];
  const params: Record<string, number> = {};
  const buffers: Record<string, Bindable> = {};
  const place = ({ storage, view }: Operand, array: string): PlaceSpec => {
    if (!storage) return { access: "value", grid: 0, bounded: [] };
    buffers[prefix + array] = { storage };
    const { access, row, sizes, strides, bounds, at } = accessOf(view, e.count, width) as ViewAccess;
    if (row !== undefined) params[`${prefix}r_${array}`] = row;
    if (at !== undefined) params[`${prefix}o_${array}`] = at >>> 0; // modulo 2^32, as u32 arithmetic is
    let grid = 0;
    if (sizes && strides) {
      grid = grids.findIndex((g) => g.join() === sizes.join());
      if (grid < 0) grid = grids.push(sizes) - 1;
      strides.forEach((s, d) => {
        const implied = d === strides.length - 1 && (access === "splat" || width > 1);
        if (!implied) params[`${prefix}p${d}_${array}`] = s >>> 0;
      });
      for (const [d, [lo, hi]] of bounds ?? []) {
        params[`${prefix}l${d}_${array}`] = lo;
        params[`${prefix}h${d}_${array}`] = hi;
      }
    }
    return { access, grid, bounded: [...bounds?.keys() ?? []] };
  };
  const inputs = e.inputs.map((operand, k) => place(operand, `in${k}`));
  const outputs = e.outputs.map(({ value, ...to }, k) => ({
    value,
    place: loads ? { access: "same" as const, grid: 0, bounded: [] } : place(to, `out${k}`),
  }));
  grids.forEach((sizes, g) => sizes.forEach((n, d) => d && (params[`${prefix}g${g}_${d}`] = n)));
  e.scalars.forEach((s, k) => params[`${prefix}s${k}`] = s);
  const spec: ExpressionSpec = {
    inputs,
    outputs,
    scalars: e.scalars.length,
    body: e.body,
    grids: grids.map((g) => g.length),
    width,
    element: e.element ?? "f32",
  };
  return { spec, params, buffers };
}
