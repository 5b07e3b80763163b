// Editing: inversion and regeneration, inpainting, and noise, latents and strips around them.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { Interrupted, UsageError } from "../../src/errors.ts";
import { exists } from "../../src/formats/files.ts";
import { endIf } from "../../src/interruption.ts";
import { openLatents } from "../../src/formats/latents.ts";
import { openNoise, writeNoise } from "../../src/formats/latents_file.ts";
import { readImage, toBytes, writePng } from "../../src/image/image.ts";
import { readPngTexts } from "../../src/image/png_text.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import type { ImageTokenizer } from "../../src/models/tokenizer.ts";
import { parameters } from "../../src/nn/layers.ts";
import {
  editTimes,
  encodeImage,
  type Kept,
  readMask,
  readSquare,
  solveOde,
} from "../../src/sampling/editing.ts";
import { decodeLatents } from "../../src/sampling/decode.ts";
import { channelsFirst, channelsLast, noiseOf, slerp } from "../../src/sampling/noise.ts";
import { drawTrajectory } from "../../src/sampling/trajectory.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";
import { openGenerator } from "../../src/zoo/generator.ts";
import type { DiffusionModel } from "../../src/zoo/runs.ts";
import { randomArray, testDevice } from "../helpers/check.ts";
import { inFolder, run } from "../helpers/commands.ts";
import { D, M, POSTERIOR, SIZE as SIZE_OF_FLOW } from "../helpers/flows.ts";
import { fixturePath } from "../helpers/published.ts";

const GENERATOR = [
  ...["--model", fixturePath("lightningdit_tiny.pt")],
  ...["--tokenizer", fixturePath("vavae_tiny.pt")],
];
const S = 4, C = 3, SIZE = S * S * C;
const random = (seed: number) => Float32Array.from(randomArray(SIZE, seed));

/** A tiny model whose velocity depends on place, time and class. */
async function tiny(): Promise<Dit> {
  await testDevice();
  const config = { input_size: S, in_channels: C, hidden_size: 16, depth: 2, num_heads: 2, num_classes: 3 };
  const dit = new Dit(ditConfig.parse(config));
  let seed = 1;
  for (const [name, tensor] of parameters(dit)) {
    await tensor.storage.materialise();
    const fan = tensor.size / tensor.dim(0);
    const spread = name.includes("embedding_table") ? 1.5 : tensor.rank > 1 ? fan ** -0.5 : 0.5;
    tensor.storage.write(Float32Array.from(randomArray(tensor.size, seed++), (v) => 0.7 * v * spread));
  }
  return dit;
}

const solve = async (...given: Parameters<typeof solveOde>) => (await solveOde(...given)).x;

const distance = (a: Float32Array, b: Float32Array) =>
  Math.sqrt(a.reduce((sum, v, i) => sum + (v - (b[i] as number)) ** 2, 0) / a.length);

Deno.test("inversion and regeneration with the same class return the latent, better with more steps and with Heun", async () => {
  const dit = await tiny(), data = random(3);
  const errors: Record<string, number[]> = {};
  for (const method of ["euler", "heun"] as const) {
    for (const steps of [4, 8, 16]) {
      const times = editTimes(steps, 1),
        noise = await solve(dit, data, 1, { method, times: times.toReversed() });
      assert(distance(noise, data) > 0.2, "the noise is the latent itself");
      (errors[method] ??= []).push(distance(await solve(dit, noise, 1, { method, times }), data));
      if (steps < 16 || method === "euler") continue;
      const other = await solve(dit, noise, 2, { method, times });
      assert(distance(other, data) > 0.02, `another class: ${distance(other, data)}`);
    }
  }
  const { euler = [], heun = [] } = errors as Record<string, [number, number, number]>;
  const slope = (e: number[]) => Math.log2((e[0] as number) / (e[2] as number)) / 2;
  const text = JSON.stringify(errors);
  assert(slope(euler) > 0.7 && slope(euler) < 1.5, `Euler is of order ${slope(euler)}: ${text}`);
  assert(slope(heun) > 1.6, `Heun is of order ${slope(heun)}: ${text}`);
  assert(heun[2] < 0.01 && euler[2] < 0.1, text);
});

