// Output locations: a folder or a file that only this process may write to until it is released. Opening one reports at once
// that another process writes there or that it is not writable. The lock is the operating system's and ends with the process;
// its file is removed while the lock is held.

import { basename, dirname, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { endIf } from "../interruption.ts";
import { exists, explained, makeFolder, removeLeftovers } from "../formats/files.ts";

/** Name of the lock in a folder. */
const LOCK = ".tok-lock";

/** A locked output location. */
export class Output implements Disposable {
  readonly #condition: Disposable;
  readonly #cleaned = new Set<string>();
  #released = false;

  private constructor(
    /** The folder, or the parent folder of the file. */
    readonly folder: string,
    private readonly lock: string,
    private readonly file: Deno.FsFile,
    /** Folders created for it, outermost first. */
    private readonly made: readonly string[],
  ) {
    this.#condition = endIf(() => this.check());
  }

  /**
   * Creates a folder if necessary, locks it, and removes temporary files of interrupted writes directly in it.
   * @throws UsageError if another process writes to it or it is not writable
   */
  static folder(folder: string): Output {
    const output = Output.#open(folder, folder, join(folder, LOCK));
    output.sub("");
    return output;
  }

  /** Locks one file, in a folder with any contents. */
  static file(path: string): Output {
    if (exists(path) && Deno.statSync(path).isDirectory) {
      throw new UsageError(`Cannot write "${path}": it is a folder and not a file; choose another name`);
    }
    const output = Output.#open(path, dirname(path), join(dirname(path), `.${basename(path)}${LOCK}`));
    removeLeftovers(dirname(path), basename(path));
    return output;
  }

  /** Locks the first free "NAME-001" in a folder; two processes never get the same one. */
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
    // The previous owner may remove the lock or the empty folder between two calls.
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
          // Already closed.
        }
        if (error instanceof Deno.errors.NotFound && tries < 100) continue;
        for (const path of made.reverse()) removeIfEmpty(path);
        throw explained(error, "write to", what);
      }
    }
  }

  /** Creates a subfolder if necessary and removes temporary files of interrupted writes. @returns its path */
  sub(name: string): string {
    const folder = join(this.folder, name);
    if (this.#cleaned.has(folder)) return folder;
    makeFolder(folder);
    removeLeftovers(folder);
    this.#cleaned.add(folder);
    return folder;
  }

  /** @throws UsageError if the location was removed: writes would be lost, or mixed with another run's */
  check(): void {
    if (this.#released || isSame(this.file, this.lock)) return;
    throw new UsageError(
      `Cannot go on: "${this.folder}" or the lock in it was deleted or moved while tok was writing there; ` +
        `start the command again`,
    );
  }

  /** Releases the lock and removes the empty folders created for it. */
  release(): void {
    if (this.#released) return;
    const ours = isSame(this.file, this.lock);
    this.#released = true;
    this.#condition[Symbol.dispose]();
    // Removed while the lock is held: a process that has opened the file sees that the path no longer leads to it.
    if (ours && Deno.build.os !== "windows") Deno.removeSync(this.lock);
    this.file.close();
    if (ours) { for (const path of [...this.made].reverse()) removeIfEmpty(path); }
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/** Creates a folder and its parents. @returns the created ones, outermost first */
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
    // Not empty, or already removed.
  }
}

/** Whether `path` leads to the open file. */
function isSame(file: Deno.FsFile, path: string): boolean {
  try {
    const a = file.statSync(), b = Deno.lstatSync(path);
    return a.ino === b.ino && a.dev === b.dev;
  } catch {
    return false;
  }
}

/** Error codes of file systems without locks, such as some network file systems. */
const LOCKLESS = new Set(["ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"]);

function tryLock(file: Deno.FsFile): boolean {
  try {
    return file.tryLockSync(true);
  } catch (error) {
    if (LOCKLESS.has((error as { code?: string }).code ?? "")) return true;
    throw error;
  }
}
