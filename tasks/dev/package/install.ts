// Moves an unpacked tok into place; run by the packed file's header: PART FOLDER DIGEST. Files are synced before the stamp is
// written, and the stamp before the folder is renamed, so a crash leaves a complete folder or none. With several concurrent
// starts the first one installs.

const [part = "", home = "", digest = ""] = Deno.args;
const tree = `${part}/tok`, stamp = ".complete";

function sync(path: string): void {
  using file = Deno.openSync(path);
  file.syncSync();
}

function syncTree(folder: string): void {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (isDirectory) syncTree(`${folder}/${name}`);
    else sync(`${folder}/${name}`);
  }
  sync(folder);
}

/** Time of installation in milliseconds; 0 if not installed. */
function installed(folder: string): number {
  try {
    return Deno.statSync(`${folder}/${stamp}`).mtime?.getTime() ?? 0;
  } catch {
    return 0;
  }
}

using lock = Deno.openSync(`${home}.lock`, { write: true, create: true });
lock.lockSync(true);
if (installed(home) <= (Deno.statSync(part).mtime?.getTime() ?? 0)) {
  syncTree(tree);
  Deno.writeTextFileSync(`${tree}/${stamp}`, digest);
  sync(`${tree}/${stamp}`);
  sync(tree);
  try {
    Deno.renameSync(home, `${part}/damaged`);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  Deno.renameSync(tree, home);
  sync(home.slice(0, home.lastIndexOf("/")));
}
