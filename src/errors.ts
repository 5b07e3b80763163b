// The three error classes of tok. A boundary throws one of them with a message of the form
// "Cannot <action>: <reason with values>; <remedy>"; tasks/run.ts turns the class into an exit code. A fourth class is no
// error: the user asked to stop.

const MAX_VALUE_LENGTH = 2000;

/** Text that files bring along, fit for one line of a terminal: control characters are spelled out. */
export function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Zl}\p{Zp}]/gu,
    (c) => c === "\n" ? "\\n" : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** The caller's mistake or bad input. Ends the program with exit code 2 and its message alone, which is one line. */
export class UsageError extends Error {
  override name = "UsageError";

  constructor(message: string, options?: ErrorOptions) {
    super(
      printable(message.length > MAX_VALUE_LENGTH ? `${message.slice(0, MAX_VALUE_LENGTH)}...` : message),
      options,
    );
  }
}

/** An operation was given tensors whose shapes do not fit together. Names the operation and the shapes. */
export class ShapeError extends Error {
  override name = "ShapeError";
}

/** The adapter, the driver or a kernel failed: compile error, validation, out of memory, device lost. */
export class GpuError extends Error {
  override name = "GpuError";
}

/** Ctrl-C or SIGTERM came, and the command stops where it is: what was written is complete, the rest is not there. */
export class Interrupted extends Error {
  override name = "Interrupted";

  constructor() {
    super("stopped");
  }
}
