// The trainable tensors of a module in one flat buffer, so that an optimizer updates them in one launch; with gradients in the
// same layout and, where activations are fp16, an fp16 copy.

import { device } from "../gpu/device.ts";
import { type Category, Storage } from "../gpu/storage.ts";
import { parameters } from "./layers.ts";
import { type Precision, setFp16Copy, Tensor, variable } from "../tensor/tensor.ts";

/** Bytes between the parts of a flat buffer; no adapter asks for more. */
const ALIGN = 256;

/**
 * All trainable tensors of a module in one flat buffer (or a few, where the adapter binds less), with buffers of the same
 * layout for gradients and whatever an optimizer keeps. Made once, before the first use of the tensors.
 */
export class ParameterSet {
  readonly tensors: ReadonlyMap<string, Tensor>;
  /** The flat parameters, f32 [n] each. */
  readonly flats: readonly Tensor[];
  /** The same in fp16, for GEMMs; an optimizer step keeps it equal, else see {@link refreshWorkingCopies}. */
  readonly working: readonly Tensor[] | undefined;
  readonly #gradients: { flats: readonly Tensor[]; of: ReadonlyMap<Tensor, Tensor> }[] = [];

  /**
   * @param precision of activations: f16 makes working copies of the parameters
   * @param include which of the trainable tensors it holds, by name (all)
   */
  constructor(
    readonly name: string,
    module: object,
    precision: Precision = "f32",
    include: (name: string, tensor: Tensor) => boolean = () => true,
  ) {
    this.tensors = new Map([...parameters(module)].filter(([name, tensor]) => include(name, tensor)));
    const limit = device().limits.maxStorageBufferBindingSize;
    const align = precision === "f16" ? 2 * ALIGN : ALIGN; // so that fp16 copies are aligned, too
    const bins: { bytes: number; members: [Tensor, number][] }[] = [];
    for (const tensor of this.tensors.values()) {
      const bytes = Math.ceil(tensor.storage.bytes / align) * align;
      let bin = bins.at(-1);
      if (!bin || bin.bytes + bytes > limit) bins.push(bin = { bytes: 0, members: [] });
      bin.members.push([tensor, bin.bytes]);
      bin.bytes += bytes;
    }
    this.flats = bins.map(({ bytes, members }, i) => {
      const flat = this.#flat(bytes / 4, "parameters", i);
      for (const [tensor, offset] of members) tensor.storage.place(flat.storage, offset);
      return flat;
    });
    if (precision === "f32") return;
    this.working = this.flats.map((flat, i) => {
      const copy = this.#flat(flat.size, "parameters", i, "f16");
      for (const [tensor, offset] of bins[i]?.members ?? []) {
        if (tensor.dim(-1) % 4) continue; // read as it is
        const { category, persistent, label } = tensor.storage;
        const part = new Storage(2 * tensor.size, { category, persistent, label, half: true });
        part.place(copy.storage, offset / 2);
        setFp16Copy(tensor, part);
      }
      return copy;
    });
  }

  get list(): Tensor[] {
    return [...this.tensors.values()];
  }

  /**
   * Flat gradients, and the place of each tensor's gradient in them. Made when first asked for.
   * @param which 0: those that an optimizer reads; 1: those of one more micro-batch, before they are added
   */
  gradients(which: 0 | 1 = 0): { flats: readonly Tensor[]; of: ReadonlyMap<Tensor, Tensor> } {
    const known = this.#gradients[which];
    if (known) return known;
    const flats = this.like("gradients");
    const of = new Map<Tensor, Tensor>();
    for (const tensor of this.tensors.values()) {
      const { bytes, label, root, offset } = tensor.storage;
      const at = this.flats.findIndex((flat) => flat.storage === root);
      const storage = new Storage(bytes, { category: "gradients", persistent: true, label });
      storage.place((flats[at] as Tensor).storage, offset);
      of.set(tensor, new Tensor(tensor.shape, "f32", storage));
    }
    return this.#gradients[which] = { flats, of };
  }

  /** The gradients of the tensors in the flat buffer `index`. */
  gradientsIn(index: number): Tensor[] {
    const root = this.gradients().flats[index]?.storage;
    return [...this.gradients().of.values()].filter(({ storage }) => storage.root === root);
  }

  /** New flat buffers of the same layout, zero at first: moments, averages. */
  like(category: Category): Tensor[] {
    return this.flats.map((flat, i) => this.#flat(flat.size, category, i));
  }

  async materialise(): Promise<void> {
    for (const flat of this.flats) await flat.storage.materialise();
  }

  destroy(): void {
    const all = [...this.flats, ...this.working ?? [], ...this.#gradients.flatMap((g) => g.flats)];
    for (const flat of all) flat.storage.destroy();
  }

  #flat(n: number, category: Category, i: number, dtype: Precision = "f32"): Tensor {
    const label = `${this.name} ${category}${this.flats?.length > 1 ? ` ${i}` : ""}`;
    return variable([n], { dtype, category, label });
  }
}
