// A file's tensors under a model's own keys, by a name map. A key of the model reads another key of the file, or a range of
// its rows, such as the query's third of a fused [3C, C] projection. Nothing is copied before it is read.

import { UsageError } from "../errors.ts";
import type { TensorStore } from "./safetensors.ts";

/** Origin of a model's tensor: a key of the file, or its rows `from` to `to` - 1. */
export type Origin = string | { readonly key: string; readonly rows: readonly [from: number, to: number] };

/** A store for loadState(). */
export type Renamed = Pick<TensorStore, "name" | "shapes" | "read" | "unread">;

/**
 * `source` under other names: the keys of `entries`, each read from its origin. A key whose origin is missing is left out, so
 * that strict loading reports it; tensors of the source without an entry are ignored.
 * @throws UsageError if a tensor lacks rows that an entry reads
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
    `Cannot load "${name}": rows ${from} to ${to} of "${key}" are asked for, and it is ` +
      `[${shape.join(", ")}]; check that the file belongs to this model`,
  );
}
