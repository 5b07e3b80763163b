// Images as programs take them: bytes as image files hold them, which are converted and mirrored on the device. Not
// differentiable.

import source from "../../kernels/pixels.wgsl" with { type: "text" };
import { launch } from "../gpu/bind.ts";
import { fold, kernel } from "../gpu/kernel.ts";
import { check, constant, empty, input, type Tensor, viewAs } from "../tensor/tensor.ts";
import { noGrad } from "../tensor/autograd.ts";
import { flip } from "./layout.ts";
import { pointwise } from "./pointwise.ts";

/** Values of the bytes: b / 127.5 - 1. */
const VALUES = Float32Array.from({ length: 256 }, (_, b) => b / 127.5 - 1);

/** u32s of a row of `size` RGB pixels. */
export const wordsOf = (size: number): number => Math.ceil(3 * size / 4);

/** The input of a program for images: RGB bytes, u32 [B,S,words], each row padded to whole u32s. */
export function imageInput(B: number, S: number): Tensor {
  return input([B, S, wordsOf(S)], "u32", "images");
}

/** Writes RGB bytes [n,S,S,3] into `images` as {@link imageInput} takes them. */
export function packImages(bytes: Uint8Array, S: number, images: Uint32Array): void {
  const all = new Uint8Array(images.buffer, images.byteOffset, images.byteLength);
  const row = 3 * S, padded = 4 * wordsOf(S);
  if (row === padded) return all.set(bytes);
  for (let y = 0; y * row < bytes.length; y++) all.set(bytes.subarray(y * row, (y + 1) * row), y * padded);
}

/** The RGB bytes [n,S,S,3] of packed images. */
export function unpackImages(images: Uint32Array<ArrayBuffer>, S: number): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(images.buffer, images.byteOffset, images.byteLength);
  const row = 3 * S, padded = 4 * wordsOf(S);
  if (row === padded) return all;
  const bytes = new Uint8Array(all.length / padded * row);
  for (let y = 0; y * row < bytes.length; y++) {
    bytes.set(all.subarray(y * padded, y * padded + row), y * row);
  }
  return bytes;
}

/** Pixels in -1..1 [B,S,S,3] of an {@link imageInput}. @param flips f32 [B]: 1 mirrors an image left to right, 0 does not */
export function pixels(x: Tensor, flips?: Tensor): Tensor {
  const all = unpack(x);
  if (!flips) return all;
  check(flips.size === x.dim(0), "mirror images", "there must be one flip an image", flips, x);
  const which = viewAs(flips, [flips.size, 1, 1, 1]);
  return noGrad(() => pointwise(["select(x0, x1, x2 > T(0.5))"], [all, flip(all, 2), which]));
}

function unpack(x: Tensor): Tensor {
  const [B, S, words] = x.shape as [number, number, number];
  check(
    x.rank === 3 && x.dtype === "u32" && words === wordsOf(S),
    "unpack images",
    "they must be u32 [B,S,words of a row]",
    x,
  );
  const y = empty([B, S, S, 3]), count = y.size;
  const table = constant(VALUES, [256], "pixel values");
  launch(
    kernel(source, "unpack"),
    { x, table, y },
    { count, size: 3 * S, words },
    fold(Math.ceil(count / 64)),
  );
  return y;
}
