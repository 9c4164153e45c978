/**
 * Token ids to text while they come: a character is written once its last byte is there.
 *
 * @module
 */
import type { DecodeOptions, Tokenizer } from "./tokenizer.ts";

/**
 * Turns a stream of token ids into pieces of text, never half a character. All pieces joined are the text that
 * {@link Tokenizer.decode} gives for all ids.
 *
 * Ill-formed bytes become U+FFFD at once, one for each maximal subpart (Unicode 16, chapter 3); an incomplete but so
 * far well-formed character waits for its next byte, or for the flush.
 *
 * @example
 * ```ts
 * import { StreamingDetokenizer, Tokenizer } from "@tinyllm/tinyllm/model";
 *
 * const tokenizer = Tokenizer.fromJson({
 *   model: { type: "BPE", vocab: { "Ã": 0, "©": 1 }, merges: [] },
 *   added_tokens: [],
 *   decoder: { type: "ByteLevel" },
 * });
 * const detokenizer = new StreamingDetokenizer(tokenizer);
 * console.log(detokenizer.push(0)); // "": the first of two bytes
 * console.log(detokenizer.push(1)); // "é"
 * console.log(detokenizer.flush()); // ""
 * ```
 */
export class StreamingDetokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecialTokens: boolean;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  /** A detokenizer at the beginning of a text. */
  constructor(tokenizer: Tokenizer, options: DecodeOptions = {}) {
    this.#tokenizer = tokenizer;
    this.#skipSpecialTokens = options.skipSpecialTokens ?? true;
  }

  /** The text that this id completes, possibly none. */
  push(id: number): string {
    if (this.#skipSpecialTokens && this.#tokenizer.isSpecial(id)) return "";
    return this.#decoder.decode(this.#tokenizer.tokenBytes(id), { stream: true });
  }

  /** What remains at the end: U+FFFD for an unfinished character. The detokenizer is then as new. */
  flush(): string {
    return this.#decoder.decode();
  }
}
