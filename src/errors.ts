// The three error classes of tok. A boundary throws one of them with a message of the form
// "Cannot <action>: <reason with values>; <remedy>"; main.ts turns the class into an exit code.

/** The caller's mistake or bad input. Ends the program with exit code 2 and its message alone. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** An operation was given tensors whose shapes do not fit together. Names the operation and the shapes. */
export class ShapeError extends Error {
  override name = "ShapeError";
}

/** The adapter, the driver or a kernel failed: compile error, validation, out of memory, device lost. */
export class GpuError extends Error {
  override name = "GpuError";
}
