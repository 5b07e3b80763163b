// Lists the image files below a folder, unordered, and what was left out and why. Each real folder is read once, whatever links
// lead to it; real folders come before links, so that files are named by their real location.

import { extname, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { explained } from "../formats/files.ts";

/** Extensions of image files; the format is detected from the contents. */
const EXTENSIONS = new Set(
  [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"],
);

/** A file; `name` is its path relative to the folder, with "/". */
export interface Found {
  readonly name: string;
  readonly path: string;
  readonly size: number;
}

/** Reasons for leaving out files; other extensions stand for themselves. */
const REASONS = {
  hidden: ["hidden image", "hidden images"],
  dead: ["link to nothing", "links to nothing"],
  special: ["pipe, socket or device", "pipes, sockets or devices"],
  linked: ["link to a folder that is read already", "links to folders that are read already"],
  encoding: ["file whose name is not UTF-8 (rename it)", "files whose names are not UTF-8 (rename them)"],
  overview: ["overview that tok made", "overviews that tok made"],
} as const;

const NAMED = 3;

/** Files left out of a set, by reason. */
export class LeftOut {
  readonly #names = new Map<string, string[]>();

  add(reason: keyof typeof REASONS | `.${string}` | "", name: string): void {
    const names = this.#names.get(reason);
    if (names) names.push(name);
    else this.#names.set(reason, [name]);
  }

  /** All names. */
  get names(): string[] {
    return [...this.#names.values()].flat();
  }

  /** Names below a folder, or the folder itself. */
  within(folder: string): LeftOut {
    const part = new LeftOut();
    for (const [reason, names] of this.#names) {
      const inside = names.filter((name) => name === folder || name.startsWith(`${folder}/`));
      if (inside.length > 0) part.#names.set(reason, inside);
    }
    return part;
  }

  /** "3 .heic files (a/0.heic, a/1.heic, a/2.heic), 1 link to nothing (b.png)"; empty without any. */
  toString(): string {
    const groups = [...this.#names].sort(([a, x], [b, y]) => y.length - x.length || (a < b ? -1 : 1));
    return groups.map(([reason, names]) => {
      const [one, many] = REASONS[reason as keyof typeof REASONS] ??
        (reason
          ? [`${reason} file`, `${reason} files`]
          : ["file without an extension", "files without an extension"]);
      names.sort();
      const first = names.slice(0, NAMED).join(", "), more = names.length > NAMED ? ", ..." : "";
      return `${names.length} ${names.length === 1 ? one : many} (${first}${more})`;
    }).join(", ");
  }
}

export interface Search {
  files: Found[];
  /** Folders of the first level, links included, hidden ones not. */
  folders: string[];
  leftOut: LeftOut;
}

/** @throws UsageError for a folder that cannot be listed or whose name is not UTF-8 */
export function searchImages(root: string): Search {
  const files: Found[] = [], folders: string[] = [], leftOut = new LeftOut();
  const seen = new Set<string>(), links: { path: string; name: string }[] = [];
  const read = (folder: string, parent: string) => {
    let real: string, inside: Deno.DirEntry[];
    try {
      real = Deno.realPathSync(folder);
      inside = seen.has(real) ? [] : [...Deno.readDirSync(folder)];
    } catch (error) {
      throw explained(error, "list the folder", folder);
    }
    if (seen.has(real)) return leftOut.add("linked", parent);
    seen.add(real);
    inside.sort((a, b) => a.name < b.name ? -1 : 1);
    for (const { name: last, isSymlink, isDirectory } of inside) {
      const name = parent ? `${parent}/${last}` : last, path = join(folder, last);
      const extension = extname(last).toLowerCase(), isImage = EXTENSIONS.has(extension);
      if (last.startsWith(".")) {
        if (isImage && !isDirectory) leftOut.add("hidden", name);
        continue;
      }
      const info = infoOf(path);
      if (!info) {
        // The runtime replaces bytes that are not UTF-8 by U+FFFD and then cannot find the file.
        if (isDirectory) throw unnameable(root, name);
        leftOut.add(last.includes("\ufffd") && !isSymlink ? "encoding" : "dead", name);
      } else if (info.isDirectory) {
        if (parent === "") folders.push(name);
        if (isSymlink) links.push({ path, name });
        else read(path, name);
      } else if (!isImage) leftOut.add(extension as `.${string}`, name);
      else if (!info.isFile) leftOut.add("special", name);
      else files.push({ name, path, size: info.size });
    }
  };
  read(root, "");
  for (let link = links.shift(); link; link = links.shift()) read(link.path, link.name);
  return { files, folders, leftOut };
}

/** Undefined if nothing is found. */
function infoOf(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.statSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || (error as { code?: string }).code === "ELOOP") {
      return undefined;
    }
    throw explained(error, "read", path);
  }
}

function unnameable(root: string, name: string): UsageError {
  return new UsageError(
    `Cannot use "${root}": the name of the folder "${name}" is not UTF-8, so that it cannot be opened; rename it`,
  );
}