Deno.test("inversion with a network of data finds the noise that the velocities near the image lead to", async () => {
  await testDevice();
  const data = Float32Array.from(randomArray(SIZE_OF_FLOW, 3), (v) => M + D * v);
  const expected = data.map((v) => (v - M) / D), times = editTimes(32, 1);
  const invert = (clampTime: boolean) =>
    solve(POSTERIOR, data, 0, { method: "heun", times: times.toReversed(), clampTime });
  const noise = await invert(true), bounded = await invert(false), off = distance(noise, expected);
  assert(off < 0.005 && distance(bounded, expected) > 4 * off, `${off} ${distance(bounded, expected)}`);
  const back = distance(await solve(POSTERIOR, noise, 0, { method: "heun", times, clampTime: true }), data);
  assert(back < 0.005, `${back}`);
  // A network of velocities is asked at its own times.
  const dit = await tiny(), latent = random(3), options = { method: "euler", times: [1, 0.5, 0] } as const;
  assertEquals(
    await solve(dit, latent, 1, { ...options, clampTime: true }),
    await solve(dit, latent, 1, options),
  );
});

Deno.test("inversion of a part of the way stays nearer to the image", async () => {
  const dit = await tiny(), data = random(3), method = "heun";
  const [half, full] = [editTimes(16, 1, 0.5), editTimes(16, 1)];
  assertEquals([half[0], half.length, half.at(-1)], [0.5, 9, 1]);
  assertEquals(full, editTimes(16, 1, 0));
  const ends = [];
  for (const times of [half, full]) {
    const noise = await solve(dit, data, 0, { method, times: times.toReversed() });
    ends.push(await solve(dit, noise, 2, { method, times }));
  }
  assert(distance(ends[0] as Float32Array, data) < distance(ends[1] as Float32Array, data));
});

Deno.test("inpainting leaves the latents outside the mask exactly as they were, and makes those inside", async () => {
  const dit = await tiny(), data = random(5), noise = random(6);
  const mask = Float32Array.from({ length: SIZE }, (_, i) => Math.floor(i / C) % S < 2 ? 1 : 0);
  const painted: Float32Array[] = [];
  for (const label of [0, 1]) {
    const made = (kept?: Kept) =>
      solve(dit, noise, label, { method: "heun", cfg: 3, times: editTimes(6, 1), kept });
    const end = await made({ mask, noise, data });
    end.forEach((v, i) => mask[i] || assertEquals(v, data[i], `element ${i}`));
    const changed = end.filter((v, i) => mask[i] && v !== data[i]).length;
    assertEquals(changed, SIZE / 2);
    painted.push(end);
    // The same from other surroundings differs inside: the model sees them.
    const other = await made({ mask, noise, data: random(7) });
    assert(other.some((v, i) => mask[i] && Math.abs(v - (end[i] as number)) > 1e-3));
    // Nothing kept: the plain sampler.
    assertEquals(await made({ mask: mask.map(() => 1), noise: data, data: noise }), await made());
  }
  assert(distance(painted[0] as Float32Array, painted[1] as Float32Array) > 1e-3, "the class has no effect");
});

