// What metrics.json says that each figure was computed from.

import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import metadata from "../../deno.json" with { type: "json" };
import { ingredientsSchema, metricsSchema } from "../../src/metrics/ingredients.ts";
import { openDit, openTokenizer } from "../../src/zoo/runs.ts";
import { inFolder, run, writeImages } from "../helpers/commands.ts";
import { fixturePath } from "../helpers/published.ts";
import { testDevice } from "../helpers/check.ts";

const read = async (out: string) =>
  metricsSchema.parse(JSON.parse(await Deno.readTextFile(join(out, "metrics.json"))));
const MODEL = fixturePath("lightningdit_tiny.pt"), TOKENIZER = fixturePath("vavae_tiny.pt");

Deno.test("each figure of a model's samples names sets, networks, and how the samples were made", async () => {
  await inFolder(async (folder) => {
    const out = join(folder, "out"), real = join(folder, "real");
    await writeImages(real, 3);
    const sampled = ["--num", "4", "--steps", "2", "--cfg", "1", "--sampler", "heun", "--seed", "7"];
    const scored = ["--real", real, "--metrics", "fd-encoder,mind-encoder", "--workers", "0", "--out", out];
    await run("eval", "--model", MODEL, "--tokenizer", TOKENIZER, ...sampled, ...scored);
    const { ingredients = {}, ...figures } = await read(out);
    assertEquals(Object.keys(ingredients), ["fd_encoder", "mind_encoder"]);
    assert(["fd_encoder", "mind_encoder", "n", "nfe", "nfe_max"].every((key) => key in figures));
    await testDevice();
    const { identity } = await openDit(MODEL, {});
    for (const found of Object.values(ingredients)) {
      assertEquals(found.model, identity);
      assertEquals(found.fake, { name: "samples", count: 4 });
      assertEquals([found.real?.name, found.real?.count], [real, 3]);
      assert(
        /^[0-9a-f]{16}$/.test(found.real?.fingerprint ?? "") &&
          /^[0-9a-f]{16}$/.test(found.network!.fingerprint),
      );
      assertEquals([found.protocol, found.space, found.precision, found.tok], [
        "tok",
        "patches",
        "f32",
        metadata.version,
      ]);
      assert(found.adapter.endsWith("kernels)") && found.input?.includes("32 x 32"), found.input);
      const { nfe, options, ...sampling } = found.sampling!;
      assertEquals(nfe, figures.nfe);
      assertEquals(options, "--cfg 1 --sampler heun --seed 7 --steps 2");
      const { guidance, ...others } = sampling;
      assertEquals(guidance, "guidance 1");
      assertEquals(others, {
        sampler: "heun",
        steps: 2,
        labels: "equal",
        ema: "the model's own",
        seed: 7,
        images: [0, 3],
      });
    }
  });
});

Deno.test("each figure of a tokenizer names it, its images and the noise on its latents; n has no ingredients", async () => {
  await inFolder(async (folder) => {
    const out = join(folder, "out"), data = join(folder, "data");
    await writeImages(data, 3);
    const options = ["--latent-noise", "0.4", "--metrics", "psnr,effective-rank", "--image-size", "32"];
    await run("eval", "--tokenizer", TOKENIZER, "--data", data, ...options, "--workers", "0", "--out", out);
    const { ingredients = {} } = await read(out);
    const keys = ["psnr", "mse", "psnr_sigma_0.4", "mse_sigma_0.4", "effective_rank"];
    assertEquals(Object.keys(ingredients), keys);
    await testDevice();
    const { name, fingerprint } = (await openTokenizer(TOKENIZER)).identity;
    for (const [key, found] of Object.entries(ingredients)) {
      assertEquals(found.tokenizer, { name, fingerprint });
      assertEquals([found.real?.name, found.real?.count, found.fake?.count], [data, 3, 3]);
      assertEquals(found.latentNoise, key.includes("sigma") ? 0.4 : undefined);
      assertEquals(found.from, key === "effective_rank" ? "latents" : "reconstructions");
      assertEquals([found.input, found.sampling], ["RGB bytes of 32 x 32", undefined]);
    }
    assert(!ingredientsSchema.safeParse({ protocol: "tok" }).success);
  });
});

Deno.test("a probe on latents records its training and the split; even images train, odd ones test", async () => {
  await inFolder(async (folder) => {
    const out = join(folder, "out"), data = join(folder, "data");
    for (const name of ["a", "b"]) await writeImages(join(data, name), 5);
    const options = ["--metrics", "probe,knn", "--image-size", "32", "--workers", "0", "--out", out];
    await run("eval", "--tokenizer", TOKENIZER, "--data", data, ...options);
    const { ingredients: { probe, knn } = {} } = await read(out);
    const split = { train: 5, test: 5, by: "images of even index train, those of odd index test" };
    assertEquals([probe?.split, knn?.split, knn?.probe], [split, split, undefined]);
    const { optimizer, iterations, ...trained } = probe!.probe!;
    assert(optimizer.startsWith("L-BFGS") && iterations > 0);
    assertEquals(trained, {
      ...{ objective: "mean cross-entropy + penalty / 2 * squared norm of the weights, with bias" },
      ...{ features: "standardized by mean and standard deviation of the training images" },
      ...{ penalty: 1e-4, converged: true },
    });
    assert((await Deno.readTextFile(join(out, "report.html"))).includes("5 images train, 5 test"));
  });
});
