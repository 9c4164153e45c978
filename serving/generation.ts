/**
 * One request on its way: its sequence, the text that its tokens become, and the chunks that wait for its reader.
 *
 * @module
 */
import { StreamingDetokenizer } from "../model/detokenizer.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { GenerationParameters } from "./parameters.ts";
import type { Chunk, FinishReason, Timings } from "./request.ts";
import type { Sampled } from "./runner.ts";
import { Sequence } from "./sequence.ts";
import { StopStrings } from "./stop_strings.ts";

/** What a generation is made of. */
export interface GenerationRequest {
  /** Ids to continue, at least one. */
  readonly prompt: readonly number[];
  /** How. */
  readonly parameters: GenerationParameters;
  /** Turns ids into text; without it there is none. */
  readonly tokenizer?: Tokenizer | undefined;
  /** Aborting ends the generation within a step. */
  readonly signal?: AbortSignal | undefined;
  /** Most tokens of prompt and answer together. */
  readonly contextLength: number;
}

/** A request that is waiting, running or over. */
export class Generation {
  readonly sequence: Sequence;
  readonly parameters: GenerationParameters;
  /** Tokens that the sequence may reach: how far its blocks may grow. */
  readonly maxLength: number;
  /** Resolves once the engine has let go of it and its blocks are free. */
  readonly retired: Promise<void>;
  #retire!: () => void;
  readonly #request: GenerationRequest;
  readonly #detokenizer: StreamingDetokenizer | undefined;
  readonly #stops: StopStrings;
  readonly #clock = new Clock();
  readonly #chunks: Chunk[] = [];
  #state: "open" | "abandoned" | "finished" | { readonly failure: Error } = "open";
  #wake: () => void = () => {};

  /** A request of which nothing has happened yet. */
  constructor(request: GenerationRequest) {
    const { prompt, parameters, tokenizer, contextLength } = request;
    this.#request = request;
    this.parameters = parameters;
    this.sequence = new Sequence(prompt, parameters.sampling);
    this.maxLength = Math.min(contextLength, prompt.length + parameters.maxTokens);
    this.#detokenizer = tokenizer && new StreamingDetokenizer(tokenizer);
    this.#stops = new StopStrings(parameters.stop);
    this.retired = new Promise((resolve) => this.#retire = resolve);
  }

  /** Whether the engine should go on with it. */
  get open(): boolean {
    return this.#state === "open" && !this.#request.signal?.aborted;
  }

  /** Says that its first step comes now: the prompt's rate counts from here. */
  admit(): void {
    this.#clock.admitted ??= performance.now();
  }

  /** Takes the next token: it becomes text, or ends the generation. */
  accept({ token, logprob }: Sampled): void {
    this.#clock.tick();
    if (this.parameters.stopTokenIds.has(token)) return this.#finish("stop", {});
    this.sequence.append(token);
    const text = this.#stops.push(this.#detokenizer?.push(token) ?? "");
    const chunk: Chunk = { index: 0, text, tokens: [token], ...(logprob !== undefined && { logprobs: [logprob] }) };
    if (this.#stops.stopped) return this.#finish("stop", chunk);
    if (this.sequence.tokens.length >= this.maxLength) return this.#finish("length", chunk);
    this.#emit(chunk);
  }

  /** Ends it for its caller's sake, if it has not ended. What was written stays. */
  abort(): void {
    if (this.#state === "open") this.#finish("abort", {});
  }

  /** Ends it with an error. */
  fail(failure: Error): void {
    if (this.#state === "open") this.#state = { failure };
    this.#wake();
  }

  /** Its reader has gone. */
  abandon(): void {
    if (this.#state === "open") this.#state = "abandoned";
  }

  /** The engine has let go of it. */
  retire(): void {
    this.#retire();
  }

  /** The chunks, as they come; the last one says why it ended. For one reader. */
  async *chunks(): AsyncGenerator<Chunk> {
    while (true) {
      const chunk = this.#chunks.shift();
      if (chunk) {
        yield chunk;
        if (chunk.finishReason) return;
      } else if (typeof this.#state === "object") throw this.#state.failure;
      else await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  #finish(reason: FinishReason, last: Partial<Chunk>): void {
    this.#state = "finished";
    // What is still held back: half a character, the beginning of a stop string that never came.
    const rest = this.#stops.push(this.#detokenizer?.flush() ?? "") + this.#stops.flush();
    const { numPromptTokens: promptTokens, numGeneratedTokens: completionTokens } = this.sequence;
    this.#emit({
      index: 0,
      tokens: [],
      ...(this.parameters.logprobs !== undefined && { logprobs: [] }),
      ...last,
      text: (last.text ?? "") + rest,
      finishReason: reason,
      usage: { promptTokens, completionTokens, cachedTokens: 0 },
      timings: this.#clock.timings(promptTokens),
    });
  }

  #emit(chunk: Chunk): void {
    this.#chunks.push(chunk);
    this.#wake();
  }
}

/** When what happened, in milliseconds. */
class Clock {
  readonly #asked = performance.now();
  admitted: number | undefined;
  #first: number | undefined;
  #last = 0;
  #drawn = 0;

  /** A token was drawn. */
  tick(): void {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#drawn++;
  }

  timings(promptTokens: number): Timings {
    const end = performance.now(), first = this.#first ?? end;
    const rate = (count: number, milliseconds: number): number => milliseconds > 0 ? 1000 * count / milliseconds : 0;
    return {
      firstTokenMs: first - this.#asked,
      promptTokensPerSecond: this.#first === undefined ? 0 : rate(promptTokens, first - (this.admitted ?? this.#asked)),
      decodeTokensPerSecond: rate(this.#drawn - 1, this.#last - first),
      totalMs: end - this.#asked,
    };
  }
}
