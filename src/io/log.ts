// What a command says: plain lines and a progress bar for people, JSON lines for programs, log.jsonl for the report.
// People's output goes to stderr when stdout is no terminal or carries JSON.

import { join } from "@std/path";

const encoder = new TextEncoder();

export interface LogOptions {
  json: boolean;
  /** Whether stdout and stderr are terminals; as found when absent. */
  terminal?: { stdout: boolean; stderr: boolean };
  color?: boolean;
}

/** Seconds between progress lines where there is no terminal. */
const QUIET = 10;

export class Log {
  readonly json: boolean;
  readonly #human: typeof Deno.stdout | typeof Deno.stderr;
  readonly #bar: boolean;
  readonly #color: boolean;
  #file: Deno.FsFile | undefined;
  #drawn = false;
  #lastLine = 0;

  constructor({ json, terminal, color }: LogOptions) {
    const { stdout, stderr } = terminal ??
      { stdout: Deno.stdout.isTerminal(), stderr: Deno.stderr.isTerminal() };
    this.json = json;
    this.#human = json || !stdout ? Deno.stderr : Deno.stdout;
    this.#bar = this.#human === Deno.stderr ? stderr : stdout;
    this.#color = color ?? (this.#bar && !Deno.env.get("NO_COLOR"));
  }

  /** Rows of `event()` also go to RUN/log.jsonl from now on. */
  openFile(run: string): void {
    this.#file = Deno.openSync(join(run, "log.jsonl"), { write: true, append: true, create: true });
  }

  close(): void {
    this.#clear();
    this.#file?.close();
    this.#file = undefined;
  }

  /** One line for people. */
  line(text: string): void {
    this.#clear();
    this.#print(text + "\n");
  }

  warn(text: string): void {
    this.line(this.#paint("33", `warning: ${text}`));
  }

  /** One object for programs and for the run's log. */
  event(event: string, fields: Record<string, unknown> = {}): void {
    const row = JSON.stringify({ event, ...fields }) + "\n";
    if (this.json) write(Deno.stdout, row);
    if (this.#file) this.#file.writeSync(encoder.encode(row));
  }

  /** A counter with rate and time left: a bar on a terminal, a line every ten seconds elsewhere. */
  progress(label: string, total: number, unit = "steps", from = 0): Progress {
    const began = performance.now();
    return {
      update: (done, note = "") => {
        const now = performance.now(), rate = (done - from) / Math.max(1e-3, (now - began) / 1000);
        const wait = this.#bar ? 0.1 : QUIET;
        if (done < total && now - Math.max(this.#lastLine, this.#bar ? 0 : began) < wait * 1000) return;
        this.#lastLine = now;
        const left = rate > 0 ? duration((total - done) / rate) : "?";
        const counts = `${done}/${total} ${unit}`;
        const speed = `${rate >= 10 ? rate.toFixed(0) : rate.toFixed(2)}/s`;
        const text = `${label}  ${counts}  ${speed}  ${left} left${note ? `  ${note}` : ""}`;
        if (!this.#bar) return this.#print(text + "\n");
        const width = 24, full = Math.round(width * Math.min(1, done / total));
        const bar = this.#paint("36", "━".repeat(full)) + this.#paint("90", "━".repeat(width - full));
        this.#print(`\r\x1b[2K${bar} ${text}`);
        this.#drawn = true;
      },
      end: () => this.#clear(),
    };
  }

  bold(text: string): string {
    return this.#paint("1", text);
  }

  #clear(): void {
    if (this.#drawn) this.#print("\r\x1b[2K");
    this.#drawn = false;
  }

  #paint(code: string, text: string): string {
    return this.#color ? `\x1b[${code}m${text}\x1b[0m` : text;
  }

  #print(text: string): void {
    write(this.#human, text);
  }
}

export interface Progress {
  update(done: number, note?: string): void;
  end(): void;
}

/** A reader that went away (`tok ... | head`) is no reason to stop a run. */
function write(to: { writeSync(bytes: Uint8Array): number }, text: string): void {
  try {
    const bytes = encoder.encode(text);
    for (let at = 0; at < bytes.length;) at += to.writeSync(bytes.subarray(at));
  } catch (error) {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

/** 75 -> "1m15s" */
export function duration(seconds: number): string {
  const s = Math.round(seconds);
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${String(s % 60).padStart(2, "0")}s`;
  return `${Math.floor(s / 3600)}h${String(Math.floor(s % 3600 / 60)).padStart(2, "0")}m`;
}
