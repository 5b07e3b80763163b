// Merging of launches, so that intermediates are neither stored nor loaded again. Elementwise work goes
//   into what reads it: another elementwise launch, or a kernel's load of an operand that it reads about once;
//   into what made its input: the kernel that stores that may apply the work to each value, and may store several.
// How two are merged is elementwise.ts's business; here is who reads and writes what, and when. Values do not change,
// but for halves: an intermediate that is not stored is not rounded.

import { device } from "./device.ts";
import { bindExpression, bindFused, fuseExpressions, isCheap, reads } from "./elementwise.ts";
import type { Expression, Launch, Output } from "./launch.ts";
import { scope } from "./scope.ts";
import type { Storage } from "./storage.ts";
import { contiguous, isContiguous } from "./strides.ts";

/** How far back elementwise work may move, where its results are of so many bytes or more: they live from there on. */
const WINDOW = { launches: 128, bytes: 4096 };

/** The same program with elementwise work merged into its neighbours. */
export function fuse(launches: readonly Launch[], outputs: ReadonlySet<Storage>): Launch[] {
  if (!device().fusing) return [...launches];
  const program = new Merging(launches, outputs);
  for (let at = 0; at < launches.length; at++) while (program.pull(at));
  for (let at = 0; at < launches.length; at++) program.push(at);
  return program.launches.filter((l) => l !== undefined);
}

const overlap = (a: Storage, b: Storage) =>
  a.root === b.root && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;

class Merging {
  readonly launches: (Launch | undefined)[];
  /** Indices of launches that touch, and that write, a part of each root. */
  readonly #touches = new Map<Storage, Set<number>>();
  readonly #writes = new Map<Storage, Set<number>>();

  constructor(launches: readonly Launch[], readonly outputs: ReadonlySet<Storage>) {
    this.launches = [...launches];
    launches.forEach((launch, at) => this.#note(launch, at));
  }

  /** Merges one elementwise launch that `at` reads into it. */
  pull(at: number): boolean {
    const reader = this.launches[at];
    if (!reader?.fusion) return false;
    for (const from of new Set(reader.storages)) {
      const made = this.#maker(from, at);
      const producer = made === undefined ? undefined : this.launches[made];
      const work = producer?.fusion?.expression;
      if (made === undefined || !work || work.outputs.length !== 1 || work.outputs[0]?.storage !== from) {
        continue;
      }
      const alone = !this.#lasts(from) && this.#touching(from).every((i) => i === at || i === made);
      if (!alone && !isCheap(work)) continue;
      if (reads(work).some((s) => this.#writing(s).some((i) => i > made && i < at))) continue;
      const own = reader.fusion.expression;
      const joined = own ? this.#joined(work, own, from, alone) : this.#loaded(work, reader, from);
      if (!joined) continue;
      this.#replace(at, joined);
      if (!this.#lasts(from) && this.#touching(from).every((i) => i === made)) this.#replace(made, undefined);
      return true;
    }
    return false;
  }

  /** Lets the launch that made the latest input of elementwise work do that work. */
  push(at: number): void {
    const work = this.launches[at]?.fusion?.expression;
    if (!work) return;
    let last = -1, from: Storage | undefined;
    for (const s of reads(work)) {
      for (const i of this.#writing(s)) {
        if (i > last && i < at) [last, from] = [i, s];
      }
    }
    const maker = this.launches[last];
    if (!from || !maker?.fusion || this.#maker(from, at) !== last) return;
    const large = scope().batchInvariant || work.outputs.some(({ storage }) => storage.bytes >= WINDOW.bytes);
    if (large && at - last > WINDOW.launches) return;
    // Nothing between may touch what moves before it; parts of one array that are joined there do not meet.
    const target = (s: Storage) =>
      this.#touching(s).some((i) => i >= last && i < at && !(i > last && this.#fillsPart(i, s)));
    if (work.outputs.some(({ storage }) => target(storage))) return;
    const stays = (o: Output) =>
      this.#lasts(o.storage) || this.#touching(o.storage).some((i) => i !== last && i !== at);
    const own = maker.fusion.expression;
    const joined = own ? this.#extended(own, work, stays) : this.#stored(maker, work, from, stays);
    if (!joined) return;
    this.#replace(at, undefined);
    this.#replace(last, joined);
  }

  #joined(work: Expression, own: Expression, from: Storage, alone: boolean): Launch | undefined {
    const again = own.inputs.some(({ storage, view }) => storage === from && !isContiguous(view, work.count));
    if (again && !isCheap(work) || !alone && !isCheap(work)) return undefined;
    const all = fuseExpressions(work, own);
    return all && this.#fitting(bindExpression(all));
  }

  #extended(own: Expression, work: Expression, stays: (o: Output) => boolean): Launch | undefined {
    if (own.count !== work.count) return undefined;
    const all = fuseExpressions(own, work, own.outputs.filter(stays));
    return all && this.#fitting(bindExpression(all));
  }

  #loaded(work: Expression, reader: Launch, from: Storage): Launch | undefined {
    const { core = reader, fused = { loads: new Map(), stores: new Map() }, loads = [] } = reader.fusion ??
      {};
    const names = core.kernel.bindings.filter((_, i) => core.storages[i] === from).map(({ name }) => name);
    if (names.length === 0 || !names.every((name) => loads.includes(name))) return undefined;
    // Elsewhere in the launch it must not be read.
    const inside = [...fused.loads.values(), ...fused.stores.values()];
    if (inside.some((e) => reads(e).includes(from)) || names.some((name) => fused.loads.has(name))) {
      return undefined;
    }
    if (work.count !== from.elements || !isContiguous(work.outputs[0]?.view ?? contiguous(0), work.count)) {
      return undefined;
    }
    const all = new Map([...fused.loads, ...names.map((name) => [name, work] as const)]);
    const launch = bindFused(core, { ...fused, loads: all });
    return this.#fitting(launch);
  }

  #stored(maker: Launch, work: Expression, from: Storage, stays: (o: Output) => boolean): Launch | undefined {
    const { core = maker, fused = { loads: new Map(), stores: new Map() }, stores = [] } = maker.fusion ??
      {};
    const count = from.elements;
    if (work.count !== count) return undefined;
    for (const name of stores) {
      const before: Expression | undefined = fused.stores.get(name) ??
        this.#untouched(core, name);
      if (!before?.outputs.some(({ storage }) => storage === from)) continue;
      const all = fuseExpressions(before, work, before.outputs.filter(stays));
      const launch = all && bindFused(core, { ...fused, stores: new Map([...fused.stores, [name, all]]) });
      return this.#fitting(launch);
    }
    return undefined;
  }

  /** What a kernel stores, as an expression. */
  #untouched(core: Launch, name: string): Expression | undefined {
    const at = core.kernel.bindings.findIndex((b) => b.name === name);
    const storage = core.storages[at];
    if (!storage) return undefined;
    const view = contiguous(storage.elements);
    return {
      count: storage.elements,
      inputs: [{ storage: undefined, view }],
      scalars: [],
      body: [],
      outputs: [{ value: "x0", storage, view }],
    };
  }

