// Images in Parquet files as Hugging Face's datasets writes them: a column of structs {bytes, path} or of binary values, and a
// column of labels, whose class names the "huggingface" metadata may hold. The pages of the image column are located once,
// from their headers, so that an image costs its page and not its row group; pyarrow's default pages hold 1,000 images.
// https://parquet.apache.org/docs/file-format/

import { createHash } from "node:crypto";
import { type AsyncBuffer, type FileMetaData, parquetMetadataAsync, parquetSchema } from "hyparquet";
import { parquetHeader, readColumn } from "hyparquet/column";
import { parquetReadColumn } from "hyparquet/read";
import type { ColumnDecoder, ColumnMetaData, PageHeader, SchemaTree } from "hyparquet/types";
import { compressors } from "hyparquet-compressors";
import { BOUNDS } from "../bounds.ts";
import { UsageError } from "../errors.ts";
import { bytesAt, type ByteSource, damaged, openBytes } from "./bytes.ts";
import { foreign } from "./foreign.ts";

/** Names of the columns, where the file does not say which they are. */
export interface ParquetColumns {
  image?: string | undefined;
  label?: string | undefined;
}

/** How the values of an image column are stored; plain data. */
export interface ParquetLayout {
  codec: ColumnMetaData["codec"];
  /** Whether each level, from the column to its values, may be null. */
  nullable: boolean[];
}

/** Where the images of a file are, and their labels. */
export interface ParquetImages {
  rows: number;
  layout: ParquetLayout;
  /** Hash of the footer, which has the sizes and places of everything. */
  fingerprint: string;
  /** Class names, in the order of the labels; undefined: labels are plain numbers. */
  classes: string[] | undefined;
  /** One label a row; undefined without a label column. */
  labels: Uint32Array<ArrayBuffer> | undefined;
  pages: ParquetPages;
}

/** Pages of the image column, one element a page. */
export interface ParquetPages {
  offset: Float64Array;
  size: Uint32Array;
  /** Its first row in the file. */
  row: Uint32Array;
  /** The dictionary that the page refers to; size 0: none. */
  dictionaryOffset: Float64Array;
  dictionarySize: Uint32Array;
}

/** Reads where everything is. @throws UsageError for a file without an image column, with a null image, or damaged */
export async function openParquet(path: string, columns: ParquetColumns): Promise<ParquetImages> {
  const source = openBytes(path);
  try {
    const start = bytesAt(source, 0, Math.min(1024, source.size));
    if (new TextDecoder().decode(start.subarray(0, 4)) !== "PAR1") {
      const other = foreign(start);
      throw other
        ? new UsageError(`Cannot read "${path}": it is ${other.what}, not a Parquet table; ${other.remedy}`)
        : damaged(path, "it is not a Parquet table");
    }
    return await new Reader(source, columns).read();
  } catch (error) {
    throw error instanceof UsageError
      ? error
      : damaged(path, `its Parquet data is damaged or cut off (${(error as Error).message})`);
  } finally {
    source.close();
  }
}

/** The values of a page; null for missing ones. @throws UsageError for a damaged page */
export function parquetValues(
  path: string,
  layout: ParquetLayout,
  page: { offset: number; size: number; dictionaryOffset: number; dictionarySize: number },
): (Uint8Array<ArrayBuffer> | null)[] {
  const source = openBytes(path);
  try {
    const bytes = new Uint8Array(page.dictionarySize + page.size);
    source.readInto(page.dictionaryOffset, bytes.subarray(0, page.dictionarySize));
    source.readInto(page.offset, bytes.subarray(page.dictionarySize));
    const select = { groupStart: 0, selectStart: 0, selectEnd: Infinity, groupRows: Infinity };
    const { data } = readColumn({ view: new DataView(bytes.buffer), offset: 0 }, select, decoderOf(layout));
    return data.flatMap((values) => Array.from(values, innermost));
  } catch (error) {
    throw error instanceof UsageError
      ? error
      : damaged(path, `the page at byte ${page.offset} is damaged (${(error as Error).message})`);
  } finally {
    source.close();
  }
}

/** A struct's values come as lists of one, or none where the struct is null. */
function innermost(value: unknown): Uint8Array<ArrayBuffer> | null {
  while (Array.isArray(value)) value = value[0];
  return value instanceof Uint8Array ? value as Uint8Array<ArrayBuffer> : null;
}

function decoderOf({ codec, nullable }: ParquetLayout): ColumnDecoder {
  const level = (name: string, isNullable: boolean): SchemaTree => ({
    children: [],
    count: 1,
    path: [name],
    element: { name, type: "BYTE_ARRAY", repetition_type: isNullable ? "OPTIONAL" : "REQUIRED" },
  });
  const schemaPath = [
    level("schema", false),
    ...nullable.map((isNullable, i) => level(`level ${i}`, isNullable)),
  ];
  const { element } = schemaPath.at(-1) as SchemaTree;
  // Values are bytes: nothing is parsed.
  const parsers = {} as ColumnDecoder["parsers"];
  return {
    pathInSchema: [],
    type: "BYTE_ARRAY",
    element,
    schemaPath,
    codec,
    parsers,
    compressors,
    utf8: false,
  };
}

