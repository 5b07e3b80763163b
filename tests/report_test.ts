// The report and the log: one page that needs nothing else, from whatever a run has left.

import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { writeJson } from "../src/io/files.ts";
import { grid, writePng } from "../src/io/image.ts";
import { duration, Log } from "../src/io/log.ts";
import { writeReport } from "../src/io/report.ts";

Deno.test("report.html has curves, pictures, scores and options, and refers to nothing outside", async () => {
  const run = await Deno.makeTempDir();
  try {
    const rows = Array.from(
      { length: 20 },
      (_, i) =>
        JSON.stringify({
          event: "step",
          stage: i < 10 ? "latent" : "perceptual",
          step: 10 * (i + 1),
          loss: 1 / (i + 1),
          unused: 0,
        }),
    );
    Deno.writeTextFileSync(join(run, "log.jsonl"), rows.join("\n") + '\n{"event":"st'); // killed while writing
    writeJson(join(run, "config.json"), { steps: [1, 2], name: "<b>" });
    writeJson(join(run, "metrics.json"), {
      psnr: 21.4,
      stages: { latent: { psnr: 15 }, perceptual: { psnr: 21.4 } },
    });
    Deno.mkdirSync(join(run, "images"));
    await writePng(join(run, "images/1_latent.png"), grid([new Uint8Array(12).fill(9)], 2, 1));
    await writeReport(run, { title: "Alignment", line: "tok align" });
    const page = Deno.readTextFileSync(join(run, "report.html"));
    for (const part of ["<svg", "data:image/png;base64,", "21.4", "perceptual", "tok align", "&lt;b&gt;"]) {
      assert(page.includes(part), part);
    }
    assert(!page.includes(">unused<"), "a meter that was never used is not drawn");
    assert(!/(?:src|href)="(?!data:)/.test(page));
  } finally {
    await Deno.remove(run, { recursive: true });
  }
});

Deno.test("events go to the run's log as one JSON object a line", async () => {
  const run = await Deno.makeTempDir();
  try {
    const log = new Log({ json: false, terminal: { stdout: false, stderr: false } });
    log.openFile(run);
    log.event("step", { step: 1, loss: 0.5 });
    log.event("step", { step: 2, loss: NaN });
    log.close();
    const rows = Deno.readTextFileSync(join(run, "log.jsonl")).trim().split("\n").map((line) =>
      JSON.parse(line)
    );
    assertEquals(rows, [{ event: "step", step: 1, loss: 0.5 }, { event: "step", step: 2, loss: null }]);
  } finally {
    await Deno.remove(run, { recursive: true });
  }
});

Deno.test("durations read well at any length", () => {
  assertEquals([5, 59.6, 75, 3600, 7325].map(duration), ["5s", "1m00s", "1m15s", "1h00m", "2h02m"]);
});
