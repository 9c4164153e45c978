/**
 * One request on its way, in the caller's thread: the text that its tokens become, and the chunks that wait for its reader.
 *
 * @module
 */
import { StreamingDetokenizer } from "../model/detokenizer.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { EngineClient, EngineOutput, EngineRequest, OutputSink } from "./engine_types.ts";
import type { GenerationParameters } from "./parameters.ts";
import type { Chunk, Timings } from "./request.ts";
import { StopStrings } from "./stop_strings.ts";

/** What a generation is made of. */
export interface GenerationRequest {
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** How. */
  readonly parameters: GenerationParameters;
  /** Turns ids into text; without it there is none. */
  readonly tokenizer?: Tokenizer | undefined;
  /** Asks the engine to end a sample, or all of them. */
  readonly abort: (index?: number) => void;
  /** Aborting ends the generation within a step. */
  readonly signal?: AbortSignal | undefined;
}

/** The text of one sample. */
interface SampleText {
  readonly detokenizer: StreamingDetokenizer | undefined;
  readonly stops: StopStrings;
  /** Whether its reader has got its last chunk. */
  ended: boolean;
  /** Whether the engine has let go of it. */
  retired: boolean;
}

/** A request that is waiting, running or over. */
export class Generation implements OutputSink {
  /** Resolves once the engine has let go of it. */
  readonly retired: Promise<void>;
  #retire!: () => void;
  readonly #request: GenerationRequest;
  readonly #samples: readonly SampleText[];
  readonly #clock = new Clock();
  readonly #chunks: Chunk[] = [];
  readonly #onAbort = (): void => this.#request.abort();
  #completionTokens = 0;
  #cachedTokens = 0;
  #failure: Error | undefined;
  #wake: () => void = () => {};

  /** A request of which nothing has happened yet. */
  constructor(request: GenerationRequest) {
    const { parameters: { n, stop }, tokenizer } = request;
    this.#request = request;
    this.#samples = Array.from({ length: n }, () => ({
      detokenizer: tokenizer && new StreamingDetokenizer(tokenizer),
      stops: new StopStrings(stop),
      ended: false,
      retired: false,
    }));
    this.retired = new Promise((resolve) => this.#retire = resolve);
  }

  /**
   * Hands it to the engine as `request`, and lets its signal end it from then on. Where that is aborted already, the engine is not
   * given it.
   *
   * @throws {Error} if the engine is closed, whether or not the signal is aborted.
   */
  start(engine: Pick<EngineClient, "checkOpen" | "addRequest">, request: EngineRequest): void {
    const { signal } = this.#request;
    if (signal?.aborted) {
      engine.checkOpen();
      return this.#endUnstarted();
    }
    engine.addRequest(request, this);
    signal?.addEventListener("abort", this.#onAbort);
  }

  /** The chunks of an abort before the first step. */
  #endUnstarted(): void {
    const { logprobs } = this.#request.parameters;
    for (const [index, sample] of this.#samples.entries()) {
      this.#take(sample, {
        index,
        tokens: [],
        ...(logprobs !== undefined && { logprobs: [] }),
        ...((logprobs ?? 0) > 0 && { topLogprobs: [] }),
        finishReason: "abort",
      });
      sample.retired = true;
    }
    this.#settle();
  }

  output(output: EngineOutput): void {
    const { index, finishReason, queuedMs, cachedTokens } = output;
    const sample = this.#samples[index]!;
    if (queuedMs !== undefined) this.#clock.queuedMs ??= queuedMs;
    if (index === 0) this.#cachedTokens = cachedTokens ?? this.#cachedTokens;
    if (!sample.ended) this.#take(sample, output);
    if (!finishReason) return;
    sample.retired = true;
    if (this.#samples.every(({ retired }) => retired)) this.#settle();
  }

  fail(cause: Error): void {
    this.#failure = cause;
    this.#settle();
    this.#wake();
  }

  /** Its reader has gone: nobody needs the rest. */
  abandon(): void {
    if (this.#failure || this.#samples.every(({ retired }) => retired)) return;
    this.#request.abort();
  }

  /** The chunks, as they come; the last one says why it ended. For one reader. */
  async *chunks(): AsyncGenerator<Chunk> {
    while (true) {
      const chunk = this.#chunks.shift();
      if (chunk) {
        yield chunk;
        if (chunk.usage) return;
      } else if (this.#failure) throw this.#failure;
      else await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  #settle(): void {
    this.#request.signal?.removeEventListener("abort", this.#onAbort);
    this.#retire();
  }

  /** Makes a chunk of new tokens, up to a stop string where there is one. */
  #take(sample: SampleText, output: Omit<EngineOutput, "id">): void {
    const { index, tokens, logprobs, topLogprobs, finishReason } = output;
    let text = "", count = 0;
    for (; count < tokens.length && !sample.stops.stopped; count++) {
      text += sample.stops.push(sample.detokenizer?.push(tokens[count]!) ?? "");
    }
    this.#clock.tick(count);
    this.#completionTokens += count;
    const { stopped } = sample.stops, reason = stopped ? "stop" : finishReason;
    if (stopped && !finishReason) this.#request.abort(index);
    // What is still held back: half a character, the beginning of a stop string that never came.
    if (reason) text += sample.stops.push(sample.detokenizer?.flush() ?? "") + sample.stops.flush();
    sample.ended = reason !== undefined;
    this.#chunks.push({
      index,
      text,
      tokens: tokens.slice(0, count),
      ...(logprobs && { logprobs: logprobs.slice(0, count) }),
      ...(topLogprobs && { topLogprobs: topLogprobs.slice(0, count).map((top) => [...top]) }),
      ...(reason && { finishReason: reason }),
      ...(this.#samples.every(({ ended }) => ended) && this.#summary()),
    });
    this.#wake();
  }

  #summary(): Required<Pick<Chunk, "usage" | "timings">> {
    const { promptTokens, parameters: { n } } = this.#request;
    const usage = { promptTokens, completionTokens: this.#completionTokens, cachedTokens: this.#cachedTokens };
    return { usage, timings: this.#clock.timings(promptTokens, n) };
  }
}

/** When what happened, in milliseconds. */
class Clock {
  readonly #asked = performance.now();
  queuedMs: number | undefined;
  #first: number | undefined;
  #last = 0;
  #drawn = 0;

  /** Tokens came. */
  tick(count: number): void {
    if (count === 0) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#drawn += count;
  }

  timings(promptTokens: number, samples: number): Timings {
    const end = performance.now(), first = this.#first ?? end, began = this.#asked + (this.queuedMs ?? 0);
    const rate = (count: number, milliseconds: number): number => milliseconds > 0 ? 1000 * count / milliseconds : 0;
    return {
      firstTokenMs: first - this.#asked,
      promptTokensPerSecond: this.#first === undefined ? 0 : rate(promptTokens, first - began),
      decodeTokensPerSecond: rate(Math.max(0, this.#drawn - samples), this.#last - first),
      totalMs: end - this.#asked,
    };
  }
}
