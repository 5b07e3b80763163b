// Merging of pointwise launches: a launch whose only reader is another pointwise launch over the same elements
// becomes a part of that one's expression, and its intermediate is never stored. What can be merged, and how, is
// the launches' own business (see ops/pointwise.ts); this file knows only about who reads what, and when.

import { type Launch, sink } from "./kernel.ts";
import type { Storage } from "./storage.ts";

/** Carried by launches that can be merged. */
export interface Fusion {
  readonly recipe: unknown;
  /**
   * Gives a function that records this launch with `producer`'s work in it, where it reads `into`, the only
   * thing that `producer` writes; undefined when the two do not fit.
   */
  absorb(producer: Launch, into: Storage): (() => void) | undefined;
}

/** Returns the same program with chains of pointwise launches merged. */
export function fuse(launches: readonly Launch[], outputs: ReadonlySet<Storage>): Launch[] {
  const merged: (Launch | undefined)[] = [...launches];
  const uses = new Map<Storage, Set<number>>();
  const writes = new Map<Storage, number[]>();
  launches.forEach(({ kernel, storages }, i) =>
    storages.forEach((s, j) => {
      const list = uses.get(s) ?? new Set();
      uses.set(s, list.add(i));
      if (kernel.bindings[j]?.access === "read_write") writes.set(s.root, [...writes.get(s.root) ?? [], i]);
    })
  );
  for (let at = 0; at < merged.length; at++) {
    const producer = merged[at];
    if (!producer?.fusion) continue;
    const into = producer.storages.at(-1) as Storage;
    if (into.persistent || outputs.has(into)) continue;
    const touching = [...uses.get(into) ?? []].filter((i) => merged[i]);
    const reader = touching.find((i) => i !== at);
    if (touching.length !== 2 || reader === undefined || reader < at) continue;
    // What the producer reads must still hold the same values when the reader runs.
    const changed = producer.storages.slice(0, -1).some((s) =>
      writes.get(s.root)?.some((w) => w > at && w <= reader && merged[w])
    );
    if (changed) continue;
    const record = merged[reader]?.fusion?.absorb(producer, into);
    if (!record) continue;
    const fused = recordOne(record);
    merged[at] = undefined;
    merged[reader] = fused;
    for (const s of fused.storages) uses.set(s, (uses.get(s) ?? new Set()).add(reader));
  }
  return merged.filter((l) => l !== undefined);
}

function recordOne(record: () => void): Launch {
  const before = sink.record;
  const recorded: Launch[] = [];
  sink.record = (launch) => recorded.push(launch);
  try {
    record();
  } finally {
    sink.record = before;
  }
  return recorded[0] as Launch;
}
