// Generated images of labelled shapes: what tok uses where no data is given. Shape, colours, size, position, rotation,
// texture and background vary; image i is a function of (seed, i), at any size, as many as wanted.

import { uniform } from "../philox.ts";
import { fingerprintOf, type Identity } from "../formats/provenance.ts";
import type { ImageSource } from "./image_source.ts";

/** The two coordinates in the shape's own frame, to inside or not. Called four times a pixel: each takes only what it needs. */
type Inside = (u: number, v: number) => boolean;

const SHAPES: readonly (readonly [string, Inside])[] = [
  ["disc", (u, v) => Math.hypot(u, v) < 0.8],
  ["square", (u, v) => Math.abs(u) < 0.7 && Math.abs(v) < 0.7],
  ["triangle", (u, v) => v > -0.65 && v < 0.85 - 1.5 * Math.abs(u)],
  ["plus", (u, v) => (Math.abs(u) < 0.27 || Math.abs(v) < 0.27) && Math.abs(u) < 0.85 && Math.abs(v) < 0.85],
  ["flower", (u, v) => {
    const r = Math.hypot(u, v);
    // The edge is between 0.2 and 0.9: most places need no angle.
    return r < 0.91 && (r < 0.19 || r < 0.55 + 0.35 * Math.cos(5 * Math.atan2(v, u)));
  }],
  ["ring", (u, v) => {
    const r = Math.hypot(u, v);
    return r < 0.85 && r > 0.48;
  }],
  ["diamond", (u, v) => Math.abs(u) * 1.25 + Math.abs(v) * 0.85 < 0.8],
  ["bar", (u, v) => Math.abs(u) < 0.95 && Math.abs(v) < 0.27],
  ["crescent", (u, v) => Math.hypot(u, v) < 0.85 && Math.hypot(u - 0.4, v) > 0.62],
  ["corner", (u, v) => Math.abs(u) < 0.8 && Math.abs(v) < 0.8 && !(u > -0.25 && v > -0.25)],
];

const STREAM = 77;
/** Samples along each side of a pixel. */
const SUPERSAMPLING = 2;

/** `length` images of the ten shapes; labels go round in order. */
export class Shapes implements ImageSource {
  readonly classes: readonly string[] = SHAPES.map(([name]) => name);

  constructor(readonly length: number, readonly seed: number) {}

  identity(): Identity {
    const name = `${this.length} generated shapes of seed ${this.seed}`;
    return { name, fingerprint: fingerprintOf(name) };
  }

  label(i: number): number {
    return i % SHAPES.length;
  }

  name(i: number): string {
    return `${String(i).padStart(6, "0")}_${this.classes[this.label(i)]}.png`;
  }

  bytes(i: number, size: number): Uint8Array<ArrayBuffer> {
    return drawShape(this.seed, i, size);
  }
}

/** Relative size of image `i`, uniform in (0, 1). */
export const scaleOf = (seed: number, i: number): number => uniform(seed, STREAM, 4, 0, i)[2] as number;

/** Image `i` of `seed`: RGB bytes `[size,size,3]`. */
export function drawShape(seed: number, i: number, size: number): Uint8Array<ArrayBuffer> {
  const random = uniform(seed, STREAM, 24, 0, i);
  let drawn = 0;
  const next = (low = 0, high = 1) => low + (high - low) * (random[drawn++] as number);

  const x0 = next(-0.15, 0.15), y0 = next(-0.15, 0.15), scale = next(0.7, 0.95), turn = next(-0.35, 0.35);
  const front = [next(), next(), next()];
  let back = [next(), next(), next()];
  const contrast = back.reduce((sum, c, k) => sum + Math.abs(c - (front[k] as number)), 0);
  if (contrast < 0.9) back = front.map((c) => (c + 0.5) % 1);
  const slopeX = next(-0.1, 0.1), slopeY = next(-0.1, 0.1); // the background's gradient
  const striped = next() < 0.4,
    stripes = next(5, 8),
    strength = next(0.08, 0.16),
    direction = next(0, Math.PI);
  const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
  const [along, across] = [Math.cos(direction), Math.sin(direction)];
  const inside = (SHAPES[i % SHAPES.length] as (typeof SHAPES)[number])[1];

  const pixels = new Uint8ClampedArray(size * size * 3); // clamps and rounds
  const n = size * SUPERSAMPLING;
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      let hits = 0;
      for (let sub = 0; sub < SUPERSAMPLING ** 2; sub++) {
        const x = (2 * (column * SUPERSAMPLING + sub % SUPERSAMPLING) + 1) / n - 1 - x0;
        const y = (2 * (row * SUPERSAMPLING + Math.floor(sub / SUPERSAMPLING)) + 1) / n - 1 - y0;
        const u = (x * cos + y * sin) / scale, v = (y * cos - x * sin) / scale;
        if (inside(u, v)) hits++;
      }
      const cover = hits / SUPERSAMPLING ** 2;
      const x = (2 * column + 1) / size - 1, y = (2 * row + 1) / size - 1;
      const wave = striped ? strength * Math.sin(stripes * (x * along + y * across)) : 0;
      const slope = slopeX * x + slopeY * y;
      for (let c = 0; c < 3; c++) {
        const value = cover * ((front[c] as number) + wave) + (1 - cover) * ((back[c] as number) + slope);
        pixels[(row * size + column) * 3 + c] = 255 * value;
      }
    }
  }
  return new Uint8Array(pixels.buffer);
}
