/**
 * A sequence: token ids, how many of them the cache holds, and in which blocks. All that a step needs to know of a request.
 *
 * @module
 */
import type { SamplingRow } from "../kernels/sampling_rows.ts";

/** How the tokens of a sequence are drawn: what a row of the GPU's sampler takes, but for what changes from token to token. */
export type SequenceSampling = Omit<SamplingRow, "index" | "history">;

/** Token ids that grow, and their place in the KV cache. */
export class Sequence {
  /** Ids of the prompt, then those generated. */
  readonly tokens: number[];
  /** Tokens of the prompt. */
  readonly numPromptTokens: number;
  /** Leading tokens whose keys and values are in the cache. */
  numComputedTokens = 0;
  /** Blocks of the pool, in the order of positions: position p lies in block `blockTable[floor(p / blockSize)]`. */
  readonly blockTable: number[] = [];
  /** How its tokens are drawn. */
  readonly sampling: SequenceSampling;
  readonly #history: Map<number, number> | undefined;

  /** A sequence of which nothing is computed yet. */
  constructor(prompt: readonly number[], sampling: SequenceSampling = {}) {
    if (prompt.length === 0) throw new Error("Cannot make a sequence of no tokens: give at least one");
    this.tokens = [...prompt];
    this.numPromptTokens = prompt.length;
    this.sampling = sampling;
    if (hasPenalties(sampling)) this.#history = new Map(prompt.map((token) => [token, 0]));
  }

  /** Tokens that are not computed yet. */
  get numPendingTokens(): number {
    return this.tokens.length - this.numComputedTokens;
  }

  /** Tokens generated so far. */
  get numGeneratedTokens(): number {
    return this.tokens.length - this.numPromptTokens;
  }

  /** How the next token is drawn. Its index in the sequence keys its random numbers, so company changes nothing. */
  get samplingRow(): SamplingRow {
    return { ...this.sampling, index: this.tokens.length, ...(this.#history && { history: this.#history }) };
  }

  /** Adds a generated token. */
  append(token: number): void {
    this.tokens.push(token);
    this.#history?.set(token, (this.#history.get(token) ?? 0) + 1);
  }

  /** Drops all tokens behind the first `length`, generated ones only. */
  truncate(length: number): void {
    if (!Number.isInteger(length) || length < this.numPromptTokens || length > this.tokens.length) {
      const range = `${this.numPromptTokens} to ${this.tokens.length}`;
      throw new RangeError(`Cannot rewind to ${length} tokens: give a whole number from ${range}`);
    }
    const dropped = this.tokens.splice(length);
    this.numComputedTokens = Math.min(this.numComputedTokens, length);
    if (!this.#history) return;
    const prompt = new Set(this.tokens.slice(0, this.numPromptTokens));
    for (const token of dropped) {
      const count = this.#history.get(token)! - 1;
      if (count === 0 && !prompt.has(token)) this.#history.delete(token);
      else this.#history.set(token, count);
    }
  }
}

function hasPenalties({ repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 }: SequenceSampling): boolean {
  return repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
}
