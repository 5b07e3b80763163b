// Training scripts save models inside others: {"ema": ...}, {"state_dict": ...}, DataParallel's "module.". Read as flat keys,
// a wrapper is a prefix; this finds the one below which a model lies.

/** What wrappers are called; anything else before a model's own keys belongs to another model. */
const WRAPPER = /^(?:(?:state_dict|model|module|ema|model_ema|first_stage_model|vae|_orig_mod)\.)*$/;

/**
 * The prefix of a model that has a tensor called `anchor`; undefined where there is none. Of several, the average of weights
 * ("ema"), which samples are drawn from, goes first, then the outermost.
 */
export function wrapperOf(keys: Iterable<string>, anchor: string): string | undefined {
  const prefixes = [...keys].filter((key) => key.endsWith(anchor)).map((key) => key.slice(0, -anchor.length))
    .filter((prefix) => WRAPPER.test(prefix));
  const rank = (prefix: string) => (/(^|\.)(model_)?ema\./.test(prefix) ? 0 : 1000) + prefix.length;
  return prefixes.sort((a, b) => rank(a) - rank(b))[0];
}
