// The thread that a command runs on: receives the command line and the shared interruption state, posts the exit code.

import { connect } from "../src/interruption.ts";
import { run } from "./run.ts";

const thread = self as unknown as {
  onmessage: ((event: MessageEvent<{ args: string[]; state: SharedArrayBuffer }>) => void) | null;
  postMessage(code: number): void;
};
thread.onmessage = async ({ data: { args, state } }) => {
  connect(state);
  thread.postMessage(await run(args));
};
