// Format and size of an image from its first bytes, before any decoder allocates memory for it.
// PNG: IHDR. JPEG: the first start-of-frame marker. WebP: the VP8, VP8L or VP8X chunk.

export interface ImageHeader {
  format: "PNG" | "JPEG" | "WebP";
  /** 0 where the header is damaged. */
  width: number;
  height: number;
}

/** Undefined when the bytes are of no known format. */
export function imageHeader(bytes: Uint8Array): ImageHeader | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (at: number) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (text(0) === "\x89PNG") {
    if (bytes.length < 33 || text(12) !== "IHDR") return { format: "PNG", width: 0, height: 0 };
    return { format: "PNG", width: view.getUint32(16), height: view.getUint32(20) };
  }
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return { format: "JPEG", ...jpegSize(view) };
  if (text(0) === "RIFF" && text(8) === "WEBP") return { format: "WebP", ...webpSize(view, text(12)) };
  return undefined;
}

const NO_SIZE = { width: 0, height: 0 };

function jpegSize(view: DataView): { width: number; height: number } {
  for (let at = 2; at + 9 <= view.byteLength;) {
    if (view.getUint8(at) !== 0xff) return NO_SIZE;
    const marker = view.getUint8(at + 1);
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return { height: view.getUint16(at + 5), width: view.getUint16(at + 7) };
    if (marker === 0xff) at += 1; // a fill byte
    else if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) at += 2; // markers without a length
    else at += 2 + view.getUint16(at + 2);
  }
  return NO_SIZE;
}

function webpSize(view: DataView, chunk: string): { width: number; height: number } {
  if (view.byteLength < 30) return NO_SIZE;
  const u24 = (at: number) => view.getUint16(at, true) + 65536 * view.getUint8(at + 2);
  switch (chunk) {
    case "VP8 ":
      return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff };
    case "VP8L": {
      const bits = view.getUint32(21, true);
      return { width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 };
    }
    case "VP8X":
      return { width: u24(24) + 1, height: u24(27) + 1 };
    default:
      return NO_SIZE;
  }
}

/** Whether a JPEG has its end marker after the last scan has begun: a cut file has not. */
export function lastMarkerIsEnd(bytes: Uint8Array): boolean {
  let end = -1, scan = -1;
  for (let at = 0; at + 1 < bytes.length; at++) {
    if (bytes[at] !== 0xff) continue;
    if (bytes[at + 1] === 0xd9) end = at;
    if (bytes[at + 1] === 0xda) scan = at;
  }
  return scan >= 0 && end > scan;
}
