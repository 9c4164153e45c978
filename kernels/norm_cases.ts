/** Cases of RMSNorm: odd sizes, rows of zeros, small and large values. */
import { float16Bits, float16Value } from "../tensor/dtype.ts";
import { rmsNormKernel, type RmsNormParams } from "./norm.ts";
import type { CaseCall, KernelCase, Random } from "./spec.ts";

/** Random rows, each of its own magnitude; now and then a row of zeros. */
function call(rows: number, columns: number, random: Random): CaseCall<RmsNormParams> {
  const half = random.uniform() < 0.3, round = half ? (x: number) => float16Value(float16Bits(x)) : Math.fround;
  const x = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const size = [0, 1e-3, 1, 100][random.integer(0, 3)]!;
    for (let i = 0; i < columns; i++) x[row * columns + i] = round(random.normal() * size);
  }
  const weight = Float32Array.from({ length: columns }, () => random.normal());
  return {
    params: { eps: [1e-6, 1e-5, 1e-3][random.integer(0, 2)]! },
    inputs: [
      { dtype: half ? "f16" : "f32", shape: [rows, columns], data: x },
      { dtype: "f32", shape: [columns], data: weight },
    ],
  };
}

/** A sum of K squares of one sign errs by K 2^-24 relatively at most, its root by half of that; the rest is five roundings. */
function tolerance({ inputs }: CaseCall<RmsNormParams>, [y]: readonly Float64Array[]): Float64Array[] {
  const relative = (inputs[1]!.data.length / 2 + 8) * 2 ** -24;
  return [y!.map((value) => Math.abs(value) * relative + 1e-37)];
}

/** Cases of RMSNorm. */
export const cases: KernelCase<RmsNormParams>[] = [{
  name: "rms_norm",
  kernel: rmsNormKernel,
  random: (random) => {
    const columns = [1, 7, 33, 64, 65, 128, 512, 896, 1537, 3584];
    return call(random.integer(1, 9), columns[random.integer(0, columns.length - 1)]!, random);
  },
  tolerance,
  bench: {
    "stories, one row": (random) => call(1, 512, random),
    "0.5B, 512 rows": (random) => call(512, 896, random),
    "7B, one row": (random) => call(1, 3584, random),
    "7B, 512 rows": (random) => call(512, 3584, random),
  },
}];
