// Hashes of the bytes of images, before they are decoded.

import { createHash } from "node:crypto";
import { openRegular } from "../formats/files.ts";
import { imageValue } from "./decode_task.ts";
import type { ImageFile } from "./entries.ts";
import type { Image } from "../image/rows.ts";

/** Hash of an image: of its file's bytes, or of size and pixels; 16 characters. @throws UsageError if it cannot be read */
export function digestOf(image: ImageFile | Image): string {
  const hash = createHash("blake2b512");
  if (typeof image === "object" && "data" in image) {
    hash.update(`${image.width} x ${image.height}`).update(image.data);
  } else if (typeof image === "object" && "page" in image) {
    hash.update(imageValue(image).bytes);
  } else {
    const part = typeof image === "string" ? { path: image, offset: 0 } : image;
    const { file, size } = openRegular(part.path);
    try {
      const bytes = new Uint8Array("size" in part ? part.size : size);
      if (part.offset > 0) file.seekSync(part.offset, Deno.SeekMode.Start);
      let at = 0;
      for (let n: number | null = 1; n && at < bytes.length; at += n ?? 0) {
        n = file.readSync(bytes.subarray(at));
      }
      hash.update(bytes.subarray(0, at));
    } finally {
      file.close();
    }
  }
  return String.fromCharCode(...hash.digest().subarray(0, 16));
}
