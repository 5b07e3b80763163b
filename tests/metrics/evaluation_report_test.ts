// The report of tok eval: which parts it has, which figures it names as missing, and its page.

import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { readImage } from "../../src/image/image.ts";
import { ChannelHistograms } from "../../src/metrics/channel_histograms.ts";
import { metricsSchema } from "../../src/metrics/ingredients.ts";
import { componentColors, principalComponents } from "../../src/metrics/principal.ts";
import { missingFigures, partsOf, selectParts } from "../../src/metrics/selection.ts";
import { METRIC_NAMES } from "../../src/metrics/table.ts";
import { scoreReconstruction } from "../../src/metrics/tokenizer.ts";
import { openImages } from "../../src/data/open_images.ts";
import { openTokenizer } from "../../src/zoo/runs.ts";
import { normal } from "../../src/philox.ts";
import { binned, histogram } from "../../src/run/histogram.ts";
import { inFolder, run, writeImages } from "../helpers/commands.ts";
import { EMBEDDED_ENCODER } from "../../src/zoo/encoders.ts";
import { fixturePath } from "../helpers/published.ts";

const MODEL = fixturePath("lightningdit_tiny.pt"), TOKENIZER = fixturePath("vavae_tiny.pt");

Deno.test("--data with a model or --fake adds the tokenizer's part; what excludes each other is one line", () => {
  const parts = (options: Parameters<typeof partsOf>[0]) => partsOf(options);
  assertEquals(parts({}), ["model"]);
  assertEquals(parts({ tokenizer: "t" }), ["tokenizer"]);
  assertEquals(parts({ tokenizer: "t", data: "d" }), ["tokenizer"]);
  assertEquals(parts({ tokenizer: "t", model: "m" }), ["model"]); // another decoder
  assertEquals(parts({ tokenizer: "t", model: "m", data: "d" }), ["tokenizer", "model"]);
  assertEquals(parts({ model: "m", data: "d" }), ["tokenizer", "model"]);
  assertEquals(parts({ data: "d" }), ["tokenizer", "model"]);
  assertEquals(parts({ tokenizer: "t", data: "d", fake: "f", real: "r" }), ["tokenizer", "sets"]);
  for (
    const [options, message] of [
      [{ fake: "f", model: "m" }, "Cannot score --fake and --model at once"],
      [{ fake: "f", tokenizer: "t" }, "add --data, or leave --tokenizer out"],
      [{ fake: "f", data: "d" }, "Cannot use --data here"],
      [{ tokenizer: "t", real: "r" }, "Cannot score a tokenizer with --real"],
    ] as const
  ) assertThrows(() => partsOf(options), UsageError, message);
});

Deno.test("each metric is scored by the first part that has it, or named as missing with what would supply it", () => {
  const options = { metrics: undefined, inception: undefined, lpips: undefined };
  const both = selectParts(["tokenizer", "model"], options);
  assertEquals(both.map(({ subject }) => subject), ["tokenizer", "model"]);
  const [tokenizer, model] = both.map(({ selection }) => selection);
  assert(tokenizer!.includes("psnr") && !tokenizer!.includes("copies") && tokenizer!.includes("probe"));
  assert(model!.includes("mind-encoder") && model!.includes("cmmd")); // on request elsewhere
  const missing = missingFigures(both, undefined);
  assert(["fid", "rfid", "mind"].every((name) => missing.get(name)?.includes("--inception FILE")));
  assertStringIncludes(missing.get("lpips") ?? "", "--lpips FILES");
  const computed = METRIC_NAMES.filter((name) => both.some(({ selection }) => selection.includes(name)));
  assertEquals(new Set([...computed, ...missing.keys()]), new Set(METRIC_NAMES));

  const requested = selectParts(["tokenizer", "model"], { ...options, metrics: ["probe", "fd-encoder"] });
  assertEquals(requested.map(({ subject, selection }) => [subject, selection.includes("probe")]), [
    ["tokenizer", true],
    ["model", false],
  ]);
  assertEquals(missingFigures(requested, ["probe", "fd-encoder"]).get("knn"), "add it to --metrics");
  assertEquals(selectParts(["tokenizer", "model"], { ...options, metrics: ["cmmd"] }).length, 1);
  const alone = selectParts(["tokenizer"], options), absent = missingFigures(alone, undefined);
  assertEquals(absent.get("fd-encoder"), "it needs --model RUN, or --real and --fake");
  assertEquals(missingFigures(selectParts(["model"], options), undefined).get("cmmd"), "add it to --metrics");
  assertThrows(
    () => selectParts(["tokenizer", "sets"], { ...options, metrics: ["classes"] }),
    UsageError,
    'Cannot score "classes"',
  );
});

