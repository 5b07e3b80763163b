// GEMM operands as textures. Software adapters compile a buffer load in a loop to a branch for each SIMD lane and component, but a
// load from a storage texture to branch-free code (10 ns for 16 SIMD lanes of vec4; 42 from a buffer, 24 from a sampled texture,
// which is a call), so GEMMs run twice as fast when their operands are first copied to textures. A kernel declares such an array as
// `var<texture>`; the launch still passes a buffer. Texel t of the buffer (4 f32, or 4 f16 in two u32) is
// at (t % TEXELS, t / TEXELS).

import { TEXELS } from "../accessors.ts";
import { device, release } from "../device.ts";
import type { Launch } from "../launch.ts";
import type { Place, Storage } from "../storage.ts";

/** Bytes of a texel and of a row, and the format. */
function layout(half: boolean) {
  const texel = half ? 8 : 16;
  return { texel, row: texel * TEXELS, format: half ? "rg32uint" : "rgba32float" } as const;
}

/** Key of the texture that operands share: binding number and format. */
const keyOf = (index: number, { half }: Storage) => `${index} ${layout(half).format}`;

/** A copy of a buffer into a texture, prepared before the first run. */
export type StagedCopy = readonly [GPUTexelCopyBufferInfo, GPUTexelCopyTextureInfo, GPUExtent3D];

/** What a launch reads as textures: the copies to run before it, and the texture views by binding number. */
export interface Staged {
  copies: readonly StagedCopy[];
  views: ReadonlyMap<number, GPUTextureView>;
}

/** Whether an operand can be staged on this device. */
export function stageable({ bytes, half }: Storage): boolean {
  const { staging, limits } = device();
  return staging && unevenRows(Math.ceil(bytes / layout(half).row)) <= limits.maxTextureDimension2D;
}

/** Bytes of the textures of a program: one for each binding number and format, shared by its launches. */
export function stagingBytes(launches: readonly Launch[]): Map<string, number> {
  return new Map([...stagingSizes(launches)].map(([key, { half, rows }]) => [key, rows * layout(half).row]));
}

function stagingSizes(launches: readonly Launch[]): Map<string, { half: boolean; rows: number }> {
  const sizes = new Map<string, { half: boolean; rows: number }>();
  for (const { kernel, storages } of launches) {
    kernel.bindings.forEach(({ texture, index }, i) => {
      if (!texture) return;
      const storage = storages[i] as Storage, { half } = storage;
      const rows = unevenRows(Math.ceil(storage.bytes / layout(half).row)), key = keyOf(index, storage);
      sizes.set(key, { half, rows: Math.max(sizes.get(key)?.rows ?? 0, rows) });
    });
  }
  return sizes;
}

/** At least `rows`, and no power of two: for those llvmpipe compiles a second variant, and caches only one of the two. */
const unevenRows = (rows: number): number => rows < 3 ? 3 : (rows & (rows - 1)) === 0 ? rows + 1 : rows;

/** The staging textures of one program. */
export class Staging {
  readonly #textures = new Map<string, { texture: GPUTexture; view: GPUTextureView }>();
  /** The storage in each texture at this point of the program. */
  readonly #holds = new Map<string, Storage>();

  constructor(private readonly places: ReadonlyMap<Storage, Place>) {}

  async allocate(launches: readonly Launch[], label: string): Promise<void> {
    for (const [key, { half, rows }] of stagingSizes(launches)) {
      const { format, row } = layout(half);
      const texture = await device().scoped(
        `allocate ${rows * row} bytes of texture for "${label}"`,
        () =>
          device().gpu.createTexture({
            size: [TEXELS, rows],
            format,
            usage: GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_DST,
            label: `${label} operand ${key}`,
          }),
      );
      device().own(texture, rows * row);
      this.#textures.set(key, { texture, view: texture.createView() });
    }
  }

  /** Textures of the next launch in program order; what a texture already holds is not copied again. */
  stage(launch: Launch, bufferOf: (place: Place) => GPUBuffer): Staged {
    const copies: StagedCopy[] = [], views = new Map<number, GPUTextureView>();
    launch.kernel.bindings.forEach(({ texture, index }, i) => {
      const storage = launch.storages[i] as Storage, key = keyOf(index, storage);
      if (texture) views.set(index, this.#texture(key).view);
      if (!texture || this.#holds.get(key) === storage) return;
      this.#holds.set(key, storage);
      const place = this.places.get(storage) as Place;
      copies.push(...this.#copies(key, storage, bufferOf(place), place.offset));
    });
    launch.kernel.bindings.forEach(({ access }, i) => {
      if (access === "read_write") this.#written(launch.storages[i] as Storage);
    });
    return { copies, views };
  }

  destroy(): void {
    for (const { texture } of this.#textures.values()) release(texture);
    this.#textures.clear();
    this.#holds.clear();
  }

  /** One copy for the complete rows, one for the rest. */
  #copies(key: string, { bytes, half }: Storage, buffer: GPUBuffer, offset: number): StagedCopy[] {
    const { texture } = this.#texture(key);
    const { texel, row: bytesPerRow } = layout(half);
    const rows = Math.floor(bytes / bytesPerRow), rest = Math.ceil((bytes - rows * bytesPerRow) / texel);
    const copies: StagedCopy[] = [];
    if (rows) copies.push([{ buffer, offset, bytesPerRow }, { texture }, [TEXELS, rows]]);
    if (rest) {
      const from = { buffer, offset: offset + rows * bytesPerRow, bytesPerRow };
      copies.push([from, { texture, origin: [0, rows] }, [rest, 1]]);
    }
    return copies;
  }

  /** Invalidates textures whose source may be overwritten: the same pool slot, or an overlapping part of a buffer. */
  #written(storage: Storage): void {
    const place = this.places.get(storage) as Place;
    for (const [key, held] of this.#holds) {
      const other = this.places.get(held) as Place;
      const shared = place.slot >= 0
        ? place.slot === other.slot
        : other.slot < 0 && place.root === other.root && place.offset < other.offset + held.bytes &&
          other.offset < place.offset + storage.bytes;
      if (shared) this.#holds.delete(key);
    }
  }

  #texture(key: string): { texture: GPUTexture; view: GPUTextureView } {
    return this.#textures.get(key) as { texture: GPUTexture; view: GPUTextureView };
  }
}