/** Bytes of a page header that are read first; statistics make some longer. */
const HEADER = 1 << 12;

class Reader {
  constructor(private readonly source: ByteSource, private readonly columns: ParquetColumns) {}

  async read(): Promise<ParquetImages> {
    const { source } = this;
    const file = {
      byteLength: source.size,
      slice: (begin: number, end = source.size) => bytesAt(source, begin, end - begin).buffer,
    };
    const metadata = await parquetMetadataAsync(file, { geoparquet: false });
    const rows = Number(metadata.num_rows), features = featuresOf(metadata);
    if (rows > BOUNDS.images) throw damaged(source.name, `it claims ${rows} rows`);
    const path = this.#imageColumn(metadata, features), label = this.#labelColumn(metadata, features);
    const chunks = metadata.row_groups.map(({ columns }) => {
      const chunk = columns.find(({ meta_data }) =>
        meta_data?.path_in_schema.join("\0") === names(path).join("\0")
      );
      return chunk?.meta_data as ColumnMetaData;
    });
    const codecs = new Set(chunks.map(({ codec }) => codec)), [codec = "UNCOMPRESSED"] = codecs;
    if (codecs.size > 1) {
      throw this.#refusal(
        `its row groups are compressed differently (${[...codecs].join(", ")}); write it again`,
      );
    }
    const layout = { codec, nullable: path.map(({ element }) => element.repetition_type !== "REQUIRED") };
    const pages = this.#pages(chunks);
    if (chunks.some(({ statistics }) => statistics?.null_count)) this.#findNull(path, layout, pages);
    const footer = bytesAt(
      source,
      Math.max(0, source.size - metadata.metadata_length - 8),
      metadata.metadata_length,
    );
    return {
      rows,
      layout,
      fingerprint: createHash("sha256").update(footer).digest("hex").slice(0, 16),
      ...label
        ? await this.#labels(file, metadata, label, features.get(label))
        : { labels: undefined, classes: undefined },
      pages,
    };
  }

  /** Schema of the image column, from its name to its binary values. */
  #imageColumn(metadata: FileMetaData, features: Features): SchemaTree[] {
    const { children } = parquetSchema(metadata), { image } = this.columns;
    const isBinary = ({ element, children }: SchemaTree) =>
      children.length === 0 && element.type === "BYTE_ARRAY" && element.repetition_type !== "REPEATED" &&
      element.converted_type !== "UTF8" && element.logical_type?.type !== "STRING";
    const found = children.flatMap((column) => {
      const bytes = isBinary(column)
        ? undefined
        : column.children.find((c) => c.element.name === "bytes" && isBinary(c));
      const usable = bytes ? column.element.repetition_type !== "REPEATED" : isBinary(column);
      return usable ? [bytes ? [column, bytes] : [column]] : [];
    });
    const called = (path: SchemaTree[]) => path[0]?.element.name as string;
    const all = `its columns are ${children.map(({ element }) => `"${element.name}"`).join(", ") || "none"}`;
    if (image !== undefined) {
      const path = found.find((path) => called(path) === image);
      if (path) return path;
      throw this.#refusal(`it has no column "${image}" of images (binary, or a struct with "bytes"); ${all}`);
    }
    const marked = found.filter((path) => features.get(called(path))?._type === "Image");
    const structs = found.filter((path) => path.length > 1);
    const likely = marked.length ? marked : structs.length ? structs : found;
    if (likely.length === 1) return likely[0] as SchemaTree[];
    throw this.#refusal(
      likely.length
        ? `${
          likely.map((path) => `"${called(path)}"`).join(" and ")
        } may be the images; choose with --image-column`
        : `it has no column of images (binary, or a struct with "bytes"); ${all}`,
    );
  }

  #labelColumn(metadata: FileMetaData, features: Features): string | undefined {
    const all = parquetSchema(metadata).children.map(({ element }) => element.name), { label } = this.columns;
    if (label !== undefined) {
      if (all.includes(label)) return label;
      throw this.#refusal(
        `it has no column "${label}"; its columns are ${all.map((name) => `"${name}"`).join(", ")}`,
      );
    }
    if (all.includes("label")) return "label";
    const classes = all.filter((name) => features.get(name)?._type === "ClassLabel");
    if (classes.length < 2) return classes[0];
    throw this.#refusal(
      `${classes.map((name) => `"${name}"`).join(" and ")} may be the labels; choose with --label-column`,
    );
  }

  /** Reads the page headers of each column chunk. */
  #pages(chunks: readonly ColumnMetaData[]): ParquetPages {
    const offset: number[] = [], size: number[] = [], row: number[] = [];
    const dictionaryOffset: number[] = [], dictionarySize: number[] = [];
    let rows = 0;
    for (const chunk of chunks) {
      let at = Number(chunk.dictionary_page_offset || chunk.data_page_offset),
        dictionary = { offset: 0, size: 0 };
      const end = at + Number(chunk.total_compressed_size);
      for (const last = rows + Number(chunk.num_values); rows < last;) {
        if (at >= end || end > this.source.size) throw new Error("its pages end early");
        const { header, length } = this.#pageHeader(at), bytes = length + header.compressed_page_size;
        const data = header.data_page_header ?? header.data_page_header_v2;
        if (header.type === "DICTIONARY_PAGE") dictionary = { offset: at, size: bytes };
        else if (data) {
          const refers = data.encoding.endsWith("_DICTIONARY");
          offset.push(at);
          size.push(bytes);
          row.push(rows);
          dictionaryOffset.push(refers ? dictionary.offset : 0);
          dictionarySize.push(refers ? dictionary.size : 0);
          rows += data.num_values;
        }
        at += bytes;
      }
    }
    return {
      offset: new Float64Array(offset),
      size: new Uint32Array(size),
      row: new Uint32Array(row),
      dictionaryOffset: new Float64Array(dictionaryOffset),
      dictionarySize: new Uint32Array(dictionarySize),
    };
  }

  #pageHeader(at: number): { header: PageHeader; length: number } {
    for (let length = HEADER;; length *= 16) {
      const bytes = bytesAt(this.source, at, Math.min(length, this.source.size - at));
      const reader = { view: new DataView(bytes.buffer), offset: 0 };
      try {
        return { header: parquetHeader(reader), length: reader.offset };
      } catch (error) {
        if (bytes.length < length || length > 1 << 24) throw error;
      }
    }
  }

  /** @throws UsageError that names the first row without an image */
  #findNull(path: readonly SchemaTree[], layout: ParquetLayout, pages: ParquetPages): void {
    for (const i of pages.row.keys()) {
      const values = parquetValues(this.source.name, layout, pageAt(pages, i)),
        missing = values.indexOf(null);
      if (missing < 0) continue;
      const name = path.map(({ element }) => element.name).join(".");
      throw this.#refusal(
        `row ${
          (pages.row[i] as number) + missing
        } has no image ("${name}" is null); remove the row, or embed its file`,
      );
    }
  }

  async #labels(
    file: AsyncBuffer,
    metadata: FileMetaData,
    column: string,
    feature: Feature | undefined,
  ): Promise<{ labels: Uint32Array<ArrayBuffer>; classes: string[] | undefined }> {
    const labels = new Uint32Array(Number(metadata.num_rows)), texts = new Map<string, number>();
    const wrong = (row: number, value: unknown) =>
      this.#refusal(
        `row ${row} has the label ${value} in "${column}"; give every row a class of 0 or more, or remove the row`,
      );
    let at = 0;
    for (const { num_rows } of metadata.row_groups) {
      const range = { rowStart: at, rowEnd: at + Number(num_rows) };
      for (
        const value of await parquetReadColumn({ file, metadata, compressors, columns: [column], ...range })
      ) {
        if (typeof value === "string") {
          if (!texts.has(value)) texts.set(value, texts.size);
          labels[at++] = texts.get(value) as number;
          continue;
        }
        const label = typeof value === "bigint" ? Number(value) : value;
        if (!Number.isInteger(label) || label < 0 || label >= (feature?.names?.length ?? BOUNDS.classes)) {
          throw wrong(at, value);
        }
        labels[at++] = label;
      }
    }
    return { labels, classes: texts.size ? [...texts.keys()] : feature?.names };
  }

  #refusal(reason: string): UsageError {
    return new UsageError(`Cannot use "${this.source.name}": ${reason}`);
  }
}

