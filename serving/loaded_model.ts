/**
 * A model on a device: its parts, and the engine that works for all who ask.
 *
 * @module
 */
import type { ChatMessage, ChatTemplate } from "../model/chat_template.ts";
import type { DecoderConfig } from "../model/config.ts";
import type { Precision } from "../model/decoder.ts";
import type { DecoderWeights } from "../model/decoder_weights.ts";
import type { GenerationConfig } from "../model/generation_config.ts";
import type { KvCache } from "../model/kv_cache.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { Device } from "../tensor/device.ts";
import { Engine } from "./engine.ts";
import type { EngineStats } from "./engine_types.ts";
import { Generation } from "./generation.ts";
import { MAX_SEQUENCES } from "./memory.ts";
import type { Logits, Model, ModelMemory, NegativeLogLikelihood } from "./model.ts";
import { checkTokenIds, resolveParameters } from "./parameters.ts";
import { encodePrompt } from "./prompt.ts";
import type { BatchOptions, Chunk, Completion, GenerateOptions, Prompt } from "./request.ts";
import { Runner } from "./runner.ts";

/** What a loaded model consists of. It owns the weights and the cache, and the device unless it is the caller's. */
export interface ModelParts {
  readonly name: string;
  readonly config: DecoderConfig;
  readonly generation: GenerationConfig;
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: ChatTemplate | undefined;
  readonly contextLength: number;
  readonly device: Device;
  /** Whether the device goes with the model. */
  readonly ownsDevice: boolean;
  readonly weights: DecoderWeights;
  readonly cache: KvCache;
  readonly precision: Precision;
}

/** The one implementation of {@linkcode Model}. */
export class LoadedModel implements Model {
  readonly name: string;
  readonly config: DecoderConfig;
  declare readonly tokenizer?: Tokenizer;
  declare readonly chatTemplate?: ChatTemplate;
  readonly contextLength: number;
  /** Where its requests are served. */
  readonly engine: Engine;
  readonly #parts: ModelParts;
  readonly #runner: Runner;
  #disposed: Promise<void> | undefined;

