// Models by name: found in the local Hugging Face cache, or downloaded into it. The layout is huggingface_hub's, so that the
// cache is shared: models--ORG--NAME/{blobs/<etag>, snapshots/<commit>/<file> -> blob, refs/main = commit}. A ref is written
// last, so its snapshot is complete.
// https://huggingface.co/docs/hub/local-cache

import { createHash } from "node:crypto";
import { join } from "@std/path";
import { z } from "zod";
import { UsageError } from "../errors.ts";
import {
  AtomicFile,
  exists,
  explained,
  formatBytes,
  makeFolder,
  readJson,
  readText,
  removeLeftovers,
  validated,
  writeAtomic,
} from "./files.ts";
import { holdsModel, missingShards } from "./shards.ts";

/** "facebook/dinov2-large" */
const NAME = /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/;

/** Weights of a model: one file, or an index and its shards. */
const SINGLE = "model.safetensors", INDEX = `${SINGLE}.index.json`;

/** Whether a text has the form of a model name on the hub. */
export const isModelName = (text: string): boolean => NAME.test(text) && !text.includes("..");

/** The cache's folder: $HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE, $HF_HOME/hub, or ~/.cache/huggingface/hub. */
export function hubCache(env: (name: string) => string | undefined = Deno.env.get): string {
  const set = (name: string) => env(name) || undefined;
  const home = set("HOME") ?? set("USERPROFILE") ?? ".";
  const cache = set("XDG_CACHE_HOME") ?? join(home, ".cache");
  return set("HF_HUB_CACHE") ?? set("HUGGINGFACE_HUB_CACHE") ??
    join(set("HF_HOME") ?? join(cache, "huggingface"), "hub");
}

/** Whether a folder holds a complete model of transformers or diffusers; false for a damaged index. */
function isComplete(folder: string): boolean {
  try {
    return exists(join(folder, "config.json")) && holdsModel(folder) && !missingShards(folder).length;
  } catch (error) {
    if (error instanceof UsageError) return false;
    throw error;
  }
}

/**
 * A model's snapshot in the cache: the one that `refs/main` names, else the only one (a download of one revision leaves
 * that). Undefined if it is missing or incomplete.
 */
export function cachedModel(
  name: string,
  holds: (folder: string) => boolean = isComplete,
): string | undefined {
  const found = snapshotIn(modelFolder(name));
  return found?.path !== undefined && holds(found.path) ? found.path : undefined;
}

/** The snapshot in a model's cache folder, or why there is no usable one; undefined for other folders. */
export function snapshotIn(folder: string): { path?: string; problem?: string } | undefined {
  const all = join(folder, "snapshots"), ref = join(folder, "refs", "main");
  if (exists(ref)) {
    const commit = readText(ref).trim();
    if (!/^[\w.-]+$/.test(commit) || commit.startsWith(".")) {
      throw new UsageError(`Cannot use "${ref}": it does not hold the name of a commit; remove it`);
    }
    const path = join(all, commit);
    return exists(path) ? { path } : { problem: `"${ref}" names the snapshot ${commit}, which is not there` };
  }
  const names = foldersIn(all);
  if (names.length === 1) return { path: join(all, names[0] as string) };
  return names.length
    ? {
      problem:
        `there is no "${ref}", and there are ${names.length} snapshots in "${all}": give one of their folders`,
    }
    : undefined;
}

/** Why a model in the cache is incomplete, for messages; undefined if it is not in the cache at all. */
export function cacheProblem(name: string): string | undefined {
  const found = snapshotIn(modelFolder(name));
  if (found?.path === undefined) return found?.problem;
  const { path } = found, names = [...Deno.readDirSync(path)].map((entry) => entry.name).sort();
  const lost = names.find((file) => !exists(join(path, file)));
  if (lost !== undefined) {
    return `"${lost}" of its snapshot "${path}" is a link to a file that is not there (copy the folder "blobs" too)`;
  }
  const [shard] = missingShards(path);
  const missing = !exists(join(path, "config.json"))
    ? '"config.json"'
    : shard !== undefined
    ? `"${shard}", which its index names`
    : "weights that tok knows";
  const shown = names.slice(0, 6).map((file) => `"${file}"`).join(", ") || "nothing";
  return `its snapshot "${path}" has no ${missing}, but ${shown}${names.length > 6 ? " and others" : ""}`;
}

function foldersIn(path: string): string[] {
  if (!exists(path)) return [];
  return [...Deno.readDirSync(path)].filter(({ name }) => exists(join(path, name, "."))).map(({ name }) =>
    name
  );
}

function modelFolder(name: string): string {
  return join(hubCache(), `models--${name.replace("/", "--")}`);
}

const info = z.object({
  sha: z.string().regex(/^[0-9a-f]{6,64}$/),
  siblings: z.array(z.object({ rfilename: z.string() })),
});

/**
 * Downloads a model's configuration and weights from $HF_ENDPOINT (https://huggingface.co) into the cache, with $HF_TOKEN
 * if it is set.
 * @param say called with a line for each file
 * @returns the snapshot's folder
 * @throws UsageError without network access or permission, for models without safetensors, and under $HF_HUB_OFFLINE
 */
