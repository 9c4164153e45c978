/**
 * Quantised activations. Codes have to be equal bit for bit, and drivers may round a quotient either way: so values lie
 * within 0.4 of a code, of a block whose greatest magnitude is 127 codes.
 *
 * @module
 */
import { activationBlock, quantise32Kernel, rmsNormQuantise32Kernel } from "./quantise.ts";
import type { RmsNormParams } from "./norm.ts";
import type { CaseCall, CaseInput, KernelCase, Random } from "./spec.ts";

/** Activations with known codes; one block in eight is zero. */
function activations(rows: number, columns: number, random: Random): CaseInput {
  const data = new Float32Array(rows * columns);
  for (let start = 0; start < data.length; start += activationBlock) {
    const scale = random.uniform() < 0.125 ? 0 : 2 ** random.integer(-8, 3);
    for (let c = 0; c < activationBlock; c++) {
      data[start + c] = scale * (random.integer(-126, 126) + 0.8 * (random.uniform() - 0.5));
    }
    data[start + random.integer(0, activationBlock - 1)] = scale * (random.uniform() < 0.5 ? 127 : -127);
  }
  return { dtype: "f32", shape: [rows, columns], data };
}

/** Scales err by a product; sums of 32 by 7 additions of at most 32 x 127 scales. `relative` is what the values err by. */
function tolerance(scales: Float64Array, relative: number): (Float64Array | number)[] {
  return [
    0,
    scales.map((_, i) =>
      i % 2 === 0 ? scales[i]! * (2 ** -22 + relative) : scales[i - 1]! * 4064 * (2 ** -21 + relative)
    ),
  ];
}

function plainCase(name: string, shape: (random: Random) => [number, number]): KernelCase<null> {
  return {
    name: `quantise32 ${name}`,
    kernel: quantise32Kernel,
    random: (random) => ({ params: null, inputs: [activations(...shape(random), random)] }),
    tolerance: (_call, [, scales]) => tolerance(scales!, 0),
    bench: {
      "0.5B, down, one token": (random) => ({ params: null, inputs: [activations(1, 4864, random)] }),
      "0.5B, down, 512 tokens": (random) => ({ params: null, inputs: [activations(512, 4864, random)] }),
    },
  };
}

/** A norm whose codes no rounding changes. Its weights are powers of two, the same in a block: they leave the codes alone. */
export function normCall(rows: number, columns: number, random: Random): CaseCall<RmsNormParams> {
  const weight = new Float32Array(columns);
  for (let c = 0; c < columns; c++) {
    weight[c] = c % activationBlock === 0 ? 2 ** random.integer(-3, 3) : weight[c - 1]!;
  }
  return {
    params: { eps: 1e-6 },
    inputs: [activations(rows, columns, random), { dtype: "f32", shape: [columns], data: weight }],
  };
}

function normCase(name: string, shape: (random: Random) => [number, number]): KernelCase<RmsNormParams> {
  return {
    name: `rms_norm_quantise32 ${name}`,
    kernel: rmsNormQuantise32Kernel,
    random: (random) => normCall(...shape(random), random),
    tolerance: ({ inputs }, [, scales]) => tolerance(scales!, (inputs[0]!.shape[1] as number / 4 + 8) * 2 ** -24),
    bench: {
      "0.5B, one token": (random) => normCall(1, 896, random),
      "7B, 512 tokens": (random) => normCall(512, 3584, random),
    },
  };
}

/** Cases of quantisation alone. */
export const quantiseCases: readonly KernelCase<null>[] = [
  plainCase("few rows", (random) => [random.integer(1, 4), 32 * random.integer(1, 9)]),
  plainCase("many rows", (random) => [random.integer(5, 70), 32 * random.integer(1, 12)]),
];

/** Cases of the fused norm. */
export const normQuantiseCases: readonly KernelCase<RmsNormParams>[] = [
  normCase("short rows", (random) => [random.integer(1, 5), 32 * random.integer(1, 8)]),
  normCase("long rows", (random) => [random.integer(1, 3), 32 * random.integer(17, 40)]),
];
