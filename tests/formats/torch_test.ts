// Torch files: both forms are read as PyTorch reads them; truncated, shrinking and corrupt files are refused; ten thousand
// mutations of each form never crash, hang or read outside of the file.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { UsageError } from "../../src/errors.ts";
import { openBytes } from "../../src/formats/bytes.ts";
import { openSafetensors } from "../../src/formats/safetensors.ts";
import { openModel } from "../../src/formats/shards.ts";
import { readTorch } from "../../src/formats/torch.ts";
import { mutated, mutations } from "../helpers/mutations.ts";
import {
  bytes,
  call,
  dict,
  guarded,
  int,
  legacy,
  little,
  type MemberParts,
  members,
  type Part,
  tensor,
  zip,
} from "../helpers/pickles.ts";

const fixture = (name: string) => new URL(`../fixtures/${name}`, import.meta.url).pathname;
const open = (content: Uint8Array) => readTorch(guarded(content));
const zipped = (contents: Part, changes?: Record<string, Partial<MemberParts> | null>) =>
  open(zip(members(contents, changes)));
const model = dict({ w: tensor() });

for (const form of ["zip", "legacy"]) {
  Deno.test(`readTorch() reads every tensor of the ${form} form as PyTorch does`, async () => {
    const ours = readTorch(openBytes(fixture(`torch_${form}.pth`)));
    const expected = await openSafetensors(fixture("torch_expected.safetensors"));
    assertEquals([...ours.tensors.keys()].sort(), [...expected.tensors.keys()].sort());
    for (const [key, { dtype, shape }] of expected.tensors) {
      const { dtype: d, shape: s } = ours.tensors.get(key) ?? {};
      assertEquals([key, d, s], [key, dtype, shape]);
      assertEquals(await ours.readBytes(key), await expected.readBytes(key), key);
      assertEquals(
        bytes(...[...ours.parts(key)].map((part) => part.slice())),
        await expected.readBytes(key),
        key,
      );
      if (/F/.test(dtype)) {
        assertEquals(await ours.read(key), await expected.read(key), key);
        assertEquals(await ours.readRows(key, 1, 3), await expected.readRows(key, 1, 3), key);
      } else assertEquals(await ours.readIntegers(key), await expected.readIntegers(key), key);
    }
    expected.close();
    ours.close();
  });
}

Deno.test("both file forms and another protocol give the same plain values, as JSON", async () => {
  const [zip, legacy, other] = await Promise.all(
    ["zip", "legacy", "protocol4"].map((form) => readTorch(openBytes(fixture(`torch_${form}.pth`)))),
  );
  assertEquals(zip?.metadata, legacy?.metadata);
  for (const [key, value] of other?.metadata ?? []) assertEquals(value, zip?.metadata.get(key), key);
  for (const key of other?.tensors.keys() ?? []) {
    assertEquals(await other?.readBytes(key), await zip?.readBytes(key), key);
  }
  const values = Object.fromEntries(
    [...zip?.metadata ?? []].filter(([key]) => /^(plain|args|list)/.test(key)),
  );
  assertEquals(values, {
    "plain.step": "7",
    "plain.loss": "0.25",
    "plain.best": '"Infinity"',
    "plain.none": "null",
    "plain.yes": "true",
    "plain.big": "1180591620717411303424",
    "plain.negative": "-3",
    "plain.text": '"é\\"\\n"',
    "plain.bytes": '"3 bytes"',
    "plain.tuple": '[1,"a",2.5]',
    "plain.empty": "[]",
    "plain.no_items": "{}",
    "plain.set": "[5]",
    "plain.size": "[2,3]",
    "plain.device": '"torch.device"',
    "plain.dtype": '"torch.float16"',
    "plain.counter.a": "2",
    "plain.counter.b": "1",
    "plain.default.k": "1",
    "plain.range": "[true,null]",
    "plain.3": '"three"',
    'plain.1,"x"': '"pair"',
    "args.model": '"DiT-XL/2"',
    "args.lr": "0.0001",
    "args.cfg": "null",
    "args.sizes": "[1,2]",
    "args.more.deep": "true",
    "list.2": '"text"',
  });
  for (const file of [zip, legacy, other]) file?.close();
});

Deno.test("openModel() detects the format by content, and finds the file names that folders use", async () => {
  const folder = await Deno.makeTempDir();
  Deno.copyFileSync(fixture("torch_zip.pth"), `${folder}/weights.safetensors`);
  Deno.copyFileSync(fixture("torch_expected.safetensors"), `${folder}/weights.pth`);
  const keys = async (path: string) => {
    const store = await openModel(path);
    store.close();
    return store.shapes.size;
  };
  assertEquals(await keys(`${folder}/weights.safetensors`), 47);
  assertEquals(await keys(`${folder}/weights.pth`), 47);
  await assertRejects(() => keys(folder), UsageError, "there is neither");
  Deno.copyFileSync(fixture("torch_legacy.pth"), `${folder}/pytorch_model.bin`);
  assertEquals(await keys(folder), 47);
  Deno.copyFileSync(fixture("reference.safetensors"), `${folder}/diffusion_pytorch_model.safetensors`);
  assertEquals(await keys(folder), 6);
  const sharded = await Deno.makeTempDir();
  Deno.copyFileSync(fixture("torch_zip.pth"), `${sharded}/a.bin`);
  Deno.writeTextFileSync(
    `${sharded}/pytorch_model.bin.index.json`,
    JSON.stringify({ weight_map: { parameter: "a.bin" } }),
  );
  assertEquals(await keys(sharded), 1);
  assertThrows(() => openBytes(`${folder}/none.pth`), UsageError, "it does not exist");
  assertThrows(() => openBytes(folder), UsageError, "it is a folder and not a file");
});