Deno.test("a mask paints every cell with a white pixel, and one of another size is refused", () =>
  inFolder(async (folder) => {
    const path = join(folder, "mask.png"), image = { path: "image.png", original: { width: 8, height: 8 } };
    const data = new Uint8Array(8 * 8 * 3);
    data.fill(255, 3 * (5 * 8 + 2), 3 * (5 * 8 + 3)); // row 5, column 2
    data.fill(127, 0, 3);
    await writePng(path, { width: 8, height: 8, data });
    const mask = await readMask(path, image, { size: 8, factor: 2, channels: 2 });
    assertEquals([...mask.keys()].filter((i) => mask[i]), [2 * (2 * 4 + 1), 2 * (2 * 4 + 1) + 1]);
    const sizes = { size: 8, factor: 2, channels: 2 },
      wide = { path: "image.png", original: { width: 9, height: 8 } };
    await assertRejects(
      () => readMask(path, wide, sizes),
      UsageError,
      'it is 8 x 8 and the image "image.png" is 9 x 8',
    );
    await writePng(path, { width: 8, height: 8, data: new Uint8Array(8 * 8 * 3) });
    await assertRejects(() => readMask(path, image, sizes), UsageError, "no pixel is white");
  }));

Deno.test("slerp() starts and ends at its arguments exactly and keeps the norm of noise", () => {
  const [a, b] = [random(1), random(2)], norm = (x: Float32Array) => Math.hypot(...x);
  assertEquals(slerp(a, b, 0), a);
  assertEquals(slerp(a, b, 1), b);
  const scale = norm(a) / norm(b), same = b.map((v) => v * scale);
  for (const t of [0.2, 0.5, 0.9]) assert(Math.abs(norm(slerp(a, same, t)) / norm(a) - 1) < 1e-5);
  assertEquals(slerp(a, a, 0.3).map(Math.fround), a.map((v) => Math.fround(0.7 * v + 0.3 * v)));
  assertEquals(channelsLast(channelsFirst(a, C), C), a);
  assertEquals([...channelsFirst(Float32Array.of(1, 2, 3, 4, 5, 6), 3)], [1, 4, 2, 5, 3, 6]);
});

/** Picture `k` of a row of n pictures in a grid with the default gap of 2, at its own size. */
async function cell(path: string, side: number, k: number, row = 0): Promise<Uint8Array> {
  const { width, data } = await readImage(path),
    scale = Math.max(1, Math.ceil(64 / side)),
    step = side * scale + 2;
  const out = new Uint8Array(side * side * 3);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const at = 3 * ((2 + row * step + y * scale) * width + 2 + k * step + x * scale);
      out.set(data.subarray(at, at + 3), 3 * (y * side + x));
    }
  }
  return out;
}

const worst = (a: Uint8Array, b: Uint8Array) =>
  a.reduce((most, v, i) => Math.max(most, Math.abs(v - (b[i] as number))), 0);

