/**
 * Models below the engine: checkpoints and where their bytes come from, tokenizers and chat templates, the decoder and its
 * one batch form. Nothing here needs Deno: it runs in a browser as it is.
 *
 * @example Text to token ids and back
 * ```ts
 * import { Tokenizer } from "@tinyllm/tinyllm/model";
 *
 * const tokenizer = Tokenizer.fromJson({
 *   model: { type: "BPE", vocab: { H: 0, i: 1, Hi: 2 }, merges: ["H i"] },
 *   added_tokens: [],
 *   decoder: { type: "ByteLevel" },
 * });
 * console.log(tokenizer.encode("Hi"), tokenizer.decode([2])); // [2] "Hi"
 * ```
 *
 * @module
 */
export * from "./batch.ts";
export * from "./chat_template.ts";
export * from "./checkpoint.ts";
export * from "./config.ts";
export * from "./decoder.ts";
export * from "./decoder_weights.ts";
export * from "./detokenizer.ts";
export * from "./float.ts";
export * from "./generation_config.ts";
export * from "./http_source.ts";
export * from "./kv_cache.ts";
export * from "./quantization.ts";
export * from "./rope_config.ts";
export * from "./rope_frequencies.ts";
export * from "./safetensors.ts";
export * from "./source.ts";
export * from "./tokenizer.ts";
export * from "./weights.ts";
export * from "./plain_decoder.ts";
