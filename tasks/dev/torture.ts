// Kills, signals and full disks at random moments of every command; then the same command runs again. Its results must equal
// those of an undisturbed run bit for bit, and other files in the folder must be unchanged. Takes about an hour: not a test.
// Run: deno run -A tasks/dev/torture.ts [--kills 200] [--signals 40] [--disks 20] [--seed 0] [--only encode,sample]

import { parseArgs } from "@std/cli/parse-args";
import { basename, dirname, fromFileUrl, join } from "@std/path";
import { writePng } from "../../src/image/image.ts";
import { writeSafetensors } from "../../src/formats/safetensors.ts";
import { Shapes } from "../../src/data/toy_shapes.ts";

const TOP = fromFileUrl(new URL("../..", import.meta.url));
const options: Record<string, unknown> = parseArgs(Deno.args, {
  string: ["only", "kills", "signals", "disks", "seed"],
  default: { kills: "200", signals: "40", disks: "20", seed: "0" },
});
/** Seconds within which a signal must end the command. */
const MAX_SECONDS = 5;

interface Subject {
  name: string;
  /** The command line without --out. */
  line: string;
  /** The output is a file, not a folder. */
  file?: boolean;
  /** Option for the output [--out], and an option to add when continuing. */
  out?: string;
  again?: string;
  /** Paths of result files in the folder. */
  results: RegExp;
}

const SUBJECTS: Subject[] = [
  {
    name: "align",
    line: "align --steps 3,4,3 --held-out 16 --gan-start 3,4,1 --batch-size 2 --save-every 2 --log-every 1",
    again: "--resume",
    results: /^(tokenizer|images)\/|^metrics\.json$/,
  },
  {
    name: "train-dit",
    line: "train-dit --tokenizer base/align --images 60 --steps 8 --save-every 3 --log-every 1",
    again: "--resume",
    results: /^(model\/model|latents|images)/,
  },
  {
    name: "encode",
    line: "encode --tokenizer base/align --images 600 --batch-size 8",
    results: /safetensors$/,
  },
  {
    name: "reconstruct",
    line: "reconstruct --tokenizer base/align --input data --batch-size 4",
    results: /png$|^metrics\.json$/,
  },
  {
    name: "sample",
    line: "sample --model base/train-dit --num 24 --batch-size 4 --steps 4 --folders",
    results: /png$/,
  },
  {
    name: "sample --npz",
    line: "sample --model base/train-dit --num 24 --batch-size 4 --steps 4 --npz",
    results: /png$|npz$/,
  },
  {
    name: "eval",
    line: "eval --model base/train-dit --num 24 --batch-size 8 --steps 4 --metrics fd-encoder",
    results: /npz$|^metrics\.json$/,
  },
  { name: "features", line: "features --input data --batch-size 4", file: true, results: /./ },
  {
    name: "inspect --convert",
    line: "inspect base/large.safetensors",
    file: true,
    out: "--convert",
    results: /./,
  },
];

/** Random numbers in 0..1 from the seed (mulberry32). */
let state = Number(options.seed) >>> 0;
function random(): number {
  state = (state + 0x6d2b79f5) >>> 0;
  let t = Math.imul(state ^ (state >>> 15), state | 1);
  t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}

const work = await Deno.makeTempDir({ prefix: "tok-torture-" });

/** Output path of a subject in the folder `run`. */
const outOf = ({ name, file }: Subject, run: string) => {
  const path = join(run, name.replaceAll(/\W+/g, "-"));
  return file ? `${path}.safetensors` : path;
};

function start(subject: Subject, run: string, { again = false, env = {}, full = false } = {}) {
  const { line, out = "--out" } = subject;
  const all = [
    ...line.split(" "),
    out,
    outOf(subject, run),
    ...again && subject.again ? [subject.again] : [],
  ];
  const config = ["--config", join(TOP, "deno.json")];
  const words = ["run", "-A", "--no-check", ...config, join(TOP, "main.ts"), ...all, "--cpu"];
  const command = full
    ? new Deno.Command("sh", {
      args: ["-c", 'exec "$@" --json > /dev/full', "sh", Deno.execPath(), ...words],
      cwd: work,
      stdout: "null",
      stderr: "piped",
    })
    : new Deno.Command(Deno.execPath(), { args: words, cwd: work, env, stdout: "null", stderr: "piped" });
  const child = command.spawn(), began = performance.now();
  const stderr = new Response(child.stderr).text();
  const ended = child.status.then(async (status) => ({
    ...status,
    stderr: await stderr,
    seconds: (performance.now() - began) / 1000,
  }));
  return { child, ended };
}

/** Hashes of the files below a folder whose relative path equals or matches `which`. */
async function hashes(folder: string, which: RegExp | string, prefix = ""): Promise<Map<string, string>> {
  const all = new Map<string, string>();
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    const path = join(folder, name), key = prefix + name;
    if (isDirectory) (await hashes(path, which, `${key}/`)).forEach((hash, key) => all.set(key, hash));
    else if (typeof which === "string" ? which === key : which.test(key)) {
      const digest = await crypto.subtle.digest("SHA-256", Deno.readFileSync(path));
      all.set(key, new Uint8Array(digest).toHex());
    }
  }
  return all;
}

