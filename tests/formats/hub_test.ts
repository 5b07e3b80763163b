// Models by name: found in the Hugging Face cache without a network, fetched only on request, and never left incomplete. The
// hub is a server in this process, its file store another one.

import { assert, assertEquals, assertRejects } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { createHash } from "node:crypto";
import { UsageError } from "../../src/errors.ts";
import { cachedModel, downloadModel, hubCache, isModelName } from "../../src/formats/hub.ts";
import { Vit } from "../../src/models/vit.ts";
import { openEncoder } from "../../src/zoo/encoders.ts";
import { testDevice } from "../helpers/check.ts";
import { encoderFolder, inFolder } from "../helpers/encoder_files.ts";
import { testInOwnProcess } from "../helpers/own_process.ts";

const inOwnProcess = testInOwnProcess(import.meta.url);

const NAME = "someone/some-encoder", SHA = "0123456789abcdef0123456789abcdef01234567";
const VARIABLES = [
  "HF_HUB_CACHE",
  "HUGGINGFACE_HUB_CACHE",
  "HF_HOME",
  "HF_ENDPOINT",
  "HF_TOKEN",
  "HF_HUB_OFFLINE",
  "XDG_CACHE_HOME",
];

/** Runs a test with the cache in a folder of its own and these variables. */
async function withCache(env: Record<string, string>, test: (cache: string) => Promise<void>): Promise<void> {
  const before = new Map(VARIABLES.map((name) => [name, Deno.env.get(name)]));
  await inFolder(async (folder) => {
    try {
      for (const name of VARIABLES) Deno.env.delete(name);
      for (const [name, value] of Object.entries({ HF_HUB_CACHE: folder, ...env })) Deno.env.set(name, value);
      await test(folder);
    } finally {
      for (const [name, value] of before) {
        value === undefined ? Deno.env.delete(name) : Deno.env.set(name, value);
      }
    }
  });
}

interface Hub {
  endpoint: string;
  /** "path authorisation" of each request to the hub, and to the store. */
  asked: string[];
  stored: string[];
}

/**
 * A hub with one model. Files above 1,000 bytes lie in a store elsewhere, as large files do.
 * @param spoil changes the bytes that are sent, not what is said of them
 */
async function withHub(
  files: ReadonlyMap<string, Uint8Array<ArrayBuffer>>,
  test: (hub: Hub) => Promise<void>,
  { status = 200, spoil = (bytes: Uint8Array<ArrayBuffer>) => bytes } = {},
): Promise<void> {
  const asked: string[] = [], stored: string[] = [];
  const note = (list: string[], request: Request) =>
    list.push(`${new URL(request.url).pathname} ${request.headers.get("authorization")}`);
  const options = { port: 0, hostname: "127.0.0.1", onListen() {} };
  const store = Deno.serve(options, (request) => {
    note(stored, request);
    return new Response(spoil(files.get(new URL(request.url).pathname.slice(1)) as Uint8Array<ArrayBuffer>));
  });
  const hub = Deno.serve(options, (request) => {
    note(asked, request);
    if (status !== 200) return new Response("no", { status });
    const { pathname } = new URL(request.url);
    if (pathname === `/api/models/${NAME}/revision/main`) {
      return Response.json({ sha: SHA, siblings: [...files.keys()].map((rfilename) => ({ rfilename })) });
    }
    const file = pathname.replace(`/${NAME}/resolve/${SHA}/`, ""), bytes = files.get(file);
    if (!bytes) return new Response("no", { status: 404 });
    if (bytes.length < 1000) {
      return new Response(bytes, {
        headers: { etag: `"${createHash("sha1").update(bytes).digest("hex")}"` },
      });
    }
    return new Response(null, {
      status: 302,
      headers: {
        location: `http://127.0.0.1:${store.addr.port}/${file}`,
        "x-linked-etag": `"${createHash("sha256").update(bytes).digest("hex")}"`,
        "x-linked-size": `${bytes.length}`,
      },
    });
  });
  try {
    await test({ endpoint: `http://127.0.0.1:${hub.addr.port}`, asked, stored });
  } finally {
    await Promise.all([hub.shutdown(), store.shutdown()]);
  }
}

/** The files of a small DINOv2, and one that nobody needs. */
async function modelFiles(folder: string, sharded = false): Promise<Map<string, Uint8Array<ArrayBuffer>>> {
  const path = await encoderFolder(folder, "dinov2", { image_processor_type: "BitImageProcessor" });
  const files = new Map([["README.md", new TextEncoder().encode("words")]]);
  for (const { name } of Deno.readDirSync(path)) files.set(name, Deno.readFileSync(join(path, name)));
  if (!sharded) return files;
  const weights = files.get("model.safetensors") as Uint8Array<ArrayBuffer>;
  const header = JSON.parse(
    new TextDecoder().decode(
      weights.subarray(8, 8 + Number(new DataView(weights.buffer).getBigUint64(0, true))),
    ),
  );
  const shard = "model-00001-of-00001.safetensors";
  files.delete("model.safetensors");
  files.set(shard, weights);
  const map = Object.keys(header).filter((key) => key !== "__metadata__").map((key) => [key, shard]);
  files.set(
    "model.safetensors.index.json",
    new TextEncoder().encode(JSON.stringify({ weight_map: Object.fromEntries(map) })),
  );
  return files;
}