  /** Takes over the parts. */
  constructor(parts: ModelParts) {
    const { name, config, contextLength, device, weights, cache, precision } = parts;
    this.name = name;
    this.config = config;
    this.contextLength = contextLength;
    if (parts.tokenizer) this.tokenizer = parts.tokenizer;
    if (parts.chatTemplate) this.chatTemplate = parts.chatTemplate;
    this.#parts = parts;
    this.#runner = new Runner({
      device,
      weights,
      config,
      cache,
      precision,
      contextLength,
      maxSequences: MAX_SEQUENCES,
    });
    const { numBlocks, blockSize } = cache.options;
    this.engine = new Engine({ runner: this.#runner, numBlocks, blockSize, maxSequences: MAX_SEQUENCES });
  }

  get memory(): ModelMemory {
    const { weights, cache, device } = this.#parts;
    return { weights: weights.bytes, kvCache: cache.bytes, peak: device.peak };
  }

  generate(options: GenerateOptions): AsyncGenerator<Chunk>;
  generate(prompts: readonly Prompt[], params?: BatchOptions): Promise<Completion[]>;
  generate(
    what: GenerateOptions | readonly Prompt[],
    params: BatchOptions = {},
  ): AsyncGenerator<Chunk> | Promise<Completion[]> {
    if (!isPromptList(what)) return this.#stream(what);
    return Promise.all(what.map((prompt) => this.complete({ ...params, ...promptOptions(prompt) })));
  }

  async *#stream(options: GenerateOptions): AsyncGenerator<Chunk> {
    const generation = this.#submit(options);
    try {
      yield* generation.chunks();
    } finally {
      generation.abandon();
      await generation.retired;
    }
  }

  async complete(options: GenerateOptions): Promise<Completion> {
    const text: string[] = [], tokens: number[] = [], logprobs: number[] = [];
    for await (const chunk of this.generate(options)) {
      text.push(chunk.text);
      tokens.push(...chunk.tokens);
      logprobs.push(...chunk.logprobs ?? []);
      const { finishReason, usage, timings } = chunk;
      if (!finishReason || !usage || !timings) continue;
      return { text: text.join(""), tokens, ...(options.logprobs && { logprobs }), finishReason, usage, timings };
    }
    throw new Error("Cannot complete: generation ended without a reason");
  }

  async logits(ids: readonly number[]): Promise<Logits> {
    this.#checkPrompt(ids, "logits", this.contextLength);
    const { vocabSize } = this.config;
    const data = new Float32Array(ids.length * vocabSize);
    await this.engine.logits(ids, (first, piece) => data.set(piece, first * vocabSize));
    return { data, shape: [ids.length, vocabSize] };
  }

  async nll(ids: readonly number[]): Promise<NegativeLogLikelihood> {
    this.#checkPrompt(ids, "the likelihood", this.contextLength);
    if (ids.length < 2) throw new Error("Cannot compute the likelihood of 1 token: give at least 2");
    const { vocabSize } = this.config;
    let sum = 0;
    await this.engine.logits(ids, (first, piece) => {
      for (let row = 0; row * vocabSize < piece.length; row++) {
        const next = ids[first + row + 1];
        if (next !== undefined) sum -= logProbability(piece.subarray(row * vocabSize, (row + 1) * vocabSize), next);
      }
    });
    return { mean: sum / (ids.length - 1), count: ids.length - 1 };
  }

  stats(): EngineStats {
    return this.engine.stats();
  }

  explain(): Promise<string> {
    return Promise.resolve(this.#runner.explain());
  }

  dispose(): Promise<void> {
    return this.#disposed ??= this.#dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #dispose(): Promise<void> {
    await this.engine.close(new Error(`Cannot use ${this.name}: it was disposed. Load it again.`));
    const { weights, cache, device, ownsDevice } = this.#parts;
    this.#runner.dispose();
    weights.release();
    cache.release();
    if (ownsDevice) device.close();
    else device.readback.destroy();
  }

  #submit(options: GenerateOptions): Generation {
    const { config, generation, tokenizer, contextLength } = this.#parts;
    const { vocabSize } = config;
    const eosTokenIds = generation.eosTokenIds.length > 0 ? generation.eosTokenIds : config.eosTokenIds;
    const parameters = resolveParameters(options, { generation, eosTokenIds, vocabSize });
    if (parameters.stop.length > 0 && !tokenizer) {
      throw new Error(`Cannot stop at strings: ${this.name} has no tokenizer, give stopTokenIds instead`);
    }
    const prompt = encodePrompt(options, { ...this.#parts, vocabSize });
    if (prompt.length >= contextLength) {
      throw new Error(
        `Cannot generate: the prompt has ${prompt.length} tokens, and a context of ${contextLength} has room for ` +
          `${contextLength - 1} and an answer. Shorten it${longerContext(contextLength, config)}.`,
      );
    }
    const submitted = new Generation({ prompt, parameters, tokenizer, contextLength, signal: options.signal });
    this.engine.submit(submitted);
    return submitted;
  }

  #checkPrompt(ids: readonly number[], what: string, most: number): void {
    if (ids.length === 0) throw new Error(`Cannot compute ${what}: no ids were given, give at least one`);
    checkTokenIds(ids, this.config.vocabSize, "ids");
    if (ids.length > most) {
      throw new Error(
        `Cannot compute ${what}: ${ids.length} tokens do not fit a context of ${most}. Shorten them` +
          `${longerContext(most, this.config)}.`,
      );
    }
  }
}

function isPromptList(what: GenerateOptions | readonly Prompt[]): what is readonly Prompt[] {
  return Array.isArray(what);
}

/** A prompt by its form. An empty list is no conversation: it is refused as empty ids are. */
function promptOptions(prompt: Prompt): Pick<GenerateOptions, "prompt" | "messages" | "tokens"> {
  if (typeof prompt === "string") return { prompt };
  return isConversation(prompt) ? { messages: prompt } : { tokens: prompt };
}

function isConversation(prompt: readonly ChatMessage[] | readonly number[]): prompt is readonly ChatMessage[] {
  return typeof prompt[0] === "object";
}

/** What else there is than a shorter prompt. */
function longerContext(contextLength: number, config: DecoderConfig): string {
  return contextLength < config.contextLength
    ? `, or load the model with a context of up to ${config.contextLength}`
    : ": the model cannot take more";
}

/** ln of the softmax at `id`, in float64. */
function logProbability(logits: Float32Array, id: number): number {
  let largest = -Infinity, sum = 0;
  for (const logit of logits) if (logit > largest) largest = logit;
  for (const logit of logits) sum += Math.exp(logit - largest);
  return logits[id]! - largest - Math.log(sum);
}
