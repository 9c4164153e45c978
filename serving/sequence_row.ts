/**
 * What the GPU's sampler is told about a sequence, kept from step to step: only what is new of it is worked out.
 *
 * @module
 */
import { adjustmentWords, encodeSamplingRows, penaltiesAreOff } from "../kernels/sampling_rows.ts";
import type { Sequence } from "./sequence.ts";

/** The record of a sequence, and the list of the tokens whose logits change. */
export class SequenceRow {
  /** Words of its record, but for the token's index and the place of its list. */
  readonly record: Uint32Array;
  /** Whether tokens of prompt and answer are penalised. */
  readonly hasPenalties: boolean;
  readonly #sequence: Sequence;
  #words: Int32Array;
  #numEntries: number;
  /** Entry of each token of the list. */
  readonly #places = new Map<number, number>();
  /** Tokens of the sequence that are in the list. */
  #numTokens: number;

  /** The row of a sequence. */
  constructor(sequence: Sequence) {
    const { sampling, tokens, numPromptTokens } = sequence;
    const history = new Map(tokens.slice(0, numPromptTokens).map((token) => [token, 0]));
    const { rows, adjustments } = encodeSamplingRows([{ ...sampling, history }]);
    this.record = rows;
    this.hasPenalties = !penaltiesAreOff(sampling);
    this.#sequence = sequence;
    this.#words = adjustments;
    this.#numEntries = adjustments.length / adjustmentWords;
    this.#numTokens = numPromptTokens;
    for (let entry = 0; entry < this.#numEntries; entry++) {
      this.#places.set(adjustments[entry * adjustmentWords]!, entry);
    }
  }

  /** Whether nothing about it changes from token to token but the token's index. */
  get isPlain(): boolean {
    return !this.hasPenalties && this.#numEntries === 0;
  }

  /** The list, with all tokens that are known by now: `adjustmentWords` words each. */
  get adjustments(): Int32Array {
    const { tokens } = this.#sequence;
    if (this.hasPenalties) { while (this.#numTokens < tokens.length) this.#count(tokens[this.#numTokens++]!); }
    return this.#words.subarray(0, this.#numEntries * adjustmentWords);
  }

  /** Takes in a token of the answer. */
  #count(token: number): void {
    let entry = this.#places.get(token);
    if (entry === undefined) {
      entry = this.#numEntries++;
      this.#places.set(token, entry);
      if (this.#numEntries * adjustmentWords > this.#words.length) this.#grow();
      this.#words[entry * adjustmentWords] = token;
    }
    this.#words[entry * adjustmentWords + 1] = 1;
    this.#words[entry * adjustmentWords + 2]!++;
  }

  #grow(): void {
    const words = new Int32Array(2 * this.#numEntries * adjustmentWords);
    words.set(this.#words);
    this.#words = words;
  }
}