Deno.test("options of a part of which --metrics or --protocol selects nothing are refused before anything is read", async () => {
  const report = ["--tokenizer", "none", "--model", "none", "--data", "none", "--workers", "0"];
  const refused: [args: string[], message: string][] = [
    [
      ["--metrics", "psnr", "--steps", "50"],
      "Cannot use --steps: it is for the samples of a model, and this scores a tokenizer, not a diffusion model, of which " +
      "--metrics selects nothing; choose other --metrics, or leave --steps out",
    ],
    [
      ["--metrics", "psnr", "--intervals"],
      "Cannot use --intervals: it is for figures that are no means over images",
    ],
    [["--metrics", "psnr", "--save-stats", "s.npz"], "Cannot use --save-stats: it is for the real images"],
    [["--metrics", "psnr", "--feature-cache", "c"], "Cannot use --feature-cache: it is for sets of images"],
    [
      ["--metrics", "fd-encoder", "--latent-noise", "0.2"],
      "Cannot use --latent-noise: it is for the latents of a tokenizer, and this scores a diffusion model, not a tokenizer",
    ],
    [
      ["--protocol", "dgm", "--latent-noise", "0.2"],
      "of which --protocol selects nothing; choose other --protocol",
    ],
    [
      ["--protocol", "adm", "--inception", "none", "--lpips", "none"],
      "Cannot use --lpips: --protocol adm has no LPIPS; leave --protocol out, or leave --lpips out",
    ],
    [
      ["--metrics", "psnr", "--lpips", "none"],
      "Cannot use --lpips: no LPIPS is selected; add lpips to --metrics, or leave --lpips out",
    ],
    // Without --metrics, a report has fdr6, as its missing figures say.
    [["--encoders", "none"], 'Cannot use "none": it does not hold a diffusion model'],
    [
      ["--inception", "none", "--metrics", "kid-encoder"],
      "Cannot use --inception: it is for figures of Inception",
    ],
    [
      ["--inception-input", "adm", "--metrics", "kid-encoder"],
      "and --metrics selects none; choose other --metrics",
    ],
    [["--encoders", "none", "--metrics", "fid"], "Cannot use --encoders: it is for fdr6 and mind6"],
    [["--encoders", "none", "--protocol", "dgm"], "Cannot use --encoders: it is for fdr6 and mind6"],
  ];
  await inFolder(async (folder) => {
    for (const [args, message] of refused) {
      const error = await assertRejects(
        () => run("eval", ...report, ...args, "--out", join(folder, "out")),
        UsageError,
      );
      assertStringIncludes(error.message, message);
      assert(!error.message.includes("\n"));
    }
  });
});

Deno.test("--lpips is refused where no LPIPS is computed, and read where it is", async () => {
  const sets = ["--real", "none", "--fake", "none"], tokenizer = ["--tokenizer", "none", "--data", "none"];
  const none = "Cannot use --lpips: no LPIPS is selected; add lpips to --metrics, or leave --lpips out";
  for (
    const [args, message] of [
      [
        ["--model", "none"],
        "it is for pairs of images, and this scores a diffusion model; leave --lpips out",
      ],
      [
        ["--model", "none", "--metrics", "fid"],
        "it is for pairs of images, and this scores a diffusion model",
      ],
      [sets, none],
      [[...sets, "--metrics", "psnr,ssim"], none],
      [[...tokenizer, "--metrics", "rfid"], none],
      [[...tokenizer, "--protocol", "adm"], "Cannot use --lpips: --protocol adm has no LPIPS"],
      [tokenizer, 'Cannot use "none"'],
      [[...tokenizer, "--metrics", "lpips"], 'Cannot use "none"'],
    ] as const
  ) {
    const out = ["--out", "none/out", "--workers", "0"];
    const error = await assertRejects(() => run("eval", ...args, "--lpips", "none", ...out), UsageError);
    assertStringIncludes(error.message, message);
  }
});

