// WebDataset shards: tar archives in which the members of a sample have a common name up to the first dot and lie together.
// The image is the member with an image's extension, its class the .cls member (a number or a name) or "label" or "cls" of the
// .json member; without any of them, the first folder of the member's name, as for folders of images.
// https://github.com/webdataset/webdataset

import { createHash } from "node:crypto";
import { resolve } from "@std/path";
import { UsageError } from "../errors.ts";
import { readIndex, stampOf, writeIndex } from "../formats/cache.ts";
import { MAX_BYTES } from "../formats/files.ts";
import { fingerprintOf } from "../formats/provenance.ts";
import { TarFile, type TarMember } from "../formats/tar.ts";
import {
  below,
  type Entries,
  Growing,
  type ImageSet,
  isLabel,
  joined,
  LabelList,
  type Labels,
  MIN_TO_REMEMBER,
  TextList,
  Texts,
  united,
} from "./entries.ts";
import { EXTENSIONS } from "./find_images.ts";
import { classOf } from "./image_folder.ts";
import { LeftOut, type LeftOutJson } from "./left_out.ts";

/** Maximum size of a .cls member, bytes. */
const MAX_LABEL = 1024;

/** Images of a shard. */
interface Shard {
  names: Texts;
  offsets: Float64Array<ArrayBuffer>;
  sizes: Float64Array<ArrayBuffer>;
  labels: Labels;
  /** Whether the labels are those of the samples, not folders. */
  labelled: boolean;
  leftOut: LeftOut;
  fingerprint: string;
}

/** A shard as it is remembered. */
interface Facts {
  classes: readonly string[] | null;
  labelled: boolean;
  leftOut: LeftOutJson;
  fingerprint: string;
}
interface Arrays {
  names: Uint8Array;
  ends: Float64Array;
  offsets: Float64Array<ArrayBuffer>;
  sizes: Float64Array<ArrayBuffer>;
  values: Uint32Array<ArrayBuffer>;
}

/**
 * @param paths archives, in order
 * @param names of the archives, below which their images are called
 * @throws UsageError for a truncated or damaged archive, and if only some samples have a class
 */
export async function tarSet(
  root: string,
  paths: readonly string[],
  names: readonly string[],
  cache?: string,
): Promise<ImageSet> {
  const leftOut = new LeftOut(), shards: Shard[] = [];
  for (const path of paths) shards.push(await openShard(path, cache));
  const filled = shards.flatMap((shard, k) => shard.names.length ? [{ shard, k }] : []);
  const labelled = filled.find(({ shard }) => shard.labelled),
    bare = filled.find(({ shard }) => !shard.labelled);
  if (labelled && bare) throw unlabelled(root, paths[bare.k] as string, paths[labelled.k] as string);
  const { classes, values } = united(
    root,
    filled.map(({ shard, k }) => ({ name: paths[k] as string, labels: shard.labels })),
  );
  const entries = filled.map(({ shard, k }, i): Entries => {
    const path = paths[k] as string, below = paths.length > 1 ? `${names[k]}/` : "", labels = values[i];
    return {
      length: shard.names.length,
      name: (i) => below + shard.names.at(i),
      file: (i) => ({
        path,
        name: `${path}/${shard.names.at(i)}`,
        offset: shard.offsets[i] as number,
        size: shard.sizes[i] as number,
      }),
      label: (i) => labels?.[i] ?? 0,
    };
  });
  shards.forEach((shard, k) => leftOut.addAll(shard.leftOut, paths.length > 1 ? `${names[k]}/` : ""));
  if (entries.length === 0) {
    throw new UsageError(
      `Cannot use "${root}": there is no image in it${
        leftOut.names.length ? `, but ${leftOut}` : ""
      }; choose other shards`,
    );
  }
  return {
    entries: joined(entries),
    classes: classes.length === 1 && classes[0] === "." ? [] : classes,
    leftOut,
    fingerprint: () => fingerprintOf(...shards.map((shard, k) => `${names[k]} ${shard.fingerprint}`)),
  };
}

