// What a file is that was taken for another kind: told from its first bytes, with what to do about it. For messages only.

/** A sentence without a subject ("a tar archive"), and the way on. */
export interface Foreign {
  what: string;
  remedy: string;
}

const startsWith = (bytes: Uint8Array, text: string, at = 0) =>
  bytes.length >= at + text.length && Array.from(text).every((c, i) => bytes[at + i] === c.charCodeAt(0));

/** Brands of ISO media files, after "ftyp". */
const BRANDS: Readonly<Record<string, string>> = {
  heic: "HEIC",
  heix: "HEIC",
  mif1: "HEIC",
  msf1: "HEIC",
  avif: "AVIF",
  avis: "AVIF",
};
const CONVERT = "convert it to PNG first";
const UNPACK = "unpack it into a folder of images, one folder for each class";

const SIGNATURES: readonly (readonly [at: number, text: string, what: string, remedy: string])[] = [
  [257, "ustar", "a tar archive", UNPACK],
  [0, "PK\x03\x04", "a zip archive", UNPACK],
  [0, "PAR1", "a Parquet table", "write its images as files, one folder for each class"],
  [0, "\x1f\x8b", "a gzip file", "unpack it first"],
  [0, "\x28\xb5\x2f\xfd", "a zstd file", "unpack it first"],
  [0, "\xfd7zXZ\0", "an xz file", "unpack it first"],
  [0, "\x93NUMPY", "a NumPy array", CONVERT],
  [0, "%PDF", "a PDF", CONVERT],
  [0, "8BPS", "a Photoshop file", CONVERT],
  [0, "\xff\x0a", "a JPEG XL image", CONVERT],
  [0, "\0\0\0\x0cJXL ", "a JPEG XL image", CONVERT],
  [0, "\0\0\0\x0cjP  ", "a JPEG 2000 image", CONVERT],
  [0, "\xff\x4f\xff\x51", "a JPEG 2000 image", CONVERT],
  [0, "\x76\x2f\x31\x01", "an OpenEXR image", CONVERT],
];

/**
 * Undefined where the bytes tell nothing.
 * @param start the first bytes of a file, 1 kB where there are so many
 */
export function foreign(start: Uint8Array): Foreign | undefined {
  const text = new TextDecoder().decode(start.subarray(0, 1024)).replace(/^\uFEFF/, "").trimStart();
  if (text.startsWith("version https://git-lfs")) {
    const size = Number(/^size (\d+)/m.exec(text)?.[1] ?? NaN);
    const bytes = Number.isFinite(size) ? ` (${size.toLocaleString("en-US")} bytes)` : "";
    return { what: `a Git LFS pointer, not the file itself${bytes}`, remedy: 'run "git lfs pull"' };
  }
  if (/^(<!--.*?-->\s*)?<(!doctype\s+html|html|head)\b/is.test(text)) {
    return { what: "a web page (HTML)", remedy: "fetch the file itself" };
  }
  if (/^<svg\b|^<\?xml[^>]*>.*<svg\b/is.test(text)) return { what: "an SVG drawing", remedy: CONVERT };
  if (/^<\?xml\b|^<Error>/i.test(text)) {
    return { what: "an XML text, such as a server's error", remedy: "fetch the file itself" };
  }
  if (startsWith(start, "ftyp", 4)) {
    const brand = BRANDS[String.fromCharCode(...start.subarray(8, 12))];
    return {
      what: brand ? `a${brand === "AVIF" ? "n" : ""} ${brand} image` : "a film (MP4)",
      remedy: CONVERT,
    };
  }
  const found = SIGNATURES.find(([at, signature]) => startsWith(start, signature, at));
  return found && { what: found[2], remedy: found[3] };
}
