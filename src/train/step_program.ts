// A training step of several micro-batches. Their gradients are accumulated by replaying one program, so that neither
// the number of launches nor the memory grows with their number. A step of one micro-batch is a single program.

import { copy, fill } from "../gpu/memory.ts";
import { bytesOf, type Plan } from "../gpu/plan.ts";
import { capture, type Program } from "../gpu/program.ts";
import { add, scale } from "../ops/math.ts";
import { reshape, slice } from "../ops/layout.ts";
import { randomWords } from "../ops/random.ts";
import { type Tensor, variable } from "../tensor/tensor.ts";
import { joined, type Optimizer } from "./optimizer.ts";

/** What a step records. */
export interface StepParts<I> {
  /** In the order of the gradients that {@link gradients} returns. */
  optimizers: readonly Optimizer[];
  /** State that changes with each micro-batch: {@link update} gets it as it was before the step. */
  saved: readonly Tensor[];
  /**
   * Records the losses of a micro-batch.
   * @returns scalars, whose means {@link update} gets, and its part of the gradients for each optimizer
   */
  gradients(inputs: I): { values: readonly Tensor[]; gradients: readonly (readonly Tensor[])[] };
  /** Records the update from the accumulated gradients. */
  update(means: readonly Tensor[], before: readonly Tensor[]): void;
}

type Part = Program<Record<string, Tensor>, Record<string, Tensor>>;

export class StepProgram<I extends Record<string, Tensor>> {
  readonly plan: Plan;

  private constructor(
    /** Programs of a step, in order, and how often each is replayed. */
    readonly parts: readonly { program: Part; times: number }[],
    private readonly owned: readonly Tensor[],
  ) {
    this.plan = parts.length === 1 ? (parts[0] as { program: Part }).program.plan : combined(parts);
  }

  /** Records a step; nothing is allocated. @param inputs of one micro-batch */
  static capture<I extends Record<string, Tensor>>(
    label: string,
    inputs: I,
    accumulate: number,
    { optimizers, saved, gradients, update }: StepParts<I>,
  ): StepProgram<I> {
    const before = saved.map(({ shape, dtype }) =>
      variable(shape, { dtype, label: "state before the step" })
    );
    const save = () => saved.forEach((x, i) => copy(x, before[i] as Tensor));
    if (accumulate === 1) {
      const program = capture(label, inputs, (inputs) => {
        save();
        const made = gradients(inputs);
        optimizers.forEach((optimizer, i) => optimizer.store(made.gradients[i] as readonly Tensor[]));
        update(made.values, before);
        return {};
      });
      return new StepProgram([{ program: program as Part, times: 1 }], before);
    }
    let sums = variable([1]);
    const each = capture(`${label}: micro-batch`, inputs, (inputs) => {
      const made = gradients(inputs), values = joined(made.values);
      sums = variable(values.shape, { label: "sums over micro-batches" });
      copy(add(sums, values), sums);
      optimizers.forEach((optimizer, i) => optimizer.accumulate(made.gradients[i] as readonly Tensor[]));
      return {};
    });
    const begin = capture(`${label}: begin`, {}, () => {
      save();
      fill(sums, 0);
      for (const optimizer of optimizers) optimizer.clear();
      return {};
    });
    const end = capture(`${label}: update`, {}, () => {
      const mean = (i: number) => reshape(scale(slice(sums, 0, i, i + 1), 1 / accumulate), []);
      update(Array.from({ length: sums.size }, (_, i) => mean(i)), before);
      return {};
    });
    const parts = [
      { program: begin as Part, times: 1 },
      { program: each as Part, times: accumulate },
      { program: end as Part, times: 1 },
    ];
    return new StepProgram(parts, [...before, sums]);
  }

  async prepare(progress?: (done: number, total: number) => void): Promise<this> {
    for (const { program } of this.parts) await program.prepare(progress);
    return this;
  }

  /** Uploads a step's data, of all micro-batches one after another, and submits the step. Does not wait for the device. */
  run(data: { [K in keyof I]?: Float32Array | Uint32Array }): void {
    for (const { program, times } of this.parts) {
      for (let i = 0; i < times; i++) {
        const part = Object.entries(program.inputs).map(([name, { size }]) => {
          const all = data[name];
          return [name, times === 1 ? all : all?.subarray(i * size, (i + 1) * size)];
        });
        program.run(Object.fromEntries(part.filter(([, array]) => array !== undefined)));
      }
    }
  }

  destroy(): void {
    for (const { program } of this.parts) program.destroy();
    for (const { storage } of this.owned) storage.destroy();
  }
}

/**
 * The random states of the micro-batches of step `step`, one after another: random numbers are a function of seed, step, and
 * index of the image in the step.
 */
export function stepRandom(
  seed: number,
  step: number,
  { batchSize, accumulate = 1 }: { batchSize: number; accumulate?: number },
): Uint32Array {
  const words = new Uint32Array(4 * accumulate);
  for (let i = 0; i < accumulate; i++) words.set(randomWords(seed, step, i * batchSize), 4 * i);
  return words;
}

/** The plan of programs that are replayed some number of times: their launches, and each persistent storage once. */
function combined(parts: readonly { program: Part; times: number }[]): Plan {
  const plans = parts.map(({ program: { plan }, times }) => ({ plan, times }));
  const sum = (of: (plan: Plan, times: number) => number) =>
    plans.reduce((total, { plan, times }) => total + of(plan, times), 0);
  const places = new Map(plans.flatMap(({ plan }) => [...plan.places]));
  return {
    launches: plans.flatMap(({ plan, times }) => Array.from({ length: times }, () => plan.launches).flat()),
    places,
    slots: plans.flatMap(({ plan }) => plan.slots),
    ...bytesOf(places, sum(({ bytes }) => bytes.activations), sum(({ bytes }) => bytes.workspace)),
    unpooledBytes: sum(({ unpooledBytes }) => unpooledBytes),
    flops: sum(({ flops }, times) => times * flops),
    recorded: sum(({ recorded }) => recorded),
  };
}
