// What a dry run says, and --memory and --epochs: nothing is allocated, the largest micro-batch that fits is found, and a real run
// uses it.

import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { join } from "@std/path";
import { adapterKey } from "../../src/bench/gemm_tuning.ts";
import { ratesFile, rememberedRates, rememberRates } from "../../src/bench/remembered_peaks.ts";
import { type AlignConfig, alignConfig } from "../../src/cli/config.ts";
import { ALIGN_PRESETS } from "../../src/cli/presets.ts";
import { UsageError } from "../../src/errors.ts";
import { formatBytes, parseBytes, readJson } from "../../src/formats/files.ts";
import { device } from "../../src/gpu/device.ts";
import type { Plan } from "../../src/gpu/plan.ts";
import { Storage } from "../../src/gpu/storage.ts";
import { Dit, DIT_SIZES, ditConfig } from "../../src/models/dit.ts";
import { Lpips } from "../../src/models/lpips.ts";
import { stagesOf, tokenizerOf } from "../../src/train/align_config.ts";
import { Alignment } from "../../src/train/alignment.ts";
import { Diffusion } from "../../src/train/diffusion.ts";
import { discriminatorOf } from "../../src/train/discriminators.ts";
import { IMAGENET } from "../../src/train/epochs.ts";
import { largestMicroBatch } from "../../src/train/fit_memory.ts";
import { spelled } from "../../src/train/plan_table.ts";
import { stageRecipes } from "../../src/train/stage_recipe.ts";
import { LatentsWriter } from "../../src/formats/latents.ts";
import { openTokenizer } from "../../src/zoo/runs.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { parseCommandLine } from "../../tasks/run.ts";
import { testDevice } from "../helpers/check.ts";
import { inFolder, run, writeImages } from "../helpers/commands.ts";
import { testInOwnProcess } from "../helpers/own_process.ts";

Deno.test("sizes of memory are decimal or binary, and anything else is refused", () => {
  const sizes = ["24GB", "24 gb", "1.5MB", "2GiB", "512kib", "100B"].map(parseBytes);
  assertEquals(sizes, [24e9, 24e9, 1.5e6, 2 * 2 ** 30, 2 ** 19, 100]);
  for (const wrong of ["24", "GB", "-1GB", "0GB", "1 iB", "1 quart"]) {
    assertEquals(parseBytes(wrong), undefined, wrong);
    assertThrows(() => parseCommandLine(["align", `--memory=${wrong}`]), UsageError, "Cannot use --memory");
  }
});

/** A recipe whose step needs `fixed` bytes and `each` bytes an image, in buffers of `binding` bytes an image. */
function recipe(fixed: number, each: number, binding: number, planned: number[]) {
  return (microBatch: number) => ({
    steps: 10,
    plan() {
      planned.push(microBatch);
      const activations = each * microBatch;
      const bytes = { activations, inputs: 0, gradients: 0 }, storage = new Storage(binding * microBatch);
      return {
        bytes,
        totalBytes: fixed + activations,
        flops: 7,
        places: new Map([[storage, { root: storage, offset: 0, slot: 0 }]]),
      } as unknown as Plan;
    },
  });
}

Deno.test("the largest micro-batch that divides the batch and fits is found with few plans", async () => {
  for (
    const [budget, limit, expected] of [
      [1000, Infinity, 8], // 100 + 8 x 100, and 500 + 8 x 50
      [899, Infinity, 6],
      [150, Infinity, 0],
      [1e6, Infinity, 24],
      [1e6, 60, 6], // 60 of 10 an image
    ] as const
  ) {
    const planned: number[] = [];
    const all = [recipe(100, 100, 10, planned), recipe(500, 50, 10, planned)];
    const found = await largestMicroBatch(
      24,
      { budget, limit },
      (size) => Promise.resolve({ recipes: all.map((make) => make(size)) }),
    );
    assertEquals(found.microBatch, expected, `${budget}, ${limit}`);
    assertEquals(found.flops, 2 * 10 * 7);
    if (expected) assertEquals(found.bytes, Math.max(100 + 100 * expected, 500 + 50 * expected));
    assert(planned.length <= (limit === Infinity ? 6 : 12), `${planned}`);
  }
});

/** A small alignment. */
const SMALL = [
  "--image-size",
  "16",
  "--decoder-multiples",
  "1,1",
  "--decoder-channels",
  "4",
  "--gan",
  "none",
];

