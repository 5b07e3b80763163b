// Scores of latents as a representation, against NumPy and by hand.

import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { writeJson } from "../../src/formats/files.ts";
import { writePng } from "../../src/image/image.ts";
import { type Features, gaussian } from "../../src/metrics/moments.ts";
import { channelRanges, cknna, effectiveRank, LatentSummary } from "../../src/metrics/representation.ts";
import { normal } from "../../src/philox.ts";
import { EMBEDDED_ENCODER, type EncoderSource } from "../../src/zoo/encoders.ts";
import { recordedEncoder } from "../../src/zoo/recorded_encoder.ts";
import { saveTokenizer } from "../../src/zoo/runs.ts";
import { alignment } from "../helpers/alignment.ts";
import { testDevice } from "../helpers/check.ts";
import { originalEncoder } from "../../tasks/sets.ts";
import { quietLog, run } from "../helpers/commands.ts";
import { units } from "../helpers/formula.ts";
import fixture from "../fixtures/representation.json" with { type: "json" };

const { rows } = fixture;
const features = (data: number[]): Features => ({
  data: Float32Array.from(data),
  rows,
  columns: data.length / rows,
});
const near = (got: number, want: number, tolerance: number) =>
  assert(Math.abs(got / want - 1) < tolerance, `${got} against ${want}`);

Deno.test("cknna() and effectiveRank() equal NumPy's to 1e-6; CKNNA is 1 with itself, and refuses few images", async () => {
  await testDevice();
  const a = features(fixture.a), b = features(fixture.b);
  near(await cknna(a, b), fixture.cknna[0]!, 1e-6);
  near(await cknna(b, a), fixture.cknna[1]!, 1e-6); // the estimator is not symmetric where neighbourhoods are not
  near(await cknna(a, { ...a, data: a.data.map((v) => 8 * v) }), 1, 2e-3); // but for the 1e-6 of the definition
  for (const [k, set] of [a, b].entries()) {
    near(
      await effectiveRank((await gaussian(set)).covariance, set.columns),
      fixture.effective_rank[k]!,
      1e-6,
    );
  }
  await assertRejects(() => cknna(a, b, rows), UsageError, "40 images are too few for 40 neighbours");
});

Deno.test("LatentSummary does not depend on batches: channel statistics, means of images, cells of large sets", async () => {
  const n = 21, cells = 6, channels = 4, each = cells * channels;
  const latents = normal(4, 1, n * each).map((v, i) => v * (1 + i % channels) + 10 * (i % channels));
  const summary = async (batch: number, images = n) => {
    const made = new LatentSummary({ cells, channels }, images);
    for (let at = 0; at < n; at += batch) await made.add(latents.subarray(at * each, (at + batch) * each));
    return made;
  };
  const one = await summary(1), ranges = channelRanges(one.channels), rank = await one.effectiveRank();
  for (const batch of [7, 64]) {
    const other = await summary(batch);
    assertEquals(channelRanges(other.channels), ranges);
    near(await other.effectiveRank(), rank, 1e-12);
    assertEquals(other.means(), (await summary(1)).means());
  }
  near(
    rank,
    await effectiveRank(
      (await gaussian({ data: latents, rows: n * cells, columns: channels })).covariance,
      4,
    ),
    1e-12,
  );
  assert(rank > 2 && rank < 4, `${rank}`);
  near(ranges.latent_std_max!, 4, 0.15);
  near(ranges.latent_mean_max!, 30, 0.05);
  const means = one.means();
  let mean = 0;
  for (let k = 0; k < cells; k++) mean += latents[5 * each + k * channels + 2]! / cells;
  near(means.data[5 * channels + 2]!, mean, 1e-6);
  // With 65,536 images one cell of each is enough: the first.
  const first = Float32Array.from(
    { length: n * channels },
    (_, i) => latents[Math.floor(i / 4) * each + i % 4]!,
  );
  const expected = await effectiveRank(
    (await gaussian({ data: first, rows: n, columns: channels })).covariance,
    4,
  );
  near(await (await summary(5, 65_536)).effectiveRank(), expected, 1e-12);
});

Deno.test("tok eval compares latents with the encoder that the run records, or --encoder; without one it says so", async () => {
  const root = await Deno.makeTempDir(), at = (name: string) => join(root, name);
  await saveTokenizer(at("run"), (await alignment()).tokenizer);
  await Deno.mkdir(at("data"));
  for (let i = 0; i < 12; i++) {
    const data = Uint8Array.from(units(`image.${i}`, 3 * 32 * 32), (u, k) => 128 * u + 10 * (i * k % 13));
    await writePng(at(`data/${i}.png`), { width: 32, height: 32, data });
  }
  const score = async (...more: string[]) => {
    const args = ["--tokenizer", at("run"), "--data", at("data"), "--workers", "0", "--out", at("out")];
    const { lines } = await run("eval", ...args, ...more);
    return { lines, scores: JSON.parse(await Deno.readTextFile(at("out/metrics.json"))) };
  };
  await assertRejects(
    () => score("--metrics", "cknna"),
    UsageError,
    'Cannot score "cknna": it needs --encoder, the encoder that the tokenizer was made from: no run records it',
  );
  const named = await score("--metrics", "cknna", "--encoder", EMBEDDED_ENCODER);
  assertEquals(Object.keys(named.scores), ["cknna", "n", "ingredients"]);
  assert(Number.isFinite(named.scores.cknna) && named.scores.cknna > 0, `${named.scores.cknna}`);

  const record = (encoder?: string) =>
    writeJson(at("run/config.json"), {
      command: "align",
      encoder,
      made_from: { encoder: { name: "it", fingerprint: "0123456789abcdef" } },
    });
  record();
  for (const path of ["run", "run/tokenizer"]) {
    assertEquals(recordedEncoder(at(path)), { encoder: undefined, fingerprint: "0123456789abcdef" });
  }
  const recorded = await originalEncoder({ download: false }, at("run"), quietLog().log);
  assertEquals((recorded as EncoderSource).path, EMBEDDED_ENCODER);
  record(at("nowhere"));
  const { lines, scores } = await score(); // all that apply
  assert(scores.effective_rank > 1 && !("cknna" in scores));
  assertStringIncludes(lines.find((line) => line.startsWith("left out: cknna")) ?? "", at("nowhere"));
  await Deno.remove(root, { recursive: true });
});