Deno.test("the cache has the path of huggingface_hub", () => {
  const at = (env: Record<string, string>) => hubCache((name) => env[name]);
  assertEquals(at({ HOME: "/h" }), "/h/.cache/huggingface/hub");
  assertEquals(at({ HOME: "/h", XDG_CACHE_HOME: "/x" }), "/x/huggingface/hub");
  assertEquals(at({ HOME: "/h", HF_HOME: "/f" }), "/f/hub");
  assertEquals(at({ HOME: "/h", HF_HOME: "/f", HF_HUB_CACHE: "/c" }), "/c");
  assertEquals(at({ HOME: "/h", HF_HOME: "/f", HUGGINGFACE_HUB_CACHE: "/g" }), "/g");
  assertEquals(at({ HF_HUB_CACHE: "/c", HUGGINGFACE_HUB_CACHE: "/g" }), "/c");
  assertEquals(["a/b", "a/b.c-d_1", "a", "a/b/c", "../b", "a/..", "/a/b", "a b/c"].map(isModelName), [
    true,
    true,
    false,
    false,
    false,
    false,
    false,
    false,
  ]);
});

inOwnProcess(
  "--download fetches the needed files into the cache's layout, once, and sends the token to the hub only",
  async () => {
    await testDevice();
    for (const sharded of [false, true]) {
      await inFolder(async (folder) => {
        const files = await modelFiles(folder, sharded);
        await withHub(files, async ({ endpoint, asked, stored }) => {
          await withCache({ HF_ENDPOINT: `${endpoint}/`, HF_TOKEN: "secret" }, async (cache) => {
            const lines: string[] = [];
            const encoder = await openEncoder(NAME, { download: true, say: (line) => lines.push(line) });
            const vit = new Vit(encoder.config);
            await encoder.load(vit);
            const model = join(cache, "models--someone--some-encoder"),
              snapshot = join(model, "snapshots", SHA);
            assertEquals(encoder.path, snapshot);
            assertEquals(Deno.readTextFileSync(join(model, "refs/main")), SHA);
            const fetched = [...Deno.readDirSync(snapshot)].map(({ name }) => name).sort();
            assertEquals(fetched, [...files.keys()].filter((name) => name !== "README.md").sort());
            assertEquals(lines.length, fetched.length);
            for (const name of fetched) {
              assertEquals(Deno.readFileSync(join(snapshot, name)), files.get(name));
              const target = Deno.readLinkSync(join(snapshot, name));
              assert(/^\.\.\/\.\.\/blobs\/[0-9a-f]{40,64}$/.test(target), target);
            }
            assert(asked.every((request) => request.endsWith(" Bearer secret")), asked.join());
            assert(stored.length > 0 && stored.every((request) => request.endsWith(" null")), stored.join());
            const requests = asked.length;
            Deno.env.set("HF_HUB_OFFLINE", "1");
            assertEquals((await openEncoder(NAME)).path, snapshot);
            assertEquals((await openEncoder(NAME, { download: true })).path, snapshot);
            assertEquals(asked.length, requests);
          });
        });
      });
    }
  },
);

inOwnProcess(
  "a name that is not in the cache is refused with the searched paths and the remedy; nothing is fetched",
  async () => {
    await withCache({ HF_ENDPOINT: "http://127.0.0.1:9" }, async (cache) => {
      const { message } = await assertRejects(() => openEncoder(NAME), UsageError);
      assert(message.includes(NAME) && message.includes(cache) && message.includes("--download"), message);
      const offline = await assertRejects(() => downloadModel(NAME), UsageError);
      assert(
        offline.message.includes("http://127.0.0.1:9") && offline.message.includes("HF_ENDPOINT"),
        offline.message,
      );
      Deno.env.set("HF_HUB_OFFLINE", "1");
      const set = await assertRejects(() => openEncoder(NAME, { download: true }), UsageError);
      assert(set.message.includes("HF_HUB_OFFLINE"), set.message);
      const model = join(cache, "models--someone--some-encoder");
      await Deno.mkdir(join(model, "refs"), { recursive: true });
      await Deno.writeTextFile(join(model, "refs/main"), "../../elsewhere");
      await assertRejects(() => openEncoder(NAME), UsageError, "commit");
      await Deno.writeTextFile(join(model, "refs/main"), SHA);
      await Deno.mkdir(join(model, "snapshots", SHA), { recursive: true });
      await Deno.writeTextFile(join(model, "snapshots", SHA, "config.json"), "{}");
      assertEquals(cachedModel(NAME), undefined, "a configuration alone is no model");
    });
  },
);

