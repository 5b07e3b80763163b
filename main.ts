// The tok executable: listens to signals and exits; the command itself runs on a thread of its own (tasks/thread.ts), which
// may be blocked for minutes while a driver compiles or computes. Without this thread nobody could stop it. The only file
// that reads the command line and exits.

import { GRACE, isHeld, requestStop, sharedState, stopRequested } from "./src/interruption.ts";
import { Log } from "./src/run/log.ts";

/** Milliseconds between looks at a command that was asked to stop. */
const LOOK = 50;

const json = Deno.args.includes("--json");
const log = new Log({ json, shared: true });

/**
 * Ends the process while the command may still be inside the driver. Deno.exit() runs the destructors of all libraries, and
 * LLVM aborts the process (exit code 134) where its other threads compile at that moment; _exit() runs none.
 */
function exitAtOnce(code: number): never {
  const libc = { linux: "libc.so.6", darwin: "libSystem.dylib" }[Deno.build.os as string];
  try {
    if (libc) Deno.dlopen(libc, { _exit: { parameters: ["i32"], result: "void" } }).symbols._exit(code);
  } catch {
    // No such library, or no permission.
  }
  Deno.exit(code);
}

/** Ends the process for a command that does not stop by itself. Files are complete or absent at any moment. */
function endSoon(code: number): void {
  let since = performance.now(), told = false;
  setInterval(() => {
    const now = performance.now();
    if (isHeld()) {
      if (!told && now - since > GRACE) {
        told = true;
        log.line("still finishing the step under way and saving; once more stops at once and loses it");
      }
      if (told) since = now;
    } else if (now - since > GRACE) {
      log.line("stopped in the middle of a batch");
      log.event("done", { interrupted: true });
      exitAtOnce(code);
    }
  }, LOOK);
}

const stop = (code: number) => () => {
  if (stopRequested()) exitAtOnce(stopRequested());
  requestStop(code);
  log.line("stopping: what is done is saved first; once more stops at once");
  endSoon(code);
};
Deno.addSignalListener("SIGINT", stop(130));
if (Deno.build.os !== "windows") Deno.addSignalListener("SIGTERM", stop(143));

const thread = new Worker(new URL("./tasks/thread.ts", import.meta.url), { type: "module" });
thread.onmessage = ({ data }: MessageEvent<number>) => Deno.exit(data);
thread.onerror = (event) => {
  event.preventDefault();
  log.line(`tok: ${event.message.replace(/^Uncaught /, "").split("\n")[0]}`);
  Deno.exit(1);
};
thread.postMessage({ args: Deno.args, state: sharedState() });
