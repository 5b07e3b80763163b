// The parameters of a program's launches in one uniform buffer: equal ones are stored once, aligned as the device requires of
// offsets. The plan counts its bytes, the program uploads it.

import { device } from "./device.ts";
import type { Launch } from "./launch.ts";

/** The buffer's contents, and the offset of each launch's parameters in it (-1 for a launch without). */
export function packParams(
  launches: readonly Launch[],
): { bytes: Uint8Array<ArrayBuffer>; offsets: readonly number[] } {
  const align = device().limits.minUniformBufferOffsetAlignment;
  const seen = new Map<string, number>();
  const chunks: [number, Uint8Array][] = [];
  let size = 0;
  const offsets = launches.map(({ params }) => {
    if (!params) return -1;
    const key = params.join();
    let offset = seen.get(key);
    if (offset === undefined) {
      seen.set(key, offset = size);
      chunks.push([offset, params]);
      size += Math.ceil(params.byteLength / align) * align;
    }
    return offset;
  });
  const bytes = new Uint8Array(size);
  for (const [offset, chunk] of chunks) bytes.set(chunk, offset);
  return { bytes, offsets };
}
