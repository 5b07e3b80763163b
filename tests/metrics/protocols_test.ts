// Protocols: the input of each network equals what its evaluator makes of an image (fixtures/make_protocols.py), what a protocol
// fixes, refuses and warns of, and the protocol of a figure without --protocol.

import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { evalConfig } from "../../src/cli/config.ts";
import { evalConditions } from "../../src/cli/eval_config.ts";
import { refuseWithoutEffect } from "../../src/cli/conditions.ts";
import { inputOf, type View } from "../../src/data/network_input.ts";
import { UsageError } from "../../src/errors.ts";
import type { Image } from "../../src/image/rows.ts";
import { rowsOf } from "../../src/image/rows.ts";
import { FORMS, inputOfCmmd, preprocessorOfForm } from "../../src/metrics/encoder_features.ts";
import {
  cautionsOfProtocol,
  PROTOCOL_NAMES,
  protocolOf,
  PROTOCOLS,
  underProtocol,
} from "../../src/metrics/protocols.ts";
import { Selection } from "../../src/metrics/selection.ts";
import { METRIC_NAMES } from "../../src/metrics/table.ts";
import { INCEPTION_SIDE, SAMPLING } from "../../src/models/inception.ts";
import type { EncoderConfig, EncoderSource } from "../../src/zoo/encoders.ts";
import { run, writeImages } from "../helpers/commands.ts";
import { inFolder } from "../helpers/encoder_files.ts";
import { units } from "../helpers/formula.ts";
import fixture from "../fixtures/protocols.json" with { type: "json" };

interface Sampled {
  places: number[];
  values: number[];
}

function picture([width = 0, height = 0]: readonly number[]): Image {
  const data = Uint8Array.from(units(`${width}x${height}`, 3 * width * height), (u) => 256 * u);
  return { width, height, data };
}

/** CLIP's preprocessing, at 48 pixels. */
const CLIP_48 = {
  resize: { shorter: 48 },
  crop: { height: 48, width: 48 },
  filter: "bicubic" as const,
  exact: false,
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
};

/** The largest difference from sampled values. */
function error(got: ArrayLike<number>, { places, values }: Sampled): number {
  return Math.max(...places.map((place, k) => Math.abs((got[place] as number) - values[k]!)));
}

Deno.test("the input of each protocol equals its evaluator's: Pillow's bits for clean-fid and dgm-eval, PyTorch's for EDM2 and CMMD", async () => {
  for (const { size, clean, dgm, edm2, cmmd } of fixture.cases) {
    const rows = () => rowsOf(picture(size));
    const input = async (network: View["network"]) => (await inputOf(rows(), { network: network! })).data;
    const sampling = SAMPLING.clean, side = INCEPTION_SIDE;
    const x = await input({ kind: "stretched", side, sampling });
    const bytes = clean.values.map((v) => Math.fround(v / 127.5 - 1)); // the same f32 only if Pillow's f32 are the same
    assertEquals(clean.places.map((place) => x[place]), bytes, `clean of ${size}`);
    const encoder = async (space: "dinov2" | "dinov2_torch") =>
      await input({ kind: "encoder", preprocessor: preprocessorOfForm(FORMS[space], 14) });
    const exact = await encoder("dinov2"), c = (place: number) => place % 3;
    const { mean, std } = FORMS.dinov2;
    const back = dgm.bytes.places.map((p) => (exact[p]! * std[c(p)]! + mean[c(p)]!) * 255);
    assertEquals(back.map(Math.round), dgm.bytes.values, `dgm of ${size}`);
    assert(error(exact, dgm.input) < 1e-6, `dgm of ${size}`);
    const float = await encoder("dinov2_torch");
    assert(error(float, edm2) < 1e-4, `edm2 of ${size}: ${error(float, edm2)}`);
    const embedding = await input({ kind: "encoder", preprocessor: inputOfCmmd(CLIP_48) });
    assert(error(embedding, cmmd) < 1e-4, `cmmd of ${size}: ${error(embedding, cmmd)}`);
    if (size[0] !== 299) assert(error(float, dgm.input) > 3e-3, "EDM2 does not round to bytes");
  }
});

