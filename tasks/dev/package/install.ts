// Gives an unpacked tok its place, run by the packed file's header: PART FOLDER DIGEST. Everything is on the disk before the
// stamp is written, and the stamp before the folder gets its name, so a crash leaves a complete folder or none. Of several
// starts at the same time the first one installs, the others find that it is done.

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

/** When a folder was installed, as milliseconds; 0 where it was not. */
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