  /** The launch, where the device can bind its arrays. */
  #fitting(launch: Launch | undefined): Launch | undefined {
    if (!launch) return undefined;
    const { kernel: { bindings }, storages } = launch;
    if (bindings.filter((b) => !b.texture).length > device().limits.maxStorageBuffersPerShaderStage) {
      return undefined;
    }
    // One buffer cannot be bound for reading and for writing.
    const written = storages.filter((_, i) => bindings[i]?.access === "read_write");
    const clash = written.some((w) => storages.filter(({ root }) => root === w.root).length > 1);
    return clash ? undefined : launch;
  }

  #note(launch: Launch, at: number): void {
    launch.storages.forEach((s, j) => {
      const lists = launch.kernel.bindings[j]?.access === "read_write"
        ? [this.#touches, this.#writes]
        : [this.#touches];
      for (const list of lists) list.set(s.root, (list.get(s.root) ?? new Set()).add(at));
    });
  }

  #replace(at: number, launch: Launch | undefined): void {
    for (const s of this.launches[at]?.storages ?? []) {
      this.#touches.get(s.root)?.delete(at);
      this.#writes.get(s.root)?.delete(at);
    }
    this.launches[at] = launch;
    if (launch) this.#note(launch, at);
  }

  #touching(s: Storage): number[] {
    return [...this.#touches.get(s.root) ?? []].filter((i) =>
      this.launches[i]?.storages.some((t) => overlap(s, t))
    );
  }

  #writing(s: Storage): number[] {
    return [...this.#writes.get(s.root) ?? []].filter((i) => {
      const launch = this.launches[i];
      return launch?.storages.some((t, j) =>
        launch.kernel.bindings[j]?.access === "read_write" && overlap(s, t)
      );
    });
  }

  /** The only launch that writes `s`, where it stands before `at`. */
  #maker(s: Storage, at: number): number | undefined {
    const all = this.#writing(s);
    return all.length === 1 && (all[0] as number) < at ? all[0] : undefined;
  }

  /** Whether `s` is read after the program. */
  #lasts(s: Storage): boolean {
    return s.persistent || this.outputs.has(s);
  }

  /** Whether a launch only fills a part of the intermediate `s`: one of several that are joined there. */
  #fillsPart(at: number, s: Storage): boolean {
    const { expression, fused } = this.launches[at]?.fusion ?? {};
    if (s.persistent) return false;
    const all = expression ? [expression] : [...fused?.stores.values() ?? []];
    const parts =
      all.flatMap((e) => e.outputs.filter((o) => o.storage === s && !isContiguous(o.view, s.elements)))
        .length;
    return parts > 0 && this.launches[at]?.storages.filter((t) => overlap(s, t)).length === parts;
  }
}
