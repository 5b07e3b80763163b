// Training scripts save models inside others: {"ema": ...}, {"state_dict": ...}, DataParallel's "module.", torch.compile's
// "_orig_mod.", DINOv2's {"teacher": {"backbone.": ...}}. In flat keys a wrapper is a prefix. This is the list of them for all
// loaders; any other prefix belongs to another model.

import { type Renamed, renamed } from "../formats/mapped_store.ts";
import type { TensorStore } from "../formats/tensors.ts";

/** EMA weights, which are preferred. */
const AVERAGES = ["ema", "model_ema", "ema_model", "state_dict_ema", "teacher", "target_encoder"];
/** Student weights, which are used last. */
const STUDENTS = ["student"];
const OTHERS = [
  "state_dict",
  "model_state_dict",
  "model",
  "module",
  "_orig_mod",
  "_fsdp_wrapped_module",
  "backbone",
  "encoder",
  "net",
  "network",
  "visual",
  "first_stage_model",
  "vae",
];
const ALL: ReadonlySet<string> = new Set([...AVERAGES, ...STUDENTS, ...OTHERS]);

/** Tests a name for being the anchor. */
export type Anchor = string | ((name: string) => boolean);

/**
 * The prefix of the model that has the tensor `anchor`; undefined if there is none. Of several, EMA weights come first and a
 * student last, then the outermost.
 */
export function wrapperOf(keys: Iterable<string>, anchor: Anchor): string | undefined {
  const is = typeof anchor === "string" ? (name: string) => name === anchor : anchor;
  const prefixes: string[] = [];
  for (const key of keys) {
    for (let at = 0;;) {
      if (is(key.slice(at))) prefixes.push(key.slice(0, at));
      const dot = key.indexOf(".", at);
      if (dot < 0 || !ALL.has(key.slice(at, dot))) break;
      at = dot + 1;
    }
  }
  const rank = (prefix: string) => {
    const words = prefix.split(".");
    const has = (names: readonly string[]) => names.some((name) => words.includes(name));
    return (has(AVERAGES) ? 0 : has(STUDENTS) ? 2000 : 1000) + prefix.length;
  };
  return prefixes.sort((a, b) => rank(a) - rank(b))[0];
}

/** The tensors of a model without its wrapper's prefix; all tensors if the anchor is not found. */
export function unwrapped(store: TensorStore, anchor: Anchor): Renamed {
  const prefix = wrapperOf(store.shapes.keys(), anchor);
  if (!prefix) return store;
  const own = [...store.shapes.keys()].filter((key) => key.startsWith(prefix));
  return renamed(store, new Map(own.map((key) => [key.slice(prefix.length), key])));
}

/** Location of the anchor under an unknown prefix, as part of a message; empty if there is none. */
export function underNote(keys: Iterable<string>, anchor: string): string {
  for (const key of keys) {
    if (key.endsWith(`.${anchor}`)) {
      return ` (but below the prefix "${
        key.slice(0, -anchor.length)
      }", which is not a known wrapper: remove it)`;
    }
  }
  return "";
}
