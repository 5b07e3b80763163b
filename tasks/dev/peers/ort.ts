// onnxruntime-web timed on the cases of ../bench.ts; one JSON object a line. Run by `deno task bench --peers` in a package
// folder of its own, given as the first argument. Results stay on the device; the models are written here, byte by byte.

// deno-lint-ignore-file no-explicit-any
import { pathToFileURL } from "node:url";

const dist = `${Deno.args[0]}/node_modules/onnxruntime-web/dist/`;
// The only build that runs under Deno: the others pass their buffers in a form that its WebGPU refuses.
const ort: any = await import(pathToFileURL(`${dist}ort.webgpu.bundle.min.mjs`).href);
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = pathToFileURL(dist).href;
ort.env.logLevel = "error";

// Protocol buffers: a field is a key (number and wire type) and a varint or bytes with their length before them.
const varint = (n: number): number[] => n < 128 ? [n] : [(n & 127) | 128, ...varint(Math.floor(n / 128))];
const number = (field: number, value: number) => [...varint(field << 3), ...varint(value)];
const bytes = (field: number, value: Iterable<number>) => {
  const all = [...value];
  return [...varint(field << 3 | 2), ...varint(all.length), ...all];
};
const text = (field: number, value: string) => bytes(field, new TextEncoder().encode(value));

/** An ONNX model of one node (opset 17) with input x, constants and output y. */
function model(
  type: string,
  shape: number[],
  constants: Record<string, { shape: number[]; data: Float32Array }>,
  attributes: Record<string, number | number[]> = {},
  inputs = ["x", ...Object.keys(constants)],
): Uint8Array {
  const attribute = (name: string, value: number | number[]) =>
    typeof value === "number"
      ? [...text(1, name), ...number(3, value), ...number(20, 2)]
      : [...text(1, name), ...value.flatMap((v) => number(8, v)), ...number(20, 7)];
  const node = [
    ...inputs.flatMap((name) => text(1, name)),
    ...text(2, "y"),
    ...text(4, type),
    ...Object.entries(attributes).flatMap(([k, v]) => bytes(5, attribute(k, v))),
  ];
  const value = (name: string) => {
    const dims = shape.flatMap((n) => bytes(1, number(1, n)));
    return [...text(1, name), ...bytes(2, bytes(1, [...number(1, 1), ...bytes(2, dims)]))];
  };
  const tensor = ([name, { shape, data }]: [string, { shape: number[]; data: Float32Array }]) => [
    ...shape.flatMap((n) => number(1, n)),
    ...number(2, 1),
    ...text(8, name),
    ...bytes(9, new Uint8Array(data.buffer)),
  ];
  const graph = [
    ...bytes(1, node),
    ...text(2, "g"),
    ...Object.entries(constants).flatMap((c) => bytes(5, tensor(c))),
    ...bytes(11, value("x")),
    ...bytes(12, value("y")),
  ];
  return Uint8Array.from([
    ...number(1, 8),
    ...bytes(7, graph),
    ...bytes(8, [...text(1, ""), ...number(2, 17)]),
  ]);
}

const random = (shape: number[]) => ({
  shape,
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Math.random() - 0.5),
});

async function measure(name: string, shape: number[], bytes: Uint8Array) {
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: ["webgpu"],
    preferredOutputLocation: "gpu-buffer",
  });
  const feeds = { x: new ort.Tensor("float32", random(shape).data, shape) };
  const run = async (n: number) => {
    const began = performance.now();
    let y: any;
    for (let i = 0; i < n; i++) {
      y?.dispose();
      ({ y } = await session.run(feeds));
    }
    await y.getData();
    y.dispose();
    return performance.now() - began;
  };
  await run(1);
  let best = Infinity;
  for (let round = 0; round < 4; round++) best = Math.min(best, (-await run(1) + await run(9)) / 8);
  console.log(JSON.stringify({ case: name, ms: best }));
}

for (const S of [512, 1024]) {
  await measure(`GEMM NN ${S}`, [S, S], model("MatMul", [S, S], { w: random([S, S]) }));
}
await measure(
  "conv 3x3 64x64x64 -> 64",
  [1, 64, 64, 64],
  model("Conv", [1, 64, 64, 64], { w: random([64, 64, 3, 3]) }, { kernel_shape: [3, 3], pads: [1, 1, 1, 1] }),
);
const rows = [1024, 768];
await measure(
  "layer norm 1024x768",
  rows,
  model("LayerNormalization", rows, { g: random([768]), b: random([768]) }),
);
await measure("softmax 1024x768", rows, model("Softmax", rows, {}));
await measure("add 1024x768", rows, model("Add", rows, {}, {}, ["x", "x"]));
Deno.exit(0);