/** User files that look like tok's own, in every folder that a command writes to. */
const MINE = ["notes.tmp", "table.2026-11.tmp", "x.safetensors.123-0.tmp", ".tok-notes", "mine.txt"];

function plant(subject: Subject, run: string): string[] {
  const out = join(work, outOf(subject, run));
  const folders = subject.file
    ? [dirname(out)]
    : [out, join(out, "images"), join(out, "latents"), join(out, "checkpoints")];
  return folders.flatMap((folder) => {
    Deno.mkdirSync(folder, { recursive: true });
    return MINE.map((name) => {
      Deno.writeTextFileSync(join(folder, name), `of the user: ${name}`);
      return join(folder, name);
    });
  });
}

/** Lists what is wrong in the output of a subject in `run`. */
async function faults(subject: Subject, run: string, mine: readonly string[]): Promise<string[]> {
  const wrong: string[] = [];
  for (const path of mine) {
    try {
      if (Deno.readTextFileSync(path) !== `of the user: ${path.split("/").at(-1)}`) {
        wrong.push(`${path} was changed`);
      }
    } catch {
      wrong.push(`${path} is gone`);
    }
  }
  // The folder of a command that writes one file also holds the files of others.
  const at = (folder: string) => join(work, subject.file ? folder : outOf(subject, folder));
  const result = subject.file ? basename(outOf(subject, run)) : subject.results;
  const expected = await hashes(at("base"), result), found = await hashes(at(run), result);
  for (const name of new Set([...expected.keys(), ...found.keys()])) {
    if (!MINE.includes(basename(name)) && expected.get(name) !== found.get(name)) {
      wrong.push(`${name} differs`);
    }
  }
  for (const name of (await hashes(at(run), /\.tok-/)).keys()) {
    if (/\.tok-\d+-\d+\.tmp$|\.tok-lock$/.test(name)) wrong.push(`${name} was left`);
  }
  return wrong;
}

interface Row {
  events: number;
  /** Events after the command had ended. */
  early: number;
  slowest: number;
  failures: string[];
}
const table = new Map<string, Row>();

function record(
  kind: string,
  subject: Subject,
  outcome: { early?: boolean; seconds?: number; wrong: string[] },
): void {
  const key = `${kind.padEnd(8)} ${subject.name}`;
  const row = table.get(key) ?? { events: 0, early: 0, slowest: 0, failures: [] };
  row.events++;
  if (outcome.early) row.early++;
  row.slowest = Math.max(row.slowest, outcome.seconds ?? 0);
  row.failures.push(...outcome.wrong);
  table.set(key, row);
  const seconds = outcome.seconds === undefined ? "" : ` ${outcome.seconds.toFixed(2)} s`;
  console.log(
    `${key}${seconds}${outcome.early ? " (had ended)" : ""}${
      outcome.wrong.length ? ` WRONG: ${outcome.wrong}` : ""
    }`,
  );
}

/** Runs a subject to its end. @returns what is wrong */
async function finish(subject: Subject, run: string, mine: readonly string[]): Promise<string[]> {
  const { code, stderr } = await start(subject, run, { again: true }).ended;
  const wrong = code === 0 ? [] : [`it ended with ${code}: ${stderr.trim().split("\n").at(-1)}`];
  return [...wrong, ...await faults(subject, run, mine)];
}

async function fresh(name: string): Promise<string> {
  await Deno.remove(join(work, name), { recursive: true }).catch(() => {});
  await Deno.mkdir(join(work, name));
  return name;
}

const durations = new Map<Subject, number>();
const momentOf = (subject: Subject, slower = 1) =>
  1000 * slower * (durations.get(subject) as number) * (0.1 + 0.9 * random());
const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Kills with SIGKILL, sometimes repeatedly, then runs to the end. */
async function kill(subject: Subject): Promise<void> {
  const run = await fresh("run"), mine = plant(subject, run);
  let early = true; // the folder is not empty, so --resume is passed from the start
  for (let attempt = 0; attempt === 0 || random() < 0.3; attempt++) {
    const { child, ended } = start(subject, run, { again: true });
    const done = await Promise.race([ended, wait(momentOf(subject)).then(() => undefined)]);
    if (done) break;
    child.kill("SIGKILL");
    await ended;
    early = false;
  }
  record("kill -9", subject, { early, wrong: await finish(subject, run, mine) });
}

