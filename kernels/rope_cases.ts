/** Cases of the rotation: both pairings, heads that rotate in part, positions in any order. */
import { ropeKernel, type RopeParams } from "./rope.ts";
import type { CaseCall, CaseInput, KernelCase, Random } from "./spec.ts";

/** Cosines and sines [positions, rotaryDim / 2, 2] of the paper's frequencies. */
export function randomTable(positions: number, rotaryDim: number): CaseInput {
  const half = rotaryDim / 2, data = new Float32Array(positions * rotaryDim);
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < half; i++) {
      const angle = position * 10000 ** (-2 * i / rotaryDim), at = 2 * (position * half + i);
      data[at] = Math.cos(angle);
      data[at + 1] = Math.sin(angle);
    }
  }
  return { dtype: "f32", shape: [positions, half, 2], data };
}

/** Random positions below `count`, as i32. */
export function randomPositions(rows: number, count: number, random: Random): CaseInput {
  return { dtype: "i32", shape: [rows], data: Int32Array.from({ length: rows }, () => random.integer(0, count - 1)) };
}

function call(rows: number, heads: number, headDim: number, params: RopeParams, random: Random): CaseCall<RopeParams> {
  const x = Float32Array.from({ length: rows * heads * headDim }, () => random.normal());
  const positions = randomPositions(rows, 100, random), unsigned = random.uniform() < 0.3;
  return {
    params,
    inputs: [
      { dtype: "f32", shape: [rows, heads, headDim], data: x },
      unsigned ? { ...positions, dtype: "u32", data: Uint32Array.from(positions.data) } : positions,
      randomTable(100, params.rotaryDim),
    ],
  };
}

/** Two products and a sum of features, at most 6 in size: three roundings of at most 12. */
const TOLERANCE = 3 * 12 * 2 ** -24;

/** Cases of the rotation. */
export const cases: KernelCase<RopeParams>[] = [{
  name: "rope",
  kernel: ropeKernel,
  random: (random) => {
    const [headDim, rotaryDim] = ([[8, 8], [64, 64], [128, 128], [33, 16], [32, 16], [20, 6], [2, 2]] as const)[
      random.integer(0, 6)
    ]!;
    const params = { rotaryDim, traditional: random.uniform() < 0.5 };
    return call(random.integer(1, 9), random.integer(1, 7), headDim, params, random);
  },
  tolerance: () => [TOLERANCE],
  bench: {
    "0.5B, 512 rows": (random) => call(512, 14, 64, { rotaryDim: 64, traditional: false }, random),
    "7B, 512 rows": (random) => call(512, 28, 128, { rotaryDim: 128, traditional: false }, random),
  },
}];
