// Measured tiles: where they are stored, damaged files, and their use by GEMMs.

import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { adapterFacts, device } from "../../src/gpu/device.ts";
import { findMatrices } from "../../src/ops/gemm_matrices.ts";
import {
  chooseTile,
  fp16Key,
  onlyTile,
  thisMachine,
  type Tile,
  tileKey,
  TILES,
  useMatrices,
  useTiles,
} from "../../src/ops/gemm_tiles.ts";
import {
  adapterKey,
  describeTiles,
  measureTiles,
  prepareTiles,
  rememberedTiles,
  rememberTiles,
  tilesFile,
  tuningSizes,
} from "../../src/bench/gemm_tuning.ts";
import { testDevice } from "../helpers/check.ts";

const silent = () => {};
const shape = { kind: "nn", M: 256, N: 384, K: 64, count: 1, vector: true } as const;

async function inFolder(fn: (file: string) => Promise<void> | void): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await fn(join(folder, "cache", "tok", "tiles.json"));
  } finally {
    useTiles({});
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("through Dawn, cards of one driver have rates of their own; a description that tells the card is the key", () => {
  const key = (name: "deno" | "dawn", description: string, device: string) => {
    const adapter = { info: { vendor: "v", architecture: "", description, device }, features: [] };
    const provider = { name, suffix: name === "dawn" ? " through Dawn" : "" };
    return adapterKey(adapterFacts(adapter as unknown as GPUAdapter, provider), "gpu").replace(
      / \| tok .*/,
      "",
    );
  };
  assertEquals(key("dawn", "NVIDIA: 550.54", "H200"), "v | NVIDIA: 550.54 through Dawn H200 | gpu");
  assertEquals(key("dawn", "NVIDIA: 550.54", "L40"), "v | NVIDIA: 550.54 through Dawn L40 | gpu");
  assertEquals(key("dawn", "", "H200"), "v | H200 through Dawn | gpu");
  assertEquals(key("deno", "NVIDIA H200", "9013"), "v | NVIDIA H200 | gpu");
});

Deno.test("measured tiles are stored per adapter in the system's cache folder", async () => {
  assertEquals(tilesFile({ HOME: "/h" }, "linux"), "/h/.cache/tok/tiles.json");
  assertEquals(tilesFile({ HOME: "/h", XDG_CACHE_HOME: "/c" }, "linux"), "/c/tok/tiles.json");
  assertEquals(tilesFile({ HOME: "/h" }, "darwin"), "/h/Library/Caches/tok/tiles.json");
  assert(tilesFile({ USERPROFILE: "/u", LOCALAPPDATA: "/u/local" }, "windows").startsWith("/u/local"));
  await inFolder((file) => {
    const facts = {
      vendor: "v",
      architecture: "",
      description: "d",
      software: false,
      simdWidth: 0,
      features: [],
    };
    const [one, two] = [adapterKey(facts, "cpu"), adapterKey(facts, "gpu")];
    assertMatch(two, /^v \| d \| gpu \| tok \d+\.\d+\.\d+$/);
    assertEquals(rememberedTiles(file, one, silent), undefined);
    const [a, b] = [onlyTile("cpu", [24, 24]), onlyTile("gpu", [128, 64])];
    rememberTiles(file, one, a);
    rememberTiles(file, two, b);
    assertEquals(rememberedTiles(file, one, silent), a);
    assertEquals(rememberedTiles(file, two, silent), b);
  });
});

Deno.test("a damaged tile file is reported, ignored and replaced", async () => {
  await inFolder((file) => {
    const good = onlyTile("cpu", [24, 24]);
    rememberTiles(file, "k", good);
    for (
      const damage of [
        "",
        "{",
        "[]",
        `{"adapters":{"k":{"x":{"rate":-1,"slots":1}}}}`,
        `{"adapters":{"k":{"x":{"rate":1}}}}`,
      ]
    ) {
      Deno.writeTextFileSync(file, damage);
      const warnings: string[] = [];
      assertEquals(rememberedTiles(file, "k", (text) => warnings.push(text)), undefined);
      assertEquals(warnings.length, 1);
      assertMatch(warnings[0] as string, /tiles\.json.*tok doctor --tune/);
    }
    rememberTiles(file, "k", good);
    assertEquals(rememberedTiles(file, "k", silent), good);
  });
});

Deno.test("tuning measures every tile once, stores the result, and selects the tiles of GEMMs", async () => {
  await testDevice("cpu");
  await inFolder(async (file) => {
    const lines: string[] = [];
    const say = { line: (text: string) => lines.push(text), warn: (text: string) => lines.push(text) };
    assertEquals(await prepareTiles("never", say, file), undefined);
    assertEquals(lines, []);
    const table = await prepareTiles("once", say, file, () => measureTiles({ only: "nn", budget: Infinity }));
    assertEquals(lines.length, 1);
    assertMatch(lines[0] as string, /^tuned GEMM tiles for this adapter in \d+\.\d s/);
    for (const tile of TILES.cpu) assert((table?.[tileKey("cpu", "nn", tile)]?.rate ?? 0) > 0);
    assertEquals(await prepareTiles("once", say, file), table);
    assertEquals(lines.length, 1, "what is remembered is not measured again");

    const key = adapterKey(device().facts, "cpu");
    for (const tile of TILES.cpu) {
      rememberTiles(file, key, onlyTile("cpu", tile));
      await prepareTiles("never", say, file);
      assertEquals(chooseTile(thisMachine(), shape), tile);
    }
  });
});

Deno.test("the sizes that tune software adapters fill every tile", async () => {
  await testDevice("cpu");
  const { S, map: [, H = 0, W = 0], channels, few } = tuningSizes("f32");
  for (const [m, n] of TILES.cpu) {
    for (const rows of [S, H * W, few]) assertEquals(rows % m, 0, `${rows} rows in tiles of ${m}`);
    for (const columns of [S, channels, 9 * channels]) {
      assertEquals(columns % n, 0, `${columns} in tiles of ${n}`);
    }
  }
});

Deno.test("tuning a software adapter stops when its time is spent, and the built-in rates fill the rest in its scale", async () => {
  await testDevice("cpu");
  const smallest = TILES.cpu[0] as Tile;
  const table = await measureTiles({ budget: 0 });
  assertEquals(
    Object.keys(table),
    [tileKey("cpu", "nn", smallest)],
    "one kernel is measured whatever the time",
  );
  const large = { kind: "nn", M: 4800, N: 4800, K: 480, count: 1, vector: true } as const;
  const rated = (rates: readonly (readonly [Tile, number])[]) =>
    Object.fromEntries(rates.map(([tile, rate]) => [tileKey("cpu", "nn", tile), { rate, slots: 2 }]));
  try {
    const [, , wide, largest] = TILES.cpu as readonly Tile[];
    // An eighth of the built-in rate: the tile that is best by the built-in rates is expected to be best, in this scale, too.
    useTiles(rated([[smallest, 8]]));
    assertEquals(chooseTile(thisMachine(), large), largest);
    // But what was measured to be slow does not lose to the built-in rates of a faster adapter.
    useTiles(rated([[smallest, 20], [largest as Tile, 8]]));
    assertEquals(chooseTile(thisMachine(), large), smallest);
    useTiles(rated([[smallest, 8], [wide as Tile, 30]]));
    assertEquals(chooseTile(thisMachine(), large), wide);
    // 16 processors run 16 workgroups of unmeasured tiles, too: a GEMM that does not fill them gains nothing from large tiles.
    useTiles({ [tileKey("cpu", "nn", smallest)]: { rate: 8, slots: 16 } });
    const little = { ...large, M: 96, N: 96, K: 4800 };
    assertEquals(chooseTile({ ...thisMachine(), runs: 1e6 }, little), smallest);
  } finally {
    useTiles({});
  }
});

Deno.test("tuning of the gpu kernels measures the tiles within the adapter's limits", async () => {
  await testDevice("gpu");
  const table = await measureTiles({ only: "nn", budget: Infinity });
  for (const tile of TILES.gpu) {
    const { rate = 0, slots = 0 } = table[tileKey("gpu", "nn", tile)] ?? {};
    assert(rate > 0 && slots >= 1);
  }
});

Deno.test("tiles of matrices are measured once, too, where matrices came into use after the others were measured", async () => {
  await testDevice("gpu");
  await inFolder(async (file) => {
    const say = { line: silent, warn: silent }, tile = TILES.matrix[0] as Tile;
    const key = adapterKey(device().facts, "gpu"), before = onlyTile("gpu", [64, 64]);
    rememberTiles(file, key, before);
    const after = { ...before, ...onlyTile("matrix", tile) };
    let count = 0;
    const measure = () => Promise.resolve((count++, after));
    assertEquals([await prepareTiles("once", say, file, measure), count], [before, 0]);
    try {
      useMatrices({ M: 16, N: 16, K: 16, subgroup: [32, 32] });
      assertEquals([await prepareTiles("never", say, file, measure), count], [before, 0]);
      assertEquals([await prepareTiles("once", say, file, measure), count], [after, 1]);
      assertEquals([await prepareTiles("once", say, file, measure), count], [after, 1]);
      assertEquals(rememberedTiles(file, key, silent), after);
    } finally {
      useMatrices(undefined);
    }
  });
});

Deno.test("where the rates cannot be remembered, they are used now, and one warning says so", async () => {
  await testDevice("cpu");
  await inFolder(async (file) => {
    const parent = join(file, "../.."), said: string[] = [], table = onlyTile("cpu", [24, 24]);
    Deno.mkdirSync(join(parent, ".."), { recursive: true });
    Deno.writeTextFileSync(parent, "a file in place of the folder");
    const say = { line: (text: string) => said.push(text), warn: (text: string) => said.push(text) };
    assertEquals(await prepareTiles("again", say, file, () => Promise.resolve(table)), table);
    assertEquals(chooseTile(thisMachine(), shape), [24, 24]);
    assertEquals(said.length, 2);
    assertMatch(said[0] as string, /^tuned GEMM tiles for this adapter in \d+\.\d s$/);
    assertMatch(
      said[1] as string,
      /^Cannot make the folder ".+; the measured rates are used now and not remembered$/,
    );
  });
});

Deno.test("a table in words: the fastest tile of each kind, and matrices against ordinary kernels", () => {
  const slots = 2;
  const ordinary = {
    [tileKey("gpu", "nn", [64, 64])]: { rate: 30, slots },
    [tileKey("gpu", "nn", [128, 128])]: { rate: 45.25, slots },
    [tileKey("gpu", "conv", [64, 64])]: { rate: 31, slots },
  };
  assertEquals(describeTiles(ordinary), { tiles: "nn 128x128 45.3 GFLOP/s, conv 64x64 31.0 GFLOP/s" });
  const matrices = {
    ...ordinary,
    [tileKey("matrix", "nn", [64, 64])]: { rate: 300, slots },
    [tileKey("matrix", "nt", [64, 64])]: { rate: 200, slots },
    [tileKey("matrix", "conv", [32, 32])]: { rate: 20, slots },
    [fp16Key("nn")]: { rate: 44, slots: 1 },
    [fp16Key("conv")]: { rate: 33, slots: 1 },
  };
  assertEquals(describeTiles(matrices), {
    tiles: "nn 128x128 45.3 GFLOP/s, conv 64x64 31.0 GFLOP/s",
    fp16: "by matrices nn 64x64 300.0 GFLOP/s (ordinary kernels 44.0), nt 64x64 200.0 GFLOP/s; " +
      "by the ordinary kernels conv 33.0 GFLOP/s (matrices 32x32 20.0 GFLOP/s)",
  });
  assertEquals(describeTiles(onlyTile("cpu", [16, 16])).fp16, undefined);
});

await testDevice();
if (findMatrices()) {
  Deno.test("tuning measures the tiles of matrices, and the ordinary kernels in fp16, each within its part of the time", async () => {
    await testDevice("matrix");
    // That a table says otherwise does not keep matrices from being measured.
    useTiles({
      [tileKey("matrix", "nn", [32, 32])]: { rate: 1, slots: 1 },
      [fp16Key("nn")]: { rate: 2, slots: 1 },
    });
    assertEquals(thisMachine("nn").profile, "gpu");
    const table = await measureTiles({ budget: 0 }),
      [gpu, matrix] = [TILES.gpu[0], TILES.matrix[0]] as [Tile, Tile];
    assertEquals(Object.keys(table), [
      tileKey("gpu", "nn", gpu),
      tileKey("matrix", "nn", matrix),
      fp16Key("nn"),
    ]);
    for (const { rate } of Object.values(table)) assert(rate > 0);
  });
}
