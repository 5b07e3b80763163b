// Text chunks of PNG files: how an image was made stays with it. Written as tEXt, which every reader knows; iTXt is read too.
// W3C, Portable Network Graphics Specification, third edition, 11.3.3.

import { crc32 } from "node:zlib";
import { UsageError } from "../errors.ts";
import { MAX_BYTES, readRegular } from "../formats/files.ts";

/** Bytes before the second chunk: signature and IHDR. */
const START = 8 + 25;
const SIGNATURE = "89504e470d0a1a0a";
const latin1 = new TextDecoder("latin1"), utf8 = new TextDecoder();

/**
 * A PNG with a tEXt chunk after IHDR.
 * @param keyword of 1 to 79 characters
 * @param text ASCII
 */
export function withText(png: Uint8Array, keyword: string, text: string): Uint8Array<ArrayBuffer> {
  const data = new TextEncoder().encode(`tEXt${keyword}\0${text}`);
  const out = new Uint8Array(png.length + data.length + 8), view = new DataView(out.buffer);
  out.set(png.subarray(0, START));
  view.setUint32(START, data.length - 4);
  out.set(data, START + 4);
  view.setUint32(START + 4 + data.length, crc32(data));
  out.set(png.subarray(START), START + 8 + data.length);
  return out;
}

/**
 * The texts of a PNG file by keyword; compressed ones are left out.
 * @throws UsageError if it is not readable, no PNG, or damaged
 */
export function readPngTexts(path: string): Map<string, string> {
  const bytes = readRegular(path, MAX_BYTES.image), view = new DataView(bytes.buffer);
  const refuse = (reason: string) =>
    new UsageError(`Cannot read "${path}" as PNG: ${reason}; choose another file`);
  if (bytes.subarray(0, 8).toHex() !== SIGNATURE) throw refuse("it does not begin as a PNG");
  const texts = new Map<string, string>();
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at),
      end = at + 8 + length,
      type = latin1.decode(bytes.subarray(at + 4, at + 8));
    if (end + 4 > bytes.length) throw refuse("it is cut off");
    if (type === "tEXt" || type === "iTXt") {
      if (crc32(bytes.subarray(at + 4, end)) !== view.getUint32(end)) {
        throw refuse(`the checksum of ${type} is wrong`);
      }
      const found = type === "tEXt"
        ? plain(bytes.subarray(at + 8, end))
        : international(bytes.subarray(at + 8, end));
      if (found) texts.set(...found);
    }
    if (type === "IEND") return texts;
    at = end + 4;
  }
  throw refuse("it is cut off");
}

function plain(data: Uint8Array): [string, string] | undefined {
  const split = data.indexOf(0);
  return split < 0
    ? undefined
    : [latin1.decode(data.subarray(0, split)), latin1.decode(data.subarray(split + 1))];
}

/** iTXt: keyword, compression flag and method, language, translated keyword, text. */
function international(data: Uint8Array): [string, string] | undefined {
  const keyword = data.indexOf(0), language = data.indexOf(0, keyword + 3);
  const translated = data.indexOf(0, language + 1);
  if (keyword < 0 || language < 0 || translated < 0 || data[keyword + 1] !== 0) return undefined;
  return [latin1.decode(data.subarray(0, keyword)), utf8.decode(data.subarray(translated + 1))];
}
