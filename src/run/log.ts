// Output of a command: lines and a progress bar for people, JSON lines for programs, log.jsonl for the report. Lines for people
// go to stderr if stdout is not a terminal or carries JSON. A failed write (full disk, closed pipe) does not end the command.

import { join } from "@std/path";
import { reasonOf } from "../formats/files.ts";

const encoder = new TextEncoder();

interface LogOptions {
  json: boolean;
  /** Whether stdout and stderr are terminals [detected]. */
  terminal?: { stdout: boolean; stderr: boolean };
  color?: boolean;
  /** Current columns of the terminal [detected]. */
  columns?: () => number;
  /** Whether another thread draws progress on the same terminal [false]. */
  shared?: boolean;
  /** Buffers lines until begin(), so that an input error is printed alone [false]. */
  hold?: boolean;
}

/** Seconds between progress lines without a terminal. */
const QUIET = 10;
/** Maximum milliseconds that lines are buffered. */
const HOLD = 10_000;

export class Log {
  readonly json: boolean;
  /** Whether writing to stdout failed for a reason other than a closed pipe. */
  lost = false;
  /** All warnings so far. */
  readonly warnings: string[] = [];
  readonly #human: Stream;
  readonly #bar: boolean;
  readonly #color: boolean;
  readonly #columns: () => number;
  readonly #shared: boolean;
  #held: string[] | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #rows: RowFile | undefined;
  #drawn = false;
  #lastLine = 0;

  constructor({ json, terminal, color, columns, shared = false, hold = false }: LogOptions) {
    const { stdout, stderr } = terminal ??
      { stdout: Deno.stdout.isTerminal(), stderr: Deno.stderr.isTerminal() };
    this.json = json;
    this.#human = json || !stdout ? Deno.stderr : Deno.stdout;
    this.#bar = (this.#human === Deno.stderr ? stderr : stdout) && Deno.env.get("TERM") !== "dumb";
    this.#color = color ?? (this.#bar && !Deno.env.get("NO_COLOR"));
    this.#columns = columns ?? consoleColumns;
    this.#shared = shared;
    if (!hold) return;
    this.#held = [];
    this.#timer = setTimeout(() => this.begin(), HOLD);
  }

  /** Also appends the rows of `event()` to RUN/log.jsonl. */
  openFile(run: string): void {
    this.#rows = new RowFile(join(run, "log.jsonl"), (text) => this.warn(text));
  }

  close(): void {
    this.#clear();
    clearTimeout(this.#timer);
    this.#rows?.close();
    this.#rows = undefined;
  }

  /** Prints or discards the buffered lines; later lines are printed at once. */
  begin({ forget = false }: { forget?: boolean } = {}): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    clearTimeout(this.#timer);
    if (!forget) { for (const text of held) this.line(text); }
  }

  /** Prints one line for people. */
  line(text: string): void {
    if (this.#held) return void this.#held.push(text);
    this.#clear();
    this.#print(`${this.#shared && this.#bar ? ERASE : ""}${text}\n`);
  }

  warn(text: string): void {
    this.warnings.push(text);
    this.line(this.#paint("33", `warning: ${text}`));
  }

  /** Prints a requested text such as help: always on stdout. */
  output(text: string): void {
    this.#write(Deno.stdout, `${text.trimEnd()}\n`);
  }

  /** Emits one object for programs and the run's log. */
  event(event: string, fields: Record<string, unknown> = {}): void {
    const row = JSON.stringify({ event, ...fields }) + "\n";
    if (this.json) this.#write(Deno.stdout, row);
    this.#rows?.add(row);
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
        this.begin();
        const left = `${rate > 0 ? duration((total - done) / rate) : "?"} left`;
        const counts = `${done}/${total} ${unit}`;
        const speed = `${rate >= 10 ? rate.toFixed(0) : rate.toFixed(2)}/s`;
        if (!this.#bar) {
          return this.#print([label, counts, speed, left, note].filter(Boolean).join("  ") + "\n");
        }
        const { text, bar } = fitted({ label, counts, speed, left, note }, this.#columns() - 1);
        const full = Math.round(bar * Math.min(1, done / total));
        const drawn = this.#paint("36", "━".repeat(full)) + this.#paint("90", "━".repeat(bar - full));
        this.#print(`${ERASE}${bar ? `${drawn} ` : ""}${text}`);
        this.#drawn = true;
      },
      end: () => this.#clear(),
    };
  }

  /** Width of the terminal; 80 if there is none. */
  get columns(): number {
    return this.#columns();
  }

  bold(text: string): string {
    return this.#paint("1", text);
  }

  #clear(): void {
    if (this.#drawn) this.#print(ERASE);
    this.#drawn = false;
  }

  #paint(code: string, text: string): string {
    return this.#color && text ? `\x1b[${code}m${text}\x1b[0m` : text;
  }

  #print(text: string): void {
    this.#write(this.#human, text);
  }