Deno.test("every protocol defines known metrics, and fixes an input where it has a figure of Inception", () => {
  for (const name of PROTOCOL_NAMES) {
    const { metrics, input } = PROTOCOLS[name];
    for (const metric of metrics) assert(METRIC_NAMES.includes(metric), metric);
    assertEquals(metrics.includes("fid") || name === "fdr6", input !== undefined, name);
  }
});

Deno.test("a figure without --protocol has the name of the protocol that it equals, else tok", () => {
  const fid = { name: "fid", from: "inception" }, fd = { name: "fd-dinov2", from: "encoder" };
  const of = (
    metric: { name: string; from: string; space?: "dinov2" },
    inceptionInput: "adm" | "clean" | "pytorch-fid",
    images?: number,
    more = {},
    statistics = true,
  ) => protocolOf(metric, { inceptionInput, ...more }, images, statistics);
  assertEquals(of(fid, "adm", 50_000), "adm");
  assertEquals(of(fid, "adm", 49_999), "tok");
  assertEquals(of(fid, "adm"), "tok");
  assertEquals(of(fid, "pytorch-fid", 2048), "pytorch-fid");
  assertEquals(of(fid, "pytorch-fid", 2047), "tok");
  assertEquals(of({ ...fid, name: "precision" }, "pytorch-fid", 50_000), "tok");
  assertEquals(of({ ...fid, name: "kid" }, "clean", 10), "clean");
  assertEquals(of(fid, "clean", 10, { imageSize: 64 }), "tok");
  assertEquals(of({ ...fd, space: "dinov2" }, "pytorch-fid", 50_000), "dgm");
  const ofImages = ["fid", "sfid", "precision", "is"].map((name) =>
    of({ ...fid, name }, "adm", 50_000, {}, false)
  );
  assertEquals(ofImages, ["edm2", "tok", "tok", "adm"], "of a reference of images, not of statistics");
  assertEquals(of(fid, "adm", 10, { protocol: "edm2" }), "edm2");
  const six = { name: "mind-clip@256", from: "six" };
  assertEquals([of(six, "adm", 50_000), of(six, "adm", 10)], ["fdr6", "tok"]);
  assertEquals(of({ ...fid, name: "psnr" }, "adm", 10, { protocol: "edm2" }), "tok");
});

Deno.test("a protocol warns of another number of images and of a reference without statistics", () => {
  const real = { name: "a" }, fake = { name: "b", images: { length: 200 } };
  const [count, reference, ...more] = cautionsOfProtocol("adm", real, fake);
  assertEquals(more, []);
  assertStringIncludes(count!, '--protocol adm asks for 50,000 generated images, and "b" has 200');
  assertStringIncludes(reference!, '"a" has no statistics');
  assertStringIncludes(cautionsOfProtocol("pytorch-fid", real, fake)[0]!, "at least 2,048");
  assertEquals(cautionsOfProtocol("clean", real, fake), []);
  const many = { name: "b", images: { length: 50_000 } };
  assertEquals(cautionsOfProtocol("adm", { ...real, pooled: {} }, many), []);
});

Deno.test("options that contradict a protocol are refused with both remedies, before anything is read", () => {
  const refusals: [Record<string, unknown>, string, string, string][] = [
    [
      { protocol: "adm", inceptionInput: "clean" },
      "inceptionInput",
      "it is clean, and --protocol adm fixes adm",
      "choose another --protocol, or leave --inception-input out",
    ],
    [{ protocol: "dgm", inception: "x" }, "inception", "dgm has no figure of Inception", "leave --inception"],
    [
      { protocol: "adm", encoder: "x" },
      "encoder",
      "no figure in the space of one encoder",
      "leave --encoder",
    ],
    [
      { protocol: "clean", imageSize: 64 },
      "imageSize",
      "fixes how images are resized",
      "leave --protocol out",
    ],
  ];
  for (const [options, name, reason, remedy] of refusals) {
    const c = evalConfig.parse({ fake: "a", real: "b", ...options });
    let message = "";
    try {
      refuseWithoutEffect(c, evalConditions(["sets"], c), { [name]: "command line" });
    } catch (error) {
      assert(error instanceof UsageError);
      ({ message } = error);
    }
    assertStringIncludes(message, reason);
    assertStringIncludes(message, remedy);
    assert(!message.includes("\n"));
  }
  const c = evalConfig.parse({ protocol: "adm", inceptionInput: "adm" });
  refuseWithoutEffect(c, evalConditions(["sets"], c), { inceptionInput: "command line" });
});