async function openShard(path: string, cache: string | undefined): Promise<Shard> {
  let stamp: string;
  try {
    stamp = stampOf(path);
  } catch {
    stamp = ""; // reported when it is read
  }
  const source = resolve(path), index = await readIndex<Facts, Arrays>(source, stamp, cache);
  if (index) {
    const { facts: { classes, leftOut, ...facts }, arrays: { names, ends, offsets, sizes, values } } = index;
    const labels = { values, names: classes ?? undefined };
    return { ...facts, names: new Texts(names, ends), offsets, sizes, labels, leftOut: LeftOut.of(leftOut) };
  }
  const shard = readShard(path), { names, offsets, sizes, labels, labelled, leftOut, fingerprint } = shard;
  const arrays = { names: names.bytes, ends: names.ends, offsets, sizes, values: labels.values };
  const facts = { classes: labels.names ?? null, labelled, leftOut, fingerprint };
  if (names.length >= MIN_TO_REMEMBER.shard || cache !== undefined) {
    await writeIndex(source, stamp, { facts, arrays }, cache);
  }
  return shard;
}

/** A sample while its members are read. */
interface Sample {
  key: string;
  image?: TarMember;
  label?: string;
  /** From its .json member; .cls goes first. */
  other?: string;
}

function readShard(path: string): Shard {
  using tar = new TarFile(path);
  const names = new TextList(), offsets = new Growing((n) => new Float64Array(n));
  const sizes = new Growing((n) => new Float64Array(n)), labels = new LabelList(), folders = new LabelList();
  const leftOut = new LeftOut(), hash = createHash("sha256");
  let sample: Sample = { key: "" }, labelled: string | undefined, bare: string | undefined;
  const finish = () => {
    const { image, label = sample.other } = sample;
    if (!image) return;
    const name = below(image.name);
    names.add(name);
    offsets.push(image.offset);
    sizes.push(image.size);
    folders.push(classOf(name));
    if (label !== undefined) labels.push(label);
    if (label !== undefined) labelled ??= name;
    else bare ??= name;
    if (labelled !== undefined && bare !== undefined) throw unlabelled(path, bare, labelled);
    hash.update(`${name}\0${image.size}\0${label ?? ""}\n`);
  };
  const text = ({ offset, size }: TarMember) => new TextDecoder().decode(tar.read(offset, size)).trim();
  for (const member of tar.members()) {
    const name = below(member.name), slash = name.lastIndexOf("/") + 1, dot = name.indexOf(".", slash);
    const key = dot < 0 ? name : name.slice(0, dot), extension = dot < 0 ? "" : name.slice(dot).toLowerCase();
    if (dot === slash) {
      if (EXTENSIONS.has(extension.slice(extension.lastIndexOf(".")))) leftOut.add("hidden", name);
      continue;
    }
    if (key !== sample.key) {
      finish();
      sample = { key };
    }
    const checked = (label: string) => {
      if (isLabel(label)) return label;
      const shown = JSON.stringify(label.slice(0, 40));
      throw new UsageError(
        `Cannot use "${path}": "${name}" has the class ${shown}; use a name, or a number from 0 to 999999`,
      );
    };
    if (EXTENSIONS.has(extension) && !sample.image) sample.image = member;
    else if (extension === ".cls") sample.label = checked(member.size > MAX_LABEL ? "" : text(member));
    else if (extension === ".json") {
      const label = jsonLabel(path, name, member.size > MAX_BYTES.json ? "" : text(member));
      if (label !== undefined) sample.other = checked(label);
    } else leftOut.add(extension as `.${string}`, name);
  }
  finish();
  return {
    names: names.texts(),
    offsets: offsets.array(),
    sizes: sizes.array(),
    labels: labelled === undefined ? folders.named() : labels.labels(),
    labelled: labelled !== undefined,
    leftOut,
    fingerprint: hash.digest("hex").slice(0, 16),
  };
}

/** "label" or "cls" of a sample's description; undefined: it has neither. */
function jsonLabel(path: string, name: string, text: string): string | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new UsageError(`Cannot use "${path}": "${name}" is not JSON; pack the shard again`);
  }
  const { label, cls } = (typeof value === "object" && value !== null ? value : {}) as Record<
    string,
    unknown
  >;
  const found = label ?? cls;
  return typeof found === "number" || typeof found === "string" ? `${found}` : undefined;
}

function unlabelled(root: string, bare: string, labelled: string): UsageError {
  return new UsageError(
    `Cannot use "${root}": "${bare}" has no class, and "${labelled}" has one; give every image a .cls member, or none`,
  );
}
