// FDr6 and MIND6: the mean over six spaces against NumPy and SciPy (fixtures/make_six.py), six tiny networks through the public path,
// and what is said where networks are missing or others than the published ones.

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { inputOf } from "../../src/data/network_input.ts";
import { writeFeatures } from "../../src/data/npz_features.ts";
import { openNpzSet } from "../../src/data/npz_images.ts";
import { UsageError } from "../../src/errors.ts";
import { type NpzArray, writeNpz } from "../../src/formats/npz.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { capture } from "../../src/gpu/program.ts";
import { rowsOf } from "../../src/image/rows.ts";
import {
  EncoderFeatures,
  type FormName,
  FORMS,
  preprocessorOfForm,
} from "../../src/metrics/encoder_features.ts";
import { frechet } from "../../src/metrics/frechet.ts";
import { type Features, gaussian } from "../../src/metrics/moments.ts";
import type { ImageSet } from "../../src/metrics/image_set.ts";
import { Results } from "../../src/metrics/selection.ts";
import {
  cautionOfSix,
  recordedAs,
  SIX_SPACES,
  type SixEncoders,
  sixEncoders,
} from "../../src/metrics/six_networks.ts";
import { SixSpaces } from "../../src/metrics/six_spaces.ts";
import { mind } from "../../src/metrics/sliced.ts";
import type { SixMetric } from "../../src/metrics/metric.ts";
import { METRICS } from "../../src/metrics/table.ts";
import { Vit, vitConfig } from "../../src/models/vit.ts";
import { loadState } from "../../src/nn/layers.ts";
import { input } from "../../src/tensor/tensor.ts";
import { openFeatureEncoder } from "../../src/zoo/encoders.ts";
import { relativeError, testDevice } from "../helpers/check.ts";
import { open } from "../helpers/compare.ts";
import { quietLog } from "../helpers/commands.ts";
import { inFolder, writeJson } from "../helpers/encoder_files.ts";
import { evalScores } from "../helpers/eval.ts";
import { formulaSource, formulaWeights, shapesOf, units } from "../helpers/formula.ts";
import protocols from "../fixtures/protocols.json" with { type: "json" };
import fixture from "../fixtures/six.json" with { type: "json" };

const features = (name: string, rows: number, columns: number, scale: number, shift: number): Features => ({
  data: Float32Array.from(units(name, rows * columns), (u) => scale * u + shift),
  rows,
  columns,
});
const arrayOf = (space: string, { data, rows, columns }: Features): NpzArray => ({
  name: `features_${space}`,
  shape: [rows, columns],
  data,
});
const near = (got: number | undefined, expected: number, what: string) =>
  assert(
    got !== undefined && Math.abs(got - expected) <= 1e-6 * Math.abs(expected),
    `${what}: ${got}, not ${expected}`,
  );

/** Features in all six spaces of the fixture. */
const given = (set: "real" | "fake") =>
  Object.entries(fixture.spaces).map(([space, { columns }]) => {
    const name = `six.${set}.${space}`;
    const x = set === "real" ? features(name, 12, columns, 1, 0) : features(name, 15, columns, 1.3, 0.1);
    return [space, x] as const;
  });