const names = (path: readonly SchemaTree[]) => path.map(({ element }) => element.name);

/** Page number `i`. */
export function pageAt(pages: ParquetPages, i: number): Parameters<typeof parquetValues>[2] {
  return {
    offset: pages.offset[i] as number,
    size: pages.size[i] as number,
    dictionaryOffset: pages.dictionaryOffset[i] as number,
    dictionarySize: pages.dictionarySize[i] as number,
  };
}

/** What datasets says about a column. */
interface Feature {
  _type?: string | undefined;
  names?: string[] | undefined;
}
type Features = ReadonlyMap<string, Feature>;

/** The features in the "huggingface" metadata; none where it is absent or of another form. */
function featuresOf({ key_value_metadata }: FileMetaData): Features {
  const text = key_value_metadata?.find(({ key }) => key === "huggingface")?.value;
  try {
    const features = JSON.parse(text ?? "").info?.features ?? {};
    return new Map(
      Object.entries(features).map(([name, value]) => {
        const { _type, names } = (value ?? {}) as Record<string, unknown>;
        const listed = Array.isArray(names) && names.every((n) => typeof n === "string") ? names : undefined;
        return [name, { _type: typeof _type === "string" ? _type : undefined, names: listed }];
      }),
    );
  } catch {
    return new Map();
  }
}
