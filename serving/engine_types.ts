/**
 * What goes into an engine and what comes out of it: token ids and numbers, no text. Everything here can be sent to a Worker as it
 * is, so that an engine in the caller's thread and one in a thread of its own look the same from outside.
 *
 * @module
 */
import type { FinishReason, TokenLogprob } from "./request.ts";
import type { SequenceSampling } from "./sequence.ts";

/** A request: what to continue, how, and how often. */
export interface EngineRequest {
  /** Names the request; unique among those that are not over. */
  readonly id: number;
  /** Ids to continue, at least one. */
  readonly prompt: readonly number[];
  /** How tokens are drawn. Sample i of several draws with `seed + i`. */
  readonly sampling: SequenceSampling;
  /** Most tokens to generate; `Infinity`: to the context's end. */
  readonly maxTokens: number;
  /** Ids that end a sample and are no part of it. */
  readonly stopTokenIds: ReadonlySet<number>;
  /** Samples that share the prompt. */
  readonly n: number;
  /** How many of the likeliest tokens are reported beside each drawn one, 0 to {@linkcode MAX_TOP_LOGPROBS}; left out: no log-probabilities. */
  readonly logprobs?: number;
  /** Smaller goes first, where the scheduling policy is `priority`. */
  readonly priority: number;
  /** Requests share cached prefixes only with those of the same salt. */
  readonly cacheSalt?: string;
}

/** Most alternatives that are reported for a token. */
export const MAX_TOP_LOGPROBS = 20;

/** New tokens of one sample of a request. */
export interface EngineOutput {
  /** The request. */
  readonly id: number;
  /** The sample, from 0. */
  readonly index: number;
  /** Ids in order, the one that stopped it not among them. */
  readonly tokens: readonly number[];
  /** Of each token, where asked for: natural logarithms under the raw logits. */
  readonly logprobs?: readonly number[];
  /** Of each token the likeliest at its place, likeliest first, where asked for. */
  readonly topLogprobs?: readonly (readonly TokenLogprob[])[];
  /** Set on the sample's last output. */
  readonly finishReason?: FinishReason;
  /** Milliseconds that the request waited for its first step. Set on the sample's first output. */
  readonly queuedMs?: number;
  /** Tokens of the prompt that were found in the prefix cache. Set on the sample's first output. */
  readonly cachedTokens?: number;
}

/** What an engine is doing and what it has done. Counts are since it was made. */
export interface EngineStats {
  /** Requests that wait for their first step, or for another after they were preempted. */
  readonly waiting: number;
  /** Sequences that are being computed. */
  readonly running: number;
  /** Blocks of the pool of keys and values. */
  readonly blocks: number;
  /** Blocks that sequences hold. Others may hold cached prefixes, and are free all the same. */
  readonly usedBlocks: number;
  /** Tokens of a block. */
  readonly blockSize: number;
  /** Prompt tokens found in the prefix cache. */
  readonly prefixHits: number;
  /** Prompt tokens looked for and not found. */
  readonly prefixMisses: number;
  /** Sequences that yielded their blocks and were computed anew. */
  readonly preemptions: number;
  /** Steps that ran. */
  readonly steps: number;
  /** Prompt tokens computed, those computed anew among them. */
  readonly promptTokens: number;
  /** Tokens generated. */
  readonly generatedTokens: number;
  /** Prompt tokens a second, over the last second with work. */
  readonly promptTokensPerSecond: number;
  /** Generated tokens a second, over the last second with work. */
  readonly generatedTokensPerSecond: number;
  /** Milliseconds of the CPU spent on scheduling and bookkeeping. */
  readonly schedulingMs: number;
  /** Most bytes of the device that were in use at one time. */
  readonly peakBytes: number;
}

/** Takes what is new of a request: all of a step's outputs for it, or the error that ended it. */
export interface OutputSink {
  /** New tokens of a sample. */
  output(output: EngineOutput): void;
  /** The request failed; nothing comes after. */
  fail(cause: Error): void;
}

/** Takes a piece of logits: those of the tokens from index `first` on. */
export type LogitsSink = (first: number, logits: Float32Array<ArrayBuffer>) => void;

/** An engine, wherever it runs. */
export interface EngineClient {
  /**
   * Passes while the engine takes requests.
   *
   * @throws {Error} what {@linkcode addRequest} throws, if the engine is closed.
   */
  checkOpen(): void;
  /**
   * Takes a request.
   *
   * @param sink Told what is new, the error of a request that cannot be computed too: it concerns that request alone. After the last
   * output of the last sample, nothing comes.
   * @throws {Error} if the engine is closed, or a request of that number is not over.
   */
  addRequest(request: EngineRequest, sink: OutputSink): void;
  /** Ends a request, or one of its samples, within a step; its sink is told with `abort`. One that is over is left alone. */
  abort(id: number, index?: number): void;
  /** Computes the logits of all tokens, and hands them over in pieces, in order. */
  logits(tokens: readonly number[], sink: LogitsSink): Promise<void>;
  /** What it is doing: as of the last step. */
  stats(): EngineStats;
  /** The GPU's work, dispatch by dispatch, of each program in use. */
  explain(): Promise<string>;
  /** Ends all requests with an error, waits for the work under way, and frees the engine's memory. */
  close(cause: Error): Promise<void>;
}
