// From a recorded list of launches to a plan: dead launches are removed, elementwise work is fused (fusion.ts), copies of
// intermediates into persistent storages are elided, and intermediates share the buffers of a pool by liveness, so that memory
// is the peak of what is live at once and not the sum. Nothing is allocated here.

import { GpuError } from "../errors.ts";
import { bufferBytes, device } from "./device.ts";
import { isWritten, type Launch, overlap } from "./launch.ts";
import { COPY } from "./memory.ts";
import { fuse } from "./fusion.ts";
import { stagingBytes } from "./software/staging.ts";
import type { Category, Place, Storage } from "./storage.ts";

export interface Plan {
  readonly launches: readonly Launch[];
  readonly places: ReadonlyMap<Storage, Place>;
  /** Bytes of each buffer of the pool. */
  readonly slots: readonly number[];
  /** Bytes by category: `activations` is the pool and staged textures, `workspace` the parameters of the launches. */
  readonly bytes: Readonly<Record<Category | "workspace", number>>;
  readonly totalBytes: number;
  /** Bytes of the activations without memory reuse. */
  readonly unpooledBytes: number;
  /** Floating-point operations of one run, as the ops declare them. */
  readonly flops: number;
  /** Number of launches recorded, before any was removed or fused. */
  readonly recorded: number;
}

/** Plans `recorded` launches; `outputs` are read after the program. Pure: no device memory is touched. */
export function makePlan(recorded: readonly Launch[], outputs: readonly Storage[]): Plan {
  const live = removeDead(recorded, outputs);
  checkWrittenFirst(live);
  const fused = fuse(live, new Set(outputs));
  const { launches, alias } = elideCopies(fused, new Set(outputs));
  const places = new Map<Storage, Place>();
  const slots = assignSlots(launches, outputs, alias, places);

  const activations = [...slots, ...stagingBytes(launches).values()].reduce((a, b) => a + b, 0);
  return {
    launches,
    places,
    slots,
    ...bytesOf(places, activations, packParams(launches).bytes.length),
    unpooledBytes: [...places].reduce((sum, [s, { slot }]) => slot < 0 ? sum : sum + bufferBytes(s.bytes), 0),
    flops: launches.reduce((sum, l) => sum + l.flops, 0),
    recorded: recorded.length,
  };
}

/** Bytes by category: of each buffer outside the pool once, and of the pool and the parameters. */
export function bytesOf(
  places: ReadonlyMap<Storage, Place>,
  activations: number,
  workspace: number,
): Pick<Plan, "bytes" | "totalBytes"> {
  const persistent = { parameters: 0, gradients: 0, optimizer: 0, state: 0, inputs: 0, outputs: 0 };
  const bytes: Record<Category | "workspace", number> = { ...persistent, activations, workspace };
  for (const root of new Set([...places.values()].filter((p) => p.slot < 0).map((p) => p.root))) {
    bytes[root.persistent ? root.category : "outputs"] += bufferBytes(root.bytes);
  }
  return { bytes, totalBytes: Object.values(bytes).reduce((a, b) => a + b, 0) };
}

/** The storage that is bound with the most bytes. */
export function largestBinding({ places }: Pick<Plan, "places">): Storage | undefined {
  return [...places.keys()].reduce<Storage | undefined>((a, b) => a && a.bytes >= b.bytes ? a : b, undefined);
}

/** Throws where an intermediate is read before it is written: it belongs to another program, or an op is faulty. */
function checkWrittenFirst(launches: readonly Launch[]): void {
  const written = new Set<Storage>();
  for (const launch of launches) {
    launch.storages.forEach((storage, i) => {
      if (isWritten(launch, i)) written.add(storage);
      else if (!storage.persistent && !written.has(storage)) {
        throw new GpuError(
          `Cannot plan: kernel "${launch.kernel.label}" reads "${storage.label}" before anything in this program wrote it`,
        );
      }
    });
  }
}

/** Keeps the launches that write a persistent storage, an output, or an input of a kept launch. */
function removeDead(recorded: readonly Launch[], outputs: readonly Storage[]): Launch[] {
  const wanted = new Set<Storage>(outputs);
  const kept: Launch[] = [];
  for (let i = recorded.length - 1; i >= 0; i--) {
    const launch = recorded[i] as Launch;
    const writes = launch.storages.some((s, j) => isWritten(launch, j) && (s.persistent || wanted.has(s)));
    if (!writes) continue;
    kept.push(launch);
    for (const storage of launch.storages) wanted.add(storage);
  }
  return kept.reverse();
}

