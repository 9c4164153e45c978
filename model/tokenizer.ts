/**
 * Text to token ids and back, as the `tokenizer.json` of a checkpoint says.
 *
 * Encoding is `@huggingface/tokenizers` with its few differences from the native library mended at load; decoding is
 * done here from the bytes of each token, so that a whole text and a streamed one cannot differ.
 *
 * @module
 */
import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import { byteToCharacter, characterToByte } from "./byte_level.ts";
import { rewritePreTokenizer } from "./pre_tokenizer.ts";

/** How {@link Tokenizer.encode} reads a text. */
export interface EncodeOptions {
  /** Add what the tokenizer's post-processor adds, such as a beginning-of-sequence token. Default: false. */
  addSpecialTokens?: boolean;
  /** Read special tokens inside the text as plain text. Default: false. */
  splitSpecialTokens?: boolean;
}

/** How {@link Tokenizer.decode} writes a text. */
export interface DecodeOptions {
  /** Leave special tokens out. Default: true. */
  skipSpecialTokens?: boolean;
}

interface AddedToken {
  id: number;
  content: string;
  special?: boolean;
}

interface TokenizerJson {
  model: { type?: string; vocab: Record<string, number>; merges: unknown[]; [key: string]: unknown };
  added_tokens: AddedToken[];
  normalizer: unknown;
  pre_tokenizer: unknown;
  post_processor: unknown;
  decoder: unknown;
}

/**
 * A byte-level BPE tokenizer (Qwen, Llama 3, SmolLM, GPT-2).
 *
 * @example
 * ```ts
 * import { Tokenizer } from "@tinyllm/tinyllm/model";
 *
 * const tokenizer = Tokenizer.fromJson({
 *   model: { type: "BPE", vocab: { H: 0, i: 1, Hi: 2 }, merges: [["H", "i"]] },
 *   added_tokens: [],
 *   normalizer: null,
 *   pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
 *   post_processor: null,
 *   decoder: { type: "ByteLevel" },
 * });
 * console.log(tokenizer.encode("Hi")); // [2]
 * console.log(tokenizer.decode([2])); // "Hi"
 * ```
 */
export class Tokenizer {
  /** Number of ids: one more than the greatest id. The model's vocabulary may be padded beyond it. */
  readonly vocabSize: number;
  /** The beginning-of-sequence token that the configuration names. */
  readonly bosToken: string | undefined;
  /** The end-of-sequence token that the configuration names. */
  readonly eosToken: string | undefined;
  /** The padding token that the configuration names. */
  readonly padToken: string | undefined;
  /** The unknown token that the configuration names. */
  readonly unkToken: string | undefined;

  readonly #library: LibraryTokenizer;
  readonly #json: TokenizerJson;
  readonly #contents: (string | undefined)[] = [];
  readonly #added = new Map<number, AddedToken>();
  readonly #ids = new Map<string, number>();
  readonly #bytes: (Uint8Array | undefined)[] = [];
  #literal: LibraryTokenizer | undefined;

  private constructor(json: TokenizerJson, config: Record<string, unknown>) {
    this.#json = { ...json, pre_tokenizer: rewritePreTokenizer(json.pre_tokenizer) };
    this.#library = new LibraryTokenizer(this.#json, {});
    dropMissingBytes(this.#library, json);
    for (const [token, id] of Object.entries(json.model.vocab)) this.#register(token, id);
    for (const token of json.added_tokens) {
      this.#added.set(token.id, token);
      this.#register(token.content, token.id);
    }
    this.vocabSize = this.#contents.length;
    this.bosToken = namedToken(config, "bos_token");
    this.eosToken = namedToken(config, "eos_token");
    this.padToken = namedToken(config, "pad_token");
    this.unkToken = namedToken(config, "unk_token");
  }

  /**
   * Makes a tokenizer from the parsed `tokenizer.json` and, where there is one, `tokenizer_config.json`.
   *
   * @throws {Error} If the file is no byte-level BPE tokenizer.
   */
  static fromJson(tokenizerJson: unknown, tokenizerConfig: unknown = {}): Tokenizer {
    const json = checkTokenizerJson(tokenizerJson);
    if (tokenizerConfig !== null && !isRecord(tokenizerConfig)) {
      throw new Error(`Cannot load tokenizer_config.json: expected an object, got ${typeof tokenizerConfig}`);
    }
    return new Tokenizer(json, tokenizerConfig ?? {});
  }

  /** The token ids of a text. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    if (text === "" && !options.addSpecialTokens) return [];
    const library = options.splitSpecialTokens ? this.#literalLibrary() : this.#library;
    return library.encode(text, { add_special_tokens: options.addSpecialTokens ?? false }).ids;
  }

  /** The text of token ids. Ill-formed UTF-8 becomes U+FFFD; an id outside the vocabulary has no text. */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const skip = options.skipSpecialTokens ?? true;
    // ignoreBOM keeps a U+FEFF that is in the text itself.
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    let text = "";
    for (const id of ids) {
      if (!skip || !this.isSpecial(id)) text += decoder.decode(this.tokenBytes(id), { stream: true });
    }
    return text + decoder.decode();
  }

