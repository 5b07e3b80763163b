// The scores of each image: images.csv, and worst.png, the images with the worst scores above their reconstructions.

import { join } from "@std/path";
import { writeAtomic } from "../formats/files.ts";
import { pairGrid, writePng } from "../image/image.ts";
import type { Log } from "../run/log.ts";
import type { PairBatch } from "./pairs.ts";

/** Images in the picture. */
const SHOWN = 10;

/** What the picture goes by: the first of these that is computed, and whether a larger value is worse. */
const BY = [["lpips", true], ["ms_ssim", false], ["ssim", false], ["psnr", false], ["mse", true]] as const;

/** Reads images.csv: names, and scores by their key. */
export function readImageScores(path: string): { names: string[]; columns: Map<string, number[]> } {
  const [head = [], ...rows] = recordsOf(Deno.readTextFileSync(path));
  const columns = new Map(
    head.slice(1).map((key, k) => [key, rows.map((row) => row[k + 1] ? Number(row[k + 1]) : NaN)] as const),
  );
  return { names: rows.map(([name = ""]) => name), columns };
}

/** Records of comma-separated values (RFC 4180). */
function recordsOf(text: string): string[][] {
  const records: string[][] = [[]];
  for (const [, quoted, plain = "", end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^,\r\n]*))(,|\r?\n|$)/g)) {
    records.at(-1)?.push(quoted?.replaceAll('""', '"') ?? plain);
    if (end === "") break;
    if (end !== ",") records.push([]);
  }
  return records.filter((record) => record.length > 1 || record[0] !== "");
}

export class ImageScores {
  readonly #names: string[] = [];
  readonly #columns = new Map<string, number[]>();
  /** The worst first. */
  readonly #worst: { badness: number; pair: [Uint8Array, Uint8Array] }[] = [];

  /** @param size width of the images, pixels */
  constructor(readonly size: number, readonly height = size) {}

  /** The scores of all images by their key. */
  get columns(): ReadonlyMap<string, readonly number[]> {
    return this.#columns;
  }

  /** What the picture goes by. */
  get by(): string | undefined {
    return BY.find(([key]) => this.#columns.has(key))?.[0];
  }

  /** Adds the scores of a batch. @param values by their key */
  add(
    { first, count, originals, reconstructions }: PairBatch,
    values: Readonly<Record<string, ArrayLike<number>>>,
    nameOf: (i: number) => string,
  ): void {
    for (let i = 0; i < count; i++) this.#names.push(nameOf(first + i));
    for (const [key, list] of Object.entries(values)) {
      const column = this.#columns.get(key) ?? [];
      this.#columns.set(key, column);
      for (let i = 0; i < count; i++) column.push(list[i] as number);
    }
    const [key, larger] = BY.find(([key]) => values[key]) ?? [];
    if (key === undefined) return;
    const each = 3 * this.size * this.height,
      part = (all: Uint8Array, i: number) => all.slice(i * each, (i + 1) * each);
    for (let i = 0; i < count; i++) {
      const value = values[key]?.[i] as number, badness = larger ? value : -value;
      if (this.#worst.length === SHOWN && !(badness > (this.#worst.at(-1)?.badness ?? 0))) continue;
      this.#worst.push({ badness, pair: [part(originals, i), part(reconstructions, i)] });
      this.#worst.sort((a, b) => b.badness - a.badness);
      this.#worst.splice(SHOWN);
    }
  }

  /** A header and a row for each image, in their order (RFC 4180). */
  csv(): string {
    const columns = [...this.#columns];
    const quoted = (text: string) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    const rows = this.#names.map((name, i) =>
      [quoted(name), ...columns.map(([, values]) => values[i] ?? "")].join()
    );
    return [["name", ...columns.map(([key]) => key)].join(), ...rows, ""].join("\n");
  }

  /** Writes both files into a folder, where there is one and there are scores of each image, and says so. */
  async write(folder: string | undefined, log: Pick<Log, "line">): Promise<void> {
    if (folder === undefined || this.#columns.size === 0) return;
    const csv = join(folder, "images.csv"), picture = join(folder, "worst.png");
    writeAtomic(csv, this.csv());
    await writePng(picture, pairGrid(this.#worst.map(({ pair }) => pair), this.size, SHOWN, this.height));
    log.line(`each image: ${csv}; the worst by ${this.by}: ${picture}`);
  }
}