inOwnProcess(
  "a cache without refs/main is read if it has one snapshot, and incomplete entries are reported",
  async () => {
    await withCache({}, async (cache) => {
      await inFolder(async (folder) => {
        const model = join(cache, "models--someone--some-encoder"), snapshots = join(model, "snapshots");
        const files = await modelFiles(folder);
        const fill = async (commit: string, leave: readonly string[] = []) => {
          await Deno.mkdir(join(snapshots, commit), { recursive: true });
          for (const [name, bytes] of files) {
            if (!leave.includes(name)) await Deno.writeFile(join(snapshots, commit, name), bytes);
          }
        };
        const refused = async () =>
          (await assertRejects(() => openEncoder(NAME), UsageError) as UsageError).message;
        await fill(SHA);
        assertEquals(cachedModel(NAME), join(snapshots, SHA));
        assertEquals((await openEncoder(NAME)).path, join(snapshots, SHA));
        // The folder of the model, in place of its snapshot's.
        assertEquals((await openEncoder(model)).path, join(snapshots, SHA));
        await fill("other");
        assertEquals(cachedModel(NAME), undefined);
        assert(
          (await refused()).includes(`there are 2 snapshots in "${snapshots}": give one of their folders`),
        );
        await Deno.mkdir(join(model, "refs"));
        await Deno.writeTextFile(join(model, "refs/main"), "other\n");
        assertEquals(cachedModel(NAME), join(snapshots, "other"));
        await Deno.writeTextFile(join(model, "refs/main"), "gone");
        assert((await refused()).includes("names the snapshot gone, which is not there"));
        await fill("part", ["model.safetensors"]);
        await Deno.writeTextFile(join(model, "refs/main"), "part");
        const message = await refused();
        assert(!message.includes("not in the Hugging Face cache"), message);
        assert(
          message.includes(
            `"${join(snapshots, "part")}" has no weights that tok knows, but "README.md", "config.json"`,
          ),
          message,
        );
        await Deno.symlink("../../blobs/lost", join(snapshots, "part", "model.safetensors"));
        assert((await refused()).includes('"model.safetensors" of its snapshot'));
        await Deno.remove(join(snapshots, "part", "config.json"));
        await Deno.remove(join(snapshots, "part", "model.safetensors"));
        assert((await refused()).includes('has no "config.json", but "README.md"'));
      });
    });
  },
);

inOwnProcess(
  "refused, damaged and missing files of the hub end in one line, and leave no file in the cache",
  async () => {
    await inFolder(async (folder) => {
      const files = await modelFiles(folder);
      const without = new Map([...files].filter(([name]) => name !== "model.safetensors"));
      const index = (shard: string) =>
        new Map([...without, [
          "model.safetensors.index.json",
          new TextEncoder().encode(`{"weight_map":{"a":"${shard}"}}`),
        ]]);
      const cases: [ReadonlyMap<string, Uint8Array<ArrayBuffer>>, Parameters<typeof withHub>[2], string][] = [
        [files, { status: 401 }, "HF_TOKEN"],
        [files, { status: 404 }, "check the name"],
        [files, { status: 503 }, "503"],
        [new Map([["model.safetensors", new Uint8Array(10)]]), {}, "config.json"],
        [without, {}, "model.safetensors"],
        [index("../../x.safetensors"), {}, "shard"],
        [index("absent.safetensors"), {}, "is not there"],
        [files, { spoil: (bytes) => bytes.map((b, i) => i === 5000 ? b ^ 1 : b) }, "SHA-256"],
        [files, { spoil: (bytes) => bytes.slice(0, -7) }, "bytes"],
      ];
      for (const [served, options, part] of cases) {
        await withHub(served, async ({ endpoint }) => {
          await withCache({ HF_ENDPOINT: endpoint }, async (cache) => {
            const { message } = await assertRejects(() => openEncoder(NAME, { download: true }), UsageError);
            assert(
              message.includes(part) && message.startsWith("Cannot") && !message.includes("\n"),
              message,
            );
            assertEquals(cachedModel(NAME), undefined);
            const left = [...view(cache)].filter((path) =>
              path.endsWith(".tmp") || path.endsWith("model.safetensors")
            );
            assertEquals(left, []);
          });
        }, options);
      }
    });
  },
);

function* view(folder: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    const path = join(folder, name);
    if (isDirectory) yield* view(path);
    else yield path;
  }
}

Deno.test("tok features opens an encoder by its Hugging Face name", async () => {
  await inFolder(async (cache) => {
    const snapshots = join(cache, "models--someone--some-encoder/snapshots");
    await Deno.mkdir(snapshots, { recursive: true });
    await Deno.mkdir(join(snapshots, "../refs"));
    await Deno.rename(await encoderFolder(snapshots, "dinov2"), join(snapshots, SHA));
    await Deno.writeTextFile(join(snapshots, "../refs/main"), SHA);
    const main = fromFileUrl(new URL("../../main.ts", import.meta.url));
    const out = join(cache, "f.safetensors");
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--no-check",
        "-A",
        main,
        "features",
        "--encoder",
        NAME,
        "--image-size",
        "20",
        "--json",
        "--out",
        out,
      ],
      env: { HF_HUB_CACHE: cache, HF_HUB_OFFLINE: "1" },
    }).output();
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    const last = JSON.parse(new TextDecoder().decode(stdout).trim().split("\n").at(-1) as string);
    assertEquals([last.event, last.n, last.tokens, last.channels], ["done", 16, 25, 24]);
  });
});
