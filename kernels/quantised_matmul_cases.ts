/**
 * Quantised products: all bits, group sizes and types of scales, one token and many, gated or not.
 *
 * @module
 */
import type { ProductParams } from "./product.ts";
import { productCase, type ProductShape } from "./random_product.ts";
import { codeBits, groupSizes } from "./quantised_reference.ts";
import type { KernelCase, Random } from "./spec.ts";
import type { FloatType } from "./weight_format.ts";

const types: readonly FloatType[] = ["f32", "f16", "bf16"];

function columns(groupSize: number, random: Random): number {
  return groupSize * random.integer(1, Math.max(2, 512 / groupSize / 2));
}

const everyFormat = codeBits.flatMap((bits) =>
  groupSizes.map((groupSize, i): KernelCase<ProductParams> => {
    const format = { kind: "affine", bits, groupSize, scales: types[(i + bits) % 3]! } as const;
    const bench = groupSize === 64 ? { "0.5B, gate and up, 4 tokens": [4, 9728, 896] } as const : {};
    return productCase("few tokens", { format }, (random) => {
      return [random.integer(1, 6), random.integer(1, 50), columns(groupSize, random)];
    }, { bench });
  })
);

/** The matrices of a decoding step that take most of its time. */
const oneToken: Readonly<Record<string, ProductShape>> = {
  "stories, gate and up": [1, 2816, 512],
  "stories, head": [1, 8192, 512],
  "0.5B, q, k and v": [1, 1152, 896],
  "0.5B, gate and up": [1, 9728, 896],
  "0.5B, down": [1, 896, 4864],
  "0.5B, head": [1, 151936, 896],
  "7B, gate and up": [1, 37888, 3584],
  "7B, down": [1, 3584, 18944],
};

const manyTokens: Readonly<Record<string, ProductShape>> = {
  "stories, gate and up, 64 tokens": [64, 2816, 512],
  "0.5B, gate and up, 64 tokens": [64, 9728, 896],
  "7B, gate and up, 512 tokens": [512, 37888, 3584],
};

const settings = ([4, 8] as const).flatMap((bits) => {
  const format = { kind: "affine", bits, groupSize: 64, scales: "f16" } as const;
  return [
    productCase("one token", { format }, (random) => [1, random.integer(1, 90), columns(64, random)], {
      bench: oneToken,
    }),
    productCase(
      "f16 activations",
      { format },
      (random) => [random.integer(1, 3), random.integer(1, 90), columns(64, random)],
      {
        x: "f16",
      },
    ),
    productCase(
      "many tokens",
      { format },
      (random) => [random.integer(9, 40), random.integer(1, 150), columns(64, random)],
      { bench: manyTokens },
    ),
    productCase("gated", { format, gate: true }, (random) => [1, 2 * random.integer(1, 50), columns(64, random)]),
    productCase("gated, many tokens", { format, gate: true }, (random) => {
      return [random.integer(9, 20), 2 * random.integer(1, 50), columns(64, random)];
    }),
  ];
});

/** Cases of the table-driven test and bench. */
export const cases: readonly KernelCase<ProductParams>[] = [...everyFormat, ...settings];