  /** The bytes a token stands for, at times a part of a character; none for an id outside the vocabulary. */
  tokenBytes(id: number): Uint8Array {
    const content = this.#contents[id];
    return content === undefined ? new Uint8Array() : this.#bytes[id] ??= this.#computeBytes(id, content);
  }

  /** Whether an id is a special token: one that marks structure and is no part of the text. */
  isSpecial(id: number): boolean {
    return this.#added.get(id)?.special ?? false;
  }

  /** The id of a token, spelt as in `tokenizer.json` (`<|im_end|>`, `Ġthe`). */
  idOf(token: string): number | undefined {
    return this.#ids.get(token);
  }

  #register(token: string, id: number): void {
    this.#contents[id] = token;
    this.#ids.set(token, id);
  }

  #computeBytes(id: number, content: string): Uint8Array {
    if (this.#added.has(id)) return new TextEncoder().encode(content);
    const bytes: number[] = [];
    for (const character of content) {
      const byte = characterToByte.get(character);
      if (byte === undefined) return new TextEncoder().encode(content);
      bytes.push(byte);
    }
    return Uint8Array.from(bytes);
  }

  /** The same tokenizer without its special tokens; it shares the merges, which are slow to index. */
  #literalLibrary(): LibraryTokenizer {
    if (!this.#literal) {
      this.#literal = new LibraryTokenizer({
        ...this.#json,
        model: { type: "BPE", vocab: {}, merges: [] },
        added_tokens: this.#json.added_tokens.filter((token) => !token.special),
      }, {});
      this.#literal.model = this.#library.model;
    }
    return this.#literal;
  }
}

/**
 * Some vocabularies lack tokens for a few bytes and have no unknown token. The native library drops such bytes before
 * it merges, so that their neighbours may join; the JavaScript one after.
 */
function dropMissingBytes(library: LibraryTokenizer, json: TokenizerJson): void {
  const { vocab, unk_token, byte_fallback } = json.model;
  const missing = new Set(byteToCharacter.filter((character) => !Object.hasOwn(vocab, character)));
  const model = library.model;
  if (missing.size === 0 || unk_token || byte_fallback || model === null) return;
  const encode = model.encode.bind(model);
  model.encode = (words) => encode(words.map((word) => Array.from(word).filter((c) => !missing.has(c)).join("")));
}

function checkTokenizerJson(value: unknown): TokenizerJson {
  if (!isRecord(value) || !isRecord(value.model) || !isRecord(value.model.vocab)) {
    throw new Error('Cannot load tokenizer.json: it has no "model.vocab"; is it the tokenizer file of a checkpoint?');
  }
  const type = value.model.type ?? "BPE";
  if (type !== "BPE" || !Array.isArray(value.model.merges)) {
    throw new Error(
      `Cannot load tokenizer.json: its model is "${type}", only byte-level "BPE" with merges is supported`,
    );
  }
  const decoder = isRecord(value.decoder) ? value.decoder.type : undefined;
  if (decoder !== "ByteLevel") {
    throw new Error(`Cannot load tokenizer.json: its decoder is "${decoder ?? "none"}", only "ByteLevel" is supported`);
  }
  return {
    model: value.model as TokenizerJson["model"],
    added_tokens: (value.added_tokens ?? []) as AddedToken[],
    normalizer: value.normalizer ?? null,
    pre_tokenizer: value.pre_tokenizer ?? null,
    post_processor: value.post_processor ?? null,
    decoder: value.decoder,
  };
}

/** Configurations spell a token as a string or as an added token's object. */
function namedToken(config: Record<string, unknown>, key: string): string | undefined {
  const value = config[key];
  if (typeof value === "string") return value;
  return isRecord(value) && typeof value.content === "string" ? value.content : undefined;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
