// The fusion pass: elementwise work joins another launch, so that an intermediate is neither stored nor loaded.
//   consumer fusion: into the elementwise launch that reads its result;  prologue: into a kernel's load of its result
//   producer fusion: into the elementwise launch that made its input;    epilogue: into the store of the kernel that did
// Results do not change, except that an fp16 intermediate that is not stored is not rounded. A driver may contract a
// multiplication and an addition that meet in one kernel.

import { device } from "./device.ts";
import { bindExpression, bindFused, fuseExpressions, isCheap, reads } from "./elementwise.ts";
import { type Expression, type FusedWork, isWritten, type Launch, type Output, overlap } from "./launch.ts";
import { scope } from "./scope.ts";
import type { Storage } from "./storage.ts";
import { contiguous, isContiguous } from "./strides.ts";

/** Work whose results take `bytes` or more moves at most `launches` ahead: they occupy memory from there on. */
const WINDOW = { launches: 128, bytes: 4096 };

/** The same program with elementwise work fused. @param outputs storages that are read after the program */
export function fuse(launches: readonly Launch[], outputs: ReadonlySet<Storage>): Launch[] {
  if (!device().fusing) return [...launches];
  const graph = new LaunchGraph(launches, outputs);
  for (let at = 0; at < launches.length; at++) while (fuseAnInput(graph, at));
  for (let at = 0; at < launches.length; at++) fuseIntoProducer(graph, at);
  return graph.launches.filter((l) => l !== undefined);
}

/** Fuses the elementwise work behind one input of launch `at` into it; false if there is none. */
function fuseAnInput(graph: LaunchGraph, at: number): boolean {
  const reader = graph.launches[at];
  if (!reader?.fusion) return false;
  for (const from of new Set(reader.storages)) {
    const made = graph.producer(from, at);
    const work = made === undefined ? undefined : graph.launches[made]?.fusion?.expression;
    if (made === undefined || !work || work.outputs.length !== 1 || work.outputs[0]?.storage !== from) {
      continue;
    }
    const only = !graph.isLive(from) && graph.accessing(from).every((i) => i === at || i === made);
    if (!only && !isCheap(work)) continue;
    if (reads(work).some((s) => graph.writing(s).some((i) => i > made && i < at))) continue;
    const { expression } = reader.fusion;
    const fused = expression ? consumerFusion(work, expression, from) : prologue(work, reader, from);
    if (!fused || !isBindable(fused)) continue;
    graph.replace(at, fused);
    if (!graph.isLive(from) && graph.accessing(from).every((i) => i === made)) graph.replace(made, undefined);
    return true;
  }
  return false;
}

/** Moves the elementwise work of launch `at` into the launch that made the latest of its inputs. */
function fuseIntoProducer(graph: LaunchGraph, at: number): void {
  const work = graph.launches[at]?.fusion?.expression;
  if (!work) return;
  let last = -1, from: Storage | undefined;
  for (const s of reads(work)) {
    for (const i of graph.writing(s)) {
      if (i > last && i < at) [last, from] = [i, s];
    }
  }
  const maker = graph.launches[last];
  if (!from || !maker?.fusion || graph.producer(from, at) !== last) return;
  const large = scope().batchInvariant || work.outputs.some(({ storage }) => storage.bytes >= WINDOW.bytes);
  if (large && at - last > WINDOW.launches) return;
  // Nothing in between may access what is now written earlier, except to fill other parts of the same array.
  const accessed = ({ storage: s }: Output) =>
    graph.accessing(s).some((i) => i >= last && i < at && !(i > last && graph.fillsPart(i, s)));
  if (work.outputs.some(accessed)) return;
  const stored = ({ storage: s }: Output) =>
    graph.isLive(s) || graph.accessing(s).some((i) => i !== last && i !== at);
  const { expression } = maker.fusion;
  const fused = expression ? producerFusion(expression, work, stored) : epilogue(maker, work, from, stored);
  if (!fused || !isBindable(fused)) return;
  graph.replace(at, undefined);
  graph.replace(last, fused);
}

/** `work`, whose result is `from`, computed by the elementwise launch that reads it. */
function consumerFusion(work: Expression, reader: Expression, from: Storage): Launch | undefined {
  // Through another view than its own, elements may be computed several times.
  const again = reader.inputs.some(({ storage, view }) =>
    storage === from && !isContiguous(view, work.count)
  );
  const fused = again && !isCheap(work) ? undefined : fuseExpressions(work, reader);
  return fused && bindExpression(fused);
}

/** `work` computed by the elementwise launch that made its input; `stored` tells which results of that are still stored. */
function producerFusion(
  maker: Expression,
  work: Expression,
  stored: (o: Output) => boolean,
): Launch | undefined {
  if (maker.count !== work.count) return undefined;
  const fused = fuseExpressions(maker, work, maker.outputs.filter(stored));
  return fused && bindExpression(fused);
}

const NONE: FusedWork = { loads: new Map(), stores: new Map() };

