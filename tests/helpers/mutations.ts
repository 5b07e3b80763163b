// Mutations of files for fuzz tests: changed bytes and bits, truncation, inserted bytes.

import fc from "fast-check";

export type Mutation =
  | { at: number; byte: number }
  | { at: number; bit: number }
  | { cut: number }
  | { at: number; insert: Uint8Array }
  | { from: number; to: number; length: number };

/** One to four mutations of a file of `length` bytes. */
export function mutations(length: number): fc.Arbitrary<Mutation[]> {
  const position = fc.nat(length - 1);
  return fc.array(
    fc.oneof<fc.Arbitrary<Mutation>[]>(
      fc.record({ at: position, byte: fc.nat(255) }),
      fc.record({ at: position, bit: fc.nat(7) }),
      fc.record({ cut: position }),
      fc.record({ at: position, insert: fc.uint8Array({ maxLength: 16 }) }),
      fc.record({ from: position, to: position, length: fc.nat(64) }),
    ),
    { minLength: 1, maxLength: 4 },
  );
}

/** A changed copy. */
export function mutated(whole: Uint8Array, changes: readonly Mutation[]): Uint8Array<ArrayBuffer> {
  let bytes = whole.slice();
  for (const m of changes) {
    if ("byte" in m) bytes[m.at] = m.byte;
    else if ("bit" in m) bytes[m.at] = (bytes[m.at] ?? 0) ^ (1 << m.bit);
    else if ("cut" in m) bytes = bytes.slice(0, m.cut);
    else if ("insert" in m) {
      const longer = new Uint8Array(bytes.length + m.insert.length), at = Math.min(m.at, bytes.length);
      longer.set(bytes.subarray(0, at));
      longer.set(m.insert, at);
      longer.set(bytes.subarray(at), at + m.insert.length);
      bytes = longer;
    } else bytes.copyWithin(m.to, m.from, m.from + m.length); // a piece of the file in another place
  }
  return bytes;
}
