// Error classes. Messages have the form "Cannot <action>: <reason with values>; <remedy>"; tasks/run.ts maps the class to
// an exit code. Interrupted is not an error: the user asked to stop.

const MAX_LENGTH = 2000;

/** Escapes control characters, so that text from a file fits on one line of a terminal. */
export function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Zl}\p{Zp}]/gu,
    (c) => c === "\n" ? "\\n" : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Wrong usage or bad input. Ends the program with exit code 2 and this one-line message. */
export class UsageError extends Error {
  override name = "UsageError";

  /** @param options.maxLength characters after which the message is cut (2,000) */
  constructor(message: string, options: ErrorOptions & { maxLength?: number } = {}) {
    const { maxLength = MAX_LENGTH } = options;
    super(printable(message.length > maxLength ? `${message.slice(0, maxLength)}...` : message), options);
  }
}

/** A result that holds NaN or an infinity: a picture, features, a score. */
export class NotFiniteError extends UsageError {
  override name = "NotFiniteError";
}

/** Tensor shapes that an op does not accept. The message names the op and the shapes. */
export class ShapeError extends Error {
  override name = "ShapeError";
}

/** The adapter, the driver or a kernel failed: compile error, validation, out of memory, device lost. */
export class GpuError extends Error {
  override name = "GpuError";
}

/** The device's memory is too small for an allocation; what was allocated before is still valid. */
export class OutOfMemoryError extends GpuError {
  override name = "OutOfMemoryError";
}

/** The command stops after Ctrl-C or SIGTERM. Files are complete or absent. */
export class Interrupted extends Error {
  override name = "Interrupted";

  constructor() {
    super("stopped");
  }
}
