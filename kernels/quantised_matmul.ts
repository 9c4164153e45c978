/**
 * The product of activations and an affine-quantised weight, the operation that decoding spends its time in:
 *
 *     y[t, r] = sum over c of x[t, c] * (code[r, c] * scale[r, g] + bias[r, g])          g = floor(c / groupSize)
 *
 * (MLX's mlx.core.quantized_matmul with transpose). Each weight is dequantised in a register by one fused multiply-add, to
 * f32's precision, and then meets x as any weight does: `product.ts` has the sums, `weight_format.ts` the dequantisation,
 * `quantised_reference.ts` all of it in plain TypeScript.
 *
 * Why not the factored form scale * sum(code * x) + bias * sum(x), which saves a multiply-add a weight? It cancels: the two
 * terms can be many times larger than their sum. And on CPU devices it is not faster (1.75 against 1.85 GMAC/s on
 * llvmpipe), since loading the codes takes most of the time.
 *
 * @module
 */
import type { Kernel } from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import { matmul } from "./matmul.ts";
import { productKernel, type ProductParams } from "./product.ts";
import type { Weight } from "./weight_format.ts";

/** y [tokens, rows] = x [tokens, columns] times an affine-quantised weight: codes, then scales with biases. */
export const quantisedMatmul: Kernel<ProductParams> = productKernel("quantised_matmul", "affine");

/**
 * A linear layer without bias: y = x W^T, whatever stores W.
 *
 * @param x Activations [tokens, columns], f32 or f16; tokens may be a symbol.
 * @param weight Weight [rows, columns].
 * @returns y [tokens, rows], f32.
 * @throws Where the columns differ: `Cannot multiply [3, 64] by weight [10, 32]: …`.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { input } from "../tensor/node.ts";
 * import { linear } from "./quantised_matmul.ts";
 * const x = input("x", "f32", [3, 64]);
 * const weight = {
 *   format: { kind: "affine", bits: 4, groupSize: 64, scales: "f16" },
 *   rows: 10,
 *   columns: 64,
 *   tensors: [input("codes", "u32", [10, 8]), input("affine", "u32", [10, 1])],
 * } as const;
 * assertEquals(linear(x, weight).shape, [3, 10]);
 * ```
 */
export function linear(x: Node, weight: Weight): Node {
  const kernel = weight.format.kind === "dense" ? matmul : quantisedMatmul;
  return kernelNode(kernel, [x, ...weight.tensors], { format: weight.format });
}
