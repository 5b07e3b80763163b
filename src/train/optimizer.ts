// AdamW over parameter sets, or Muon over sets of matrices, recorded into a program: gradients are copied into flat buffers, their
// global norm is computed, and each set is updated by one launch (Muon: and some for each matrix). `state()` has every tensor that a checkpoint needs.

import { GpuError } from "../errors.ts";
import { uninterrupted } from "../interruption.ts";
import { detach, full, grad, store } from "../tensor/autograd.ts";
import { addInPlace, copy, fill, swap } from "../gpu/memory.ts";
import { capture } from "../gpu/program.ts";
import type { ParameterSet } from "../nn/parameter_set.ts";
import {
  adamw,
  FAULTS,
  faultVariable,
  type FlatSet,
  type Hyper,
  hyperVariable,
  lossScale,
  packHyper,
  progressVariable,
  record,
  restoreIfSkipped,
  sumOfScalars,
} from "../ops/adamw.ts";
import { muon } from "../ops/muon.ts";
import { powerEma } from "../ops/power_ema.ts";
import { gammaOf } from "../run/power_ema.ts";
import { div, mul, sqrt, square } from "../ops/math.ts";
import { concat, reshape } from "../ops/layout.ts";
import { sumOfSquares } from "../ops/reduce.ts";
import { readTensor, type Tensor, variable } from "../tensor/tensor.ts";

/** A moving average of a set's weights. */
interface Average {
  /** Its name in `state()`. */
  key: string;
  /** Relative width of a power-function average; undefined for one whose decay is a hyper-parameter. */
  sigmaRel: number | undefined;
  flats: Tensor[];
}

interface Slot {
  set: ParameterSet;
  lrFactor: number;
  /** First moments; of Muon: the momentum. */
  m: Tensor[];
  /** Second moments; undefined for sets that Muon updates. */
  v: Tensor[] | undefined;
  /** The last one is the result of the training. */
  averages: Average[];
}

export class Optimizer {
  readonly #slots: Slot[];
  readonly #hyper: Tensor = hyperVariable();
  /** Numbers of applied and skipped steps and the loss scale; see {@link progressVariable}. */
  readonly progress: Tensor;
  /** Whether gradients are multiplied by a loss scale, because activations are fp16. */
  readonly #scaled: boolean;
  /** A scalar of the step that is being captured; not finite if the step is skipped. */
  #checkedNorm2: Tensor | undefined;
  readonly #fault: Tensor = faultVariable();
  /** Sums over the applied steps of each set's gradient norm, before clipping. */
  readonly #norms: Tensor;

