// Subgroup matrices (tensor cores) of the open device: which GEMMs can use, and whether they compute right. GEMMs of fp16
// operands use them once useMatrices() says so; see kernels/gemm_matrix.ts.

import { UsageError } from "../errors.ts";
import type { MatrixUnit } from "../../kernels/gemm.ts";
import { device } from "../gpu/device.ts";
import type { MatrixShape } from "../gpu/provider.ts";
import { capture } from "../gpu/program.ts";
import { within } from "../gpu/scope.ts";
import { input, type Shape, sizeOf, type Tensor } from "../tensor/tensor.ts";
import { conv2d } from "./conv.ts";
import { GEMM_KINDS, useMatrices } from "./gemm_tiles.ts";
import { matmul } from "./matmul.ts";

/** The features that the kernels enable. */
const MATRIX_FEATURE = "chromium-experimental-subgroup-matrix";
const FEATURES = ["shader-f16", "subgroups", MATRIX_FEATURE];

/** Sides of a matrix must divide a quarter of the smallest tile, and K must be whole vec4s. */
const fits = ({ M, N, K }: MatrixShape) => [M, N].every((n) => n % 4 === 0 && 16 % n === 0) && K % 4 === 0;

/** SIMD lanes beyond which Mesa 26.2's lavapipe crashes at the first matrix: vectors of 256 bits. */
const SOFTWARE_LANES = 8;

/** The largest matrices of the open device with fp16 operands and fp32 accumulators, whether right or not. */
export function findMatrices(): MatrixUnit | undefined {
  const { limits, facts: { software, matrices, simdWidth: min, subgroupMaxSize: max } } = device();
  if (software && max > SOFTWARE_LANES) return undefined;
  if (!min || !FEATURES.every((name) => device().has(name))) return undefined;
  if (4 * max > limits.maxComputeInvocationsPerWorkgroup) return undefined;
  const [largest] = matrices
    .filter((shape) => shape.componentType === "f16" && shape.resultComponentType === "f32" && fits(shape))
    .sort((a, b) => b.M * b.N * b.K - a.M * a.N * a.K);
  return largest && { M: largest.M, N: largest.N, K: largest.K, subgroup: [min, max] };
}

/** What became of {@link prepareMatrices}: in use, or why they are not although the device has them. */
export type MatrixSetup = { unit?: MatrixUnit; failure?: string };

/**
 * Uses the subgroup matrices of the open device where it has them and their self-test passes.
 * @param options.always even where the ordinary kernels were measured to be faster
 */
export async function prepareMatrices(
  unit = findMatrices(),
  { always = false } = {},
): Promise<MatrixSetup> {
  if (!unit) return {};
  useMatrices(unit, GEMM_KINDS); // whatever was measured
  const failure = await selfTest().catch((error) =>
    oneLine(error instanceof Error ? error.message : String(error))
  );
  useMatrices(failure === undefined ? unit : undefined, always ? GEMM_KINDS : undefined);
  return failure === undefined ? { unit } : { failure };
}

/** The beginning of a compiler's message. */
const oneLine = (text: string) =>
  text.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, 2).join(" ");

/**
 * Uses subgroup matrices where fp16 is trained in on a GPU that has them and `kernels` leaves the choice, or demands them.
 * @throws UsageError where matrices are demanded that cannot be used
 */
export async function chooseMatrices(
  { kernels, precision = "f32" }: { kernels: string; precision?: string },
  warn: (text: string) => void,
): Promise<MatrixUnit | undefined> {
  const demanded = kernels === "matrix", { facts: { software, description }, profile } = device();
  if (demanded && precision !== "f16") {
    throw new UsageError(
      "Cannot use --kernels matrix: subgroup matrices multiply fp16; add --precision f16 to a training command, or " +
        "remove the option",
    );
  }
  // On software adapters they exist for tests: the kernels of profile cpu are faster.
  if (precision !== "f16" || profile !== "gpu" || kernels === "gpu" || (software && !demanded)) {
    return undefined;
  }
  const { unit, failure } = await prepareMatrices(findMatrices(), { always: demanded });
  if (demanded && !unit) {
    const why = failure ??
      (software && device().has(MATRIX_FEATURE)
        ? "its driver needs LP_NATIVE_VECTOR_WIDTH=256 for subgroup matrices"
        : 'it has no subgroup matrices of fp16 with fp32 sums (see "tok doctor"; GPUs have them with --gpu dawn)');
    throw new UsageError(`Cannot use --kernels matrix on ${description}: ${why}`);
  }
  if (failure) {
    warn(`subgroup matrices fail their self-test (${failure}); fp16 GEMMs use the ordinary kernels`);
  }
  return unit;
}