/** Aliases an intermediate to the storage that it is copied to, such as a gradient, and removes the copy. */
function elideCopies(
  launches: readonly Launch[],
  outputs: ReadonlySet<Storage>,
): { launches: Launch[]; alias: Map<Storage, Storage> } {
  const uses = new Map<Storage, number[]>();
  launches.forEach(({ storages }, i) => {
    for (const s of storages) {
      const list = uses.get(s);
      if (!list) uses.set(s, [i]);
      else if (list.at(-1) !== i) list.push(i);
    }
  });
  const rootUses = new Map<Storage, number[]>();
  for (const [s, list] of uses) rootUses.set(s.root, (rootUses.get(s.root) ?? []).concat(list));

  const alias = new Map<Storage, Storage>();
  const removed = new Set<number>();
  const copyKernel = COPY();
  launches.forEach((launch, at) => {
    if (launch.kernel !== copyKernel) return;
    const [from, to] = launch.storages as [Storage, Storage];
    const lifetime = uses.get(from) ?? [];
    if (from.persistent || outputs.has(from) || alias.has(from) || lifetime[0] === at) return;
    const first = lifetime[0] ?? 0, last = lifetime.at(-1) ?? at;
    const target = (s: Storage) => alias.get(s) ?? s;
    for (const i of rootUses.get(to.root) ?? []) {
      if (i === at || i < first || i > last) continue;
      const other = launches[i] as Launch;
      if (other.storages.some((s) => overlap(target(s), to))) return;
      // WebGPU refuses one buffer bound both for reading and for writing in one dispatch.
      if (other.storages.includes(from)) {
        const access = other.storages.map((s, j) =>
          s === from || target(s).root === to.root ? isWritten(other, j) : undefined
        );
        if (access.includes(true) && access.includes(false)) return;
      }
    }
    alias.set(from, to);
    removed.add(at);
    for (const i of lifetime) rootUses.get(to.root)?.push(i);
  });
  return { launches: launches.filter((_, i) => !removed.has(i)), alias };
}

/** Greedy by size: from the largest intermediate on, each takes the first slot that is free while it is live. */
function assignSlots(
  launches: readonly Launch[],
  outputs: readonly Storage[],
  alias: ReadonlyMap<Storage, Storage>,
  places: Map<Storage, Place>,
): number[] {
  const keep = new Set(outputs);
  const lifetimes = new Map<Storage, [number, number]>();
  launches.forEach(({ storages }, i) => {
    for (const storage of storages) {
      const owner = alias.get(storage) ?? storage;
      if (owner.persistent || keep.has(owner)) {
        places.set(storage, { root: owner.root, offset: owner.offset, slot: -1 });
        continue;
      }
      const lifetime = lifetimes.get(storage);
      if (lifetime) lifetime[1] = i;
      else lifetimes.set(storage, [i, i]);
    }
  });
  for (const output of outputs) places.set(output, { root: output.root, offset: output.offset, slot: -1 });

  const order = [...lifetimes].sort(([a, [i]], [b, [j]]) => b.bytes - a.bytes || i - j);
  const slots: { bytes: number; lifetimes: [number, number][] }[] = [];
  for (const [storage, lifetime] of order) {
    let slot = slots.findIndex((s) =>
      s.lifetimes.every(([from, to]) => to < lifetime[0] || lifetime[1] < from)
    );
    if (slot < 0) slot = slots.push({ bytes: bufferBytes(storage.bytes), lifetimes: [] }) - 1;
    slots[slot]?.lifetimes.push(lifetime);
    places.set(storage, { root: storage, offset: 0, slot });
  }
  return slots.map((s) => s.bytes);
}

/** Parameters of launches in one uniform buffer, equal ones once, and the offset of each launch (-1: it has none). */
export function packParams(
  launches: readonly Launch[],
): { bytes: Uint8Array<ArrayBuffer>; offsets: readonly number[] } {
  const align = device().limits.minUniformBufferOffsetAlignment;
  const seen = new Map<string, number>();
  const chunks: [number, Uint8Array][] = [];
  let size = 0;
  const offsets = launches.map(({ params }) => {
    if (!params) return -1;
    const key = params.join();
    let offset = seen.get(key);
    if (offset === undefined) {
      seen.set(key, offset = size);
      chunks.push([offset, params]);
      size += Math.ceil(params.byteLength / align) * align;
    }
    return offset;
  });
  const bytes = new Uint8Array(size);
  for (const [offset, chunk] of chunks) bytes.set(chunk, offset);
  return { bytes, offsets };
}