Deno.test("latents are saved and decoded to the same pictures; trajectory and interpolation end in the pictures", () =>
  inFolder(async (folder) => {
    const out = join(folder, "a"), sampling = ["--steps", "3", "--classes", "7,2,4"];
    const sample = (...args: string[]) => run("sample", ...GENERATOR, ...sampling, ...args);
    await sample("--num", "3", "--save-latents", "--trajectory", "--out", out);
    const pictures = await Promise.all([0, 1, 2].map((i) => readImage(join(out, `00000${i}.png`))));
    const side = pictures[0]?.width as number, data = pictures.map(({ data }) => data);
    const latents = await openLatents(join(out, "latents"));
    assertEquals([...latents.labels], [7, 2, 4]);
    latents.close();
    await run("decode", ...GENERATOR.slice(2), "--latents", join(out, "latents"), "--out", join(folder, "b"));
    for (const i of [0, 1, 2]) {
      const picture = data[i] as Uint8Array;
      assert(worst((await readImage(join(folder, "b", `00000${i}.png`))).data, picture) <= 1);
      assert(worst(await cell(join(out, "trajectory.png"), side, 3, i), picture) <= 1, "the last column");
      // The data prediction of Euler's last step is its result.
      assert(worst(await cell(join(out, "trajectory.png"), side, 2, i), picture) <= 1, "the last step");
    }
    // More images, and an interruption: their latents are appended, the others stay.
    const labels = async () => {
      const latents = await openLatents(join(out, "latents")), labels = [...latents.labels];
      latents.close();
      return labels;
    };
    const more = (batch: string) =>
      sample("--num", "5", "--save-latents", "--batch-size", batch, "--out", out);
    {
      using _stop = endIf(() => {
        if (exists(join(out, "000003.png"))) throw new Interrupted();
      });
      await assertRejects(() => more("1"), Interrupted);
    }
    await assertRejects(labels, UsageError, "latents_stats.safetensors");
    await more("2");
    assertEquals(await labels(), [7, 2, 4, 7, 2]);
    // Without the pictures, whose folder compares them, latents of other options are refused and left as they are.
    for (const { name, isFile } of [...Deno.readDirSync(out)]) if (isFile) Deno.removeSync(join(out, name));
    for (const [num, option] of [["5", "--shift"], ["9", "--seed"]] as const) {
      const other = () => sample("--num", num, "--save-latents", option, "2", "--out", out);
      await assertRejects(other, UsageError, `the sampling recipe was "--steps 3`);
      assertEquals(await labels(), [7, 2, 4, 7, 2]);
    }
    const strip = join(folder, "strip");
    const { lines: said, result } = await sample("--interpolate", "0-2", "--frames", "3", "--out", strip);
    // Three steps, of which those from 1/3 and 2/3 are guided.
    assertEquals([result.nfe, said.at(-1)?.startsWith("3 images from 0 to 2, 5 NFE: ")], [5, true]);
    const at = (k: number) => cell(join(strip, "interpolation.png"), side, k);
    assertEquals(await at(0), data[0]);
    assertEquals(await at(2), data[2]);
    assert(worst(await at(1), data[0] as Uint8Array) > 1 && worst(await at(1), data[2] as Uint8Array) > 1);
    // One noise, from the first class to the last: the ends are image 1 in the one class and in the other.
    const between = join(folder, "between"), strong = ["--steps", "2", "--cfg", "500"];
    const one = (...args: string[]) => run("sample", ...GENERATOR, ...strong, ...args);
    await one("--classes", "7,4,2", "--interpolate", "1-1", "--frames", "3", "--out", between);
    const ends: Uint8Array[] = [];
    for (const label of [7, 2]) {
      await one("--classes", String(label), "--seeds", "1-1", "--out", join(folder, String(label)));
      ends.push((await readImage(join(folder, String(label), "000001.png"))).data);
    }
    const frame = (k: number) => cell(join(between, "interpolation.png"), side, k);
    assertEquals([await frame(0), await frame(2)], ends);
    for (const end of ends) assert(worst(await frame(1), end) > 1, "the middle is an end");
    const refused: [string[], string][] = [
      [
        ["--interpolate", "0-2", "--npz"],
        "Cannot use --npz: --interpolate writes one picture of --frames; drop --interpolate, or leave --npz out",
      ],
      [["--frames", "3"], "Cannot use --frames: it needs --interpolate"],
      [["--interpolate", "2-0"], "Cannot use --interpolate 2-0: give first-last"],
    ];
    for (const [args, message] of refused) {
      await assertRejects(() => sample(...args, "--out", join(folder, "x")), UsageError, message);
    }
    await assertRejects(
      () => run("sample", ...GENERATOR, "--trajectory", "--sampler", "dopri5", "--out", join(folder, "x")),
      UsageError,
      "Cannot draw a --trajectory of --sampler dopri5",
    );
  }));

