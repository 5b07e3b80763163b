// Recognises files of another kind than expected by their first bytes, and says what to do. For messages only: a Git LFS
// pointer, a web page or server error in place of a download, an archive or a table that contains the file.

/** A noun phrase ("a tar archive") and the remedy. */
export interface Foreign {
  what: string;
  remedy: string;
}

/** What the file was expected to be. */
export type Purpose = "image" | "weights" | "arrays";

const startsWith = (bytes: Uint8Array, text: string, at = 0) =>
  bytes.length >= at + text.length && Array.from(text).every((c, i) => bytes[at + i] === c.charCodeAt(0));

/** Brands of ISO media files, after "ftyp". */
const BRANDS = { HEIC: ["heic", "heix", "mif1", "msf1"], AVIF: ["avif", "avis"] };
const CONVERT = "convert it to PNG first", FETCH = "fetch the file itself", UNPACK = "unpack it first";
const UNPACK_IMAGES = "unpack it into a folder of images, one folder for each class";
const WRITE_IMAGES = "write its images as files, one folder for each class";
const GIVE_WEIGHTS = "give the file of the weights, .safetensors or .pth";
const GIVE_ARRAYS = "give an .npz file";

/** The remedy by what was expected; an absent purpose means that this kind is expected there. */
type Remedies = Readonly<Partial<Record<Purpose, string>>>;
const always = (remedy: string): Remedies => ({ image: remedy, weights: remedy, arrays: remedy });
const others = { weights: GIVE_WEIGHTS, arrays: GIVE_ARRAYS };
const archive = { ...always(UNPACK), image: UNPACK_IMAGES }, packed = always(UNPACK);
const picture = { image: CONVERT, ...others };

const SIGNATURES: readonly (readonly [at: number, text: string, what: string, remedies: Remedies])[] = [
  [257, "ustar", "a tar archive", archive],
  [0, "PK\x03\x04", "a zip archive", { image: UNPACK_IMAGES }],
  [0, "PAR1", "a Parquet table", { image: WRITE_IMAGES, ...others }],
  [0, "\x1f\x8b", "a gzip file", packed],
  [0, "\x28\xb5\x2f\xfd", "a zstd file", packed],
  [0, "\xfd7zXZ\0", "an xz file", packed],
  [0, "\x93NUMPY", "a NumPy array", { ...picture, arrays: "save it as an archive: np.savez(path, array)" }],
  [0, "\x89HDF", "an HDF5 file", picture],
  [0, "GGUF", "a GGUF file of quantised weights", picture],
  [0, "%PDF", "a PDF", picture],
  [0, "8BPS", "a Photoshop file", picture],
  [0, "\xff\x0a", "a JPEG XL image", picture],
  [0, "\0\0\0\x0cJXL ", "a JPEG XL image", picture],
  [0, "\0\0\0\x0cjP  ", "a JPEG 2000 image", picture],
  [0, "\xff\x4f\xff\x51", "a JPEG 2000 image", picture],
  [0, "\x76\x2f\x31\x01", "an OpenEXR image", picture],
  [0, "\x89PNG", "a PNG image", others],
  [0, "\xff\xd8\xff", "a JPEG image", others],
  [0, "GIF8", "a GIF image", others],
];

/**
 * The kind of a file; undefined if it is not recognised.
 * @param start the first bytes of the file, up to 1 kB
 */
export function foreign(start: Uint8Array, purpose: Purpose = "image"): Foreign | undefined {
  const text = new TextDecoder().decode(start.subarray(0, 1024)).replace(/^\uFEFF/, "").trimStart();
  if (text.startsWith("version https://git-lfs")) {
    const size = Number(/^size (\d+)/m.exec(text)?.[1] ?? NaN);
    const bytes = Number.isFinite(size) ? ` (${size.toLocaleString("en-US")} bytes)` : "";
    return { what: `a Git LFS pointer, not the file itself${bytes}`, remedy: 'run "git lfs pull"' };
  }
  const not = purpose === "image" ? "" : `, not ${purpose}`;
  const named = (what: string, remedies: Remedies): Foreign | undefined => {
    const remedy = remedies[purpose];
    return remedy === undefined ? undefined : { what: `${what}${not}`, remedy };
  };
  if (/^(<!--.*?-->\s*)?<(!doctype\s+html|html|head)\b/is.test(text)) {
    return named("a web page (HTML)", always(FETCH));
  }
  if (/^<svg\b|^<\?xml[^>]*>.*<svg\b/is.test(text)) return named("an SVG drawing", picture);
  if (/^<\?xml\b|^<Error>/i.test(text)) {
    const code = /<Code>(\w{1,40})<\/Code>/.exec(text)?.[1];
    return named(`an XML text, such as a server's error${code ? ` ("${code}")` : ""}`, always(FETCH));
  }
  if (startsWith(start, "ftyp", 4)) {
    const code = String.fromCharCode(...start.subarray(8, 12));
    const brand = Object.entries(BRANDS).find(([, codes]) => codes.includes(code))?.[0];
    return named(brand ? `a${brand === "AVIF" ? "n" : ""} ${brand} image` : "a film (MP4)", picture);
  }
  for (const [at, signature, what, remedies] of SIGNATURES) {
    if (startsWith(start, signature, at)) return named(what, remedies);
  }
  return purpose === "image" ? undefined : plain(start, purpose);
}

/** Texts, such as a hub's "Entry not found", and remains of an interrupted download. */
function plain(start: Uint8Array, purpose: "weights" | "arrays"): Foreign | undefined {
  if (!start.length) return { what: "empty (0 bytes)", remedy: FETCH };
  if (start.length >= 512 && start.every((byte) => byte === 0)) {
    const what = "a file that begins with zeros, as an unfinished download does";
    return { what, remedy: "fetch it again" };
  }
  const isText = (byte: number) =>
    byte >= 0x20 && byte < 0x7f || byte === 0x0a || byte === 0x0d || byte === 0x09;
  if (start.length < 8 || !start.every(isText)) return undefined;
  const line = new TextDecoder().decode(start).trim().split(/\s*[\r\n]/)[0] ?? "";
  const shown = JSON.stringify(line.length > 60 ? `${line.slice(0, 60)}...` : line);
  return { what: `a text, ${shown}, not ${purpose}`, remedy: FETCH };
}
