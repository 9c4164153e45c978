/**
 * What a loaded model is to its users, and how it is loaded: types alone.
 *
 * @module
 */
import type { ChatTemplate } from "../model/chat_template.ts";
import type { DecoderConfig } from "../model/config.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { EngineStats } from "./engine_types.ts";
import type { BatchOptions, Chunk, Completion, GenerateOptions, Prompt } from "./request.ts";

/** How far loading has come. */
export interface LoadProgress {
  /** What is going on. */
  phase: "download" | "load" | "compile";
  /** The file it is about. */
  file?: string;
  /** Bytes so far; where it compiles, programs. */
  received: number;
  /** Bytes, or programs, in all; 0 where that is not known. */
  total: number;
  /** Bytes a second. */
  bytesPerSecond?: number;
  /** Seconds to go. */
  etaSeconds?: number;
}

/** How a model is loaded. */
export interface LoadOptions {
  /**
   * `exact`: float32 throughout. `fast` multiplies weights of 4 and 8 bits by activations in 8 bits; `bench/README.md` has what
   * that costs. GPUs take `fast` unless told otherwise, CPU devices, where it is the slower one, `exact`.
   */
  precision?: "exact" | "fast";
  /** How keys and values are stored: `f16` unless given; `f32` for exactness. */
  kvDtype?: "f32" | "f16";
  /** Which device: `high-performance` unless given, or one that the caller opened, which stays open. */
  device?: "high-performance" | "low-power" | "fallback" | GPUDevice;
  /** Most tokens of prompt and answer together: the model's own or 4096, whichever is less, unless given. */
  contextLength?: number;
  /** Most sequences that are computed together: 256 unless given, 16 on devices that compute on the CPU. */
  maxNumSeqs?: number;
  /**
   * Most tokens that one step computes, of all sequences together: long prompts are cut to fit. Unless given 512, and on GPUs
   * up to 2,048, by the model's size, while nothing but prompts is computed.
   */
  maxNumBatchedTokens?: number;
  /**
   * Memory of keys and values: bytes, or, up to 1, a fraction of what `memoryLimit`, which has to be given then, leaves beside the
   * weights. No more is taken than the device can bind for the keys of a layer (128 MiB on llvmpipe); `memory.kvCache` says what
   * it came to. Unless given, enough for the sequences that fit a few gibibytes.
   */
  kvMemory?: number;
  /** Whether prompts that begin alike share what was computed: they do unless this is false. */
  prefixCache?: boolean;
  /** Who goes first: whoever came first, unless given, or the request of the smallest `priority`. */
  policy?: "fcfs" | "priority";
  /**
   * Whether all programs that steps of the checkpoint's own way of drawing can need are compiled now, and not as they are needed: it
   * takes seconds, and spares the first requests of each kind waits of a fraction of one. They are not unless this is true.
   */
  warmUp?: boolean;
  /** Branch, tag or commit of a model on the hub. */
  revision?: string;
  /** Most bytes of GPU memory to use. Drivers do not say what they have: unlimited unless given. */
  memoryLimit?: number;
  /** Told what the GPU runs: a line a dispatch of each program, once it is compiled. */
  debug?: (text: string) => void;
  /** Told how far loading has come. */
  onProgress?: (progress: LoadProgress) => void;
  /** Stops loading. */
  signal?: AbortSignal;
}

/** Bytes on the GPU. */
export interface ModelMemory {
  /** Weights, and the table of rotary positions. */
  readonly weights: number;
  /** The pool of keys and values. */
  readonly kvCache: number;
  /** The most that was in use at one time. */
  readonly peak: number;
}

/** Logits of a prompt. */
export interface Logits {
  /** Row-major. */
  readonly data: Float32Array<ArrayBuffer>;
  /** Positions and vocabulary. */
  readonly shape: [positions: number, vocabulary: number];
}

/** How well a text is predicted. */
export interface NegativeLogLikelihood {
  /** Mean of -ln p over the predicted tokens, in nats. */
  readonly mean: number;
  /** Predicted tokens: all but the first. */
  readonly count: number;
}

/** A model on a device, ready to answer. Make one with `loadModel`. */
export interface Model extends AsyncDisposable {
  /** The folder or id it was loaded from. */
  readonly name: string;
  /** Its shape. */
  readonly config: DecoderConfig;
  /** Its tokenizer, where it has one. */
  readonly tokenizer?: Tokenizer;
  /** Its chat template, where it has one. */
  readonly chatTemplate?: ChatTemplate;
  /** Most tokens of prompt and answer together. */
  readonly contextLength: number;
  /**
   * Where no `contextLength` was asked for, and memory made it shorter than the model's own or 4096: which option did, and what it
   * would have to be.
   */
  readonly contextShortage?: string;
  /** Bytes on the GPU. */
  readonly memory: ModelMemory;
  /**
   * Generates an answer, piece by piece; the last chunk says why it ended. Several at once are computed together. In exact
   * precision each gets the answer that it would get alone, bit for bit; in fast precision nearly the same distributions (a mean KL
   * divergence below 0.003), which may draw another token now and then. Breaking out of the loop stops the work within a step.
   *
   * @throws {RequestError} for options out of range, and for a prompt that does not fit the context; {Error} if the model fails.
   */
  generate(options: GenerateOptions): AsyncGenerator<Chunk>;
  /**
   * Answers many prompts together, all sampled alike, and returns the answers in their order.
   *
   * @param prompts Each a text, a list of messages, or a list of token ids.
   * @param params How; each prompt gets `n` samples.
   * @throws {RequestError} or {Error} as for one prompt; the others are given up then.
   *
   * @example
   * ```ts
   * import { loadModel } from "@tinyllm/tinyllm";
   *
   * await using model = await loadModel();
   * const answers = await model.generate(["Once upon a time", "There was a cat"], { maxTokens: 8, temperature: 0 });
   * for (const { text, usage } of answers) console.log(text, usage.completionTokens);
   * ```
   */
  generate(prompts: readonly Prompt[], params?: BatchOptions): Promise<Completion[]>;
  /** Generates a whole answer. Throws as `generate` does; an aborted one resolves with what was written. */
  complete(options: GenerateOptions): Promise<Completion>;
  /** Logits of each position of a prompt. */
  logits(ids: readonly number[]): Promise<Logits>;
  /** How well the model predicts each token from those before it. At least 2 ids. */
  nll(ids: readonly number[]): Promise<NegativeLogLikelihood>;
  /** What the engine is doing: sequences, memory, prefixes found, tokens a second. */
  stats(): EngineStats;
  /** The GPU's work, dispatch by dispatch, of each program in use. */
  explain(): Promise<string>;
  /** Ends all requests with an error and frees everything. */
  dispose(): Promise<void>;
}
