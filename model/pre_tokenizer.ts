/**
 * Where the JavaScript library splits words otherwise than the native one, the same split is written as a pattern.
 *
 * @module
 */

/** GPT-2's words (Radford et al. 2019), with Unicode's white space for `\s`. */
const GPT2_PATTERN = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;

interface PreTokenizer {
  type: string;
  pretokenizers?: unknown[];
  individual_digits?: boolean;
  use_regex?: boolean;
  add_prefix_space?: boolean;
}

/**
 * Rewrites the `pre_tokenizer` of a `tokenizer.json`, so that the JavaScript library splits as the native one:
 * `Digits` knows ASCII digits alone there, and `ByteLevel` uses JavaScript's `\s` (with U+FEFF, without U+0085).
 */
export function rewritePreTokenizer(preTokenizer: unknown): unknown {
  if (typeof preTokenizer !== "object" || preTokenizer === null) return preTokenizer;
  const step = preTokenizer as PreTokenizer;
  if (step.type === "Sequence") {
    return { ...step, pretokenizers: (step.pretokenizers ?? []).map(rewritePreTokenizer) };
  }
  if (step.type === "Digits") return split(step.individual_digits ? String.raw`\p{N}` : String.raw`\p{N}+`);
  // A prefix space goes before the whole text, not before each word: such a step stays as it is.
  if (step.type === "ByteLevel" && step.use_regex !== false && !step.add_prefix_space) {
    return { type: "Sequence", pretokenizers: [split(GPT2_PATTERN), { ...step, use_regex: false }] };
  }
  return step;
}

function split(regex: string): unknown {
  return { type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false };
}
