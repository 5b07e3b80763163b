// The thread on which a command runs: gets the command line and the state of interruption, gives the exit code.

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
