// Untrusted JSON: size and nesting are bounded before it is parsed. JSON.parse turns 40 million brackets into gigabytes, and a
// regular expression over a long text overflows the stack.

import { BOUNDS } from "../bounds.ts";

const QUOTE = 0x22, BACKSLASH = 0x5c, COLON = 0x3a, COMMA = 0x2c;
const OPEN_LIST = 0x5b, CLOSE_LIST = 0x5d, OPEN = 0x7b, CLOSE = 0x7d;

/** Parses the bytes of a JSON file. @throws Error for invalid JSON, and for JSON beyond the bounds */
export function parseJson(bytes: Uint8Array): unknown {
  checkSize(bytes);
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  return JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
}

function checkSize(bytes: Uint8Array): void {
  let depth = 0, values = 1;
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at];
    if (byte === QUOTE) at = stringEnd(bytes, at);
    else if (byte === COMMA) values++;
    else if (byte === OPEN || byte === OPEN_LIST) {
      values++;
      depth++;
    } else if (byte === CLOSE || byte === CLOSE_LIST) depth--;
    if (depth > BOUNDS.nesting) throw new Error(`it is nested deeper than ${BOUNDS.nesting} times`);
    if (values > BOUNDS.values) {
      throw new Error(`it has more than ${BOUNDS.values.toLocaleString("en-US")} values`);
    }
  }
}

/** Offset of the closing quote of the string that starts at `at`. On bytes: 100 MB take 0.2 s. */
function stringEnd(bytes: Uint8Array, at: number): number {
  let end = at + 1;
  for (; end < bytes.length; end++) {
    const byte = bytes[end];
    if (byte === BACKSLASH) end++;
    else if (byte === QUOTE) break;
  }
  return end;
}

/** The first duplicate key of an object in this valid JSON text, after escapes are resolved. */
export function duplicateKey(bytes: Uint8Array): string | undefined {
  const seen: Set<string>[] = [], decoder = new TextDecoder();
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at];
    if (byte === OPEN) seen.push(new Set());
    else if (byte === CLOSE) seen.pop();
    else if (byte === QUOTE) {
      const begin = at;
      at = stringEnd(bytes, at);
      let next = at + 1;
      while ((bytes[next] ?? COLON) <= 0x20) next++;
      if (bytes[next] !== COLON) continue;
      const quoted = decoder.decode(bytes.subarray(begin, at + 1));
      const key: string = quoted.includes("\\") ? JSON.parse(quoted) : quoted.slice(1, -1);
      if (seen.at(-1)?.has(key)) return key;
      seen.at(-1)?.add(key);
    }
  }
  return undefined;
}
