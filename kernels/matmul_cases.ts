/**
 * Dense products: every type, aligned and ragged columns, one token and many.
 *
 * @module
 */
import type { ProductParams } from "./product.ts";
import { productCase } from "./random_product.ts";
import type { KernelCase } from "./spec.ts";
import type { FloatType } from "./weight_format.ts";

const types: readonly FloatType[] = ["f32", "f16", "bf16"];

/** Cases of the table-driven test and bench. */
export const cases: readonly KernelCase<ProductParams>[] = types.flatMap((dtype) => {
  const format = { kind: "dense", dtype } as const;
  return [
    productCase("one token", { format }, (random) => [1, random.integer(1, 70), 32 * random.integer(1, 9)], {
      bench: { "0.5B, feed-forward, 1 token": [1, 4864, 896], "7B, attention output, 1 token": [1, 3584, 3584] },
    }),
    productCase(
      "few tokens",
      { format },
      (random) => [random.integer(2, 8), random.integer(1, 70), 8 * random.integer(1, 30)],
    ),
    productCase(
      "ragged columns",
      { format },
      (random) => [random.integer(1, 3), random.integer(1, 20), random.integer(1, 99)],
    ),
    productCase(
      "many tokens",
      { format },
      (random) => [random.integer(9, 40), random.integer(1, 90), 4 * random.integer(1, 40)],
      {
        bench: {
          "0.5B, q, k and v, 64 tokens": [64, 1152, 896],
          "7B, attention output, 512 tokens": [512, 3584, 3584],
        },
      },
    ),
  ];
});
