/**
 * TinyLLM: language models on WebGPU, for scripts.
 *
 * @example Write a story with the model that comes with the package
 * ```ts
 * import { loadModel } from "@tinyllm/tinyllm";
 *
 * await using model = await loadModel();
 * const messages = [{ role: "user", content: "Tell me a story about a brave mouse" }];
 * const answer = await model.complete({ messages, temperature: 0, maxTokens: 12 });
 * console.log(answer.text); // "Once upon a time, there was a mouse named Max"
 * ```
 *
 * @example Tensors: built lazily, fused, and run on the GPU when their data is asked for
 * ```ts
 * import { tensor } from "@tinyllm/tinyllm";
 *
 * const t = tensor([[1, 2], [3, 4]]).mul(2).add(1).sum(1);
 * console.log(await t.data()); // Float32Array [ 8, 16 ]
 * ```
 *
 * @module
 */
export type { ChatContentPart, ChatMessage, ChatTemplate, ChatToolCall } from "./model/chat_template.ts";
export type { DecoderConfig } from "./model/config.ts";
export type { Source } from "./model/source.ts";
export type { Tokenizer } from "./model/tokenizer.ts";
export type { EngineStats } from "./serving/engine_types.ts";
export { loadModel } from "./serving/load_model.ts";
export { estimateMemory, type LoadedBytes, type LoadEstimate, type MemoryEstimate } from "./serving/memory.ts";
export type { LoadOptions, LoadProgress, Logits, Model, ModelMemory, NegativeLogLikelihood } from "./serving/model.ts";
export { openSource } from "./serving/model_source.ts";
export type {
  BatchOptions,
  Chunk,
  Completion,
  FinishReason,
  GenerateOptions,
  Prompt,
  Sample,
  SamplingOptions,
  Timings,
  TokenLogprob,
  Usage,
} from "./serving/request.ts";
export { RequestError } from "./serving/request_error.ts";
export { DeviceLostError, OutOfMemoryError } from "./tensor/device.ts";
export { Tensor, tensor } from "./tensor/mod.ts";
