// Schedules of key steps: "every N", a share of the steps, or the numbers of steps.

import { UsageError } from "../errors.ts";

/** Whether a text is a schedule of key steps: "every N", numbers of steps from 0 on, or a share of the steps. */
export const isSchedule = (text: string): boolean => parsed(text) !== undefined;

/** What a schedule says: a distance, a share, or numbers of steps. */
function parsed(text: string): { every: number } | { share: number } | { steps: number[] } | undefined {
  const every = /^every[ -]?([1-9]\d*)$/.exec(text)?.[1];
  if (every !== undefined) return { every: Number(every) };
  if (/^(0?\.\d+|1(\.0*)?)$/.test(text)) return Number(text) > 0 ? { share: Number(text) } : undefined;
  if (!/^0(?:[,-] ?\d+)*$/.test(text)) return undefined;
  const steps = text.split(/[,-]/).map(Number);
  return steps.every((step, i) => i === 0 || step > (steps[i - 1] as number)) ? { steps } : undefined;
}

/**
 * Whether each of `count` steps is a key step of a schedule; without a schedule all are.
 * @throws UsageError for a step that there is not
 */
export function keySteps(schedule: string | undefined, count: number): boolean[] {
  const keys = parsed(schedule ?? "1") ?? { every: 1 };
  if ("steps" in keys && (keys.steps.at(-1) as number) >= count) {
    throw new UsageError(
      `Cannot use --reuse-encoder ${schedule}: it names step ${keys.steps.at(-1)}, but the steps are 0 to ${
        count - 1
      }; name others`,
    );
  }
  const named = new Set("steps" in keys ? keys.steps : []);
  // Share: `total` steps at equal distances, the first of which is step 0.
  const total = "share" in keys ? Math.max(1, Math.round(keys.share * count)) : 0;
  const interval = (i: number) => Math.floor(i * total / count);
  return Array.from({ length: count }, (_, i) => {
    if ("every" in keys) return i % keys.every === 0;
    return "steps" in keys ? named.has(i) : i === 0 || interval(i) > interval(i - 1);
  });
}
