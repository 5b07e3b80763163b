// Types of yauzl as far as tok uses it; the package has none.

import type { Readable } from "node:stream";

export interface Entry {
  fileName: string;
  uncompressedSize: number;
}

export interface ZipFile {
  eachEntry(): AsyncIterable<Entry>;
  /** Inflated bytes; an error in the stream where the size does not fit. */
  openReadStreamPromise(entry: Entry): Promise<Readable>;
  close(): void;
}

export function openPromise(path: string, options: { lazyEntries: true; autoClose: false }): Promise<ZipFile>;
