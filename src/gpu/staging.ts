// Operands that a kernel reads as textures. Software adapters turn every buffer load inside a loop into a branch for each
// lane and component, but a texture load into straight-line code, so that matrix products run half as fast again when
// their operands are copied into textures first. A kernel asks for it by declaring a binding as `texture_2d<f32>`; the
// launch still passes a buffer. Texel t of the buffer (four f32) is at (t % TEXELS, t / TEXELS).

import { device } from "./device.ts";
import type { Launch } from "./kernel.ts";
import type { Place } from "./plan.ts";
import type { Storage } from "./storage.ts";

/** Texels of a row; kernels know this number. */
export const TEXELS = 1024;
const ROW_BYTES = 16 * TEXELS;

/** One copy of a buffer into a texture, prepared before the first run. */
export type StagedCopy = readonly [GPUTexelCopyBufferInfo, GPUTexelCopyTextureInfo, GPUExtent3D];

/** Whether an operand of `bytes` can be staged on this device. */
export function stageable(bytes: number): boolean {
  const { staging, limits } = device();
  return staging && Math.ceil(bytes / ROW_BYTES) <= limits.maxTextureDimension2D;
}

/** Bytes of each staging texture that the launches need, by binding number: all launches share one for each. */
export function stagingBytes(launches: readonly Launch[]): Map<number, number> {
  const bytes = new Map<number, number>();
  for (const { kernel, storages } of launches) {
    kernel.bindings.forEach(({ texture, index }, i) => {
      const needed = Math.ceil((storages[i] as Storage).bytes / ROW_BYTES) * ROW_BYTES;
      if (texture) bytes.set(index, Math.max(bytes.get(index) ?? 0, needed));
    });
  }
  return bytes;
}

/** The staging textures of one program. */
export class Staging {
  readonly #textures = new Map<number, { texture: GPUTexture; view: GPUTextureView }>();
  /** What each texture holds at this point of the program. */
  readonly #holds = new Map<number, Storage>();

  constructor(private readonly places: ReadonlyMap<Storage, Place>) {}

  async allocate(launches: readonly Launch[], label: string): Promise<void> {
    for (const [index, bytes] of stagingBytes(launches)) {
      const texture = await device().scoped(
        `allocate ${bytes} bytes of texture for "${label}"`,
        () =>
          device().gpu.createTexture({
            size: [TEXELS, bytes / ROW_BYTES],
            format: "rgba32float",
            usage: GPUTextureUsage.TEXTURE_BINDING | GPUTextureUsage.COPY_DST,
            label: `${label} operand ${index}`,
          }),
      );
      this.#textures.set(index, { texture, view: texture.createView() });
    }
  }

  view(index: number): GPUTextureView {
    return this.#texture(index).view;
  }

  /** The copies that must run before `launch`, asked for in program order; none for what a texture holds already. */
  copiesBefore(launch: Launch, bufferOf: (place: Place) => GPUBuffer): StagedCopy[] {
    const copies: StagedCopy[] = [];
    launch.kernel.bindings.forEach(({ texture, index }, i) => {
      const storage = launch.storages[i] as Storage;
      if (!texture || this.#holds.get(index) === storage) return;
      this.#holds.set(index, storage);
      const place = this.places.get(storage) as Place;
      copies.push(...this.#copies(index, bufferOf(place), place.offset, storage.bytes));
    });
    launch.kernel.bindings.forEach(({ access }, i) => {
      if (access === "read_write") this.#written(launch.storages[i] as Storage);
    });
    return copies;
  }

  destroy(): void {
    for (const { texture } of this.#textures.values()) texture.destroy();
    this.#textures.clear();
    this.#holds.clear();
  }

  /** Whole rows at once, then what is left of the last one. */
  #copies(index: number, buffer: GPUBuffer, offset: number, bytes: number): StagedCopy[] {
    const { texture } = this.#texture(index);
    const rows = Math.floor(bytes / ROW_BYTES), rest = Math.ceil((bytes - rows * ROW_BYTES) / 16);
    const layout = { bytesPerRow: ROW_BYTES };
    const copies: StagedCopy[] = [];
    if (rows) copies.push([{ buffer, offset, ...layout }, { texture }, [TEXELS, rows]]);
    if (rest) {
      const from = { buffer, offset: offset + rows * ROW_BYTES, ...layout };
      copies.push([from, { texture, origin: [0, rows] }, [rest, 1]]);
    }
    return copies;
  }

  /** Forgets textures whose source may have changed: the same pool slot, or the same part of a buffer. */
  #written(storage: Storage): void {
    const place = this.places.get(storage) as Place;
    for (const [index, held] of this.#holds) {
      const other = this.places.get(held) as Place;
      const shared = place.slot >= 0
        ? place.slot === other.slot
        : other.slot < 0 && place.root === other.root && place.offset < other.offset + held.bytes &&
          other.offset < place.offset + storage.bytes;
      if (shared) this.#holds.delete(index);
    }
  }

  #texture(index: number): { texture: GPUTexture; view: GPUTextureView } {
    return this.#textures.get(index) as { texture: GPUTexture; view: GPUTextureView };
  }
}
