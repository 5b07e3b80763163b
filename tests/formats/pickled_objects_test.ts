// Weights next to other objects in a pickle, as training scripts save them: the weights are read, the objects are listed by
// class and never executed, and weights inside them are refused by name. tests/fixtures/company.py wrote the files with
// PyTorch 1.13.

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { openBytes } from "../../src/formats/bytes.ts";
import { fromFileUrl } from "@std/path";
import { UsageError } from "../../src/errors.ts";
import { readTorch } from "../../src/formats/torch.ts";
import { Linear, loadState } from "../../src/nn/layers.ts";
import { renamed } from "../../src/formats/mapped_store.ts";
import { testInOwnProcess } from "../helpers/own_process.ts";
import {
  call,
  dict,
  global,
  guarded,
  int,
  members,
  type Part,
  tensor,
  text,
  tuple,
  zip,
} from "../helpers/pickles.ts";

const fixture = (name: string) => fromFileUrl(new URL(`../fixtures/${name}`, import.meta.url));
const zipped = (contents: Part) => readTorch(guarded(zip(members(contents))));

/** Objects in the files, and whether they hold tensors. */
const OBJECTS: Record<string, [type: string, holdsTensors: boolean]> = {
  "model.freqs_cis": ["torch.ComplexFloatStorage", true],
  "numpy_rng.1": ["numpy.core.multiarray._reconstruct", false],
  "array": ["numpy.core.multiarray._reconstruct", false],
  "scalar": ["numpy.core.multiarray.scalar", false],
  "path": ["pathlib.WindowsPath", false],
  "date": ["datetime.datetime", false],
  "deque": ["collections.deque", false],
  "mode": ["builtins.getattr", false],
  "config": ["__main__.Config", false],
  "easydict": ["easydict.EasyDict", false],
  "config_dict": ["ml_collections.config_dict.config_dict.ConfigDict", false],
  "yacs": ["yacs.config.CfgNode", false],
  "version": ["torch.torch_version.TorchVersion", false],
  "average": ["__main__.Average", true],
  "sparse": ["torch._utils._rebuild_sparse_tensor", true],
  "quantized": ["torch._utils._rebuild_qtensor", true],
};

for (const name of ["company.pth", "company_legacy.pth"]) {
  Deno.test(`weights next to seventeen kinds of objects are read, and the objects are listed by name (${name})`, async () => {
    const file = readTorch(openBytes(fixture(name)));
    try {
      assertEquals([...file.shapes], [["model.w", [2, 3]], ["model.sub", [2, 3]]]);
      assertEquals([...await file.read("model.w")], [0, 1, 2, 3, 4, 5]);
      assertEquals([...await file.read("model.sub")], [10, 11, 12, 13, 14, 15]);
      assertEquals(file.metadata.get("step"), "7");
      const { keywords, ...others } = Object.fromEntries(
        [...file.unread].map(([key, { type, holdsTensors }]) => [key, [type, holdsTensors]]),
      );
      assertEquals(others, OBJECTS);
      // Protocol 2 has no keyword arguments: Python goes through functools.
      assert(["__main__.WithKeywords", "functools.partial"].includes(String(keywords?.[0])));
    } finally {
      file.close();
    }
  });
}

Deno.test("a weight inside an object is refused by name and class", async () => {
  const file = zipped(dict({
    weight: call("torch._utils._rebuild_sparse_tensor", global("torch.sparse_coo"), tuple(tensor())),
    bias: tensor({ shape: [2], stride: [1] }),
  }));
  const { message } = await assertRejects(() => loadState(new Linear(3, 2), file), UsageError) as UsageError;
  assertEquals(
    message,
    'Cannot load "memory": missing "weight"; tensors inside objects are not read: "weight" ' +
      "(torch._utils._rebuild_sparse_tensor); load the file with PyTorch and save its plain state_dict()",
  );
  const other = renamed(file, new Map([["bias", "bias"], ["weight", "weight"]]));
  const again = await assertRejects(() => loadState(new Linear(3, 2), other), UsageError) as UsageError;
  assertEquals(again.message, message);
});

Deno.test("a file that is one object with weights inside is refused as such", () => {
  const module: Part = [global("torch.nn.modules.linear.Linear"), ")\x81", dict({ weight: tensor() }), "b"];
  assertThrows(
    () => zipped(dict({ model: module })),
    UsageError,
    'Cannot read "memory": its tensors are inside an object of the class "torch.nn.modules.linear.Linear" ("model"), ' +
      "which is not run; load it with PyTorch and save its state_dict()",
  );
});

testInOwnProcess(import.meta.url)(
  "a list in twenty thousand objects is kept once, and the search for tensors ends",
  () => {
    const list: Part = ["](", ...Array(10_000).fill(int(1)), "e", "q\x000"];
    const object: Part = [global("a.B"), "h\x00\x85R"];
    const before = Deno.memoryUsage().rss;
    const file = zipped(["(", list, tensor(), "(", Array(20_000).fill(object), "tt"]);
    assertEquals(file.unread.size, 20_000);
    assert(Deno.memoryUsage().rss - before < 300e6, `${(Deno.memoryUsage().rss - before) / 1e6} MB`);
  },
);

Deno.test("objects that reference each other are searched once", () => {
  const file = zipped([
    "(",
    tensor(),
    global("a.B"),
    ")\x81q\x00",
    dict({ self: "h\x00", text: text("x") }),
    "bt",
  ]);
  assertEquals([...file.unread], [["1", { type: "a.B", holdsTensors: false }]]);
});