Deno.test("one command scores a tokenizer and a model's samples on the same images, and writes a page of it", async () => {
  await inFolder(async (folder) => {
    const at = (name: string) => join(folder, name);
    await writeImages(at("data"), 11);
    const given = ["--model", MODEL, "--tokenizer", TOKENIZER, "--data", at("data"), "--workers", "0"];
    const sampled = ["--num", "4", "--steps", "1", "--cfg", "1", "--batch-size", "4"];
    const metrics = ["--metrics", "psnr,cknna,effective-rank,fd-encoder,copies,mind-encoder"];
    given.push("--encoder", EMBEDDED_ENCODER);
    const { lines } = await run("eval", ...given, ...sampled, ...metrics, "--out", at("out"));
    const read = (name: string) => Deno.readTextFile(at(`out/${name}`));
    const { ingredients = {}, ...figures } = metricsSchema.parse(JSON.parse(await read("metrics.json")));
    const scores = ["psnr", "mse"], levels = [0.2, 0.4];
    const noisy = levels.flatMap((sigma) => scores.map((key) => `${key}_sigma_${sigma}`));
    const all = [...scores, ...noisy, "effective_rank", "cknna", "fd_encoder", "copies", "mind_encoder"];
    assertEquals(Object.keys(ingredients).sort(), all.toSorted());
    assertEquals([figures.n, figures.n_generated], [11, 4]);
    assertEquals(lines.filter((line) => line.includes("--latent-noise 0 leaves them out")).length, 1);
    assertEquals(lines.filter((line) => line.startsWith("data: ")).length, 1); // both parts read the same images
    // The encoder's features of the images serve CKNNA and the distances: only those of the samples are extracted there.
    assertEquals(lines.filter((line) => line.includes("for the encoder, each has")).length, 1);
    // Both parts see the same images at the model's size.
    const { psnr, fd_encoder: fd } = ingredients;
    assertEquals(psnr?.real, fd?.real);
    assertEquals([psnr?.fake?.count, fd?.fake?.count, psnr?.tokenizer], [11, 4, fd?.tokenizer]);
    assert(!psnr?.sampling && fd?.sampling && psnr?.input === "RGB bytes of 8 x 8", psnr?.input);
    assertStringIncludes(fd.input ?? "", "the central 8 x 8 kept, then");

    const csv = (await read("images.csv")).trimEnd().split("\n");
    assertEquals(csv[0], ["name", ...scores, ...noisy].join());
    assertEquals(csv.length, 12);

    const page = await read("report.html");
    for (const file of ["pca.png", "worst.png", "samples.png", "nearest.png"]) {
      const { width } = await readImage(at(`out/${file}`));
      assert(width > 0);
      assertStringIncludes(page, (await Deno.readFile(at(`out/${file}`))).toBase64().slice(0, 200));
    }
    for (
      const text of [
        "Reconstruction from noisy latents",
        "few: Frechet distances",
        "channel 0",
        `<td>sampler</td><td>euler, 1 steps</td>`,
        "add it to --metrics",
        "noise 0.4",
        String(fd.real?.fingerprint),
      ]
    ) assertStringIncludes(page, text);
    assert(!/(src|href)="(?!data:)/.test(page) && !page.includes("http"), "the page loads nothing");

    // The figures of each part equal those of the part alone.
    const alone = ["--model", MODEL, "--tokenizer", TOKENIZER, "--real", at("data"), "--image-size", "8"];
    const { result } = await run(
      "eval",
      ...alone,
      ...sampled,
      ...["--metrics", "fd-encoder", "--workers", "0", "--out", at("alone")],
    );
    assertEquals(result.fd_encoder, figures.fd_encoder);
    const part = ["--tokenizer", TOKENIZER, "--data", at("data"), "--image-size", "8", "--workers", "0"];
    const { result: reconstruction } = await run(
      "eval",
      ...part,
      ...["--metrics", "psnr", "--latent-noise", "0.4", "--out", at("part")],
    );
    assertEquals(
      [reconstruction.psnr, reconstruction["psnr_sigma_0.4"]],
      [figures.psnr, figures["psnr_sigma_0.4"]],
    );
    const images = await openImages(at("data")), tokenizer = await openTokenizer(TOKENIZER);
    const fused = await scoreReconstruction(tokenizer, images, { size: 8, batchSize: 4 });
    assert(Math.abs(fused.psnr! / (figures.psnr as number) - 1) < 1e-6, `${fused.psnr}`);
    const off = [...given, "--metrics", "psnr", "--latent-noise", "0", "--out", at("off")];
    const { result: without } = await run("eval", ...off);
    assertEquals(Object.keys(without), ["out", "psnr", "mse", "n", "protocols"]);
    await assertRejects(
      () => run("eval", "--fake", at("data"), "--model", MODEL),
      UsageError,
      "both are generated images",
    );
  });
});

Deno.test("principal components have the variances of a known covariance; colors of inverted components are the same", () => {
  const rows = 400, columns = 6, scales = [5, 3, 2, 0.1, 0.1, 0.1];
  const noise = normal(1, 2, rows * columns);
  // Rows in rotated axes: two columns are mixed by 45 degrees.
  const data = Float32Array.from(noise, (v, i) => 7 + v * scales[i % columns]!);
  for (let r = 0; r < rows; r++) {
    const at = r * columns, a = data[at]!, b = data[at + 3]!;
    [data[at], data[at + 3]] = [(a + b) / Math.SQRT2, (a - b) / Math.SQRT2];
  }
  const found = principalComponents({ data, rows, columns });
  const column = (k: number) => Float64Array.from({ length: rows }, (_, r) => found[3 * r + k]!);
  for (const k of [0, 1, 2]) {
    const values = column(k), mean = values.reduce((s, v) => s + v, 0) / rows;
    const std = Math.sqrt(values.reduce((s, v) => s + (v - mean) ** 2, 0) / rows);
    assert(Math.abs(mean) < 1e-5 && Math.abs(std / scales[k]! - 1) < 0.15, `${k}: ${mean}, ${std}`);
    for (const other of [0, 1, 2].filter((other) => other !== k)) {
      const dot = values.reduce((s, v, r) => s + v * column(other)[r]!, 0) / rows;
      assert(Math.abs(dot) < 1e-4 * scales[k]! * scales[other]!, `${k}, ${other}: ${dot}`);
    }
  }
  const inverted = found.map((v) => -v);
  assertEquals(componentColors(inverted, found), componentColors(found));
  const colors = componentColors(found);
  assert(colors.includes(0) && colors.includes(255));
  // Rows along one line have one component; the others are constant, so gray.
  const line = Float32Array.from({ length: 30 }, (_, i) => Math.floor(i / 3) * (1 + i % 3));
  const flat = componentColors(principalComponents({ data: line, rows: 10, columns: 3 }));
  assertEquals([flat[1], flat[2], flat[3 * 9 + 1]], [128, 128, 128]);
  assert(new Set(Array.from({ length: 10 }, (_, r) => flat[3 * r])).size > 5);
});

Deno.test("histograms count every value, those beyond the range in the outer bins", () => {
  assertEquals(binned([0, 0.5, 1, -3, 9], 0, 1, 4), [2, 0, 1, 2]);
  assertEquals(histogram("t", [{ name: "a", values: [Infinity, 1] }]), "");
  assertStringIncludes(histogram("t", [{ name: "a", values: [1, 1] }]), "<svg");
  const channels = new ChannelHistograms(2);
  assertEquals(channels.all, []);
  channels.add(Float32Array.from({ length: 200 }, (_, i) => i % 2 ? 10 + i % 4 : i % 8));
  channels.add(Float32Array.of(1e6, -1e6));
  const [a, b] = channels.all;
  assertEquals([a!.counts.reduce((s, v) => s + v), a!.counts.at(-1), b!.counts[0]], [101, 1, 1]);
  assert(a!.from < 0 && a!.to > 6 && b!.from < 10 && b!.to > 13);
});