  /** Writes to a stream; reports once, on stderr, that stdout cannot be written. */
  #write(to: Stream, text: string): void {
    if (to === Deno.stdout && this.lost) return;
    const error = write(to, encoder.encode(text));
    if (!error || to !== Deno.stdout || error instanceof Deno.errors.BrokenPipe) return;
    this.lost = true;
    write(Deno.stderr, encoder.encode(`tok: Cannot write to standard output: ${reasonOf(error)}\n`));
  }
}

export interface Progress {
  update(done: number, note?: string): void;
  end(): void;
}

interface Stream {
  writeSync(bytes: Uint8Array): number;
}

const ERASE = "\r\x1b[2K";

function consoleColumns(): number {
  try {
    return Deno.consoleSize().columns || 80;
  } catch {
    return 80; // none of the three is a terminal
  }
}

/** Writes all of `bytes`. @returns the error, if any */
function write(to: Stream, bytes: Uint8Array): unknown {
  for (let at = 0; at < bytes.length;) {
    try {
      at += to.writeSync(bytes.subarray(at));
    } catch (error) {
      if (!(error instanceof Deno.errors.WouldBlock)) return error;
      Atomics.wait(SLEEP, 0, 0, 5); // the pipe is full
    }
  }
  return undefined;
}

const SLEEP = new Int32Array(new SharedArrayBuffer(4));

/** A file with one row per line. Rows that cannot be written are kept and retried with the next one. */
class RowFile {
  #file: Deno.FsFile | undefined;
  #pending: Uint8Array[] = [];
  #warned = false;

  constructor(private readonly path: string, private readonly warn: (text: string) => void) {
    this.#flush();
  }

  add(row: string): void {
    this.#pending.push(encoder.encode(row));
    this.#flush();
  }

  close(): void {
    this.#flush();
    const left = this.#pending.length;
    if (left) this.warn(`${left} rows are missing in "${this.path}"`);
    this.#file?.close();
    this.#file = undefined;
  }

  #flush(): void {
    try {
      this.#file ??= this.#open();
      while (this.#pending[0]) {
        const [row] = this.#pending;
        const written = this.#file.writeSync(row);
        if (written < row.length) this.#pending[0] = row.subarray(written);
        else this.#pending.shift();
      }
    } catch (error) {
      if (this.#warned) return;
      this.#warned = true;
      this.warn(
        `Cannot write the log "${this.path}": ${reasonOf(error)}; its rows are kept and written later`,
      );
    }
  }

  /** Ends an incomplete last row of a killed run, so that it stays a line of its own. */
  #open(): Deno.FsFile {
    const file = Deno.openSync(this.path, { read: true, append: true, create: true });
    const { size } = file.statSync(), last = new Uint8Array([10]);
    if (size > 0) {
      file.seekSync(-1, Deno.SeekMode.End);
      file.readSync(last);
    }
    if (last[0] !== 10) this.#pending.unshift(encoder.encode("\n"));
    return file;
  }
}

/** 75 -> "1m15s" */
export function duration(seconds: number): string {
  const s = Math.round(seconds);
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${String(s % 60).padStart(2, "0")}s`;
  return `${Math.floor(s / 3600)}h${String(Math.floor(s % 3600 / 60)).padStart(2, "0")}m`;
}

/** Maximum and minimum columns of the bar. */
const MAX_BAR = 24, MIN_BAR = 6;

/**
 * Fits a progress line into `width` columns by removing the note, the bar, the rate, and the end of the label, in this order:
 * a line that wraps cannot be erased and fills the screen.
 */
function fitted(
  { label, counts, speed, left, note }: Record<"label" | "counts" | "speed" | "left" | "note", string>,
  width: number,
): { text: string; bar: number } {
  const join = (...parts: string[]) => parts.filter(Boolean).join("  ");
  const choices = [
    join(label, counts, speed, left, note),
    join(label, counts, speed, left),
    join(label, counts, left),
  ];
  for (const text of choices) {
    const room = width - columnsOf(text) - 1;
    if (room >= MIN_BAR) return { text, bar: Math.min(MAX_BAR, room) };
  }
  const text = choices.slice(1).find((text) => columnsOf(text) <= width);
  if (text !== undefined) return { text, bar: 0 };
  const rest = join(counts, left), room = width - columnsOf(rest) - 2;
  return { text: clipped(room >= 4 ? join(clipped(label, room), rest) : counts, width), bar: 0 };
}

/** Truncates a text to a number of columns, with an ellipsis. */
function clipped(text: string, width: number): string {
  if (columnsOf(text) <= width) return text;
  let out = "";
  for (const c of text) {
    if (columnsOf(out + c) > width - 1) break;
    out += c;
  }
  return `${out}…`;
}

/** Columns of a text on a terminal: combining marks take none, East Asian characters and emoji two. */
export function columnsOf(text: string): number {
  let columns = 0;
  for (const c of text) {
    if (/\p{M}|\p{Cf}/u.test(c)) continue;
    columns +=
      /\p{Script=Han}|\p{Script=Hangul}|\p{Script=Hiragana}|\p{Script=Katakana}|\p{Emoji_Presentation}|[\u3000-\u303f\uff00-\uff60]/u
          .test(c)
        ? 2
        : 1;
  }
  return columns;
}
