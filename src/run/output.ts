// Where a command writes: a folder, or one file, that this process alone may write to until it is done. Opening it says at
// once what would otherwise be found out at the end: that another process is at work there, or that nothing can be written.
// The lock is the operating system's, so it ends with its process, however that ends; its file is removed while it is held.

import { basename, dirname, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { endIf } from "../interruption.ts";
import { exists, explained, makeFolder, removeLeftovers } from "../formats/files.ts";

/** Name of the lock in a folder. */
const LOCK = ".tok-lock";

/** A place that is ours until release(). */
export class Output implements Disposable {
  readonly #condition: Disposable;
  readonly #cleaned = new Set<string>();
  #released = false;

  private constructor(
    /** The folder, or the one in which the file is. */
    readonly folder: string,
    private readonly lock: string,
    private readonly file: Deno.FsFile,
    /** Folders that were made for it, outermost first. */
    private readonly made: readonly string[],
  ) {
    this.#condition = endIf(() => this.check());
  }

  /**
   * Makes a folder if need be, locks it, and removes what interrupted writes left directly in it.
   * @throws UsageError when another process writes to it, or it cannot be written
   */
  static folder(folder: string): Output {
    const output = Output.#open(folder, folder, join(folder, LOCK));
    output.sub("");
    return output;
  }

  /** The same for one file in a folder that may hold anything. */
  static file(path: string): Output {
    if (exists(path) && Deno.statSync(path).isDirectory) {
      throw new UsageError(`Cannot write "${path}": it is a folder and not a file; choose another name`);
    }
    const output = Output.#open(path, dirname(path), join(dirname(path), `.${basename(path)}${LOCK}`));
    removeLeftovers(dirname(path), basename(path));
    return output;
  }

  /** The first free "NAME-001" in a folder; two processes never get the same. */
  static numbered(parent: string, name: string): Output {
    const above = makeFolders(parent);
    for (let n = 1;; n++) {
      const folder = join(parent, `${name}-${String(n).padStart(3, "0")}`);
      try {
        Deno.mkdirSync(folder);
      } catch (error) {
        if (error instanceof Deno.errors.AlreadyExists) continue;
        throw explained(error, "make the folder", folder);
      }
      return Output.#open(folder, folder, join(folder, LOCK), [...above, folder]);
    }
  }

  static #open(what: string, folder: string, lock: string, before: readonly string[] = []): Output {
    const made = [...before];
    // The owner before us may remove the lock, or the empty folder, between one call and the next.
    for (let tries = 0;; tries++) {
      made.push(...makeFolders(folder));
      let file: Deno.FsFile | undefined;
      try {
        file = Deno.openSync(lock, { read: true, write: true, create: true });
        const free = tryLock(file);
        if (free && isSame(file, lock)) {
          file.truncateSync();
          file.writeSync(new TextEncoder().encode(`${Deno.pid}\n`));
          return new Output(folder, lock, file, made);
        }
        const owner = new TextDecoder().decode(Deno.readFileSync(lock)).trim();
        file.close();
        if (!free) {
          throw new UsageError(
            `Cannot write to "${what}": process ${
              owner || "?"
            } is writing to it; wait for it or choose another --out`,
          );
        }
      } catch (error) {
        if (error instanceof UsageError) throw error;
        try {
          file?.close();
        } catch {
          // It is closed already.
        }
        if (error instanceof Deno.errors.NotFound && tries < 100) continue;
        for (const path of made.reverse()) removeIfEmpty(path);
        throw explained(error, "write to", what);
      }
    }
  }

  /** A folder below this one, made if need be, without what interrupted writes left in it. @returns its path */
  sub(name: string): string {
    const folder = join(this.folder, name);
    if (this.#cleaned.has(folder)) return folder;
    makeFolder(folder);
    removeLeftovers(folder);
    this.#cleaned.add(folder);
    return folder;
  }

  /** @throws UsageError when the place is gone: what is written now would be lost, or mixed with another run's */
  check(): void {
    if (this.#released || isSame(this.file, this.lock)) return;
    throw new UsageError(
      `Cannot go on: "${this.folder}" or the lock in it was deleted or moved while tok was writing there; ` +
        `start the command again`,
    );
  }

  /** Lets others in. Folders that were made for it and are empty are removed. */
  release(): void {
    if (this.#released) return;
    const ours = isSame(this.file, this.lock);
    this.#released = true;
    this.#condition[Symbol.dispose]();
    // While the lock is held: whoever has opened the file meanwhile finds that it is no longer the one at this path.
    if (ours && Deno.build.os !== "windows") Deno.removeSync(this.lock);
    this.file.close();
    if (ours) { for (const path of [...this.made].reverse()) removeIfEmpty(path); }
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/** Makes a folder and its parents. @returns those that were made, outermost first */
function makeFolders(folder: string): string[] {
  const missing: string[] = [];
  for (let at = folder; !exists(at) && dirname(at) !== at; at = dirname(at)) missing.unshift(at);
  makeFolder(folder);
  return missing;
}

function removeIfEmpty(folder: string): void {
  try {
    Deno.removeSync(folder);
  } catch {
    // It holds something, or is gone.
  }
}

/** Whether the open file is the one at `path`. */
function isSame(file: Deno.FsFile, path: string): boolean {
  try {
    const a = file.statSync(), b = Deno.lstatSync(path);
    return a.ino === b.ino && a.dev === b.dev;
  } catch {
    return false;
  }
}

/** Codes of file systems that have no locks, such as some network file systems: there two processes cannot be told apart. */
const LOCKLESS = new Set(["ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"]);

function tryLock(file: Deno.FsFile): boolean {
  try {
    return file.tryLockSync(true);
  } catch (error) {
    if (LOCKLESS.has((error as { code?: string }).code ?? "")) return true;
    throw error;
  }
}