/** `work`, whose result is `from`, computed where a kernel loads it. */
function prologue(work: Expression, reader: Launch, from: Storage): Launch | undefined {
  const { core = reader, fused = NONE, loads = [] } = reader.fusion ?? {};
  const names = core.kernel.bindings.filter((_, i) => core.storages[i] === from).map(({ name }) => name);
  if (names.length === 0 || !names.every((name) => loads.includes(name) && !fused.loads.has(name))) {
    return undefined;
  }
  if ([...fused.loads.values(), ...fused.stores.values()].some((e) => reads(e).includes(from))) {
    return undefined;
  }
  const all = work.outputs.every(({ view }) => isContiguous(view, work.count));
  if (!all || work.count !== from.elements) return undefined;
  return bindFused(core, {
    ...fused,
    loads: new Map([...fused.loads, ...names.map((n) => [n, work] as const)]),
  });
}

/** `work` computed where a kernel stores its input `from`; `stored` tells which results are still stored. */
function epilogue(
  maker: Launch,
  work: Expression,
  from: Storage,
  stored: (o: Output) => boolean,
): Launch | undefined {
  const { core = maker, fused = NONE, stores = [] } = maker.fusion ?? {};
  if (work.count !== from.elements) return undefined;
  for (const name of stores) {
    const before = fused.stores.get(name) ?? plainStore(core, name);
    if (!before?.outputs.some(({ storage }) => storage === from)) continue;
    const all = fuseExpressions(before, work, before.outputs.filter(stored));
    return all && bindFused(core, { ...fused, stores: new Map([...fused.stores, [name, all]]) });
  }
  return undefined;
}

/** What a kernel stores in the array `name`, as an expression. */
function plainStore(core: Launch, name: string): Expression | undefined {
  const storage = core.storages[core.kernel.bindings.findIndex((b) => b.name === name)];
  if (!storage) return undefined;
  const count = storage.elements, view = contiguous(count);
  return {
    count,
    inputs: [{ storage: undefined, view }],
    scalars: [],
    body: [],
    outputs: [{ value: "x0", storage, view }],
  };
}

/** Whether the device can bind the arrays of a launch. */
function isBindable(launch: Launch): boolean {
  const { kernel: { bindings }, storages } = launch;
  if (bindings.filter((b) => !b.texture).length > device().limits.maxStorageBuffersPerShaderStage) {
    return false;
  }
  // WebGPU refuses one buffer bound both for reading and for writing.
  const written = storages.filter((_, i) => isWritten(launch, i));
  return written.every((w) => storages.filter(({ root }) => root === w.root).length === 1);
}

/** Which launches of a program access and write which storages, as fused so far. */
class LaunchGraph {
  /** The launches in program order; undefined where one was removed. */
  readonly launches: (Launch | undefined)[];
  /** Indices of the launches that access, and that write, a part of each root. */
  readonly #accesses = new Map<Storage, Set<number>>();
  readonly #writes = new Map<Storage, Set<number>>();

  /** @param outputs storages that are read after the program */
  constructor(launches: readonly Launch[], readonly outputs: ReadonlySet<Storage>) {
    this.launches = [...launches];
    launches.forEach((launch, at) => this.#add(launch, at));
  }

  /** Replaces or removes a launch. */
  replace(at: number, launch: Launch | undefined): void {
    for (const s of this.launches[at]?.storages ?? []) {
      this.#accesses.get(s.root)?.delete(at);
      this.#writes.get(s.root)?.delete(at);
    }
    this.launches[at] = launch;
    if (launch) this.#add(launch, at);
  }

  /** Launches that access `s` or a part of it. */
  accessing(s: Storage): number[] {
    return [...this.#accesses.get(s.root) ?? []]
      .filter((i) => this.launches[i]?.storages.some((t) => overlap(s, t)));
  }

  /** Launches that write `s` or a part of it. */
  writing(s: Storage): number[] {
    return [...this.#writes.get(s.root) ?? []].filter((i) => {
      const launch = this.launches[i];
      return launch?.storages.some((t, j) => isWritten(launch, j) && overlap(s, t));
    });
  }

  /** The only launch that writes `s`, if it comes before `at`. */
  producer(s: Storage, at: number): number | undefined {
    const [only, second] = this.writing(s);
    return only !== undefined && second === undefined && only < at ? only : undefined;
  }

  /** Whether `s` is read after the program. */
  isLive(s: Storage): boolean {
    return s.persistent || this.outputs.has(s);
  }

  /** Whether a launch accesses the intermediate `s` only to fill parts of it, as concat does. */
  fillsPart(at: number, s: Storage): boolean {
    const launch = this.launches[at], { expression, fused } = launch?.fusion ?? {};
    const stores = expression ? [expression] : [...fused?.stores.values() ?? []];
    const parts = stores.flatMap(({ outputs }) => outputs)
      .filter(({ storage, view }) => storage === s && !isContiguous(view, s.elements)).length;
    return !s.persistent && parts > 0 && launch?.storages.filter((t) => overlap(s, t)).length === parts;
  }

  #add(launch: Launch, at: number): void {
    launch.storages.forEach(({ root }, j) => {
      for (const index of isWritten(launch, j) ? [this.#accesses, this.#writes] : [this.#accesses]) {
        index.set(root, (index.get(root) ?? new Set()).add(at));
      }
    });
  }
}
