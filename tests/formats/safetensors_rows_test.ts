// Safetensors files written row by row: the bytes of a file written at once, or no file.

import { assertEquals, assertThrows } from "@std/assert";
import { ShapeError } from "../../src/errors.ts";
import { RowsWriter, writeSafetensors } from "../../src/formats/safetensors.ts";

Deno.test("RowsWriter writes the bytes of writeSafetensors() from parts in any order, or no file", async () => {
  const folder = await Deno.makeTempDir();
  const patches = Float32Array.from({ length: 24 }, (_, i) => i), cls = Float32Array.from([7, 8, 9, 10]);
  const shapes = [{ name: "patch_tokens", shape: [2, 3, 4] }, { name: "cls_token", shape: [2, 2] }];
  const tensors = shapes.map((tensor, i) => ({ ...tensor, data: i ? cls : patches }));
  await writeSafetensors(`${folder}/whole`, tensors, { a: "b" });
  const rows = new RowsWriter(`${folder}/rows`, shapes, { a: "b" });
  rows.add("patch_tokens", patches.subarray(0, 12));
  rows.add("cls_token", cls.subarray(0, 2));
  rows.add("cls_token", cls.subarray(2));
  rows.add("patch_tokens", patches.subarray(12));
  rows.commit();
  assertEquals(Deno.readFileSync(`${folder}/rows`), Deno.readFileSync(`${folder}/whole`));

  const short = new RowsWriter(`${folder}/short`, shapes);
  short.add("cls_token", cls);
  assertThrows(() => short.commit(), ShapeError, '"patch_tokens" has 0 bytes, its shape needs 96');
  const long = new RowsWriter(`${folder}/long`, shapes);
  assertThrows(
    () => long.add("cls_token", patches),
    ShapeError,
    '"cls_token" has 96 bytes, its shape needs 16',
  );
  const other = new RowsWriter(`${folder}/other`, shapes);
  assertThrows(() => other.add("registers", cls), ShapeError, 'there is no tensor "registers"');
  assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name).sort(), ["rows", "whole"]);
});
