// Lists the image files below a folder, unordered, and what was left out and why. Each real folder is read once, whatever links
// lead to it; real folders come before links, so that files are named by their real location.

import { extname, join } from "@std/path";
import { UsageError } from "../errors.ts";
import { Growing, TextList, type Texts } from "./entries.ts";
import { explained } from "../formats/files.ts";
import { LeftOut } from "./left_out.ts";

/** Extensions of image files; the format is detected from the contents. */
export const EXTENSIONS = new Set(
  [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"],
);

export interface Search {
  /** Paths of the images relative to the folder, with "/". */
  names: Texts;
  /** Their sizes, bytes. */
  sizes: Float64Array<ArrayBuffer>;
  /** Folders that were read, relative to the folder, and the times of their last change. */
  read: { names: Texts; times: Float64Array<ArrayBuffer> };
  /** Folders of the first level, links included, hidden ones not. */
  folders: string[];
  leftOut: LeftOut;
}

/** @throws UsageError for a folder that cannot be listed or whose name is not UTF-8 */
export function searchImages(root: string): Search {
  const names = new TextList(), sizes = new Growing((n) => new Float64Array(n)), folders: string[] = [];
  const readNames = new TextList(), times = new Growing((n) => new Float64Array(n)), leftOut = new LeftOut();
  const seen = new Set<string>(), links: { path: string; name: string }[] = [];
  const read = (folder: string, parent: string) => {
    let real: string, inside: Deno.DirEntry[];
    try {
      real = Deno.realPathSync(folder);
      readNames.add(parent);
      times.push(Deno.statSync(folder).mtime?.getTime() ?? 0); // before its names are read
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
      else {
        names.add(name);
        sizes.push(info.size);
      }
    }
  };
  read(root, "");
  for (let link = links.shift(); link; link = links.shift()) read(link.path, link.name);
  const folderTimes = { names: readNames.texts(), times: times.array() };
  return { names: names.texts(), sizes: sizes.array(), read: folderTimes, folders, leftOut };
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
