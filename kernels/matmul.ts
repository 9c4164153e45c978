/**
 * The product of activations and a dense weight, as linear layers have it, y = x W^T:
 *
 *     y[t, r] = sum over c of x[t, c] * W[r, c]
 *
 * W is stored in f32, or in f16 or bf16 as the checkpoint has it and widened in registers, which is exact. x and the sums are
 * f32. The text of the kernel is in `product.ts`, shared with the quantised product; the plain definition is
 * `matmulReference`.
 *
 * @module
 */
import type { Kernel } from "../tensor/kernel.ts";
import { productKernel, type ProductParams } from "./product.ts";

/** y [tokens, rows] = x [tokens, columns] times a dense weight [rows, columns]. */
export const matmul: Kernel<ProductParams> = productKernel("matmul", "dense");
