// The charts of sampling: the commands that they are made with, and what they show.

import { assert, assertEquals } from "@std/assert";
import { dirname, join } from "@std/path";
import { chartsOf, DEFAULTS, stepsOf } from "../../src/experiment/sampling_charts.ts";
import { makeFolder, writeJson } from "../../src/formats/files.ts";
import { parseCommandLine } from "../../tasks/run.ts";
import { inFolder } from "../helpers/commands.ts";

Deno.test("the charts are made by commands that parse, from trained models or from those that are given", () => {
  const steps = stepsOf("out", DEFAULTS, "main.ts");
  const sweeps = ["cfg", "cfg-zero", "autoguidance", "internal", "samplers"];
  assertEquals(steps.map(({ name }) => name), ["align", "model", "guide", ...sweeps]);
  for (const { args: [tok, ...args] } of steps) {
    assertEquals(tok, "main.ts");
    parseCommandLine(args);
  }
  const given = stepsOf("out", { ...DEFAULTS, model: "a", guide: "b" }, "main.ts");
  assertEquals(given.map(({ name }) => name), sweeps);
  assert(given.every(({ args }) => args[args.indexOf("--model") + 1] === "a"));
  const { config } = parseCommandLine(given[2]!.args.slice(1)) as unknown as {
    config: Record<string, unknown[]>;
  };
  assertEquals([config.guide, config.cfg, config.guideWeight], [["b"], [1], [...DEFAULTS.guideWeights]]);
});

Deno.test("a chart over guidance has a line for each form, one over evaluations a line for each sampler", () =>
  inFolder((folder) => {
    const cell = (options: Record<string, unknown>, nfe: number) => ({
      ...{ options, nfe, fd_encoder: 10 / nfe, class_agreement: 0.5, class_agreement_independent: nfe / 100 },
    });
    const write = (name: string, cells: object[]) => {
      const file = join(folder, name, "metrics.json");
      makeFolder(dirname(file));
      writeJson(file, { n: 4, cells });
    };
    write("cfg", [
      cell({ cfg: 2, ig: 1, sampler: "euler" }, 40),
      cell({ cfg: 1, ig: 1, sampler: "euler" }, 20),
    ]);
    write("internal", [1, 1.5].map((ig) => cell({ cfg: 1, ig, sampler: "euler" }, 20)));
    write(
      "samplers",
      ["euler", "heun"].flatMap((sampler, i) =>
        [5, 10].map((steps) => cell({ cfg: 2, sampler, steps }, 2 * steps * (i + 1)))
      ),
    );
    const { guidance, evaluations } = chartsOf(folder, DEFAULTS);
    assertEquals(guidance[0]?.map(({ name }) => name), ["fd_encoder", "class_agreement_independent"]);
    assertEquals(guidance[0]?.[0]?.options.series, ["CFG", "internal guidance"]);
    assertEquals(guidance[0]?.[0]?.points.map(([x, , series]) => [x, series]), [
      [1, "CFG"],
      [1, "internal guidance"],
      [1.5, "internal guidance"],
      [2, "CFG"],
    ]);
    assertEquals(evaluations[0]?.[1]?.options.series, ["euler", "heun"]);
    assertEquals(evaluations[0]?.[1]?.points.filter(([, , series]) => series === "heun"), [
      [20, 0.2, "heun"],
      [40, 0.4, "heun"],
    ]);
    return Promise.resolve();
  }));