Deno.test("fdr6 of given features equals SciPy's to 1e-6, with each space's distance; mind6 is the mean of MIND", async () => {
  await inFolder(async (folder) => {
    const [real, fake] = [join(folder, "real.npz"), join(folder, "fake.npz")];
    await writeNpz(real, given("real").map(([space, x]) => arrayOf(space, x)));
    await writeNpz(fake, given("fake").map(([space, x]) => arrayOf(space, x)));
    const { scores, lines, error, result } = await evalScores({
      real,
      fake,
      metrics: ["fdr6", "mind6"],
      out: join(folder, "out"),
    });
    assertEquals(error, undefined);
    for (const key of ["fdr6", "fd_mae@224", "mind6"]) {
      assert(lines.some((line) => line.startsWith(`${key} `) && line.endsWith(" tok")), key);
      assertEquals((result.protocols as Record<string, string>)[key], "tok");
    }
    near(scores.fdr6, fixture.fdr6, "fdr6");
    assertEquals(scores.n, 15); // images of the fake set
    assert(lines.some((line) => line.startsWith("12 images are few")), lines.join("\n"));
    let sum = 0;
    for (const [i, { key, space }] of SIX_SPACES.entries()) {
      near(scores[`fd_${key}`], (fixture.spaces as Record<string, { fd: number }>)[space]!.fd, key);
      const value = await mind(given("real")[i]![1], given("fake")[i]![1]);
      near(scores[`mind_${key}`], value, key);
      sum += value;
    }
    near(scores.mind6, sum / 6, "mind6");
  });
});

Deno.test("stored features of different networks are not compared; those of unknown ones are named", async () => {
  await inFolder(async (folder) => {
    const file = async (set: "real" | "fake", name: string, networks?: Record<string, string>) => {
      const path = join(folder, `${name}.npz`),
        spaces = Object.fromEntries(
          given(set).map(([space, features]) => [space, { features }]),
        );
      const about = networks && Object.fromEntries(
        Object.entries(networks).map(([key, fingerprint]) => [key, { name: "weights", fingerprint }]),
      );
      await writeFeatures(path, { spaces, ...about && { about } });
      return path;
    };
    const all = Object.fromEntries(SIX_SPACES.map((six, k) => [recordedAs(six), `0${k}`]));
    const real = await file("real", "real", all), same = await file("fake", "same", all);
    const other = await file("fake", "other", { ...all, "MAE-L/16 of FDr6": "ff" });
    const unknown = await file("fake", "unknown", { inception: "00" });
    const score = (fake: string) => evalScores({ real, fake, metrics: ["fdr6"], out: `${fake}.out` });
    const { error, scores, lines } = await score(same);
    assertEquals([error, lines.filter((line) => line.includes("of which weights"))], [undefined, []]);
    const ingredients = scores.ingredients as unknown as Record<string, { network: { fingerprint: string } }>;
    for (const [k, { key }] of SIX_SPACES.entries()) {
      assertEquals(ingredients[`fd_${key}`]!.network.fingerprint, `0${k}`);
    }
    assertEquals(
      (await score(other)).error?.message,
      `Cannot compare "${real}" with "${other}": they hold features of different networks, the MAE-L/16 of FDr6 was ` +
        `"weights" (03) and is "weights" (ff); compute those of one again`,
    );
    const said = await score(unknown), rest = SIX_SPACES.slice(1).map(({ network }) => network).join(", ");
    assertEquals(said.error, undefined);
    assert(said.lines.includes(`note: "${unknown}" does not say of which weights its features are: ${rest}`));
  });
});

/** A set of the fixture with as many features as the published networks have, which are 0 where the fixture has none. */
const published = (
  name: "real" | "fake",
  about?: Record<string, { name: string; fingerprint: string } | boolean>,
) => ({
  name,
  ...about && { about },
  spaces: Object.fromEntries(
    given(name).map(([space, { data, rows, columns }]) => {
      const { width } = SIX_SPACES.find((six) => six.space === space)!, wide = new Float32Array(rows * width);
      for (let r = 0; r < rows; r++) wide.set(data.subarray(r * columns, (r + 1) * columns), r * width);
      return [space, { features: { data: wide, rows, columns: width } as Features }];
    }),
  ),
});
const recorded = Object.fromEntries(
  SIX_SPACES.map((six) => [recordedAs(six), { name: "w", fingerprint: "01" }]),
);

