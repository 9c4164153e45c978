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
  /**
   * Same seed, same text, on one device: in exact precision in any company, in fast precision alone. Any whole number: a negative one is a
   * seed like others. Drawn at random unless given.
   */
  seed?: number;
  /** Strings that end the text; they are not part of it. */
  stop?: string | readonly string[];
  /** Token ids that end generation, besides the checkpoint's own. */
  stopTokenIds?: readonly number[];
  /** Added to the logits of token ids. */
  logitBias?: Readonly<Record<number, number>>;
  /** Go on past end-of-sequence tokens. */
  ignoreEos?: boolean;
  /**
   * Report the log-probability of each token; a number, up to 20, asks for as many of the likeliest tokens at its place too.
   */
  logprobs?: boolean | number;
  /** Samples of one prompt, which is computed once: each has a seed of its own. 1 unless given. */
  n?: number;
  /** Smaller goes first, where the model was loaded with `policy: "priority"`. 0 unless given. */
  priority?: number;
  /** Requests share cached prefixes only with those of the same salt. */
  cacheSalt?: string;
}

/** A token and its natural log-probability. */
export interface TokenLogprob {
  /** Its id. */
  token: number;
  /** ln p under the model's own distribution. */
  logprob: number;
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

/** What to continue: raw text, a conversation, or token ids. */
export type Prompt = string | readonly ChatMessage[] | readonly number[];

/** How many prompts are answered together. */
export interface BatchOptions extends SamplingOptions {
  /** Aborting ends generation within a step; what was written comes back with `finishReason: "abort"`. */
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
  /** Tokens of the prompt that another request had computed already. */
  cachedTokens: number;
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
  /** The sample that it belongs to, from 0: always 0 unless several were asked for. */
  index: number;
  /** Text that is now certain: never half a character, never part of a stop string. May be empty. */
  text: string;
  /** Ids of the tokens behind it. */
  tokens: number[];
  /** Their natural log-probabilities, where asked for. */
  logprobs?: number[];
  /** Of each token the likeliest at its place, likeliest first, where asked for. */
  topLogprobs?: TokenLogprob[][];
  /** Set on the sample's last chunk alone. */
  finishReason?: FinishReason;
  /** Of all samples together. Set on the last chunk alone. */
  usage?: Usage;
  /** Set on the last chunk alone. */
  timings?: Timings;
}

/** One answer to a prompt. */
export interface Sample {
  /** The text, without the stop string. Empty for a model without a tokenizer. */
  text: string;
  /** Generated ids, the end-of-sequence id not among them. */
  tokens: number[];
  /** Their natural log-probabilities, where asked for. */
  logprobs?: number[];
  /** Of each token the likeliest at its place, likeliest first, where asked for. */
  topLogprobs?: TokenLogprob[][];
  /** Why it ended. */
  finishReason: FinishReason;
}

/** A whole answer: the first sample's fields are its own. */
export interface Completion extends Sample {
  /** All samples, the first among them, where several were asked for. */
  samples?: Sample[];
  /** Token counts, of all samples together. */
  usage: Usage;
  /** Durations. */
  timings: Timings;
}
