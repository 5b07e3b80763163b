// The report and the log: one self-contained page from any state of a run's folder.

import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { writeJson } from "../../src/formats/files.ts";
import { grid, writePng } from "../../src/image/image.ts";
import { columnsOf, duration, Log } from "../../src/run/log.ts";
import { writeReport } from "../../src/run/report.ts";

Deno.test("report.html has curves, images, scores and options, and no external references", async () => {
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
    assert(!page.includes(">unused<"), "a metric that was never used is not drawn");
    assert(!/(?:src|href)="(?!data:)/.test(page));
  } finally {
    await Deno.remove(run, { recursive: true });
  }
});

Deno.test("the curves of a run resumed from an earlier step show the latest course, with its sources named", async () => {
  const run = await Deno.makeTempDir();
  try {
    const rows = [
      { event: "start", step: 0 },
      ...[10, 20, 30, 40].map((step) => ({ event: "step", step, loss: step === 40 ? 777 : 1 + step })),
      { event: "start", step: 20 },
      { event: "step", step: 30, loss: 55 },
    ];
    Deno.writeTextFileSync(join(run, "log.jsonl"), rows.map((row) => JSON.stringify(row)).join("\n"));
    writeJson(join(run, "config.json"), {
      made_from: { data: { name: "photos", fingerprint: "11" }, flip: true },
    });
    await writeReport(run, { title: "Training", line: "tok train-dit" });
    const page = Deno.readTextFileSync(join(run, "report.html"));
    assert(page.includes(">30 steps<") && !page.includes(">40 steps<"), "the last step is 30");
    assert(page.includes(">55<") && !page.includes(">777<"), "the highest loss is 55");
    assert(page.includes("data: photos, flip: true"));
  } finally {
    await Deno.remove(run, { recursive: true });
  }
});

Deno.test("the report shows validations of the last course as curves, and at most 16 of them as rows of images", async () => {
  const run = await Deno.makeTempDir();
  try {
    const validation = (step: number, psnr: number) => ({
      event: "validation",
      stage: "latent",
      step,
      psnr,
      best: true,
    });
    const rows = [
      { event: "start", step: 0 },
      ...Array.from({ length: 40 }, (_, i) => validation(i + 1, 20 + i)),
      validation(41, 999),
      { event: "start", step: 40 },
      validation(50, 61.5),
    ];
    Deno.writeTextFileSync(join(run, "log.jsonl"), rows.map((row) => JSON.stringify(row)).join("\n"));
    Deno.mkdirSync(join(run, "images/validation"), { recursive: true });
    const picture = grid([new Uint8Array(12).fill(9)], 2, 1);
    for (
      const name of [
        "originals",
        ...[...Array(41).keys(), 49].map((i) => `step_${String(i + 1).padStart(8, "0")}`),
      ]
    ) {
      await writePng(join(run, `images/validation/${name}.png`), picture);
    }
    await writeReport(run, { title: "Alignment", line: "tok align" });
    const page = () => Deno.readTextFileSync(join(run, "report.html"));
    const labels = [...page().matchAll(/alt="(step \d+, latent|originals)"/g)].map(([, label]) => label);
    assertEquals(labels.length, 17);
    assertEquals([labels[0], ...labels.slice(-2)], ["step 1, latent", "step 50, latent", "originals"]);
    assert(page().includes(">validation psnr<") && page().includes(">61.5<") && !page().includes(">999<"));
    assert(!page().includes(">validation best<") && !page().includes("Best checkpoint"));
    Deno.mkdirSync(join(run, "checkpoints"));
    writeJson(join(run, "checkpoints/best.json"), { step: 30, metric: "fd_encoder", value: 1.234567 });
    await writeReport(run, { title: "Alignment", line: "tok align" });
    assert(page().includes("Best checkpoint: step 30, fd_encoder 1.2346 (checkpoints/best.safetensors"));
  } finally {
    await Deno.remove(run, { recursive: true });
  }
});