Deno.test("openModel() opens a safetensors file that begins like a zip archive or a pickle", async () => {
  const path = `${await Deno.makeTempDir()}/model.safetensors`;
  const head = '{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}';
  for (const length of [0x4b50, 0x0280]) {
    Deno.writeFileSync(path, bytes(little(length, 8), head.padEnd(length), 7));
    const store = await openModel(path);
    assertEquals([...await store.readIntegers("x")], [7]);
    store.close();
  }
});

Deno.test('a single tensor is named "tensor", and list items by their indices', async () => {
  assertEquals([...zipped(tensor()).shapes], [["tensor", [2, 3]]]);
  const file = zipped([
    "](",
    tensor(),
    call("torch._utils._rebuild_parameter", tensor({ shape: [6], stride: [1] }), "\x88", "N"),
    "e",
  ]);
  assertEquals([...file.shapes], [["0", [2, 3]], ["1", [6]]]);
  assertEquals([...await file.read("1")], [0, 1, 2, 3, 4, 5]);
});

Deno.test("strided views are gathered, all at once and by rows", async () => {
  const views: [number[], number[], number, number[]][] = [
    [[3, 2], [1, 3], 0, [0, 3, 1, 4, 2, 5]],
    [[2, 2], [3, 2], 1, [1, 3, 4, 6]],
    [[2, 3], [0, 2], 1, [1, 3, 5, 1, 3, 5]],
    [[2, 2, 2], [0, 1, 1], 2, [2, 3, 3, 4, 2, 3, 3, 4]],
    [[2, 1, 3], [1, 99, 2], 0, [0, 2, 4, 1, 3, 5]],
    [[4], [0], 5, [5, 5, 5, 5]],
    [[], [], 4, [4]],
    [[0, 4], [1, 1], 6, []],
  ];
  for (const [shape, stride, offset, values] of views) {
    const floats = new Uint8Array(Float32Array.from([0, 1, 2, 3, 4, 5, 6]).buffer);
    const file = zipped(dict({ w: tensor({ shape, stride, offset, count: 7 }) }), {
      "x/data/0": { data: floats },
    });
    assertEquals([...await file.read("w")], values);
    const width = values.length / (shape[0] || 1);
    assertEquals([...await file.readRows("w", 1, 2)], values.slice(width, 2 * width));
  }
});

Deno.test("a transposed matrix of many blocks is read in one pass, with the right elements", async () => {
  const [M, N] = [1301, 977];
  const data = Uint32Array.from({ length: M * N }, (_, i) => i);
  const count = M * N,
    content = zip(members(dict({ w: tensor({ type: "IntStorage", shape: [N, M], stride: [1, N], count }) }), {
      "x/data/0": { data: new Uint8Array(data.buffer) },
    }));
  const source = guarded(content);
  let read = 0;
  const counting = {
    ...source,
    readInto: (at: number, target: Uint8Array) => {
      read += target.length;
      source.readInto(at, target);
    },
  };
  const file = readTorch(counting);
  read = 0;
  const values = await file.readIntegers("w");
  assertEquals(read, 4 * count);
  assert(values.every((value, i) => value === (i % M) * N + Math.floor(i / M)));
});

Deno.test("a storage with a wrong checksum is refused after it was read to its end", async () => {
  const file = zipped(dict({ w: tensor(), part: tensor({ shape: [2], stride: [1] }) }), {
    "x/data/0": { crc: 1 },
  });
  assertEquals([...await file.read("part")], [0, 1]); // a part of it cannot be checked
  await assertRejects(() => file.read("w"), UsageError, 'the checksum of "x/data/0" is wrong');
  assertThrows(() => [...file.parts("w")], UsageError, 'the checksum of "x/data/0" is wrong');
});

Deno.test("a file is closed once, by its store or by the error", () => {
  for (
    const content of [zip(members(model)), zip(members(int(1))), bytes("PK"), legacy(model), legacy(int(1))]
  ) {
    const source = guarded(content);
    try {
      readTorch(source).close();
    } catch (error) {
      assert(error instanceof UsageError);
    }
    assertEquals(source.closed, 1);
  }
});

Deno.test("a file that shrinks while it is open gives a UsageError", async () => {
  const path = `${await Deno.makeTempDir()}/x.pth`;
  Deno.writeFileSync(path, legacy(model));
  const file = readTorch(openBytes(path));
  Deno.truncateSync(path, 20);
  await assertRejects(() => file.read("w"), UsageError, "it ends after 20 bytes");
  file.close();
});

for (const form of ["zip", "legacy"]) {
  const whole = Deno.readFileSync(fixture(`torch_${form}.pth`));

  Deno.test(`the ${form} form truncated at any byte is refused`, () => {
    for (let n = 0; n < whole.length; n++) assertThrows(() => open(whole.slice(0, n)), UsageError);
  });

  Deno.test(`ten thousand mutations of the ${form} form end in tensors or in a UsageError`, async () => {
    let opened = 0;
    await fc.assert(
      fc.asyncProperty(mutations(whole.length), async (changes) => {
        try {
          const file = open(mutated(whole, changes));
          opened++;
          for (const key of file.tensors.keys()) await file.readBytes(key);
        } catch (error) {
          if (!(error instanceof UsageError)) throw error;
          assert(!error.message.includes("\n"), error.message);
        }
      }),
      { numRuns: 10_000 },
    );
    assert(opened > 500, `only ${opened} of the mutated files could be opened at all`);
  });
}