Deno.test("the columns of a trajectory are data predictions, x + (1 - t) v", async () => {
  const dit = await tiny(), side = S, labels = [0, 1], steps = 2;
  const tokenizer = { factor: 1, channels: C, decode: (z: Tensor) => z } as unknown as ImageTokenizer;
  const config = { latent_mean: [0, 0, 0], latent_std: [1, 1, 1] } as DiffusionModel["config"];
  const grid = await drawTrajectory({ dit, config }, tokenizer, {
    ...{ labels, steps, seed: 3, batchSize: 2, cfg: 1, cfgInterval: [0, 1], sampler: "euler", shift: 1 },
  });
  const path = await Deno.makeTempFile({ suffix: ".png" });
  await writePng(path, grid);
  const method = "euler", noises = await noiseOf(3, [S, S, C], labels);
  for (const i of labels) {
    const noise = Float32Array.from(noises[i] as Float32Array);
    // An Euler step over all times is the data prediction at t = 0.
    const first = toBytes(await solve(dit, noise, i, { method, times: [0, 1] })),
      last = toBytes(await solve(dit, noise, i, { method, times: [0, 0.5, 1] }));
    assert(worst(await cell(path, side, 0, i), first) <= 1 && worst(await cell(path, side, 2, i), last) <= 1);
    assert(worst(first, last) > 1, "both are the same");
  }
  Deno.removeSync(path);
});

Deno.test("edit writes noise from which sample makes the edited picture, and refuses wrong options", () =>
  inFolder(async (folder) => {
    const image = join(folder, "image.png"), out = join(folder, "out");
    const data = Uint8Array.from(randomArray(20 * 16 * 3, 5), (v) => 128 + 60 * v);
    await writePng(image, { width: 20, height: 16, data });
    const edit = (...args: string[]) => run("edit", ...GENERATOR, "--image", image, ...args);
    const made = () => edit("--class", "3", "--to", "5", "--cfg", "1", "--steps", "4", "--out", out);
    const { lines, result } = await made();
    // Two evaluations a step of Heun's method, back and forth.
    assertEquals([result.nfe, lines.at(-1)?.includes("the edited one, 16 NFE: ")], [16, true]);
    const config = JSON.parse(Deno.readTextFileSync(join(out, "config.json"))),
      text = Deno.readFileSync(join(out, "edited.png"));
    assertEquals([config.command, config.tokenizer, config.to, config.seed], ["edit", GENERATOR[3], "5", 0]);
    assertEquals(Object.keys(config.made_from), ["model", "tokenizer", "latent statistics", "image"]);
    const recipe = JSON.parse(readPngTexts(join(out, "edited.png")).get("tok") as string);
    assertEquals([recipe.image, recipe.model, recipe.to, recipe.steps], [
      ...[config.made_from.image.fingerprint, config.made_from.model.fingerprint, "5", 4],
    ]);
    // The same again is the same picture; another is refused.
    await made();
    assertEquals(Deno.readFileSync(join(out, "edited.png")), text);
    await assertRejects(
      () => edit("--class", "3", "--to", "6", "--steps", "4", "--out", out),
      UsageError,
      '--to was "5" and is "6"',
    );
    await writePng(image, { width: 20, height: 16, data: data.toReversed() });
    await assertRejects(made, UsageError, "the image was ");
    await writePng(image, { width: 20, height: 16, data });
    const noise = join(out, "noise.safetensors"), edited = (await readImage(join(out, "edited.png"))).data;
    const sampling = ["--cfg", "1", "--steps", "4", "--sampler", "heun", "--classes", "5", "--num", "1"];
    const sample = (...args: string[]) => run("sample", ...GENERATOR, ...sampling, ...args);
    await sample("--noise", noise, "--out", join(folder, "again"));
    await assertRejects(() => sample("--out", join(folder, "again")), UsageError, "--noise");
    assert(worst((await readImage(join(folder, "again", "000000.png"))).data, edited) <= 1);
    await assertRejects(
      () => run("sample", ...GENERATOR, "--noise", noise, "--num", "2", "--out", join(folder, "x")),
      UsageError,
      "it has noise for the images 0 to 0, and image 1 is asked for",
    );
    await writeNoise(join(folder, "bad.safetensors"), [1, 2, 3, 3], new Float32Array(18));
    await assertRejects(
      () => openNoise(join(folder, "bad.safetensors"), [2, 4, 4]),
      UsageError,
      'its "noise" is [1,2,3,3], and the model takes [N,2,4,4]',
    );
    const mask = join(folder, "mask.png");
    await writePng(mask, { width: 16, height: 16, data: new Uint8Array(16 * 16 * 3).fill(255) });
    for (
      const [args, message] of [
        [["--mask", mask], "it is 16 x 16 and the image"],
        [
          ["--mask", mask, "--class", "1"],
          "Cannot use --class: --mask paints from noise, without inversion; drop --mask, or leave --class out",
        ],
        [["--to", "99"], 'Cannot sample the class "99"'],
        [["--cfg", "3"], "Cannot use --cfg 3: there is no class to guide to"],
        [["--strength", "0"], "Cannot use --strength 0"],
      ] as [string[], string][]
    ) await assertRejects(() => edit(...args, "--out", join(folder, "y")), UsageError, message);
    await assertRejects(
      () => run("edit", ...GENERATOR),
      UsageError,
      "Cannot edit: give an image with --image FILE, and either",
    );
  }));