Deno.test("events are written to the run's log as one JSON object per line", async () => {
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

Deno.test("durations are readable at any length", () => {
  assertEquals([5, 59.6, 75, 3600, 7325].map(duration), ["5s", "1m00s", "1m15s", "1h00m", "2h02m"]);
});

/** Runs `test` with stdout and stderr replaced. @returns what was written to both */
function captured(
  test: () => void,
  write: (bytes: Uint8Array) => number = (b) => b.length,
): { out: string; err: string } {
  const said = { out: "", err: "" }, decoder = new TextDecoder();
  const originals = [Deno.stdout.writeSync, Deno.stderr.writeSync] as const;
  Deno.stdout.writeSync = (bytes) => {
    const n = write(bytes);
    said.out += decoder.decode(bytes.subarray(0, n));
    return n;
  };
  Deno.stderr.writeSync = (bytes) => (said.err += decoder.decode(bytes), bytes.length);
  try {
    test();
  } finally {
    [Deno.stdout.writeSync, Deno.stderr.writeSync] = originals;
  }
  return said;
}

Deno.test("the progress line never reaches the last column, and shows count and time left from 40 columns on", () => {
  const labels = [
    "encoding",
    "refine: compiling",
    "inception (a long name of a folder of samples.npz)",
    "推論 (写真)",
  ];
  for (let columns = 20; columns <= 130; columns++) {
    for (const label of labels) {
      const { err } = captured(() => {
        const terminal = { stdout: false, stderr: true };
        const log = new Log({ json: false, terminal, color: true, columns: () => columns });
        log.progress(label, 100_000, "images").update(100_000, "waiting for data 100%");
      });
      // deno-lint-ignore no-control-regex
      const lines = err.split("\r").map((part) => part.replace(/\x1b\[[\d;]*[mK]/g, ""));
      for (const line of lines) {
        assert(columnsOf(line) < columns && !line.includes("\n"), `${columns}: "${line}"`);
      }
      if (columns >= 40) assert(/100000\/100000 images\s+.*0s left/.test(err), `${columns}: ${err}`);
    }
  }
  assertEquals(columnsOf("a推é…"), 5);
});

Deno.test("on a full disk rows are kept with one warning, and written in order once there is space", async () => {
  const run = await Deno.makeTempDir();
  const original = Deno.FsFile.prototype.writeSync;
  let room = 0; // bytes
  Deno.FsFile.prototype.writeSync = function (bytes) {
    if (room === 0) throw Object.assign(new Error("No space left on device"), { code: "ENOSPC" });
    const n = Math.min(room, bytes.length);
    room -= n;
    return original.call(this, bytes.subarray(0, n));
  };
  try {
    Deno.writeTextFileSync(join(run, "log.jsonl"), '{"step":1}\n{"st'); // killed while writing
    const { err } = captured(() => {
      const log = new Log({ json: false, terminal: { stdout: false, stderr: false } });
      log.openFile(run);
      log.event("step", { step: 2 });
      room = 9; // the newline, and a part of a row
      log.event("step", { step: 3 });
      room = 1000;
      log.event("step", { step: 4 });
      room = 0;
      log.event("step", { step: 5 });
      log.close();
    });
    const rows = [2, 3, 4].map((step) => `{"event":"step","step":${step}}\n`).join("");
    assertEquals(Deno.readTextFileSync(join(run, "log.jsonl")), `{"step":1}\n{"st\n${rows}`);
    assertEquals(err.trim().split("\n").length, 2, err);
    assert(err.includes("no space is left on the device") && err.includes("1 rows are missing"), err);
  } finally {
    Deno.FsFile.prototype.writeSync = original;
    await Deno.remove(run, { recursive: true });
  }
});

Deno.test("a full stdout gives one line on stderr, a closed one gives none", () => {
  const outcomes = [[Object.assign(new Error("x"), { code: "ENOSPC" }), true], [
    new Deno.errors.BrokenPipe("x"),
    false,
  ]] as const;
  for (const [error, told] of outcomes) {
    let lost = false;
    const { err } = captured(() => {
      const log = new Log({ json: true, terminal: { stdout: false, stderr: false } });
      for (let i = 0; i < 3; i++) log.event("step", { i });
      log.output("help");
      lost = log.lost;
    }, () => {
      throw error;
    });
    const line = "tok: Cannot write to standard output: no space is left on the device; " +
      "free some space or choose another folder\n";
    assertEquals([err, lost], [told ? line : "", told]);
  }
});

Deno.test("held lines appear in order at the first progress, or are discarded by an error", () => {
  const options = { json: false, terminal: { stdout: false, stderr: false }, hold: true };
  const { err } = captured(() => {
    const log = new Log(options);
    log.line("a");
    log.warn("b");
    log.progress("p", 1).update(1);
    log.line("c");
    log.close();
    const failing = new Log(options);
    failing.line("adapter");
    failing.begin({ forget: true });
    failing.line("error");
    failing.close();
  });
  assertEquals(err.replace(/p .*/, "p"), "a\nwarning: b\np\nc\nerror\n");
});