export async function downloadModel(name: string, say: (line: string) => void = () => {}): Promise<string> {
  const refuse = (reason: string) => new UsageError(`Cannot download "${name}": ${reason}`);
  if (/^(1|true|yes|on)$/i.test(Deno.env.get("HF_HUB_OFFLINE") ?? "")) {
    throw refuse("HF_HUB_OFFLINE is set; unset it, or fetch the model on another machine");
  }
  const endpoint = (Deno.env.get("HF_ENDPOINT") || "https://huggingface.co").replace(/\/+$/, "");
  const api = `${endpoint}/api/models/${name}/revision/main`;
  const { response } = await request(api, refuse);
  const { sha, siblings } = validated(info, await response.json().catch(() => null), api);
  const files = new Set(siblings.map((s) => s.rfilename));
  if (!files.has("config.json")) throw refuse("it has no config.json; it is not a model of transformers");
  if (!files.has(SINGLE) && !files.has(INDEX)) {
    throw refuse(`it has no ${SINGLE}; download its weights by hand and give their path`);
  }
  const folder = modelFolder(name), snapshot = join(folder, "snapshots", sha);
  for (const path of [join(folder, "blobs"), snapshot, join(folder, "refs")]) {
    makeFolder(path);
    removeLeftovers(path);
  }
  const fetchFile = async (file: string) => {
    const target = join(snapshot, file);
    if (exists(target)) return;
    const blob = await fetchBlob(
      `${endpoint}/${name}/resolve/${sha}/${file}`,
      join(folder, "blobs"),
      refuse,
      (n) => {
        say(`fetching ${name}/${file}${n ? ` (${formatBytes(n)})` : ""}`);
      },
    );
    link(blob, target);
  };
  await fetchFile("config.json");
  if (files.has("preprocessor_config.json")) await fetchFile("preprocessor_config.json");
  if (files.has(SINGLE)) await fetchFile(SINGLE);
  else {
    await fetchFile(INDEX);
    for (const shard of shardsOf(join(snapshot, INDEX), refuse)) await fetchFile(shard);
  }
  writeAtomic(join(folder, "refs", "main"), sha);
  return snapshot;
}

function shardsOf(index: string, refuse: (reason: string) => UsageError): string[] {
  const schema = z.object({ weight_map: z.record(z.string(), z.string()) });
  const names = [...new Set(Object.values(validated(schema, readJson(index), index).weight_map))];
  const wrong = names.find((shard) => !/^[\w.-]+\.safetensors$/.test(shard) || shard.startsWith("."));
  if (wrong !== undefined) throw refuse(`its index names a shard ${JSON.stringify(wrong)}`);
  return names.sort();
}

/** Follows redirects by hand: the hub states a file's digest before it redirects to a store that must not get the token. */
async function request(
  url: string,
  refuse: (reason: string) => UsageError,
): Promise<{ response: Response; etag: string; size: number }> {
  const token = Deno.env.get("HF_TOKEN"), origin = new URL(url).origin;
  let etag = "", size = 0;
  for (let hop = 0, at = new URL(url); hop < 6; hop++) {
    let response: Response;
    try {
      const authorised: Record<string, string> = token && at.origin === origin
        ? { authorization: `Bearer ${token}` }
        : {};
      // Without compression, so that the length is the file's.
      const headers = { "accept-encoding": "identity", ...authorised };
      response = await fetch(at, { redirect: "manual", headers });
    } catch (error) {
      throw refuse(
        `"${at.origin}" does not answer (${(error as Error).message}); check the network and HF_ENDPOINT`,
      );
    }
    etag ||= response.headers.get("x-linked-etag") ?? "";
    size ||= Number(response.headers.get("x-linked-size") ?? 0);
    const location = response.headers.get("location");
    if (response.status >= 300 && response.status < 400 && location) {
      await response.body?.cancel();
      at = new URL(location, at);
      continue;
    }
    if (!response.ok) {
      await response.body?.cancel();
      throw refuse(
        response.status === 401 || response.status === 403
          ? `"${origin}" refuses (${response.status}); check the name, accept its licence there and set HF_TOKEN`
          : response.status === 404
          ? `"${at.href}" is not there; check the name`
          : `"${at.href}" answers ${response.status}; try again later`,
      );
    }
    etag ||= response.headers.get("etag") ?? "";
    size ||= Number(response.headers.get("content-length") ?? 0);
    return { response, etag: etag.replace(/^W\//, "").replaceAll('"', ""), size };
  }
  throw refuse(`"${url}" is redirected too often; check HF_ENDPOINT`);
}

/** Downloads a file into `blobs` under its etag. An etag of 64 digits is the content's SHA-256 and is verified. */
async function fetchBlob(
  url: string,
  blobs: string,
  refuse: (reason: string) => UsageError,
  begin: (size: number) => void,
): Promise<string> {
  const { response, etag, size } = await request(url, refuse);
  if (!/^[\w-]+$/.test(etag)) {
    await response.body?.cancel();
    throw refuse(`"${url}" has the etag ${JSON.stringify(etag)}, which is not a digest; check HF_ENDPOINT`);
  }
  const path = join(blobs, etag);
  if (exists(path)) {
    await response.body?.cancel();
    return path;
  }
  begin(size);
  const file = new AtomicFile(path, size), digest = createHash("sha256");
  try {
    for await (const chunk of response.body ?? []) {
      digest.update(chunk);
      file.write(chunk);
    }
  } catch (error) {
    file.abort();
    throw error instanceof UsageError
      ? error
      : refuse(`the connection broke (${(error as Error).message}); try again`);
  }
  if (size && file.position !== size) {
    file.abort();
    throw refuse(`"${url}" has ${size} bytes and ${file.position} came; try again`);
  }
  if (etag.length === 64 && digest.digest("hex") !== etag) {
    file.abort();
    throw refuse(`the content of "${url}" has another SHA-256 than announced; try again`);
  }
  file.commit();
  return path;
}

/** Puts a blob into a snapshot: a relative link, or the file itself if links need privileges. */
function link(blob: string, target: string): void {
  try {
    if (Deno.build.os === "windows") Deno.renameSync(blob, target);
    else Deno.symlinkSync(join("..", "..", "blobs", blob.slice(blob.lastIndexOf("/") + 1)), target);
  } catch (error) {
    throw explained(error, "write", target);
  }
}
