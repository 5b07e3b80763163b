// Output of the benchmark: one line a case, JSON lines, or the Markdown tables of README.md.

import type { Peaks } from "../../../src/bench/peak.ts";
import { titleOf } from "./cases.ts";
import type { Row } from "./measure.ts";

export type Format = "text" | "json" | "markdown";

/** A peer's time for a case, and its ratio to tok's. */
export interface PeerTime {
  case: string;
  peer: string;
  ms: number;
  ratio: number;
}

const WIDTH = 54;
const percent = (x: number) => `${(100 * x).toFixed(0)} %`;
const megabytes = (bytes: number) =>
  bytes < 1e10 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
const times = (ratio: number) => `${ratio.toFixed(ratio < 9.95 ? 2 : 1)} x`;
const time = (ms: number) => `${ms.toFixed(3).padStart(10)} ms`;
/** Arithmetic intensity (FLOPs per byte) below which a case is reported in GB/s. */
const MIN_INTENSITY = 8;
const rate = ({ gbps, gflops }: Row) =>
  gbps !== undefined && gflops < MIN_INTENSITY * gbps
    ? `${gbps.toFixed(gbps < 1000 ? 2 : 0)} GB/s`
    : gflops < 1e4
    ? `${gflops.toFixed(1)} GFLOP/s`
    : `${(gflops / 1000).toFixed(1)} TFLOP/s`;

/** Prints in one format. Rows of a table are kept until the end because peers add columns. */
export class Report {
  #rows: Row[] = [];
  #peers: PeerTime[] = [];
  #head = "";

  constructor(readonly format: Format) {}

  begin(adapter: string, driver: string | undefined, profile: string, peaks: Peaks): void {
    const { fma, copy, copies } = peaks;
    this.#head = `${adapter}${driver === undefined ? "" : `, driver ${driver}`} (${profile} kernels); peak: ${
      fma.toFixed(1)
    } GFLOP/s of multiply-adds, ${copy.toFixed(1)} GB/s of copying (${
      copies.map(({ bytes, rate }) => `${bytes / 2 ** 20} MiB ${rate.toFixed(1)}`).join(", ")
    })`;
    this.#print({ case: "peak", adapter, driver, profile, ...peaks }, `${this.#head}\n`);
  }

  row(row: Row): void {
    this.#rows.push(row);
    const lines = [
      `${titleOf({ name: row.case, precision: row.precision }).padEnd(WIDTH)} ${time(row.ms)} ` +
      `${rate(row).padStart(14)} ${percent(row.share).padStart(6)} of peak, ${row.launches} launches`,
    ];
    if (row.division !== undefined || row.gbps === undefined) {
      lines.push(
        `    memory ${megabytes(row.planned)} planned, ${megabytes(row.measured)} measured` +
          (row.pooled === undefined
            ? ""
            : `; activations ${megabytes(row.activations)}, ${percent(row.pooled)} of keeping everything`),
      );
    }
    if (row.division) {
      const { kernelMs, gemmShare, gemmGflops, ofBaseline } = row.division;
      lines.push(
        `    GEMMs take ${percent(gemmShare)} of ${kernelMs.toFixed(1)} ms in kernels, at ` +
          `${gemmGflops.toFixed(1)} GFLOP/s, ${percent(ofBaseline)} of the baseline GEMM`,
      );
    }
    this.#print({ ...row }, lines.join("\n"));
  }

  skipped(title: string, why: string): void {
    this.#print({ case: title, skipped: why }, `${title.padEnd(WIDTH)} not measured: ${why}`);
  }

  peer(name: string, packages: readonly string[]): void {
    this.#print({ peer: name, packages }, `\n${packages.join(", ")} on the same machine`);
  }

  peerTime(t: PeerTime): void {
    this.#peers.push(t);
    const { ratio } = t;
    const shown = Number.isFinite(ratio) ? `${times(ratio)} ours` : "";
    this.#print({ ...t }, `${t.case.padEnd(WIDTH)} ${time(t.ms)} ${shown.padStart(14)}  ${t.peer}`);
  }

  /** Prints the table if the format is Markdown. */
  end(): void {
    if (this.format !== "markdown") return;
    const names = [...new Set(this.#peers.map(({ peer }) => peer))];
    const cells = this.#rows.map((row) => {
      const title = titleOf({ name: row.case, precision: row.precision });
      return [
        title,
        `${row.ms.toFixed(3)} ms`,
        rate(row),
        percent(row.share),
        megabytes(row.measured),
        ...names.map((name) => {
          const ratio = this.#peers.find((p) => p.peer === name && p.case === title)?.ratio;
          return ratio === undefined ? "" : times(ratio);
        }),
      ];
    });
    const head = ["case", "time", "rate", "share of peak", "memory", ...names];
    const widths = head.map((h, i) => Math.max(h.length, ...cells.map((c) => (c[i] as string).length)));
    const line = (c: readonly string[]) =>
      `| ${c.map((v, i) => v.padEnd(widths[i] as number)).join(" | ")} |`;
    console.log(`${this.#head}\n`);
    for (const c of [head, widths.map((w) => "-".repeat(w)), ...cells]) console.log(line(c));
    const steps = this.#rows.filter(({ division }) => division);
    if (steps.length) console.log("");
    for (const { case: name, division, pooled, measured, planned } of steps) {
      const { gemmShare, gemmGflops, ofBaseline } = division as NonNullable<Row["division"]>;
      console.log(
        `- ${name}: GEMMs take ${percent(gemmShare)} of the time in kernels, at ${gemmGflops.toFixed(1)} ` +
          `GFLOP/s (${percent(ofBaseline)} of the baseline GEMM); memory ${megabytes(measured)}, planned ` +
          `${megabytes(planned)}, activations ${percent(pooled ?? NaN)} of keeping everything`,
      );
    }
  }

  #print(object: Record<string, unknown>, text: string): void {
    if (this.format === "json") console.log(JSON.stringify(object));
    else if (this.format === "text") console.log(text);
    else console.error(text); // the table comes at the end
  }
}
