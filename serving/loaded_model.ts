/**
 * A model as its users see it: text in and out, in the caller's thread. The engine behind it may live in another one.
 *
 * @module
 */
import type { ChatMessage, ChatTemplate } from "../model/chat_template.ts";
import type { DecoderConfig } from "../model/config.ts";
import type { GenerationConfig } from "../model/generation_config.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { EngineClient, EngineStats } from "./engine_types.ts";
import { Generation } from "./generation.ts";
import type { Logits, Model, ModelMemory, NegativeLogLikelihood } from "./model.ts";
import { checkTokenIds, type GenerationParameters, resolveParameters } from "./parameters.ts";
import { encodePrompt } from "./prompt.ts";
import type { BatchOptions, Chunk, Completion, GenerateOptions, Prompt, Sample } from "./request.ts";
import { RequestError } from "./request_error.ts";

/** What a loaded model consists of. It owns the engine. */
export interface ModelParts<E extends EngineClient> {
  readonly name: string;
  readonly config: DecoderConfig;
  readonly generation: GenerationConfig;
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: ChatTemplate | undefined;
  readonly contextLength: number;
  readonly contextShortage?: string;
  readonly engine: E;
  /** Bytes on the device. */
  readonly memory: Omit<ModelMemory, "peak">;
}

/** The one implementation of {@linkcode Model}. */
export class LoadedModel<E extends EngineClient = EngineClient> implements Model {
  readonly name: string;
  readonly config: DecoderConfig;
  declare readonly tokenizer?: Tokenizer;
  declare readonly chatTemplate?: ChatTemplate;
  readonly contextLength: number;
  declare readonly contextShortage?: string;
  /** Where its requests are served. */
  readonly engine: E;
  readonly #parts: ModelParts<E>;
  #requests = 0;

  /** Takes over the parts. */
  constructor(parts: ModelParts<E>) {
    this.name = parts.name;
    this.config = parts.config;
    this.contextLength = parts.contextLength;
    if (parts.tokenizer) this.tokenizer = parts.tokenizer;
    if (parts.chatTemplate) this.chatTemplate = parts.chatTemplate;
    if (parts.contextShortage !== undefined) this.contextShortage = parts.contextShortage;
    this.engine = parts.engine;
    this.#parts = parts;
  }

  get memory(): ModelMemory {
    return { ...this.#parts.memory, peak: this.engine.stats().peakBytes };
  }

  generate(options: GenerateOptions): AsyncGenerator<Chunk>;
  generate(prompts: readonly Prompt[], params?: BatchOptions): Promise<Completion[]>;
  generate(
    what: GenerateOptions | readonly Prompt[],
    params: BatchOptions = {},
  ): AsyncGenerator<Chunk> | Promise<Completion[]> {
    return isPromptList(what) ? this.#answerAll(what, params) : this.#stream(what);
  }

  async complete(options: GenerateOptions): Promise<Completion> {
    const samples: Sample[] = [];
    for await (const { index, usage, timings, finishReason, ...chunk } of this.generate(options)) {
      const sample = samples[index] ??= emptySample();
      sample.text += chunk.text;
      sample.tokens.push(...chunk.tokens);
      if (chunk.logprobs) (sample.logprobs ??= []).push(...chunk.logprobs);
      if (chunk.topLogprobs) (sample.topLogprobs ??= []).push(...chunk.topLogprobs);
      if (finishReason) sample.finishReason = finishReason;
      if (usage && timings) return { ...samples[0]!, ...(samples.length > 1 && { samples }), usage, timings };
    }
    throw new Error("Cannot complete: generation ended without a reason");
  }

  async logits(ids: readonly number[]): Promise<Logits> {
    this.#checkPrompt(ids, "logits");
    const { vocabSize } = this.config;
    const data = new Float32Array(ids.length * vocabSize);
    await this.engine.logits(ids, (first, piece) => data.set(piece, first * vocabSize));
    return { data, shape: [ids.length, vocabSize] };
  }

  async nll(ids: readonly number[]): Promise<NegativeLogLikelihood> {
    this.#checkPrompt(ids, "the likelihood");
    if (ids.length < 2) throw new RequestError("Cannot compute the likelihood of 1 token: give at least 2");
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
    return this.engine.explain();
  }

  dispose(): Promise<void> {
    return this.engine.close(new Error(`Cannot use "${this.name}": it was disposed. Load it again.`));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
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

  /** All prompts at once. When one fails the others are given up: nobody gets their answers. */
  async #answerAll(prompts: readonly Prompt[], params: BatchOptions): Promise<Completion[]> {
    const asked = prompts.map(promptOptions);
    const failed = new AbortController();
    const signal = params.signal ? AbortSignal.any([params.signal, failed.signal]) : failed.signal;
    const answers = asked.map((prompt) => this.complete({ ...params, ...prompt, signal }));
    try {
      return await Promise.all(answers);
    } catch (cause) {
      failed.abort();
      await Promise.allSettled(answers);
      throw cause;
    }
  }

  #submit(options: GenerateOptions): Generation {
    const { config, generation, tokenizer } = this.#parts, { vocabSize } = config;
    const eosTokenIds = generation.eosTokenIds.length > 0 ? generation.eosTokenIds : config.eosTokenIds;
    const parameters = resolveParameters(options, { generation, eosTokenIds, vocabSize });
    if (parameters.stop.length > 0 && !tokenizer) {
      throw new RequestError(`Cannot stop at strings: "${this.name}" has no tokenizer, give stopTokenIds instead`);
    }
    const { signal } = options;
    if (!(signal === undefined || signal instanceof AbortSignal)) {
      throw new RequestError(`Cannot generate: signal is ${signal}, give an AbortSignal`);
    }
    const prompt = encodePrompt(options, { ...this.#parts, vocabSize });
    this.#checkFits(prompt);
    return this.#start(prompt, parameters, signal);
  }

  #start(prompt: readonly number[], parameters: GenerationParameters, signal: AbortSignal | undefined): Generation {
    const { sampling, maxTokens, stopTokenIds, n, logprobs, priority, cacheSalt } = parameters;
    const id = this.#requests++;
    const abort = (index?: number): void => this.engine.abort(id, index);
    const submitted = new Generation({
      promptTokens: prompt.length,
      parameters,
      tokenizer: this.#parts.tokenizer,
      abort,
      signal,
    });
    const alternatives = logprobs === undefined ? {} : { logprobs };
    const salt = cacheSalt === undefined ? {} : { cacheSalt };
    const request = { id, prompt, sampling, maxTokens, stopTokenIds, n, priority, ...alternatives, ...salt };
    submitted.start(this.engine, request);
    return submitted;
  }

  #checkFits(prompt: readonly number[]): void {
    const { contextLength } = this;
    if (prompt.length < contextLength) return;
    throw new RequestError(
      `Cannot generate: the prompt has ${prompt.length} tokens, and a context of ${contextLength} has room for ` +
        `${contextLength - 1} and an answer. Shorten it${longerContext(this)}.`,
    );
  }