/** GEMMs of small integers, whose sums are exact. @returns what is wrong */
async function selfTest(): Promise<string | undefined> {
  const before = device().profile;
  device().profile = "gpu";
  try {
    for (const [transposeA, transposeB] of [[false, true], [true, false]] as const) {
      const wrong = await testMatmul(transposeA, transposeB);
      if (wrong !== undefined) return wrong;
    }
    return await testConvolution();
  } finally {
    device().profile = before;
  }
}

/** A matmul with edges. */
function testMatmul(transposeA: boolean, transposeB: boolean): Promise<string | undefined> {
  const [M, N, K] = [36, 44, 52];
  const shapes = [transposeA ? [K, M] : [M, K], transposeB ? [N, K] : [K, N]] as const;
  return firstWrong("GEMM", shapes, (a, b) => matmul(a, b, { transposeA, transposeB }), (a, b) => (at) => {
    const m = Math.floor(at / N), n = at % N;
    let sum = 0;
    for (let k = 0; k < K; k++) {
      sum += (a[transposeA ? k * M + m : m * K + k] as number) *
        (b[transposeB ? n * K + k : k * N + n] as number);
    }
    return sum;
  });
}

/** A padded 3x3 convolution whose K = 9 * 32 is split in two, in the middle of the 32 channels of a tap. */
function testConvolution(): Promise<string | undefined> {
  const [S, C, Co] = [3, 32, 4], shapes = [[1, S, S, C], [Co, 3, 3, C]] as const;
  return firstWrong(
    "convolution",
    shapes,
    (x, w) => conv2d(x, w, undefined, { padding: 1 }),
    (x, w) => (at) => {
      const y0 = Math.floor(at / Co / S) - 1, x0 = Math.floor(at / Co) % S - 1, weight = at % Co * 9 * C;
      let sum = 0;
      for (let tap = 0; tap < 9; tap++) {
        const y = y0 + Math.floor(tap / 3), column = x0 + tap % 3;
        if (Math.min(y, column) < 0 || Math.max(y, column) >= S) continue;
        for (let c = 0; c < C; c++) {
          sum += (x[(y * S + column) * C + c] as number) * (w[weight + tap * C + c] as number);
        }
      }
      return sum;
    },
  );
}

/** The first element of `fn`, of two fp16 operands, that is not as `expected`. */
async function firstWrong(
  name: string,
  [shapeA, shapeB]: readonly [Shape, Shape],
  fn: (a: Tensor, b: Tensor) => Tensor,
  expected: (a: Float16Array, b: Float16Array) => (at: number) => number,
): Promise<string | undefined> {
  const integers = (shape: Shape, step: number) =>
    Float16Array.from({ length: sizeOf(shape) }, (_, i) => i * step % 17 - 8);
  const a = integers(shapeA, 7), b = integers(shapeB, 5), value = expected(a, b);
  const program = await within(
    { precision: "f32" },
    () =>
      capture(
        "self-test",
        { a: input(shapeA, "f16"), b: input(shapeB, "f16") },
        ({ a, b }) => ({ c: fn(a, b) }),
      ),
  ).prepare();
  try {
    program.run({ a: new Uint16Array(a.buffer), b: new Uint16Array(b.buffer) });
    const c = await program.read(program.outputs.c), columns = program.outputs.c.shape.at(-1) ?? 1;
    for (const [i, found] of c.entries()) {
      if (found === value(i)) continue;
      return `element (${Math.floor(i / columns)}, ${i % columns}) of a ${name} is ${found} instead of ${
        value(i)
      }`;
    }
    return undefined;
  } finally {
    program.destroy();
  }
}
