// From a recorded list of launches to a plan: launches that nobody reads are dropped, copies of intermediates into
// persistent storages are elided, and every intermediate gets a slot of a pool by the time it is live, so that
// memory is the peak of what lives at once and not the sum. Nothing is allocated here.

import { GpuError } from "../errors.ts";
import { bufferBytes, device } from "./device.ts";
import type { Launch } from "./launch.ts";
import { COPY } from "./memory.ts";
import { fuse } from "./fusion.ts";
import { packParams } from "./params.ts";
import { stagingBytes } from "./software/staging.ts";
import type { Category, Place, Storage } from "./storage.ts";

export interface Plan {
  readonly launches: readonly Launch[];
  readonly places: ReadonlyMap<Storage, Place>;
  /** Bytes of each physical buffer of the pool. */
  readonly slots: readonly number[];
  /**
   * Bytes on the device by category; `activations` is the pool and the textures that operands are staged in, `workspace`
   * the parameters of the launches. What is prepared takes these bytes and no more.
   */
  readonly bytes: Readonly<Record<Category | "workspace", number>>;
  readonly totalBytes: number;
  /** Bytes that the activations would take if each kept memory of its own: what the pool is measured against. */
  readonly unpooledBytes: number;
  /** Floating-point operations of one run, as the ops declare them. */
  readonly flops: number;
  /** Launches recorded before anything was dropped or merged. */
  readonly recorded: number;
}

/** Plans `recorded` launches of which `outputs` are read afterwards. Pure: no device memory is touched. */
export function makePlan(recorded: readonly Launch[], outputs: readonly Storage[]): Plan {
  const live = dropDead(recorded, outputs);
  checkWrittenFirst(live);
  const fused = fuse(live, new Set(outputs));
  const { launches, alias } = elideCopies(fused, new Set(outputs));
  const places = new Map<Storage, Place>();
  const slots = assignSlots(launches, outputs, alias, places);

  const bytes: Record<Category | "workspace", number> = {
    parameters: 0,
    gradients: 0,
    optimizer: 0,
    state: 0,
    inputs: 0,
    outputs: 0,
    activations: [...slots, ...stagingBytes(launches).values()].reduce((a, b) => a + b, 0),
    workspace: packParams(launches).bytes.length,
  };
  for (const root of new Set([...places.values()].filter((p) => p.slot < 0).map((p) => p.root))) {
    bytes[root.persistent ? root.category : "outputs"] += bufferBytes(root.bytes);
  }
  const limit = device().limits.maxStorageBufferBindingSize;
  for (const storage of places.keys()) {
    if (storage.bytes > limit) {
      throw new GpuError(
        `Cannot plan "${storage.label}": it needs ${storage.bytes} bytes, the adapter binds at most ${limit}; ` +
          `use a smaller batch or image size`,
      );
    }
  }
  return {
    launches,
    places,
    slots,
    bytes,
    totalBytes: Object.values(bytes).reduce((a, b) => a + b, 0),
    unpooledBytes: [...places].reduce((sum, [s, { slot }]) => slot < 0 ? sum : sum + bufferBytes(s.bytes), 0),
    flops: launches.reduce((sum, l) => sum + l.flops, 0),
    recorded: recorded.length,
  };
}

/** An intermediate that is read before anything wrote it comes from another program or from a faulty op. */
function checkWrittenFirst(launches: readonly Launch[]): void {
  const written = new Set<Storage>();
  for (const { kernel, storages } of launches) {
    storages.forEach((storage, i) => {
      if (kernel.bindings[i]?.access === "read_write") written.add(storage);
      else if (!storage.persistent && !written.has(storage)) {
        throw new GpuError(
          `Cannot plan: kernel "${kernel.label}" reads "${storage.label}" before anything in this program wrote it`,
        );
      }
    });
  }
}

/** Keeps the launches that write something persistent, an output, or what a kept launch reads. */
function dropDead(recorded: readonly Launch[], outputs: readonly Storage[]): Launch[] {
  const wanted = new Set<Storage>(outputs);
  const kept: Launch[] = [];
  for (let i = recorded.length - 1; i >= 0; i--) {
    const launch = recorded[i] as Launch;
    const writes = launch.storages.some((s, j) =>
      launch.kernel.bindings[j]?.access === "read_write" && (s.persistent || wanted.has(s))
    );
    if (!writes) continue;
    kept.push(launch);
    for (const storage of launch.storages) wanted.add(storage);
  }
  return kept.reverse();
}

/**
 * Lets an intermediate live where it would be copied to. `grad` copies each parameter's gradient into the flat
 * gradient buffer; with this the kernel that computes it writes there directly.
 */
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
  const dropped = new Set<number>();
  const copyKernel = COPY();
  launches.forEach((launch, at) => {
    if (launch.kernel !== copyKernel) return;
    const [from, to] = launch.storages as [Storage, Storage];
    const span = uses.get(from) ?? [];
    if (from.persistent || outputs.has(from) || alias.has(from) || span[0] === at) return;
    const first = span[0] ?? 0, last = span.at(-1) ?? at;
    const lives = (s: Storage) => alias.get(s) ?? s;
    const overlaps = (s: Storage) => {
      const { root, offset, bytes } = lives(s);
      return root === to.root && offset < to.offset + to.bytes && to.offset < offset + bytes;
    };
    for (const i of rootUses.get(to.root) ?? []) {
      if (i === at || i < first || i > last) continue;
      const other = launches[i] as Launch;
      if (other.storages.some(overlaps)) return;
      // WebGPU refuses one buffer bound both for reading and for writing in one dispatch.
      if (other.storages.includes(from)) {
        const access = other.storages.map((s, j) =>
          s === from || lives(s).root === to.root ? other.kernel.bindings[j]?.access : undefined
        );
        if (new Set(access.filter(Boolean)).size > 1) return;
      }
    }
    alias.set(from, to);
    dropped.add(at);
    for (const i of span) rootUses.get(to.root)?.push(i);
  });
  return { launches: launches.filter((_, i) => !dropped.has(i)), alias };
}

/** Greedy by size: the largest intermediates choose first, each takes the first slot that is free while it lives. */
function assignSlots(
  launches: readonly Launch[],
  outputs: readonly Storage[],
  alias: ReadonlyMap<Storage, Storage>,
  places: Map<Storage, Place>,
): number[] {
  const keep = new Set(outputs);
  const spans = new Map<Storage, [number, number]>();
  launches.forEach(({ storages }, i) => {
    for (const storage of storages) {
      const owner = alias.get(storage) ?? storage;
      if (owner.persistent || keep.has(owner)) {
        places.set(storage, { root: owner.root, offset: owner.offset, slot: -1 });
        continue;
      }
      const span = spans.get(storage);
      if (span) span[1] = i;
      else spans.set(storage, [i, i]);
    }
  });
  for (const output of outputs) places.set(output, { root: output.root, offset: output.offset, slot: -1 });

  const order = [...spans].sort(([a, [i]], [b, [j]]) => b.bytes - a.bytes || i - j);
  const slots: { bytes: number; spans: [number, number][] }[] = [];
  for (const [storage, span] of order) {
    let slot = slots.findIndex((s) => s.spans.every(([from, to]) => to < span[0] || span[1] < from));
    if (slot < 0) slot = slots.push({ bytes: bufferBytes(storage.bytes), spans: [] }) - 1;
    slots[slot]?.spans.push(span);
    places.set(storage, { root: storage, offset: 0, slot });
  }
  return slots.map((s) => s.bytes);
}
