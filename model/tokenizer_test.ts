import { assert, assertEquals, assertThrows } from "@std/assert";
import { rewritePreTokenizer } from "./pre_tokenizer.ts";
import { Tokenizer } from "./tokenizer.ts";

const folder = new URL("./assets/stories/", import.meta.url);
const json = JSON.parse(await Deno.readTextFile(new URL("tokenizer.json", folder)));
const config = JSON.parse(await Deno.readTextFile(new URL("tokenizer_config.json", folder)));
const tokenizer = Tokenizer.fromJson(json, config);

/** A vocabulary of single letters, with two merges. */
function small(changes: Record<string, unknown> = {}): unknown {
  return {
    model: { type: "BPE", vocab: { a: 0, b: 1, ab: 2, "Ġ": 3, "1": 4, "2": 5 }, merges: ["a b"] },
    added_tokens: [
      { id: 6, content: "<s>", special: true, normalized: false },
      { id: 7, content: "<t>", special: false, normalized: false },
    ],
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    ...changes,
  };
}

Deno.test("Tokenizer: decoding gives the text that was encoded", () => {
  for (const text of ["Once upon a time", "  two  spaces\n\n", "naïve 日本 🎉", "\ufeffmark", "a\u0000b", ""]) {
    assertEquals(tokenizer.decode(tokenizer.encode(text)), text);
  }
});

Deno.test("Tokenizer: special tokens are found in the text, or read as text", () => {
  const end = tokenizer.idOf("<|im_end|>")!;
  assertEquals(tokenizer.encode("<|im_end|>"), [end]);
  const literal = tokenizer.encode("<|im_end|>", { splitSpecialTokens: true });
  assert(literal.length > 1 && !literal.includes(end));
  assertEquals(tokenizer.decode(literal), "<|im_end|>");
});

Deno.test("Tokenizer: special tokens are skipped in decoding unless asked for", () => {
  const ids = [tokenizer.idOf("<|im_start|>")!, ...tokenizer.encode("Hi")];
  assertEquals(tokenizer.decode(ids), "Hi");
  assertEquals(tokenizer.decode(ids, { skipSpecialTokens: false }), "<|im_start|>Hi");
});

Deno.test("Tokenizer: names of tokens come from the configuration", () => {
  assertEquals(tokenizer.eosToken, "<|im_end|>");
  assertEquals(tokenizer.padToken, "<|endoftext|>");
  assertEquals(tokenizer.bosToken, undefined);
  assertEquals(Tokenizer.fromJson(small(), { bos_token: { content: "<s>" } }).bosToken, "<s>");
  assertEquals(tokenizer.vocabSize, 8192);
});

Deno.test("Tokenizer: added tokens that are not special stay tokens in literal text", () => {
  const letters = Tokenizer.fromJson(small());
  assertEquals(letters.encode("<t><s>a"), [7, 6, 0]);
  // "<", "s" and ">" have no bytes in this vocabulary.
  assertEquals(letters.encode("<t><s>a", { splitSpecialTokens: true }), [7, 0]);
  assertEquals(letters.isSpecial(6), true);
  assertEquals(letters.isSpecial(7), false);
});

Deno.test("Tokenizer: bytes without a token vanish before merging", () => {
  const whole = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
  assertEquals(Tokenizer.fromJson(small({ pre_tokenizer: whole })).encode("axb"), [2]);
});

Deno.test("Tokenizer: ids outside the vocabulary have no text", () => {
  assertEquals(tokenizer.tokenBytes(1e6), new Uint8Array());
  assertEquals(tokenizer.decode([1e6, -1]), "");
  assertEquals(tokenizer.decode([]), "");
});

Deno.test("Tokenizer: other files are refused by name", () => {
  assertThrows(() => Tokenizer.fromJson({}), Error, 'no "model.vocab"');
  assertThrows(() => Tokenizer.fromJson(null), Error, 'no "model.vocab"');
  assertThrows(() => Tokenizer.fromJson(small(), 3), Error, "tokenizer_config.json");
  assertThrows(
    () => Tokenizer.fromJson({ model: { type: "Unigram", vocab: [] } }),
    Error,
    "Cannot load tokenizer.json",
  );
  assertThrows(() => Tokenizer.fromJson({ model: { type: "WordPiece", vocab: {} } }), Error, '"WordPiece"');
  assertThrows(() => Tokenizer.fromJson(small({ decoder: { type: "Metaspace" } })), Error, '"Metaspace"');
});

Deno.test("rewritePreTokenizer: digits of every script, and Unicode's white space", () => {
  const digits = rewritePreTokenizer({ type: "Digits", individual_digits: true });
  assertEquals(digits, { type: "Split", pattern: { Regex: "\\p{N}" }, behavior: "Isolated", invert: false });
  const nested = rewritePreTokenizer({ type: "Sequence", pretokenizers: [{ type: "ByteLevel" }] });
  assertEquals(JSON.stringify(nested).includes('"use_regex":false'), true);
  assertEquals(rewritePreTokenizer(null), null);
});
