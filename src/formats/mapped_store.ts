// A file's tensors under a model's own keys: what a name map from published spellings gives. A key of the model reads
// another key of the file, or some rows of it, as the query's third of a fused [3C, C] projection. Nothing is copied
// before it is read.

import { UsageError } from "../errors.ts";
import type { TensorStore } from "./safetensors.ts";

/** Where a model's tensor comes from: a key of the file, or its rows `from` up to `to` (not included). */
export type Origin = string | { readonly key: string; readonly rows: readonly [from: number, to: number] };

/** A store for loadState(). */
export type Renamed = Pick<TensorStore, "name" | "shapes" | "read" | "unread">;

/**
 * `source` under other names: exactly the keys of `entries`, each read from its origin. A key whose origin is not in the
 * source is left out, so that a strict loader names it as missing; what to do with tensors of the source that no entry
 * asks for is up to the maker of the map.
 * @throws UsageError when a tensor has not the rows that an entry takes
 */
export function renamed(source: TensorStore, entries: ReadonlyMap<string, Origin>): Renamed {
  const shapes = new Map<string, readonly number[]>();
  for (const [key, origin] of entries) {
    const shape = source.shapes.get(typeof origin === "string" ? origin : origin.key);
    if (shape) shapes.set(key, typeof origin === "string" ? shape : rowsOf(source.name, shape, origin));
  }
  return {
    name: source.name,
    shapes,
    ...(source.unread ? { unread: source.unread } : {}),
    read: async (key, into) => {
      const origin = entries.get(key);
      if (origin === undefined) {
        throw new UsageError(`Cannot read "${key}": no tensor of "${source.name}" has that name`);
      }
      if (typeof origin === "string") return await source.read(origin, into);
      return await source.readRows(origin.key, ...origin.rows, into);
    },
  };
}

function rowsOf(name: string, shape: readonly number[], { key, rows: [from, to] }: Exclude<Origin, string>) {
  const [rows = 0, ...rest] = shape;
  if (shape.length && from >= 0 && from <= to && to <= rows) return [to - from, ...rest];
  throw new UsageError(
    `Cannot load "${name}": rows ${from} to ${to} of "${key}" are asked for, and it is [${
      shape.join(", ")
    }]; ` +
      `check that the file belongs to this model`,
  );
}
