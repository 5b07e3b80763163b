// Subgroup matrices (tensor cores) of the open device: which GEMMs can use, and whether they compute right. GEMMs of fp16
// operands use them once useMatrices() says so; see kernels/gemm_matrix.ts.

import { UsageError } from "../errors.ts";
import type { MatrixUnit } from "../../kernels/gemm.ts";
import { device } from "../gpu/device.ts";
import type { MatrixShape } from "../gpu/provider.ts";
import { capture } from "../gpu/program.ts";
import { within } from "../gpu/scope.ts";
import { input } from "../tensor/tensor.ts";
import { useMatrices } from "./gemm_tiles.ts";
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
  const { limits, facts: { software, matrices, simdWidth: least, subgroupMaxSize: most } } = device();
  if (software && most > SOFTWARE_LANES) return undefined;
  if (!least || !FEATURES.every((name) => device().has(name))) return undefined;
  if (4 * most > limits.maxComputeInvocationsPerWorkgroup) return undefined;
  const [largest] = matrices
    .filter((shape) => shape.componentType === "f16" && shape.resultComponentType === "f32" && fits(shape))
    .sort((a, b) => b.M * b.N * b.K - a.M * a.N * a.K);
  return largest && { M: largest.M, N: largest.N, K: largest.K, subgroup: [least, most] };
}

/** What became of {@link prepareMatrices}: in use, or why they are not although the device has them. */
export type Prepared = { unit?: MatrixUnit; failure?: string };

/** Uses the subgroup matrices of the open device where it has them and their self-test passes. */
export async function prepareMatrices(unit = findMatrices()): Promise<Prepared> {
  if (!unit) return {};
  useMatrices(unit);
  const failure = await selfTest().catch((error) => error instanceof Error ? error.message : String(error));
  if (failure === undefined) return { unit };
  useMatrices(undefined);
  return { failure };
}

/**
 * Uses subgroup matrices where fp16 is trained in on a GPU that has them, or where `kernels` demands them.
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
  if (precision !== "f16" || profile !== "gpu" || (software && !demanded)) return undefined;
  const { unit, failure } = await prepareMatrices();
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

/** GEMMs with edges, in two transposes, of small whole numbers, whose sums are exact. @returns what is wrong */
async function selfTest(): Promise<string | undefined> {
  const before = device().profile;
  device().profile = "gpu";
  try {
    for (const [transposeA, transposeB] of [[false, true], [true, false]] as const) {
      const [M, N, K] = [36, 44, 52];
      const whole = (n: number, step: number) =>
        Float16Array.from({ length: n }, (_, i) => i * step % 17 - 8);
      const a = whole(M * K, 7), b = whole(K * N, 5);
      const shapes = { a: transposeA ? [K, M] : [M, K], b: transposeB ? [N, K] : [K, N] };
      const program = await within({ precision: "f32" }, () =>
        capture(
          "self-test",
          { a: input(shapes.a, "f16"), b: input(shapes.b, "f16") },
          ({ a, b }) => ({ c: matmul(a, b, { transposeA, transposeB }) }),
        )).prepare();
      try {
        program.run({ a: new Uint16Array(a.buffer), b: new Uint16Array(b.buffer) });
        const c = await program.read(program.outputs.c);
        for (let i = 0; i < M * N; i++) {
          const m = Math.floor(i / N), n = i % N;
          let sum = 0;
          for (let k = 0; k < K; k++) {
            sum += (a[transposeA ? k * M + m : m * K + k] as number) *
              (b[transposeB ? n * K + k : k * N + n] as number);
          }
          if (c[i] !== sum) return `element (${m}, ${n}) of a product is ${c[i]} instead of ${sum}`;
        }
      } finally {
        program.destroy();
      }
    }
    return undefined;
  } finally {
    device().profile = before;
  }
}