Deno.test("50,000 images have the protocol fdr6 by the published networks only, given or recorded", async () => {
  const { log } = quietLog(), common = { precision: "f32", seed: 0, tok: "1", adapter: "a test" } as const;
  const metrics = METRICS.filter((metric): metric is SixMetric => metric.name === "fdr6");
  const context = { seed: 0, progress: log.progress.bind(log), show: () => Promise.resolve() };
  const options = { batchSize: 4, features: false, keep: false }, six = SIX_SPACES[3]!;
  // The distance is not what is tested: of 1,024 features it takes seconds.
  const quick = metrics.map((metric) => ({ ...metric, compute: () => Promise.resolve({ fd: 1 }) }));
  const real = published("real", recorded),
    fake = published("fake", recorded),
    narrow = published("fake", recorded);
  narrow.spaces.mae_224 = { features: features("six.fake.mae_224", 15, 8, 1, 0) };
  const cases: [string, boolean | undefined, ImageSet, ImageSet, string][] = [
    ["recorded", undefined, real, fake, "fdr6"],
    ["given", true, real, fake, "fdr6"],
    ["another given", false, real, fake, "tok"],
    ["of another width", undefined, real, narrow, "tok"],
    ["of one set", undefined, published("real"), fake, "fdr6"],
    ["of no set", undefined, published("real"), published("fake"), "tok"],
    ["another recorded", undefined, real, {
      ...fake,
      about: { ...recorded, "MAE-L/16 of FDr6 is the published one": false },
    }, "tok"],
  ];
  for (const [what, given, real, fake, expected] of cases) {
    const config = given ? six.sizes : { ...six.sizes, hidden_size: 768 };
    const encoder = { path: "mae", config, fingerprint: () => Promise.resolve("01") };
    const encoders = new Map(given === undefined ? [] : [[six, encoder]]) as unknown as SixEncoders;
    const results = new Results(common), spaces = new SixSpaces(encoders, undefined, undefined, log);
    results.describe({ fake: { name: "samples", count: 50_000 } }, { inceptionInput: "pytorch-fid" });
    await spaces.score(quick, real, fake, context, options, results);
    results.rethrow();
    const protocols = new Set(Object.values(results.protocols));
    assertEquals([Object.keys(results.protocols).length, ...protocols], [7, expected], what);
  }
});

Deno.test("what is no published network is warned of, and refused under --protocol fdr6", async () => {
  await inFolder(async (folder) => {
    const write = async (path: string, { spaces, about }: ReturnType<typeof published>) => {
      await writeFeatures(join(folder, path), { spaces, ...about && { about } });
      return join(folder, path);
    };
    const tiny = (set: "real" | "fake") => ({
      name: set,
      spaces: Object.fromEntries(given(set).map(([space, features]) => [space, { features }])),
    });
    const real = await write("real.npz", tiny("real")), fake = await write("fake.npz", tiny("fake"));
    const said = await evalScores({ real, fake, metrics: ["fdr6"], out: join(folder, "out") });
    const columns = fixture.spaces.mae_224.columns;
    const why = `"${real}" is not of the published networks: `,
      mae = `${columns} features for MAE-L/16, which has 1024`;
    assert(said.lines.some((line) => line.startsWith(why) && line.includes(mae)), said.lines.join("\n"));
    const { error } = await evalScores({ real, fake, protocol: "fdr6" });
    assert(
      error instanceof UsageError && error.message.startsWith(`Cannot use --protocol fdr6: ${why}`),
      `${error}`,
    );
    const lines: string[] = [], log = { line: () => {}, warn: (text: string) => void lines.push(text) };
    cautionOfSix(new Map(), [], [published("real"), published("fake")], "fdr6", log);
    assertEquals(lines, [
      "nothing says of which weights the stored features for " +
      `${
        SIX_SPACES.map(({ network }) => network).join(", ")
      } are: fdr6 and mind6 are means over the features as ` +
      'given, and "protocol" is "tok"',
    ]);
    cautionOfSix(new Map(), [], [published("real"), published("fake", recorded)], "fdr6", log);
    assertEquals(lines.length, 1);
  });
});

