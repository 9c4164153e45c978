/**
 * A sequence: token ids, how many of them the cache holds, and in which blocks. All that a step needs to know of a request.
 *
 * Steps are submitted before the tokens of earlier ones have been read. A token that a submitted step draws is *in flight*:
 * it counts in {@linkcode Sequence.length}, and its value is not known yet.
 *
 * @module
 */
import type { SamplingRow } from "../kernels/sampling_rows.ts";
import { RequestError } from "./request_error.ts";

/** How the tokens of a sequence are drawn: what a row of the GPU's sampler takes, but for what changes from token to token. */
export type SequenceSampling = Omit<SamplingRow, "index" | "history" | "inFlight">;

/** What a sequence is computed for: to be continued, or for the logits of the tokens that it has. */
export type Task = "generate" | "score";

/** What the scheduler knows of a sequence beside its tokens. */
export interface SequenceOptions {
  /** Tokens that it may reach, those of the prompt among them. Unlimited unless given. */
  readonly maxLength?: number;
  /** What goes first under the policy `priority`: the lower number (as vLLM has it). 0 unless given. */
  readonly priority?: number;
  /** Shares its cached prefix with sequences of the same salt alone. */
  readonly salt?: string;
  /** `generate` unless given. */
  readonly task?: Task;
}

/** Where a sequence is on its way through the scheduler. */
export type SequenceState = "new" | "waiting" | "running" | "finished";

/** Token ids that grow, and their place in the KV cache. */
export class Sequence {
  /** Ids of the prompt, then those generated, as far as they are known. */
  readonly tokens: number[];
  /** Tokens of the prompt. */
  readonly numPromptTokens: number;
  /** Tokens behind the known ones that submitted steps draw, and that have not been read. */
  numInFlight = 0;
  /** Leading tokens whose keys and values are in the cache, or will be once the submitted steps have run. */
  numComputedTokens = 0;
  /** Blocks of the pool, in the order of positions: position p lies in block `blockTable[floor(p / blockSize)]`. */
  readonly blockTable: number[] = [];
  /** Leading blocks that the prefix cache knows. Kept by the block manager. */
  numCachedBlocks = 0;
  /** Tokens that the prefix cache gave when it was first admitted. */
  numHitTokens = 0;
  /** Where it is. Kept by the scheduler, as all that follows. */
  state: SequenceState = "new";
  /** When it came: that of the sequence that it was forked from, where it was. */
  arrival = 0;
  /** Tells apart those of one arrival. */
  serial = 0;
  /** How often it had to yield its blocks. */
  numPreemptions = 0;
  /** How its tokens are drawn. */
  readonly sampling: SequenceSampling;
  /** What it was made with. */
  readonly options: SequenceOptions;

  /**
   * A sequence of which nothing is computed yet.
   *
   * @throws {RequestError} for an empty prompt.
   */
  constructor(prompt: readonly number[], sampling: SequenceSampling = {}, options: SequenceOptions = {}) {
    if (prompt.length === 0) throw new RequestError("Cannot make a sequence of no tokens: give at least one");
    this.tokens = [...prompt];
    this.numPromptTokens = prompt.length;
    this.sampling = sampling;
    this.options = options;
  }

  /** Tokens, those in flight among them. */
  get length(): number {
    return this.tokens.length + this.numInFlight;
  }

  /** Tokens that it may reach. */
  get maxLength(): number {
    return this.options.maxLength ?? Infinity;
  }

  /** What it is computed for. */
  get task(): Task {
    return this.options.task ?? "generate";
  }

  /** Tokens that are not computed yet. */
  get numPendingTokens(): number {
    return this.length - this.numComputedTokens;
  }

  /** Adds a generated token: the first one in flight, where there is one, is known then. */
  append(token: number): void {
    if (this.numInFlight > 0) this.numInFlight--;
    this.tokens.push(token);
  }
}
