// What a pass of a DiT gives besides the velocity: the inner head, the tokens after a block, and a pass that starts there.

import { assert, assertEquals, assertThrows } from "@std/assert";
import { ShapeError, UsageError } from "../../src/errors.ts";
import { validated } from "../../src/formats/files.ts";
import { capture } from "../../src/gpu/program.ts";
import { Dit, ditConfig } from "../../src/models/dit.ts";
import { Initializer } from "../../src/nn/init.ts";
import { loadState, saveState } from "../../src/nn/layers.ts";
import { constant, type Tensor } from "../../src/tensor/tensor.ts";
import { randomArray, testDevice } from "../helpers/check.ts";
import { formulaSource, shapesOf } from "../helpers/formula.ts";

const TINY = { input_size: 4, in_channels: 4, hidden_size: 16, depth: 3, num_heads: 2, num_classes: 3 };
const B = 2;

/** Runs what `record` records on a fixed batch. */
async function run<K extends string>(
  record: (x: Tensor, t: Tensor, y: Tensor) => Record<K, Tensor>,
): Promise<Record<K, Float32Array>> {
  const program = await capture("pass", {}, () =>
    record(
      constant(randomArray(B * 64, 1), [B, 4, 4, 4]),
      constant(Float32Array.of(0.2, 0.7), [B]),
      constant(Uint32Array.of(1, 3), [B]),
    )).prepare();
  program.run({});
  const read = {} as Record<K, Float32Array>;
  for (const key of Object.keys(program.outputs) as K[]) read[key] = await program.read(program.outputs[key]);
  program.destroy();
  return read;
}

Deno.test("a pass gives forward's velocity, the inner head's and the tokens after a block, and can start there", async () => {
  await testDevice();
  const dit = new Dit(ditConfig.parse({ ...TINY, inner_head: 2 }));
  await loadState(dit, formulaSource(shapesOf(dit)));
  const one = await run((x, t, y) => ({ velocity: dit.forward(x, t, y) }));
  const all = await run((x, t, y) =>
    dit.outputs(x, t, y, { features: 2 }) as Required<ReturnType<Dit["outputs"]>>
  );
  assertEquals(all.velocity, one.velocity);
  assertEquals([all.inner.length, all.features.length], [B * 64, B * 16 * 16]);
  // The inner head reads the tokens after its block: with the weights of the last head, it is a model of two blocks.
  const short = new Dit(ditConfig.parse({ ...TINY, depth: 2 }));
  const source = formulaSource(shapesOf(dit));
  await loadState(short, {
    name: "formula",
    shapes: shapesOf(short),
    read: (key) => source.read(key.replace("final_layer.", "final_layer_xr.")),
  });
  assertEquals(all.inner, (await run((x, t, y) => ({ velocity: short.forward(x, t, y) }))).velocity);
  const again = await run((x, t, y) => {
    const tokens = constant(all.features, [B, 16, 16]);
    const outputs = dit.outputs(x, t, y, { start: { block: 2, tokens } });
    assertEquals(Object.keys(outputs), ["velocity"]);
    return { velocity: outputs.velocity };
  });
  assertEquals(again.velocity, one.velocity);
  for (const features of [4, -1]) {
    await run((x, t, y) => {
      assertThrows(() => dit.outputs(x, t, y, { features }), ShapeError, "blocks 1 to 3");
      return {};
    });
  }
});

Deno.test("an inner head starts at zero, changes no first value of the model, and must come before the last block", async () => {
  await testDevice();
  const [plain, inner] = [0, 1].map((inner_head) => new Dit(ditConfig.parse({ ...TINY, inner_head }))) as [
    Dit,
    Dit,
  ];
  plain.init(new Initializer(3));
  inner.init(new Initializer(3));
  const saved = await saveState(inner), own = await saveState(plain);
  assertEquals(saved.filter(({ name }) => !name.startsWith("final_layer_xr.")), own);
  const head = saved.filter(({ name }) => name.startsWith("final_layer_xr."));
  assertEquals(head.length, 5);
  for (const { name, data } of head) assert(data.every((v) => v === (name.includes("norm") ? 1 : 0)), name);
  const { message } = assertThrows(
    () => validated(ditConfig, { ...TINY, inner_head: 3 }, "the options"),
    UsageError,
  );
  assertEquals(
    message,
    'Cannot use "the options": inner_head: the inner head must come before the last block',
  );
});
