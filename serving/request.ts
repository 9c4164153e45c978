/**
 * What is asked of a model and what it answers: the types of `generate` and `complete`, shared by the library, the command
 * line and the server to come.
 *
 * @module
 */
import type { ChatMessage } from "../model/chat_template.ts";

/** How tokens are chosen and when generation ends. Defaults come from the checkpoint's `generation_config.json`. */
export interface SamplingOptions {
  /** Most tokens to generate. The rest of the context unless given here or by the checkpoint. */
  maxTokens?: number;
  /** Divides the logits; 0 takes the most likely token (greedy). */
  temperature?: number;
  /** Keep the k most likely tokens; 0 keeps all. */
  topK?: number;
  /** Keep the smallest set of tokens whose probabilities reach this sum; 1 keeps all. */
  topP?: number;
  /** Drop tokens less likely than this fraction of the likeliest; 0 drops none. */
  minP?: number;
  /** Divides (multiplies, where negative) logits of tokens seen in prompt or output; 1 is none. */
  repetitionPenalty?: number;
  /** Subtracted once from tokens in the output; 0 is none. */
  presencePenalty?: number;
  /** Subtracted from tokens in the output for each occurrence; 0 is none. */
  frequencyPenalty?: number;
  /** Same seed, same text, on one device. Drawn at random unless given. */
  seed?: number;
  /** Strings that end the text; they are not part of it. */
  stop?: string | readonly string[];
  /** Token ids that end generation, besides the checkpoint's own. */
  stopTokenIds?: readonly number[];
  /** Added to the logits of token ids. */
  logitBias?: Readonly<Record<number, number>>;
  /** Go on past end-of-sequence tokens. */
  ignoreEos?: boolean;
  /** Report the log-probability of each token. */
  logprobs?: boolean;
}

/** What to continue: raw text, a conversation, or token ids. One of the three. */
export interface GenerateOptions extends SamplingOptions {
  /** Raw text, as it is. */
  prompt?: string;
  /** A conversation, through the chat template. */
  messages?: readonly ChatMessage[];
  /** Token ids, for models without a tokenizer. */
  tokens?: readonly number[];
  /** Aborting ends generation within a step, with `finishReason: "abort"`. */
  signal?: AbortSignal;
}

/** Why generation ended: a stop token or string, the token limit or the context's end, or the caller. */
export type FinishReason = "stop" | "length" | "abort";

/** Token counts. */
export interface Usage {
  /** Tokens of the prompt. */
  promptTokens: number;
  /** Tokens generated, without the end-of-sequence id. */
  completionTokens: number;
}

/** Durations in milliseconds. */
export interface Timings {
  /** From the request to the first token. */
  firstTokenMs: number;
  /** Prompt tokens a second. */
  promptTokensPerSecond: number;
  /** Generated tokens a second, after the first. */
  decodeTokensPerSecond: number;
  /** From the request to the last token. */
  totalMs: number;
}

/** One piece of a streamed answer. */
export interface Chunk {
  /** Text that is now certain: never half a character, never part of a stop string. May be empty. */
  text: string;
  /** Ids of the tokens behind it. */
  tokens: number[];
  /** Their natural log-probabilities, where asked for. */
  logprobs?: number[];
  /** Set on the last chunk alone. */
  finishReason?: FinishReason;
  /** Set on the last chunk alone. */
  usage?: Usage;
  /** Set on the last chunk alone. */
  timings?: Timings;
}

/** A whole answer. */
export interface Completion {
  /** The text, without the stop string. Empty for a model without a tokenizer. */
  text: string;
  /** Generated ids, the end-of-sequence id not among them. */
  tokens: number[];
  /** Their natural log-probabilities, where asked for. */
  logprobs?: number[];
  /** Why it ended. */
  finishReason: FinishReason;
  /** Token counts. */
  usage: Usage;
  /** Durations. */
  timings: Timings;
}
