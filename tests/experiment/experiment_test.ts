// The ablation: its rows are valid command lines, an interrupted cell goes on, and the summary says what the scores say.

import { assert, assertAlmostEquals, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { CLAIMS, QUANTITIES, ROWS, stepsOf } from "../../src/experiment/ablation.ts";
import { type Cell, runCell, scoresOf, secondsOf } from "../../src/experiment/cells.ts";
import { chart, checkClaims, markdownTable, page, statistics } from "../../src/experiment/summary.ts";
import { UsageError } from "../../src/errors.ts";
import { parseCommandLine } from "../../tasks/run.ts";

Deno.test("every command of the ablation is a valid command line", () => {
  for (const row of ROWS) {
    for (
      const { name, args } of stepsOf(row, { seed: 0, scale: 1 }, "cell", {
        tok: "main.ts",
        score: "score.ts",
      })
    ) {
      if (name !== "score") parseCommandLine(args.slice(1));
    }
  }
});

Deno.test("claims name rows that run with every seed, and quantities that are measured", () => {
  const claimed = ROWS.filter((row) => row.claimed).map(({ name }) => name);
  for (const { key, rows } of CLAIMS) {
    assert(rows.some((name) => claimed.includes(name)), rows.join());
    assert(rows.every((name) => ROWS.some((row) => row.name === name)), rows.join());
    assert(QUANTITIES.some((quantity) => quantity.key === key), key);
  }
});

Deno.test("an interrupted cell goes on with --resume, and a finished one is not run again", async () => {
  const folder = Deno.makeTempDirSync(), script = join(folder, "step.ts"), calls = join(folder, "calls.txt");
  Deno.writeTextFileSync(
    script,
    `Deno.writeTextFileSync(${JSON.stringify(calls)}, Deno.args.join(" ") + "\\n", { append: true });
if (Deno.args[0] === "train" && !Deno.args.includes("--resume")) Deno.exit(3);
if (Deno.args[0] === "score") Deno.writeTextFileSync(Deno.args[1] + "/scores.json", '{"psnr": 20}');`,
  );
  const cell: Cell = {
    row: "all",
    seed: 0,
    folder: join(folder, "cell"),
    steps: [
      { name: "train", args: [script, "train"], resumes: true },
      { name: "score", args: [script, "score", join(folder, "cell")], resumes: false },
    ],
  };
  await assertRejects(() => runCell(cell, () => {}), UsageError, `"train" ended with 3`);
  assertEquals(scoresOf(cell), undefined);
  await runCell(cell, () => {});
  await runCell(cell, () => {});
  assertEquals(scoresOf(cell), { psnr: 20 });
  assert(secondsOf(cell) > 0);
  const expected = ["train", "train --resume", `score ${cell.folder}`];
  assertEquals(Deno.readTextFileSync(calls).trim().split("\n"), expected);
  const other = { ...cell, steps: [{ name: "train", args: [script, "other"], resumes: true }] };
  await assertRejects(() => runCell(other, () => {}), UsageError, "made by other commands");
  Deno.removeSync(folder, { recursive: true });
});

const found = new Map([
  ["stage-1", new Map([[0, { psnr: 12, probe: 0.9 }], [1, { psnr: 13, probe: 0.8 }]])],
  ["w-sp-1", new Map([[0, { psnr: 20, probe: 0.84 }], [1, { psnr: 12.5, probe: 0.84 }]])],
]);

Deno.test("statistics are mean and sample standard deviation", () => {
  const { n, mean, std } = statistics(found.get("stage-1")!);
  assertEquals(n, 2);
  assertAlmostEquals(mean.psnr!, 12.5);
  assertAlmostEquals(std.psnr!, Math.SQRT1_2);
  assertEquals(statistics(new Map([[0, { psnr: 12 }]])), { n: 1, mean: { psnr: 12 }, std: {} });
});

Deno.test("a claim holds by its means, is counted seed by seed, and is open without its rows", () => {
  const claims = checkClaims(found),
    of = (key: string, better: string) =>
      claims.find((claim) => claim.key === key && claim.rows[0] === better);
  assertEquals(of("psnr", "w-sp-1")?.holds, true);
  assertEquals(of("psnr", "w-sp-1")?.seeds, [2, 1]);
  assertEquals(of("probe", "stage-1")?.holds, true);
  assertEquals(of("gfd", "all")?.holds, undefined);
});

Deno.test("the table, the chart and the page show every finished row", () => {
  const table = markdownTable(found);
  assertStringIncludes(table, "| stage 1 only | 2 | 12.50 ± 0.71 |");
  assertEquals(table.trim().split("\n").length, 4);
  const svg = chart(found);
  assertEquals(svg.match(/<circle/g)?.length, 8);
  assertStringIncludes(page(found, ["2 cells"]), "tok align --stages 1");
});
