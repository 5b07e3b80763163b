// Reverse-mode differentiation. Each op attaches to its outputs a closure that records the launches of its
// backward pass; `grad` calls those closures in reverse order of creation. Launches for gradients that nobody asked for
// are recorded, and the plan removes them, so that ops need not know who needs what.

import { ShapeError } from "../errors.ts";
import { add, copy, fill } from "../gpu/memory.ts";
import { scope, within } from "../gpu/scope.ts";
import { empty, type Node, type Tensor, viewAs } from "./tensor.ts";

let nodes = 0;

/** Whether gradients can flow through `x`. */
export function tracked(x: Tensor): boolean {
  return x.requiresGrad || x.node !== undefined;
}

/**
 * Declares how `y` depends on `inputs`.
 * @param backward gets dLoss/dy, returns dLoss/d(input) for each input (undefined: no gradient)
 */
export function differentiable(
  y: Tensor,
  inputs: readonly Tensor[],
  backward: (dy: Tensor) => readonly (Tensor | undefined)[],
): Tensor {
  differentiableMany([y], inputs, (dy) => dy ? backward(dy) : inputs.map(() => undefined));
  return y;
}

/** The same for an op with several outputs; a gradient that did not arrive is undefined. */
export function differentiableMany(
  outputs: readonly Tensor[],
  inputs: readonly Tensor[],
  backward: Node["backward"],
): void {
  if (!scope().tape || !inputs.some(tracked)) return;
  const node: Node = { id: nodes++, inputs, outputs, precision: scope().precision, backward };
  for (const y of outputs) y.node = node;
}

/** Runs `fn` without attaching backward closures. */
export function noGrad<T>(fn: () => T): T {
  return within({ tape: false }, fn);
}

/** The same values as a leaf without gradients: no copy. */
export function detach(x: Tensor): Tensor {
  return viewAs(x, x.shape);
}

/** Where a backward pass starts: a tensor and dLoss/d(tensor). */
export interface Root {
  y: Tensor;
  dy: Tensor;
}

/** Gradients of `sum(y * dy)` (dy: ones) with respect to each tensor of `wrt`; zeros where y does not depend on it. */
export function grad(y: Tensor, wrt: readonly Tensor[], dy?: Tensor): Tensor[] {
  return gradOf([{ y, dy: dy ?? full(y.shape, 1) }], wrt);
}

/** Gradients of the sum of several roots, in one backward pass. */
export function gradOf(roots: readonly Root[], wrt: readonly Tensor[]): Tensor[] {
  for (const { y, dy } of roots) {
    if (dy.shape.join() !== y.shape.join()) {
      throw new ShapeError(`Cannot differentiate: dy is [${dy.shape}], y is [${y.shape}]`);
    }
  }
  const found = backward(roots, wrt);
  return wrt.map((x) => found.get(x) ?? full(x.shape, 0));
}

function backward(roots: readonly Root[], wrt: readonly Tensor[]): Map<Tensor, Tensor> {
  const nodes = nodesBetween(roots.map(({ y }) => y), new Set(wrt));
  const gradients = new Map<Tensor, Tensor>();
  return noGrad(() => {
    for (const { y, dy } of roots) {
      gradients.set(y, gradients.has(y) ? plus(gradients.get(y) as Tensor, dy) : dy);
    }
    for (const node of nodes) {
      const dys = node.outputs.map((output) => gradients.get(output));
      if (dys.every((d) => d === undefined)) continue;
      const dxs = within({ precision: node.precision }, () => node.backward(...dys));
      node.inputs.forEach((x, i) => {
        const dx = dxs[i];
        if (!dx || !tracked(x)) return;
        if (dx.shape.join() !== x.shape.join()) {
          throw new ShapeError(
            `Cannot differentiate: a gradient of [${dx.shape}] came back for [${x.shape}]`,
          );
        }
        const before = gradients.get(x);
        gradients.set(x, before ? plus(before, dx) : dx);
      });
    }
    return gradients;
  });
}

/** The nodes on paths from `ys` to any of `wrt`, latest first, which is a topological order. */
function nodesBetween(ys: readonly Tensor[], wrt: ReadonlySet<Tensor>): Node[] {
  const onPath = new Map<Node, boolean>();
  const stack = [...new Set(ys.flatMap(({ node }) => node ?? []))];
  const reached = new Set<Node>(stack);
  for (let node = stack.pop(); node; node = stack.pop()) {
    for (const { node: next } of node.inputs) {
      if (next && !reached.has(next)) {
        reached.add(next);
        stack.push(next);
      }
    }
  }
  // An eager node comes right before its first user.
  const place = new Map([...reached].map((node) => [node, node.eager ? Infinity : node.id]));
  for (const { id, inputs } of reached) {
    for (const { node } of inputs) {
      if (node?.eager) place.set(node, Math.min(place.get(node) ?? Infinity, id - 0.5));
    }
  }
  const ordered = [...reached].sort((a, b) => (place.get(a) as number) - (place.get(b) as number));
  for (const node of ordered) {
    onPath.set(
      node,
      node.inputs.some((x) => wrt.has(x) || (x.node !== undefined && onPath.get(x.node) === true)),
    );
  }
  return ordered.filter((node) => onPath.get(node)).reverse();
}

/**
 * Activation recomputation (torch.utils.checkpoint): runs `fn` without keeping its activations, and runs it again in the
 * backward pass. They are then live only around that.
 * @param fn a pure function of `inputs` and of `parameters`
 */
export function recompute(
  fn: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Tensor[],
  parameters: readonly Tensor[],
): Tensor {
  const y = noGrad(() => fn(...inputs));
  return differentiable(y, [...inputs, ...parameters], (dy) => {
    const leaves = inputs.map((x) => Object.assign(detach(x), { requiresGrad: tracked(x) }));
    return within({ tape: true }, () => grad(fn(...leaves), [...leaves, ...parameters], dy));
  });
}

/** Records the copy of each gradient into its persistent tensor; the plan usually elides it. */
export function store(gradients: readonly Tensor[], targets: readonly Tensor[]): void {
  gradients.forEach((dx, i) => {
    const target = targets[i];
    if (!target) throw new ShapeError(`Cannot store gradient ${i}: it has no target`);
    copy(dx, target);
  });
}

/** A tensor filled with one value. */
export function full(shape: readonly number[], value: number): Tensor {
  const y = empty(shape, "f32", "gradient");
  fill(y, value);
  return y;
}

function plus(a: Tensor, b: Tensor): Tensor {
  const y = empty(a.shape, a.dtype === "f16" && b.dtype === "f16" ? "f16" : "f32", "gradient");
  add(a, b, y);
  return y;
}
