/**
 * Embeddings from tables in every format; ids beyond the table among them.
 *
 * @module
 */
import { embeddingKernel, type EmbeddingParams } from "./embedding.ts";
import { randomWeight, repeatedWeight } from "./random_product.ts";
import { codeBits, groupSizes } from "./quantised_reference.ts";
import type { CaseCall, KernelCase, Random } from "./spec.ts";
import { formatName, type WeightFormat } from "./weight_format.ts";

function benchCall(
  format: WeightFormat,
  tokens: number,
  rows: number,
  columns: number,
  random: Random,
): CaseCall<EmbeddingParams> {
  const data = Int32Array.from({ length: tokens }, () => random.integer(0, rows - 1));
  return {
    params: { format, rows, columns },
    inputs: [{ dtype: "i32", shape: [tokens], data } as const, ...repeatedWeight(format, rows, columns, random)],
  };
}

function embeddingCase(format: WeightFormat, columns: (random: Random) => number): KernelCase<EmbeddingParams> {
  return {
    name: `embedding ${formatName(format)}`,
    kernel: embeddingKernel,
    random(random) {
      const rows = random.integer(1, 40), width = columns(random), tokens = random.integer(1, 12);
      const ids = Int32Array.from({ length: tokens }, () => random.integer(-1, rows));
      return {
        params: { format, rows, columns: width },
        inputs: [{ dtype: "i32", shape: [tokens], data: ids }, ...randomWeight(format, rows, width, random)],
      };
    },
    // f32 scales: the product and the sum are rounded once here, twice in a device without fused multiply-add.
    tolerance: (_call, [reference]) => [
      reference!.map((value) =>
        format.kind === "affine" && format.scales === "f32" ? 2 ** -20 * (1 + Math.abs(value)) : 0
      ),
    ],
    bench: {
      "stories, 64 tokens": (random) => benchCall(format, 64, 8192, 512, random),
      "7B, 512 tokens": (random) => benchCall(format, 512, 8192, 3584, random),
    },
  };
}

/** Cases of the table-driven test and bench. */
export const cases: readonly KernelCase<EmbeddingParams>[] = [
  ...(["f32", "f16", "bf16"] as const).map((dtype) => {
    return embeddingCase({ kind: "dense", dtype }, (random) => random.integer(1, 150));
  }),
  ...codeBits.map((bits, i) => {
    const groupSize = groupSizes[i % 3]!;
    const format = { kind: "affine", bits, groupSize, scales: (["f16", "bf16", "f32"] as const)[i % 3]! } as const;
    return embeddingCase(format, (random) => groupSize * random.integer(1, 4));
  }),
];
