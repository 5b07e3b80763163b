// Writes scores.json of a cell of the experiment. Run by tasks/dev/experiment.ts: experiment_score.ts FOLDER SEED

import { join } from "@std/path";
import { GUIDANCE } from "../../src/experiment/ablation.ts";
import { scoreCell } from "../../src/experiment/score.ts";
import { writeJson } from "../../src/formats/files.ts";
import { closeDevice, openDevice } from "../../src/gpu/device.ts";

const [folder = ".", seed = "0"] = Deno.args;
await openDevice();
try {
  const options = { guidance: GUIDANCE, seed: Number(seed), warn: console.error };
  writeJson(
    join(folder, "scores.json"),
    await scoreCell(join(folder, "align"), join(folder, "dit"), options),
  );
} finally {
  closeDevice();
}
