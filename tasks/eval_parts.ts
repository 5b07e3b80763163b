// The parts of an evaluation: a tokenizer's reconstructions and latents, a model's samples, two sets of images. All open their
// inputs before the first one is scored.

import { described, Sizes } from "../src/data/network_input.ts";
import { SetEvaluation } from "../src/metrics/evaluate.ts";
import { evaluateTokenizer } from "../src/metrics/evaluate_tokenizer.ts";
import type { Findings } from "../src/metrics/evaluation_page.ts";
import { shorterSide } from "../src/metrics/image_set.ts";
import { setIngredients } from "../src/metrics/ingredients.ts";
import { PairedSets } from "../src/metrics/paired_sets.ts";
import type { Part, Selection } from "../src/metrics/selection.ts";
import { INCEPTION_SIDE } from "../src/models/inception.ts";
import type { KnownTokenizer } from "../src/zoo/runs.ts";
import type { Context } from "./command.ts";
import {
  type Generator,
  type Job,
  openModel,
  type Prepared,
  prepareModel,
  type Shared,
} from "./eval_samples.ts";
import { openTokenizerFor } from "./inputs.ts";
import { openSet, originalEncoder, probeImages, tokenizerImages } from "./sets.ts";

const identityOf = ({ identity: { name, fingerprint } }: KnownTokenizer) => ({ name, fingerprint });

/** Scores the parts. @param run the model whose samples are scored, if any */
export async function scoreParts(
  job: Job,
  parts: readonly Part[],
  run: string | undefined,
  origins: Context["origins"],
): Promise<Findings> {
  const { c, log } = job;
  const generator = run === undefined ? undefined : await openModel(c, run, origins, log);
  const tokenizer = generator ??
    (c.tokenizer === undefined
      ? undefined
      : { path: c.tokenizer, ...await openTokenizerFor(c, c.tokenizer) });
  const both = c.data !== undefined && (run ?? c.fake) !== undefined;
  const size = c.imageSize ?? tokenizer?.size ?? INCEPTION_SIDE;
  const options = {
    ...job.options,
    perturb: both,
    imageSize: !both ? c.imageSize : c.protocol === undefined ? size : undefined,
    ...both && { computed: new Map() },
    ...parts.length > 1 && { countKey: "n_generated" }, // "n" is the number of reconstructions
  };
  const sizes = new Sizes(), reconstructs = parts.some(({ subject }) => subject === "tokenizer");
  const images = reconstructs || both ? await tokenizerImages(c.data, size, sizes, job) : undefined;
  const data = both && images ? { ...images, name: c.data as string, images: images.all } : undefined;
  const given = async (side: number) => c.real === undefined && data || await openSet(c.real, side, job);
  const shared: Shared = { ...job, options, size, given };
  using open = new DisposableStack();
  const prepared: Prepared[] = [];
  for (const { subject, selection } of parts) {
    const part = subject === "sets"
      ? await prepareFiles(shared, selection)
      : subject === "model"
      ? await prepareModel(shared, selection, generator as Generator)
      : await prepareTokenizer(shared, selection, tokenizer as OpenTokenizer, images as TokenizerImages);
    prepared.push(open.use(part));
  }
  job.results.beforeFirst = () =>
    job.record(
      Object.assign({}, ...prepared.map(({ sources }) => sources)),
      Object.assign({}, ...prepared.map(({ options }) => options)),
    );
  const findings: Findings = {};
  for (const part of prepared) Object.assign(findings, await part.score());
  job.results.begin();
  if (sizes.differ(size)) log.line(`"${c.data}": ${sizes}; each has ${described({ square: size })}`);
  return findings;
}

type TokenizerImages = Awaited<ReturnType<typeof tokenizerImages>>;

interface OpenTokenizer {
  path: string;
  tokenizer: KnownTokenizer;
}

async function prepareTokenizer(
  { c, options, size, results, log }: Shared,
  selection: Selection,
  { path, tokenizer }: OpenTokenizer,
  images: TokenizerImages,
): Promise<Prepared> {
  const { all, identity } = images, original = await originalEncoder(c, path, log);
  return {
    sources: { tokenizer: tokenizer.identity },
    async score() {
      results.describe({
        tokenizer: identityOf(tokenizer),
        real: setIngredients({ name: c.data ?? "generated shapes", images: all, identity }),
        fake: { name: "reconstructions", count: all.length },
      }, options);
      return await evaluateTokenizer(
        tokenizer,
        images,
        size,
        selection,
        { ...options, original },
        results,
        log,
      );
    },
    [Symbol.dispose]() {},
  };
}

async function prepareFiles(job: Shared, selection: Selection): Promise<Prepared> {
  const { c, options, results, log, workers } = job, fake = await openSet(c.fake, INCEPTION_SIDE, job);
  const side = options.imageSize ?? await shorterSide(fake), real = await job.given(side);
  const pairs = await PairedSets.open(selection, options, real, fake, log);
  const evaluation = await SetEvaluation.open(selection, options, real, fake, log);
  const sets = { "real set": real.identity, "fake set": fake.identity };
  return {
    sources: { ...sets, ...await evaluation.networks() },
    async score() {
      results.describe({ real: setIngredients(real), fake: setIngredients(fake) }, options);
      const images = await pairs?.score(results);
      await evaluation.score(real, fake, probeImages(workers, side), results);
      return images ? { images } : {};
    },
    [Symbol.dispose]: () => evaluation[Symbol.dispose](),
  };
}