Deno.test("the input of FDr6's encoders is ADM's crop and torch's bicubic resize, padded to complete patches", async () => {
  for (const { size: [width = 0, height = 0], fdr6 } of protocols.cases) {
    const image = {
      width,
      height,
      data: Uint8Array.from(units(`${width}x${height}`, 3 * width * height), (u) => 256 * u),
    };
    for (const [side, { places, values }] of Object.entries(fdr6)) {
      const preprocessor = preprocessorOfForm({ ...FORMS.dinov2_256, side: Number(side) }, 7);
      const view = { square: 24, crop: "adm", network: { kind: "encoder", preprocessor } } as const;
      const { data, width: got } = await inputOf(rowsOf(image), view);
      assertEquals(got, 7 * Math.ceil(Number(side) / 7));
      places.forEach((place, k) =>
        assert(Math.abs(data[place]! - values[k]!) < 2e-5, `${width} x ${height} to ${side}`)
      );
    }
  }
});

Deno.test("positions of timm's networks are interpolated with antialias, as DINOv2 with registers does", async () => {
  await testDevice();
  const common = {
    hidden_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    patch_size: 2,
    image_size: 10,
  };
  const run = async (more: object) => {
    const vit = new Vit(vitConfig.parse({ ...common, ...more }));
    await loadState(vit, formulaSource(shapesOf(vit)));
    const x = input([1, 6, 6, 3], "f32", "x"), data = Float32Array.from(units("six.x", 108));
    const program = await capture("positions", { x }, ({ x }) => ({ y: vit.forward(x).patches })).prepare();
    program.run({ x: data });
    return await program.read(program.outputs.y);
  };
  const registers = await run({ model_type: "dinov2_with_registers" }), plain = await run({});
  const timm = await run({ interpolate_antialias: true });
  assertEquals(timm, registers);
  assert(relativeError(timm, Float64Array.from(plain)) > 1e-3);
});

const TINY = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 };

/** Folders of five tiny random encoders in Hugging Face layout. */
async function tinyEncoders(folder: string): Promise<string[]> {
  const write = async (
    name: string,
    config: Record<string, unknown>,
    shapes: Iterable<readonly [string, readonly number[]]>,
  ) => {
    const path = join(folder, name);
    await Deno.mkdir(path);
    writeJson(join(path, "config.json"), config);
    const tensors = [...shapes].map(([name, shape]) => ({ name, shape, data: formulaWeights(name, shape) }));
    await writeSafetensors(join(path, "model.safetensors"), tensors);
    return path;
  };
  const ofVit = (name: string, config: Record<string, unknown>) => {
    const vit = new Vit(vitConfig.parse(config));
    const shapes = [...shapesOf(vit)].map(([path, shape]) => [vit.fileName(path), shape] as const);
    return write(name, config, shapes);
  };
  const fixture = await open("pooling_heads");
  const towers = (name: string, P: number) => {
    const { shapes, config } = JSON.parse(fixture.metadata.get(name) as string);
    const embedding = name === "convnextv2"
      ? "convnextv2.embeddings.patch_embeddings.weight"
      : "vision_model.embeddings.patch_embedding.weight";
    shapes[embedding] = [shapes[embedding][0], 3, P, P];
    const sizes = { patch_size: P, image_size: 2 * P };
    const made = config.vision_config
      ? { ...config, vision_config: { ...config.vision_config, ...sizes } }
      : { ...config, ...sizes };
    return write(name, made, Object.entries<number[]>(shapes));
  };
  const paths = [
    await towers("convnextv2", 4),
    await ofVit("dinov2", {
      model_type: "dinov2",
      ...TINY,
      patch_size: 14,
      image_size: 70,
      layer_norm_eps: 1e-6,
    }),
    await ofVit("mae", {
      model_type: "vit_mae",
      ...TINY,
      patch_size: 16,
      image_size: 224,
      layer_norm_eps: 1e-12,
    }),
    await towers("siglip", 16),
    await towers("clip", 14),
  ];
  fixture.close();
  return paths;
}