async function signal(subject: Subject, cold: boolean): Promise<void> {
  const run = await fresh("run"), mine = plant(subject, run);
  const [name, code] = random() < 0.5 ? ["SIGINT", 130] as const : ["SIGTERM", 143] as const;
  // Without the driver's cache kernels are compiled, which takes several times as long.
  const env = cold ? { MESA_SHADER_CACHE_DISABLE: "true" } : {};
  const { child, ended } = start(subject, run, { env, again: true });
  const early = await Promise.race([ended, wait(momentOf(subject, cold ? 4 : 1)).then(() => undefined)]);
  const began = performance.now(), wrong: string[] = [];
  if (!early) {
    try {
      child.kill(name);
    } catch {
      // The process has just ended.
    }
  }
  const result = await ended, seconds = early ? 0 : (performance.now() - began) / 1000;
  if (result.code !== code && result.code !== 0) {
    wrong.push(`${name} gave ${result.code}: ${result.stderr.trim()}`);
  }
  if (seconds > MAX_SECONDS) wrong.push(`${name} took effect after ${seconds.toFixed(1)} s`);
  if (/^\s+at /m.test(result.stderr)) wrong.push("a stack trace");
  wrong.push(...await finish(subject, run, mine));
  record(cold ? "cold" : "signal", subject, { early: result.code === 0, seconds, wrong });
}

/** Fills the file system (as root), or gives the command a full stdout. */
async function disk(subject: Subject): Promise<void> {
  const run = await fresh("run"), folder = join(work, run);
  const mount = async (...args: string[]) =>
    (await new Deno.Command("mount", { args, stderr: "null" }).output().catch(() => ({ code: 1 }))).code ===
      0;
  const kilobytes = Math.round(100 * 2 ** (9 * random()));
  const mounted = await mount("-t", "tmpfs", "-o", `size=${kilobytes}k`, "tmpfs", folder);
  const mine = plant(subject, run);
  try {
    const { code, stderr } = await start(subject, run, { full: !mounted, again: true }).ended;
    const errors = stderr.trim().split("\n").filter((line) => line.startsWith("tok: ")), wrong: string[] = [];
    const expected = mounted ? [0, 2] : [1];
    if (!expected.includes(code)) wrong.push(`it ended with ${code}: ${stderr}`);
    if (errors.length !== (code === 0 ? 0 : 1)) wrong.push(`${errors.length} lines say why: ${stderr}`);
    if (/^\s+at /m.test(stderr)) wrong.push("a stack trace");
    if (mounted) await mount("-o", "remount,size=512m", folder);
    wrong.push(...await finish(subject, run, mine));
    record(mounted ? "disk" : "stdout", subject, { early: code === 0, wrong });
  } finally {
    if (mounted) await new Deno.Command("umount", { args: ["-l", folder] }).output();
  }
}

try {
  const shapes = new Shapes(40, 3);
  for (let i = 0; i < shapes.length; i++) {
    const data = shapes.bytes(i, 32);
    await Deno.mkdir(join(work, "data"), { recursive: true });
    await writePng(join(work, "data", `${i}.png`), { width: 32, height: 32, data });
  }
  await Deno.mkdir(join(work, "base"));
  const tensors = Array.from({ length: 8 }, (_, i) => {
    return { name: `t${i}`, shape: [1 << 22], data: new Float32Array(1 << 22).fill(i) };
  });
  await writeSafetensors(join(work, "base/large.safetensors"), tensors);
  const only = typeof options.only === "string" ? options.only.split(",") : undefined;
  const subjects = SUBJECTS.filter(({ name }) => !only || only.includes(name));
  // All subjects, since later ones use the outputs of earlier ones. The second run has warm caches.
  for (const subject of SUBJECTS) {
    for (const run of [await fresh("timed"), "base"]) {
      const { code, stderr, seconds } = await start(subject, run).ended;
      if (code !== 0) throw new Error(`${subject.name} ended with ${code}: ${stderr}`);
      durations.set(subject, seconds);
    }
    const wrong = await faults(subject, "timed", []);
    if (wrong.length) throw new Error(`${subject.name} gives other results when it is run twice: ${wrong}`);
    console.log(`${subject.name}: ${(durations.get(subject) as number).toFixed(1)} s undisturbed`);
  }
  const subjectOf = (n: number) => subjects[n % subjects.length] as Subject;
  for (let n = 0; n < Number(options.kills); n++) await kill(subjectOf(n));
  for (let n = 0; n < Number(options.signals); n++) await signal(subjectOf(n), n % 4 === 3);
  for (let n = 0; n < Number(options.disks); n++) await disk(subjectOf(n));
} finally {
  await Deno.remove(work, { recursive: true });
}

let failures = 0;
console.log("\nwhat      command              times  had ended  slowest  failures");
for (const [key, { events, early, slowest, failures: own }] of [...table].sort()) {
  failures += own.length;
  console.log(
    `${key.padEnd(30)} ${`${events}`.padStart(5)} ${`${early}`.padStart(10)} ` +
      `${`${slowest.toFixed(2)} s`.padStart(8)} ${`${own.length}`.padStart(9)}`,
  );
  for (const failure of own) console.log(`    ${failure}`);
}
Deno.exit(failures ? 1 : 0);
