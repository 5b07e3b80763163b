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

type Constants = Record<string, { shape: number[]; data: Float32Array }>;
interface Node {
  type: string;
  inputs: string[];
  /** Name of its result; the model's is y. */
  output?: string;
  attributes?: Record<string, number | number[]>;
  /** Of onnxruntime's own ops. */
  own?: boolean;
}

const OWN = "com.microsoft";

/** An ONNX model (opset 17) with input x, constants and output y. */
function model(shape: number[], constants: Constants, nodes: Node[]): Uint8Array {
  const attribute = (name: string, value: number | number[]) =>
    typeof value === "number"
      ? [...text(1, name), ...number(3, value), ...number(20, 2)]
      : [...text(1, name), ...value.flatMap((v) => number(8, v)), ...number(20, 7)];
  const node = ({ type, inputs, output = "y", attributes = {}, own = false }: Node) => [
    ...inputs.flatMap((name) => text(1, name)),
    ...text(2, output),
    ...text(4, type),
    ...Object.entries(attributes).flatMap(([k, v]) => bytes(5, attribute(k, v))),
    ...own ? text(7, OWN) : [],
  ];
  /** Floats of a shape, or of one that the runtime finds out. */
  const value = (name: string, shape?: number[]) => {
    const dims = shape?.flatMap((n) => bytes(1, number(1, n)));
    return [...text(1, name), ...bytes(2, bytes(1, [...number(1, 1), ...dims ? bytes(2, dims) : []]))];
  };
  const tensor = ([name, { shape, data }]: [string, { shape: number[]; data: Float32Array }]) => [
    shape.flatMap((n) => number(1, n)),
    number(2, 1),
    text(8, name),
    // Large: its length is written, its bytes follow as they are.
    [...varint(9 << 3 | 2), ...varint(data.byteLength)],
    new Uint8Array(data.buffer),
  ];
  const join = (parts: Iterable<number>[]): Uint8Array => {
    const all = parts.map((p) => p instanceof Uint8Array ? p : Uint8Array.from(p));
    const whole = new Uint8Array(all.reduce((n, p) => n + p.length, 0));
    let at = 0;
    for (const p of all) {
      whole.set(p, at);
      at += p.length;
    }
    return whole;
  };
  const nested = (field: number, inner: Uint8Array) =>
    join([[...varint(field << 3 | 2), ...varint(inner.length)], inner]);
  const graph = join([
    ...nodes.map((n) => bytes(1, node(n))),
    text(2, "g"),
    ...Object.entries(constants).map((c) => nested(5, join(tensor(c)))),
    bytes(11, value("x", shape)),
    bytes(12, value("y")),
  ]);
  const opset = (domain: string, version: number) => bytes(8, [...text(1, domain), ...number(2, version)]);
  return join([number(1, 8), nested(7, graph), opset("", 17), opset(OWN, 1)]);
}

const random = (shape: number[]) => ({
  shape,
  data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Math.random() - 0.5),
});

/** Median milliseconds of a model; the cost of the one wait is taken off. */
async function time(shape: number[], bytes: Uint8Array): Promise<number> {
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
  const alone = [await run(1), await run(1), await run(1)].sort((a, b) => a - b), single = alone[0] as number;
  if (single > 400) return alone[1] as number;
  const times: number[] = [];
  for (let round = 0; round < 5; round++) times.push((await run(9) - single) / 8);
  await session.release();
  return times.sort((a, b) => a - b)[2] as number;
}

/** Input shape and model of a case; undefined where there is no such op, or only for inference. */
function make(c: any): [number[], Uint8Array] | undefined {
  if (c.pass === "gradients") return undefined;
  const of = (shape: number[], constants: Constants, ...nodes: Node[]): [number[], Uint8Array] => [
    shape,
    model(shape, constants, nodes),
  ];
  const rows = [c.R, c.C];
  switch (c.op) {
    case "gemm": {
      const [transA, transB] = [...c.layout].map((l) => l === "T" ? 1 : 0) as [number, number];
      const shape = transA ? [c.K, c.M] : [c.M, c.K], w = random(transB ? [c.N, c.K] : [c.K, c.N]);
      if (c.layout === "NN") return of(shape, { w }, { type: "MatMul", inputs: ["x", "w"] });
      return of(shape, { w }, { type: "Gemm", inputs: ["x", "w"], attributes: { transA, transB } });
    }
    case "conv": {
      if (c.wrt !== "y") return undefined;
      const attributes = { kernel_shape: [3, 3], pads: [1, 1, 1, 1] };
      const w = random([c.Co, c.C, 3, 3]);
      return of([c.B, c.C, c.H, c.W], { w }, { type: "Conv", inputs: ["x", "w"], attributes });
    }
    case "attention": {
      const shape = [c.B, c.T, c.NH * c.HS];
      const node = {
        type: "MultiHeadAttention",
        inputs: ["x", "k", "v"],
        attributes: { num_heads: c.NH },
        own: true,
      };
      return of(shape, { k: random(shape), v: random(shape) }, node);
    }
    case "layer norm":
      return of(rows, { g: random([c.C]), b: random([c.C]) }, {
        type: "LayerNormalization",
        inputs: ["x", "g", "b"],
      });
    case "rms norm":
      return of(rows, { g: random([c.C]) }, { type: "SimplifiedLayerNormalization", inputs: ["x", "g"] });
    case "softmax":
      return of(rows, {}, { type: "Softmax", inputs: ["x"] });
    case "add":
      return of(rows, { b: random(rows) }, { type: "Add", inputs: ["x", "b"] });
    case "silu":
      return of(rows, {}, { type: "Sigmoid", inputs: ["x"], output: "s" }, {
        type: "Mul",
        inputs: ["x", "s"],
      });
  }
}

const cases: any[] = JSON.parse(await Deno.readTextFile(`${Deno.args[0]}/cases.json`));
for (const c of cases.filter((c) => c.precision === "f32")) {
  try {
    const made = make(c);
    if (made) console.log(JSON.stringify({ case: c.title, ms: await time(...made) }));
  } catch (error) {
    console.error(`${c.title}: ${error instanceof Error ? error.message : error}`);
  }
}
Deno.exit(0);