Deno.test("a dry run with --memory lists what fits with and without fp16 and recomputation, and a larger micro-batch does not", async () => {
  const sized = [...SMALL, "--perceptual", "none", "--stages", "3", "--dry-run"];
  const bytesOf = async (...options: string[]) => {
    const { result } = await run("align", ...sized, ...options);
    return (result.plans as { totalBytes: number }[]).map(({ totalBytes }) => totalBytes)[0] as number;
  };
  const whole = ["--batch-size", "6"], budget = Math.floor(0.9 * await bytesOf(...whole));
  const { lines, result } = await run("align", ...sized, ...whole, "--memory", `${budget}B`);
  const rows = lines.filter((line) => line.includes("--batch-size "));
  assertEquals(rows.length, 4, lines.join("\n"));
  for (const row of rows.slice(0, 2)) {
    const options = row.slice(row.indexOf("--batch-size")).split(" ");
    const [, size, , times] = options as [string, string, string, string];
    assertEquals(Number(size) * Number(times), 6);
    assert(await bytesOf(...options) <= budget, row);
    const larger = [6, 3, 2, 1].findLast((n) => n > Number(size));
    if (larger === undefined) continue;
    const next = await bytesOf(
      "--batch-size",
      `${larger}`,
      "--accumulate",
      `${6 / larger}`,
      ...options.slice(4),
    );
    assert(next > budget, `${row}: ${larger} fit, too`);
  }
  assert((result.plans as { totalBytes: number }[])[0]?.totalBytes as number <= budget);
  await assertRejects(
    () => run("align", ...sized, ...whole, "--memory", "100kB"),
    UsageError,
    "Cannot fit micro-batches of 1",
  );
});

Deno.test("train-dit --memory finds the largest micro-batch of a batch, and says what would fit otherwise", async () => {
  const tokenizer = new URL("../fixtures/vavae_tiny.pt", import.meta.url).pathname;
  const line = ["--tokenizer", tokenizer, "--dry-run", "--epochs", "1"], sized = ["--image-size", "32"];
  const planned = async (...options: string[]) => {
    const { lines, result } = await run("train-dit", ...line, ...options);
    return { lines, plan: (result.plans as { totalBytes: number; steps: number }[])[0] };
  };
  for (const size of [1, 2]) {
    const options = ["--batch-size", `${size}`, "--accumulate", `${2 / size}`];
    const { plan: asked } = await planned(...sized, ...options);
    const fitted = ["--batch-size", "2", "--memory", `${asked?.totalBytes}B`];
    const { plan, lines } = await planned(...sized, ...fitted);
    assertEquals(plan, asked);
    assertEquals(plan?.steps, Math.ceil(IMAGENET.images / 2), "a step sees the whole batch");
    assert(
      lines.some((text) => /^ {2}f32 +/.test(text) && text.endsWith(options.join(" "))),
      lines.join("\n"),
    );
  }
  for (
    const [memory, remedy] of [
      ["55MB", "use --batch-size 2 --accumulate 1 --recompute"],
      ["10MB", "use a smaller model"],
    ] as const
  ) {
    const error = await assertRejects(
      () => planned(...sized, "--batch-size", "2", "--memory", memory),
      UsageError,
    );
    assertMatch(error.message, /^Cannot fit micro-batches of 1, which need \d/);
    assert(error.message.includes(remedy), error.message);
  }
  // Latents of another size than the tokenizer's images have, of three classes.
  await inFolder(async (folder) => {
    const { channels: C } = await openTokenizer(tokenizer),
      data = new Float32Array(C * 16).map((_, i) => i % 7);
    const writer = new LatentsWriter(folder, [C, 4, 4]);
    for (const label of [0, 2]) await writer.add(data, data, [label]);
    await writer.close();
    const options = ["--latents", folder, "--batch-size", "2"], { plan } = await planned(...options);
    const fitted = await planned(...options, "--memory", `${plan?.totalBytes}B`);
    assertEquals(fitted.plan, plan);
    assert(fitted.lines.some((text) => /^ {2}f32 .*--batch-size 2 --accumulate 1$/.test(text)), "it fits");
  });
});

Deno.test("a run uses the micro-batch of --memory and the steps of --epochs, records both, and resumes with them", async () => {
  await inFolder(async (folder) => {
    await writeImages(join(folder, "images"), 9);
    const options = ["--data", join(folder, "images"), "--out", join(folder, "run"), "--stages", "3"];
    const sized = ["align", ...options, ...SMALL, "--held-out", "1", "--workers", "0"] as const;
    const planned = await run(...sized, "--batch-size", "4", "--accumulate", "2", "--dry-run");
    const [{ totalBytes }] = planned.result.plans as [{ totalBytes: number }];
    const fitted = ["--batch-size", "8", "--memory", `${totalBytes}B`, "--epochs", "1.5"];
    const { lines } = await run(...sized, ...fitted);
    assert(
      lines.some((line) => line.startsWith("memory: --batch-size 4 --accumulate 2 needs")),
      lines.join("\n"),
    );
    const record = readJson(join(folder, "run", "config.json")) as AlignConfig;
    assertEquals([record.batchSize, record.accumulate, record.steps], [4, 2, [2, 2, 2]]); // 1.5 x 8 / 8
    const again = await run(...sized, ...fitted, "--resume");
    assertEquals(again.result.finished, true);
  });
});

