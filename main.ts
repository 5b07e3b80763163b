// The tok executable: handles signals and exits. The command runs on its own thread (tasks/thread.ts), which may be blocked
// for minutes while a driver compiles or computes. Only this file reads the command line and exits.

import { GRACE, isHeld, requestStop, sharedState, stopRequested } from "./src/interruption.ts";
import { Log } from "./src/run/log.ts";

/** Milliseconds between checks of a command that was asked to stop. */
const POLL = 50;

const json = Deno.args.includes("--json");
const log = new Log({ json, shared: true });

/**
 * Ends the process without the destructors of libraries, which Deno.exit() runs: LLVM aborts in them (exit code 134) if another
 * thread is compiling, and NVIDIA's driver ended two of a hundred finished commands with a segmentation fault (139).
 */
function exitAtOnce(code: number): never {
  const libc = { linux: "libc.so.6", darwin: "libSystem.dylib" }[Deno.build.os as string];
  try {
    if (libc) Deno.dlopen(libc, { _exit: { parameters: ["i32"], result: "void" } }).symbols._exit(code);
  } catch {
    // Not on this system, or not permitted.
  }
  Deno.exit(code);
}

/** Ends the process if the command does not stop by itself. Files are complete or absent at any moment. */
function endSoon(code: number): void {
  let since = performance.now(), warned = false;
  setInterval(() => {
    const now = performance.now();
    if (isHeld()) {
      if (!warned && now - since > GRACE) {
        warned = true;
        log.line("finishing the current step and saving it; signal again to stop at once and lose it");
      }
      if (warned) since = now;
    } else if (now - since > GRACE) {
      log.line("stopped in the middle of a batch");
      log.event("done", { interrupted: true });
      exitAtOnce(code);
    }
  }, POLL);
}

const stop = (code: number) => () => {
  if (stopRequested()) exitAtOnce(stopRequested());
  requestStop(code);
  log.line("stopping after saving; signal again to stop at once");
  endSoon(code);
};
Deno.addSignalListener("SIGINT", stop(130));
if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", stop(143));

const thread = new Worker(new URL("./tasks/thread.ts", import.meta.url), { type: "module" });
thread.onmessage = ({ data }: MessageEvent<number>) => exitAtOnce(data);
thread.onerror = (event) => {
  event.preventDefault();
  log.line(`tok: ${event.message.replace(/^Uncaught /, "").split("\n")[0]}`);
  exitAtOnce(1);
};
thread.postMessage({ args: Deno.args, state: sharedState() });
