// What is left out of a set of images, and why: counts by reason, with the first names for the message.

import { UsageError } from "../errors.ts";

/** Reasons for leaving out files; other extensions stand for themselves. */
const REASONS = {
  hidden: ["hidden image", "hidden images"],
  dead: ["link to nothing", "links to nothing"],
  special: ["pipe, socket or device", "pipes, sockets or devices"],
  linked: ["link to a folder that is read already", "links to folders that are read already"],
  encoding: ["file whose name is not UTF-8 (rename it)", "files whose names are not UTF-8 (rename them)"],
  overview: ["overview that tok made", "overviews that tok made"],
} as const;
type Reason = keyof typeof REASONS | `.${string}` | "";

const NAMED = 3;
/** Names that are kept by reason: next to a million images there may be a million captions. */
const KEPT = 10_000;

/** The form in files. */
export type LeftOutJson = [reason: string, count: number, names: string[]][];

/** Files left out of a set, by reason. */
export class LeftOut {
  readonly #groups = new Map<string, { count: number; names: string[] }>();

  add(reason: Reason, name: string): void {
    this.#add(reason, 1, [name]);
  }

  #add(reason: string, count: number, names: readonly string[]): void {
    const group = this.#groups.get(reason) ?? { count: 0, names: [] };
    this.#groups.set(reason, group);
    group.count += count;
    group.names.push(...names.slice(0, KEPT - group.names.length));
  }

  /** The names that are kept. */
  get names(): string[] {
    return [...this.#groups.values()].flatMap(({ names }) => names);
  }

  /** The names of a reason. @throws UsageError if there are more than are kept */
  namesOf(reason: Reason): readonly string[] {
    const { count, names } = this.#groups.get(reason) ?? { count: 0, names: [] };
    if (count === names.length) return names;
    throw new UsageError(
      `Cannot use ${count} ${reason} files in one folder: at most ${KEPT} are supported; name some of them`,
    );
  }

  /** Names below a folder, or the folder itself. */
  within(folder: string): LeftOut {
    const part = new LeftOut();
    for (const [reason, { names }] of this.#groups) {
      const inside = names.filter((name) => name === folder || name.startsWith(`${folder}/`));
      if (inside.length > 0) part.#add(reason, inside.length, inside);
    }
    return part;
  }

  /** Counts and the first names, for a file. */
  toJSON(): LeftOutJson {
    return [...this.#groups].map((
      [reason, { count, names }],
    ) => [reason, count, names.sort().slice(0, NAMED)]);
  }

  /** From what {@link toJSON} returned. */
  static of(json: LeftOutJson): LeftOut {
    const leftOut = new LeftOut();
    for (const [reason, count, names] of json) leftOut.#add(reason, count, names);
    return leftOut;
  }

  /** Adds those of a part. @param prefix of their names */
  addAll(part: LeftOut, prefix = ""): void {
    for (const [reason, count, names] of part.toJSON()) {
      this.#add(
        reason,
        count,
        names.map((name) => prefix + name),
      );
    }
  }

  /** "3 .heic files (a/0.heic, a/1.heic, a/2.heic), 1 link to nothing (b.png)"; empty without any. */
  toString(): string {
    const groups = [...this.#groups].sort(([a, x], [b, y]) => y.count - x.count || (a < b ? -1 : 1));
    return groups.map(([reason, { count, names }]) => {
      const [one, many] = REASONS[reason as keyof typeof REASONS] ??
        (reason
          ? [`${reason} file`, `${reason} files`]
          : ["file without an extension", "files without an extension"]);
      names.sort();
      const first = names.slice(0, NAMED).join(", "), more = count > NAMED ? ", ..." : "";
      return `${count} ${count === 1 ? one : many} (${first}${more})`;
    }).join(", ");
  }
}