Deno.test("--epochs needs images that repeat, and excludes --steps", async () => {
  await assertRejects(() => run("align", "--epochs", "2"), UsageError, "Cannot use --epochs without --data");
  for (const name of ["align --steps 1,1,1", "train-dit --steps 3"]) {
    const [command = "", ...args] = name.split(" ");
    await assertRejects(
      () => run(command, ...args, "--epochs", "2", "--dry-run"),
      UsageError,
      "--epochs and --steps",
    );
  }
  const { lines, result } = await run(
    "align",
    "--dry-run",
    "--epochs",
    "1,2,0.5",
    "--batch-size",
    "1000",
    "--stages",
    "1,3",
  );
  assert(lines.some((line) => line.includes("1,281,167 images (ImageNet's")), lines.join("\n"));
  assertEquals((result.plans as { steps: number }[]).map(({ steps }) => steps), [1282, 641]);
});

Deno.test("--memory and --gan-warmup count the steps of --epochs, where the adversarial loss begins later than by default", async () => {
  const options = ["--stages", "3", "--epochs", "1", "--gan-start", "off,off,200", "--gan-warmup", "150"];
  const { lines, result } = await run("align", "--dry-run", ...options, "--memory", "1GB");
  const [{ totalBytes }] = result.plans as [{ totalBytes: number }];
  const row = lines.find((line) => line.includes("--batch-size 16 --accumulate 1"));
  assert(row?.includes(formatBytes(totalBytes)), lines.join("\n"));
});

testInOwnProcess(import.meta.url)(
  "a dry run says FLOPs of the complete run, and hours at the rate that doctor --bench remembers",
  async () => {
    await inFolder(async (folder) => {
      await testDevice();
      const before = Deno.env.get("XDG_CACHE_HOME");
      Deno.env.set("XDG_CACHE_HOME", folder);
      try {
        const options = ["--dry-run", "--stages", "1", "--steps", "1000,1,1", ...SMALL];
        const unknown = await run("align", ...options);
        assert(unknown.lines.some((line) => line.includes('after "tok doctor --bench"')));
        const { facts, profile } = device(), key = adapterKey(facts, profile);
        rememberRates(key, { gemm: 2000, fma: 3000 }, (text) => assert(false, text));
        assertEquals([rememberedRates(key)?.gemm, rememberedRates("other")], [2000, undefined]);
        const { lines, result } = await run("align", ...options);
        const [plan] = result.plans as [{ flops: number }];
        assertEquals(result.flops, 1000 * plan.flops);
        assertAlmostEquals(result.seconds as number, result.flops as number / 2e12, 1e-9);
        assert(
          lines.some((line) => line.includes("at the 2.0 TFLOP/s of a large GEMM measured here")),
          lines.join("\n"),
        );
        Deno.writeTextFileSync(ratesFile(), "{");
        assertEquals(rememberedRates(key), undefined);
      } finally {
        if (before === undefined) Deno.env.delete("XDG_CACHE_HOME");
        else Deno.env.set("XDG_CACHE_HOME", before);
      }
    });
    assertEquals([30, 100, 15000, 4.2 * 86400, 1e9].map(spelled), [
      "30.0 seconds",
      "1.7 minutes",
      "4.2 hours",
      "4.2 days",
      "31.7 years",
    ]);
  },
);

Deno.test("stage 2 of dinov2-l-f16d32 plans within 24 GB at micro-batches of 4, and allocates nothing", async () => {
  await testDevice();
  const c = alignConfig.parse({
    preset: "dinov2-l-f16d32",
    ...ALIGN_PRESETS["dinov2-l-f16d32"],
    batchSize: 4,
    accumulate: 64,
  });
  const encoder = await openEncoder(c.encoder, { planOnly: true }), { config, preprocessor } = encoder;
  const before = device().memory.live;
  const tokenizer = tokenizerOf(c, config, preprocessor);
  const alignment = new Alignment(tokenizer, discriminatorOf(c, encoder), new Lpips());
  const stage = stagesOf(c, true).filter(({ name }) => name === "perceptual");
  const plan = stageRecipes(alignment, stage, c, undefined)[0]?.plan() as Plan;
  assert(plan.totalBytes < 24e9 && plan.bytes.parameters > 2.5e9, `${plan.totalBytes}`);
  assertEquals(device().memory.live, before);
});

Deno.test("XL/1 plans within 40 GB at micro-batches of 8 in fp16 with recomputation, and allocates nothing", async () => {
  await testDevice();
  const before = device().memory.live;
  const dit = new Dit(ditConfig.parse(DIT_SIZES["XL/1"]));
  const options = { batchSize: 8, labelDropout: 0.1, directionWeight: 1, ema: true, seed: 0 };
  const { plan } = new Diffusion(dit, { ...options, precision: "f16", recompute: true }).capture();
  // 15.2 GB: 4.0 of weights with their fp16 copies, 2.7 of gradients, 8.1 of moments and EMA, 0.3 of activations.
  assert(plan.totalBytes < 15.5e9 && plan.bytes.parameters > 4e9, `${plan.totalBytes}`);
  assertEquals(device().memory.live, before);
});