  /**
   * @param groups sets, each with a factor of the learning rate (1), without a moving average of the weights, with one (true), or
   * with power-function averages of these relative widths, see run/power_ema.ts; the last average is the result. Muon updates sets with `muon`, which hold matrices alone, at least one
   * other set is updated by AdamW
   * @param key prefix of the tensors in `state()`
   */
  constructor(
    readonly label: string,
    groups: readonly {
      set: ParameterSet;
      lrFactor?: number;
      ema?: boolean | readonly number[];
      muon?: boolean;
    }[],
    private readonly key = label,
  ) {
    this.#slots = groups.map(({ set, lrFactor = 1, ema = false, muon = false }) => ({
      set,
      lrFactor,
      m: set.like("optimizer"),
      v: muon ? undefined : set.like("optimizer"),
      averages: (Array.isArray(ema) ? ema : ema ? [undefined] : []).map((sigmaRel?: number) => ({
        key: sigmaRel === undefined ? "ema" : `ema_${sigmaRel}`,
        sigmaRel,
        flats: set.like("optimizer"),
      })),
    }));
    this.#scaled = groups.some(({ set }) => set.working !== undefined);
    this.progress = progressVariable(this.#scaled);
    this.#norms = variable([groups.length], { label: "gradient norms" });
  }

  /** All parameters that are trained. */
  get parameters(): Tensor[] {
    return this.#slots.flatMap(({ set }) => set.list);
  }

  /**
   * Numbers of applied steps, of steps skipped because something was not finite, and of the latest of those in a row; the loss
   * scale, 1 for none. Waits for the device.
   */
  async readProgress(): Promise<{ applied: number; skipped: number; inARow: number; lossScale: number }> {
    const [applied = 0, skipped = 0, lossScale = 1, row = 0] = await readTensor(this.progress);
    return { applied, skipped, inARow: Math.max(0, -row), lossScale };
  }

  /** Why the latest skipped step was skipped, and the index of the value that was not finite. Waits for the device. */
  async readFault(): Promise<{ kind: keyof typeof FAULTS; value: number }> {
    const [code, value = 0] = await readTensor(this.#fault);
    const kinds = Object.keys(FAULTS) as (keyof typeof FAULTS)[];
    return { kind: kinds.find((kind) => FAULTS[kind] === code) ?? "gradient", value };
  }

  /** Sums over the applied steps of each set's gradient norm, by its name; cleared. Waits for the device. */
  async readNorms(): Promise<[name: string, sum: number][]> {
    const sums = await readTensor(this.#norms);
    this.#norms.storage.write(new Float32Array(sums.length));
    return this.#slots.map(({ set }, i) => [set.name, sums[i] as number]);
  }

  /** The weight of the largest magnitude. Waits for the device. */
  async readLargest(): Promise<{ name: string; magnitude: number }> {
    let largest = { name: "", magnitude: 0 };
    for (const { set } of this.#slots) {
      for (const [name, tensor] of set.tensors) {
        const magnitude = (await readTensor(tensor)).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
        if (magnitude > largest.magnitude) largest = { name: `${set.name}.${name}`, magnitude };
      }
    }
    return largest;
  }

  /** Learning rate of the latest step, before the factors of the sets. */
  lr = 0;

  /** The same of Muon; undefined where no set is updated by it. */
  muonLr: number | undefined;

  /** Sets the hyper-parameters of the next step. */
  set(hyper: Hyper): void {
    this.lr = hyper.lr;
    this.muonLr = hyper.muonLr;
    this.#hyper.storage.write(packHyper(hyper));
  }

  /**
   * Records the gradients of `loss` and the update from them.
   * @param values scalars that must be finite too
   * @returns the squared global norm before clipping
   */
  minimise(loss: Tensor, values: readonly Tensor[] = [loss]): Tensor {
    this.store(grad(loss, this.parameters, this.scaled(full([], 1))));
    return this.update(values);
  }

  /** `dy` times the loss scale, so that gradients computed from it do not underflow in fp16. */
  scaled(dy: Tensor): Tensor {
    const scale = this.lossScale();
    return scale ? mul(dy, scale) : dy;
  }

  /** The loss scale, a scalar; undefined without fp16 activations. */
  lossScale(): Tensor | undefined {
    return this.#scaled ? lossScale(this.progress) : undefined;
  }

  /**
   * Records the gradients of a step with a single micro-batch, in the order of `parameters`.
   * @param which 1: those of one more micro-batch, before they are added
   */
  store(gradients: readonly Tensor[], which: 0 | 1 = 0): void {
    let at = 0;
    for (const { set } of this.#slots) {
      const { of } = set.gradients(which);
      store(gradients.slice(at, at += set.list.length), set.list.map((p) => of.get(p) as Tensor));
    }
  }

  /** Records that `gradients` are added to the sums since {@link clear}, one launch a flat buffer. */
  accumulate(gradients: readonly Tensor[]): void {
    this.store(gradients, 1);
    for (const { set } of this.#slots) {
      set.gradients(1).flats.forEach((more, i) => addInPlace(more, set.gradients().flats[i] as Tensor));
    }
  }

  /** Records that the sums of {@link accumulate} become 0. */
  clear(): void {
    for (const { set } of this.#slots) for (const flat of set.gradients().flats) fill(flat, 0);
  }

  /**
   * Records the update from the gradients that were stored.
   * @param values scalars, such as losses; the update is skipped if one is not finite
   * @returns the squared global norm before clipping
   */
  update(values: readonly Tensor[] = []): Tensor {
    const squares = this.#slots.map(({ set }) => set.gradients().flats.map((flat) => sumOfSquares(flat)));
    const norm2 = sumOfScalars(squares.flat());
    const flats = this.#slots.flatMap(({ set, lrFactor, m, v, averages }) =>
      set.flats.map((parameters, i) => ({
        parameters,
        gradients: set.gradients().flats[i] as Tensor,
        m: m[i] as Tensor,
        v: v?.[i],
        ema: averages.find(({ sigmaRel }) => sigmaRel === undefined)?.flats[i],
        working: set.working?.[i],
        lrFactor,
        matrices: v ? [] : set.gradientsIn(i),
      }))
    );
    const hasMoments = (flat: typeof flats[number]): flat is FlatSet & typeof flat => flat.v !== undefined;
    const matrices = flats.filter((flat) => !hasMoments(flat));
    const scale = this.lossScale();
    const plain = scale ? div(norm2, square(scale)) : norm2;
    this.#checkedNorm2 = adamw(flats.filter(hasMoments), this.#hyper, norm2, this.progress, {
      values: values.length ? joined(values) : undefined,
      fault: this.#fault,
      rules: matrices.length ? [muon(matrices)] : [],
    });
    this.#recordPowerEmas(this.#checkedNorm2);
    const norms = squares.map((sums) => sqrt(sumOfScalars(sums)));
    this.report(scale ? norms.map((norm) => div(norm, scale)) : norms, this.#norms);
    return plain;
  }

  #recordPowerEmas(norm2: Tensor): void {
    const { progress } = this;
    for (const { set, averages } of this.#slots) {
      for (const { sigmaRel, flats } of averages) {
        if (sigmaRel === undefined) continue;
        const gamma = gammaOf(sigmaRel);
        flats.forEach((flat, i) => powerEma(set.flats[i] as Tensor, flat, { gamma, progress, norm2 }));
      }
    }
  }

  /** Records, after an update, that `values` (scalars) are added to `sums` if the update is applied. */
  report(values: readonly Tensor[], sums: Tensor): void {
    record(joined(values), sums, this.#checkedNorm2 as Tensor);
  }

  /** Records, after an update, that `x` is restored to `before` if the update is skipped. */
  restoreIfSkipped(x: Tensor, before: Tensor): void {
    restoreIfSkipped(x, before, this.#checkedNorm2 as Tensor);
  }

  /** Copies the weights into the averages. */
  async startEma(): Promise<void> {
    await copyTensors(
      this.#slots.flatMap(({ set, averages }) =>
        averages.flatMap(({ flats }) => flats.map((to, i) => [set.flats[i] as Tensor, to] as const))
      ),
    );
  }

  /** Overwrites `target`, a set of the same layout as the `index`-th group, with that group's averages. */
  async readEmaInto(index: number, target: ParameterSet): Promise<void> {
    const average = this.#slots[index]?.averages.at(-1);
    await copyTensors(average?.flats.map((from, i) => [from, target.flats[i] as Tensor]) ?? []);
  }

  /** Reads the average of relative width `sigmaRel` of one parameter. Waits for the device. */
  async readAverage(sigmaRel: number, { storage: { root, offset, bytes } }: Tensor): Promise<Float32Array> {
    for (const { set, averages } of this.#slots) {
      const average = averages.find((a) => a.sigmaRel === sigmaRel);
      const flat = average?.flats[set.flats.findIndex(({ storage }) => storage === root)];
      if (flat) return new Float32Array(await flat.storage.read({ offset, bytes }));
    }
    throw new GpuError(
      `Cannot read an average of relative width ${sigmaRel}: "${this.label}" keeps none of it`,
    );
  }

  /** Runs `use` with the averages that are the result in place of the weights, which are then restored to the last bit. */
  async withEma<T>(use: () => Promise<T>): Promise<T> {
    await uninterrupted(() => this.#swapEma());
    try {
      return await use();
    } finally {
      await uninterrupted(() => this.#swapEma()); // also where a signal has ended `use`
    }
  }

  /** Exchanges weights and averages, without further memory. The fp16 working copies stay as they are. */
  async #swapEma(): Promise<void> {
    const pairs = this.#slots.flatMap(({ set, averages }) =>
      (averages.at(-1)?.flats ?? []).map((flat, i) => [set.flats[i] as Tensor, flat] as const)
    );
    await onDevice("exchange weights", swap, pairs);
  }

  /** Tensors of a checkpoint besides the parameters, by name. */
  state(): Map<string, Tensor> {
    const found = new Map<string, Tensor>([[`${this.key}.progress`, this.progress]]);
    for (const { set, m, v, averages } of this.#slots) {
      const kinds = { m, v, ...Object.fromEntries(averages.map(({ key, flats }) => [key, flats])) };
      for (const [kind, flats] of Object.entries(kinds)) {
        flats?.forEach((flat, i) => found.set(`${this.key}.${set.name}.${kind}.${i}`, flat));
      }
    }
    return found;
  }

  destroy(): void {
    for (const tensor of [...this.state().values(), this.#hyper, this.#fault, this.#norms]) {
      tensor.storage.destroy();
    }
  }
}

/** Scalars as one tensor [n], f32. */
export const joined = (values: readonly Tensor[]) => concat(values.map((v) => reshape(detach(v), [1])), 0);

/** Copies the parameters of `sets` into their fp16 working copies, after they were loaded, restored or copied. */
export async function refreshWorkingCopies(sets: readonly ParameterSet[]): Promise<void> {
  const pairs = sets.flatMap(({ flats, working }) =>
    working?.map((to, i) => [flats[i] as Tensor, to] as const) ?? []
  );
  for (const [from] of pairs) await from.storage.materialise();
  await copyTensors(pairs);
}

/** Copies tensors on the device: the first of each pair into the second. */
export const copyTensors = (pairs: readonly (readonly [Tensor, Tensor])[]): Promise<void> =>
  onDevice("copy weights", copy, pairs);

/** Runs an operation on each pair of tensors, once. */
async function onDevice(
  name: string,
  operation: (a: Tensor, b: Tensor) => void,
  pairs: readonly (readonly [Tensor, Tensor])[],
): Promise<void> {
  if (!pairs.length) return;
  const program = await capture(name, {}, () => {
    for (const [a, b] of pairs) operation(a, b);
    return {};
  }).prepare();
  program.run();
  program.destroy();
}
