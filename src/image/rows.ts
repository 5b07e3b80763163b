// Output of a decoder: rows of RGB bytes from top to bottom, band by band, so that an image that is shrunk never has to be in
// memory completely.

/** Pixels as rows of RGB bytes. */
export interface Image {
  width: number;
  height: number;
  /** `[height,width,3]` */
  data: Uint8Array<ArrayBuffer>;
}

export interface Rows {
  readonly width: number;
  readonly height: number;
  /** Bands of one or more rows, `[n,width,3]`. May be called once. */
  bands(): AsyncIterable<Uint8Array>;
}

/** A valid file of an unsupported kind. */
export class Unsupported extends Error {}

/** A decoded image as one band. */
export function rowsOf({ width, height, data }: Image): Rows {
  return {
    width,
    height,
    async *bands() {
      yield data;
    },
  };
}

/** The complete image. @throws Error if the bands do not fill it */
export async function fullImage(rows: Rows): Promise<Image> {
  const { width, height } = rows, length = 3 * width * height;
  let data: Uint8Array<ArrayBuffer> | undefined, at = 0;
  for await (const band of rows.bands()) {
    if (band.length === length && band.buffer instanceof ArrayBuffer) {
      return { width, height, data: band as Uint8Array<ArrayBuffer> };
    }
    data ??= new Uint8Array(length);
    data.set(band, at);
    at += band.length;
  }
  if (!data || at !== length) throw new Error("the decoder returned another number of rows");
  return { width, height, data };
}

/** A frame of an animation on its black canvas. @throws Error if the frame exceeds it */
export function placed(frame: Image, left: number, top: number, width: number, height: number): Image {
  if (left + frame.width > width || top + frame.height > height) throw new Error("a frame is too large");
  const data = new Uint8Array(3 * width * height), stride = 3 * frame.width;
  for (let y = 0; y < frame.height; y++) {
    data.set(frame.data.subarray(y * stride, (y + 1) * stride), 3 * ((top + y) * width + left));
  }
  return { width, height, data };
}

/** Pillow's cmyk2rgb(); 0 is no ink. */
export function cmykToRgb(cmyk: Uint8Array): Uint8Array {
  const rgb = new Uint8Array(cmyk.length / 4 * 3);
  for (let i = 0, j = 0; j < rgb.length; i += 4, j += 3) {
    const white = 255 - (cmyk[i + 3] as number); // brightness under the black ink
    for (let c = 0; c < 3; c++) {
      const ink = (cmyk[i + c] as number) * white + 128;
      rgb[j + c] = white - ((ink + (ink >> 8)) >> 8);
    }
  }
  return rgb;
}