/** Images, with features of Inception in place of that network. */
async function writeSet(path: string, count: number) {
  const S = 20, images = Uint8Array.from(units(path.slice(-8), count * S * S * 3), (u) => 256 * u);
  await writeNpz(path, [
    { name: "arr_0", shape: [count, S, S, 3], data: images },
    arrayOf("inception_fdr6", features(`six.${path.slice(-8)}`, count, 5, 1, 0)),
  ]);
}

Deno.test("six networks give FDr6 of their features, in any order of --encoders; a missing one is named", async () => {
  await inFolder(async (folder) => {
    const encoders = await tinyEncoders(folder), at = (name: string) => join(folder, name);
    await writeSet(at("real.npz"), 4);
    await writeSet(at("fake.npz"), 3);
    const score = (more: Record<string, unknown>) =>
      evalScores({
        real: at("real.npz"),
        fake: at("fake.npz"),
        metrics: ["fdr6"],
        out: at("out"),
        ...more,
      });
    const saveFeatures = at("saved.npz");
    const { scores, lines, error } = await score({ encoders, saveFeatures });
    assertEquals(error, undefined);
    assertEquals(lines.filter((line) => line.startsWith("fdr6: ")).length, 5);
    assertStringIncludes(lines.join("\n"), "is not MAE-L/16: its hidden_size is 16, not 1024");
    const keys = SIX_SPACES.map(({ key }) => `fd_${key}`);
    assertEquals(Object.keys(scores), [...keys, "fdr6", "n", "ingredients"]);
    const { spaces, about } = await openNpzSet(saveFeatures), fake = await openNpzSet(at("fake.npz"));
    assertEquals(Object.keys(spaces ?? {}).length, 5);
    assertEquals(Object.keys(about ?? {}).length, 12); // five networks, all others than published, the image size, JPEG files or not
    for (const { key, space } of [SIX_SPACES[2]!, SIX_SPACES[4]!]) {
      const path = encoders.find((path) =>
        key.startsWith(path.split("/").at(-1)!.replace("siglip", "siglip2"))
      )!;
      const extractor = await EncoderFeatures.open(await openFeatureEncoder(path), {
        batchSize: 2,
        n: 3,
        space: space as FormName,
      });
      const { features } = await extractor.extract(fake.images!);
      extractor.destroy();
      near(scores[`fd_${key}`], await frechet(spaces![space]!.moments!, await gaussian(features)), key);
    }
    const mean = SIX_SPACES.reduce((sum, { key, valFd }) => sum + scores[`fd_${key}`]! / valFd / 6, 0);
    near(scores.fdr6, mean, "fdr6");
    const opened = await Promise.all(encoders.map((path) => openFeatureEncoder(path)));
    const paths = (all: typeof opened) => SIX_SPACES.map((six) => sixEncoders(all).get(six)?.path);
    assertEquals(paths(opened.toReversed()), paths(opened));
    assertEquals(paths(opened), [undefined, ...encoders]);

    const refused: [Record<string, unknown>, string][] = [
      [
        { encoders: encoders.filter((path) => !path.endsWith("mae")) },
        "given: Inception-v3, ConvNeXt V2-B, DINOv2-L/14, SigLIP 2 So400m/16, CLIP-L/14; missing: MAE-L/16 (--encoders " +
        "facebook/vit-mae-large); --download fetches encoders by name",
      ],
      [{}, "missing: ConvNeXt V2-B (--encoders facebook/convnextv2-base-22k-224), DINOv2-L/14"],
      [{ encoders: [encoders[2], encoders[2]] }, "are both for the space of MAE-L/16; give one"],
      [{ encoders, protocol: "fdr6" }, "give the published network, or --metrics fdr6 without --protocol"],
    ];
    for (const [more, message] of refused) {
      const { error } = await score(more);
      assert(error instanceof UsageError, `${message}: ${error}`);
      assertStringIncludes(error.message, message);
      assert(!error.message.includes("\n"));
    }
  });
});