Deno.test("--protocol refuses a metric that it does not define and names the protocol that does", async () => {
  await inFolder(async (folder) => {
    const sets = ["eval", "--real", folder, "--fake", folder, "--out", join(folder, "out")] as const;
    const refused = async (...args: string[]) => {
      const error = await run(...sets, ...args).then(() => undefined, (error) => error as Error);
      assert(error instanceof UsageError, `${error}`);
      return error.message;
    };
    assertStringIncludes(
      await refused("--protocol", "adm", "--metrics", "kid"),
      "it defines fid, sfid, is, precision, recall, rfid; choose --protocol clean, or leave kid out",
    );
    assertStringIncludes(
      await refused("--protocol", "adm", "--metrics", "psnr"),
      "leave --protocol out, or leave psnr out",
    );
  });
});

Deno.test("a protocol all of whose metrics are of another encoder is refused, not an evaluation without figures", async () => {
  await inFolder(async (folder) => {
    const images = join(folder, "images");
    await writeImages(images, 16);
    const sets = ["--real", images, "--fake", images, "--out", join(folder, "out")] as const;
    const why = "no metric applies: fd-dinov2, kid-encoder, fd-infinity-encoder (it";
    await assertRejects(() => run("eval", ...sets, "--protocol", "dgm"), UsageError, why);
  });
});

Deno.test("dgm has FD, FD-infinity and KD of DINOv2-L's CLS token, and says why it has no others", () => {
  const selection = new Selection("sets", { protocol: "dgm", standard: PROTOCOLS.dgm.metrics });
  const selected = selection.from("encoder");
  assertEquals(selected.map(({ name, space }) => [name, space]), [
    ["fd-dinov2", "dinov2"],
    ["kid-encoder", "dinov2"],
    ["fd-infinity-encoder", "dinov2"],
  ]);
  const encoder = (hidden: number) => ({
    path: "x",
    config: { model_type: "dinov2", hidden_size: hidden, num_hidden_layers: 24, patch_size: 14 },
  } as EncoderSource<EncoderConfig>);
  for (const { excludes } of selected) {
    assertEquals(excludes?.(encoder(1024)), undefined);
    assertStringIncludes(excludes?.(encoder(768)) ?? "", "DINOv2-L/14");
  }
  const plain = new Selection("sets", { metrics: ["kid-encoder"] }).from("encoder");
  assertEquals(plain.map(({ space, excludes }) => [space, excludes]), [["patches", undefined]]);
  const of = (name: string, space: "patches" | "dinov2", protocol?: "dgm") =>
    protocolOf({ name, from: "encoder", space }, { protocol, inceptionInput: "adm" }, 50_000);
  assertEquals(of("kid-encoder", "dinov2", "dgm"), "dgm");
  assertEquals(of("kid-encoder", "patches"), "tok", "the mean of the patch tokens is another space");
  const c = { protocol: "dgm", inceptionInput: "pytorch-fid" } as const;
  for (
    const [metric, reason] of [
      ["precision-encoder", "dgm-eval's has k = 5 and 10,000 random images"],
      ["coverage-encoder", "dgm-eval's is of 10,000 random images"],
      ["fid", "it defines fd-dinov2, fd-infinity-encoder, kid-encoder; choose --protocol adm or"],
    ] as const
  ) {
    const error = assertThrows(() => underProtocol({ ...c, metrics: [metric] }, "sets"), UsageError);
    assertStringIncludes(error.message, `Cannot use --protocol dgm with --metrics ${metric}: `);
    assertStringIncludes(error.message, reason);
  }
});
