/**
 * Hand-written WGSL, one family a file: each with its formula, its plain reference in TypeScript, its shader and its cost.
 * Read `quantised_reference.ts` and `flash_reference.ts` first.
 *
 * @example The plain reference of a quantised matrix
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { dequantise, quantise } from "@tinyllm/tinyllm/kernels";
 *
 * const weights = Float32Array.from({ length: 32 }, (_, i) => (i % 16) - 5);
 * const { words, scales, biases } = quantise(weights, 4, 32);
 * assertEquals(dequantise(words, scales, biases, 4, 32), weights);
 * ```
 *
 * @module
 */
export * from "./activation.ts";
export * from "./argmax.ts";
export * from "./attend.ts";
export * from "./attention.ts";
export * from "./copy_blocks.ts";
export * from "./decode_attention.ts";
export * from "./embedding.ts";
export * from "./flash_reference.ts";
export type { Int8Source } from "./int8_activations.ts";
export * from "./int8_matmul.ts";
export * from "./int8_variants.ts";
export * from "./kv_write.ts";
export * from "./matmul.ts";
export * from "./norm.ts";
export * from "./penalties.ts";
export * from "./philox.ts";
export * from "./product.ts";
export * from "./quantise.ts";
export * from "./quantised_matmul.ts";
export * from "./quantised_reference.ts";
export * from "./rope.ts";
export * from "./sampling.ts";
export * from "./sampling_reference.ts";
export * from "./sampling_rows.ts";
export * from "./spec.ts";
export * from "./token_slots.ts";
export * from "./top_logprobs.ts";
export * from "./variants.ts";
export * from "./weight_format.ts";