  #checkPrompt(ids: readonly number[], what: string): void {
    const most = this.contextLength;
    if (ids.length === 0) throw new RequestError(`Cannot compute ${what}: no ids were given, give at least one`);
    checkTokenIds(ids, this.config.vocabSize, "ids");
    if (ids.length > most) {
      throw new RequestError(
        `Cannot compute ${what}: ${ids.length} tokens do not fit a context of ${most}. Shorten them` +
          `${longerContext(this)}.`,
      );
    }
  }
}

function emptySample(): Sample {
  return { text: "", tokens: [], finishReason: "abort" };
}

function isPromptList(what: GenerateOptions | readonly Prompt[]): what is readonly Prompt[] {
  return Array.isArray(what);
}

/**
 * A prompt by its form. An empty list is no conversation: it is refused as empty ids are.
 *
 * @throws {RequestError} for anything else, such as the options that a single prompt comes in.
 */
function promptOptions(prompt: Prompt, index: number): Pick<GenerateOptions, "prompt" | "messages" | "tokens"> {
  if (typeof prompt === "string") return { prompt };
  if (typeof prompt?.[Symbol.iterator] !== "function") {
    const given = Deno.inspect(prompt, { depth: 1, strAbbreviateSize: 40, breakLength: Infinity });
    throw new RequestError(
      `Cannot generate: prompt ${index} of the list is ${given}, give text, a list of messages such as ` +
        '[{ role: "user", content: "…" }], or a list of token ids',
    );
  }
  return isConversation(prompt) ? { messages: prompt } : { tokens: prompt };
}

function isConversation(prompt: readonly ChatMessage[] | readonly number[]): prompt is readonly ChatMessage[] {
  return typeof prompt[0] === "object";
}

/** What else there is than a shorter prompt. */
function longerContext({ contextLength, contextShortage, config }: LoadedModel): string {
  if (contextShortage !== undefined) return `, or load the model with more memory: ${contextShortage}`;
  return contextLength < config.contextLength
    ? `, or load the model with a contextLength of up to ${config.contextLength}`
    : ": the model cannot take more";
}

/** ln of the softmax at `id`, in float64. */
function logProbability(logits: Float32Array, id: number): number {
  let largest = -Infinity, sum = 0;
  for (const logit of logits) if (logit > largest) largest = logit;
  for (const logit of logits) sum += Math.exp(logit - largest);
  return logits[id]! - largest - Math.log(sum);
}
