// Which launches of a program access and write which storages: what fusion asks before it moves work. Storages overlap where
// they share bytes of one buffer.

import type { Launch } from "./launch.ts";
import type { Storage } from "./storage.ts";
import { isContiguous } from "./strides.ts";

const overlap = (a: Storage, b: Storage) =>
  a.root === b.root && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;

const isWritten = (launch: Launch, binding: number) =>
  launch.kernel.bindings[binding]?.access === "read_write";

export class LaunchGraph {
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