Deno.test("edit --mask decodes a latent that is the image's own outside the mask and made anew inside", () =>
  inFolder(async (folder) => {
    const [path, mask, out] = ["image.png", "mask.png", "out"].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    const bytes = Uint8Array.from(randomArray(20 * 16 * 3, 5), (v) => 128 + 60 * v);
    await writePng(path, { width: 20, height: 16, data: bytes });
    const left = bytes.map((_, i) => Math.floor(i / 3) % 20 < 10 ? 255 : 0);
    await writePng(mask, { width: 20, height: 16, data: left });
    const options = ["--mask", mask, "--to", "5", "--cfg", "2", "--steps", "4", "--seed", "3"];
    const { result } = await run("edit", ...GENERATOR, "--image", path, ...options, "--out", out);
    assertEquals(result.nfe, 16); // two of Heun's method, with and without the class
    assert(!exists(join(out, "noise.safetensors")), "nothing was inverted");

    const { model: { dit, config }, tokenizer } = await openGenerator(GENERATOR[1] as string, {
      tokenizer: GENERATOR[3],
    });
    const { latent_mean: mean = [], latent_std: std = [] } = config, statistics = { mean, std };
    const { input_size: S, in_channels: C } = dit.config, size = S * tokenizer.factor;
    const image = await readSquare(path, size), data = await encodeImage(tokenizer, image.data, statistics);
    const [noise] = await noiseOf(3, [S, S, C], [0]) as [Float32Array<ArrayBuffer>];
    const cells = await readMask(mask, { path, original: image.original }, {
      ...{ size, factor: tokenizer.factor, channels: C },
    });
    const kept = { mask: cells, noise, data }, times = editTimes(4, 0.3);
    const z = await solve(dit, noise, 5, { method: "heun", cfg: 2, times, kept });
    const same = z.map((v, i) => Number(v === data[i]));
    assertEquals(same, cells.map((painted) => 1 - painted));
    assertEquals(cells.reduce((sum, v) => sum + v), cells.length / 2);
    const source = { length: 1, shape: [C, S, S] as const, latent: () => channelsFirst(z, C) };
    const decoded = await Array.fromAsync(decodeLatents(tokenizer, source, { batchSize: 1, statistics }));
    assert(worst((await readImage(join(out, "edited.png"))).data, decoded[0]?.image as Uint8Array) <= 1);
  }));

Deno.test("the noise of a number is the same in any company", async () => {
  await testDevice();
  const [a, b] = await noiseOf(4, [S, S, C], [7, 3]), [again] = await noiseOf(4, [S, S, C], [3]);
  assertEquals(b, again);
  assert(distance(a as Float32Array, b as Float32Array) > 0.5);
});
