/**
 * From a model's answers to the bodies of OpenAI's API: `chat.completion` and `text_completion` objects, and errors.
 *
 * @module
 */
import type { Tokenizer } from "../model/tokenizer.ts";
import type { OpenAiKind } from "./openai_request.ts";
import type { Sample, TokenLogprob, Usage } from "./request.ts";

/** The samples of one prompt. */
export interface PromptAnswer {
  readonly samples: readonly Sample[];
  readonly usage: Usage;
}

/** What a body is made of. */
export interface OpenAiAnswer {
  readonly kind: OpenAiKind;
  /** The name of the model that answered. */
  readonly model: string;
  /** In the order of the prompts. */
  readonly answers: readonly PromptAnswer[];
  /** Spells the tokens of log-probabilities. */
  readonly tokenizer?: Pick<Tokenizer, "tokenBytes"> | undefined;
}

/** Why a choice ended, in OpenAI's words. */
export type OpenAiFinishReason = "stop" | "length";

/** A response body. */
export interface OpenAiResponse {
  id: string;
  object: "chat.completion" | "text_completion";
  /** Seconds since 1970. */
  created: number;
  model: string;
  /** Answers: of each prompt all samples, in the order of the prompts. */
  choices: (ChatChoice | TextChoice)[];
  usage: {
    prompt_tokens: number;
    completion_tokens: number;
    total_tokens: number;
    prompt_tokens_details: { cached_tokens: number };
  };
}

/** An answer to a conversation. */
export interface ChatChoice {
  index: number;
  message: { role: "assistant"; content: string };
  logprobs: { content: ChatTokenLogprob[] } | null;
  finish_reason: OpenAiFinishReason;
}

/** A token of an answer to a conversation. */
export interface ChatTokenLogprob {
  token: string;
  logprob: number;
  /** UTF-8 of the token, at times a part of a character. */
  bytes: number[];
  top_logprobs: { token: string; logprob: number; bytes: number[] }[];
}

/** A continuation of a text. */
export interface TextChoice {
  index: number;
  text: string;
  logprobs: {
    tokens: string[];
    token_logprobs: number[];
    /** By the token's text; several tokens may share one, then the likeliest counts. */
    top_logprobs: Record<string, number>[] | null;
    /** Where each token begins in the text, in UTF-16 code units. */
    text_offset: number[];
  } | null;
  finish_reason: OpenAiFinishReason;
}

/** An error, as the body of a response. */
export interface OpenAiError {
  message: string;
  type: "invalid_request_error" | "server_error";
  /** The field at fault. */
  param: string | null;
  code: string | null;
}

/** A new identifier: `prefix`, and 32 random hexadecimal digits. */
export function openAiId(prefix: string): string {
  return `${prefix}${crypto.randomUUID().replaceAll("-", "")}`;
}

/**
 * The body that answers a request. Token counts of several prompts are added up.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { openAiResponse } from "./openai_response.ts";
 *
 * const samples = [{ text: "mouse", tokens: [7], finishReason: "length" as const }];
 * const usage = { promptTokens: 3, completionTokens: 1, cachedTokens: 0 };
 * const body = openAiResponse({ kind: "completion", model: "stories", answers: [{ samples, usage }] });
 * assertEquals(body.choices, [{ index: 0, text: "mouse", logprobs: null, finish_reason: "length" }]);
 * assertEquals(body.usage.total_tokens, 4);
 * ```
 */
export function openAiResponse({ kind, model, answers, tokenizer }: OpenAiAnswer): OpenAiResponse {
  const spell = speller(tokenizer);
  const choices = answers.flatMap(({ samples }) => samples).map((sample, index) => {
    const finish_reason = sample.finishReason === "length" ? "length" as const : "stop" as const;
    return kind === "chat"
      ? {
        index,
        message: { role: "assistant" as const, content: sample.text },
        ...chatLogprobs(sample, spell),
        finish_reason,
      }
      : { index, text: sample.text, ...textLogprobs(sample, spell), finish_reason };
  });
  const sum = (count: (usage: Usage) => number): number => answers.reduce((all, { usage }) => all + count(usage), 0);
  const prompt_tokens = sum((usage) => usage.promptTokens), completion_tokens = sum((usage) => usage.completionTokens);
  return {
    id: openAiId(kind === "chat" ? "chatcmpl-" : "cmpl-"),
    object: kind === "chat" ? "chat.completion" : "text_completion",
    created: Math.floor(Date.now() / 1000),
    model,
    choices,
    usage: {
      prompt_tokens,
      completion_tokens,
      total_tokens: prompt_tokens + completion_tokens,
      prompt_tokens_details: { cached_tokens: sum((usage) => usage.cachedTokens) },
    },
  };
}

/** A token's text and bytes. */
interface Spelling {
  readonly token: string;
  readonly bytes: number[];
}

/** Without a tokenizer a token is spelt by its id, as `token_id:7`: vLLM's way. */
function speller(tokenizer: OpenAiAnswer["tokenizer"]): (id: number) => Spelling {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return (id) => {
    if (!tokenizer) return { token: `token_id:${id}`, bytes: [] };
    const bytes = tokenizer.tokenBytes(id);
    return { token: decoder.decode(bytes), bytes: [...bytes] };
  };
}

function chatLogprobs(sample: Sample, spell: (id: number) => Spelling): Pick<ChatChoice, "logprobs"> {
  const { tokens, logprobs, topLogprobs } = sample;
  if (!logprobs) return { logprobs: null };
  const entry = ({ token, logprob }: TokenLogprob): Omit<ChatTokenLogprob, "top_logprobs"> => ({
    ...spell(token),
    logprob,
  });
  const content = tokens.map((token, i) => ({
    ...entry({ token, logprob: logprobs[i]! }),
    top_logprobs: (topLogprobs?.[i] ?? []).map(entry),
  }));
  return { logprobs: { content } };
}

function textLogprobs(sample: Sample, spell: (id: number) => Spelling): Pick<TextChoice, "logprobs"> {
  const { tokens, logprobs, topLogprobs } = sample;
  if (!logprobs) return { logprobs: null };
  const spelt = tokens.map((id) => spell(id).token);
  let offset = 0;
  const text_offset = spelt.map((token) => (offset += token.length) - token.length);
  const byText = (top: readonly TokenLogprob[]): Record<string, number> => {
    const record: Record<string, number> = {};
    for (const { token, logprob } of top) record[spell(token).token] ??= logprob;
    return record;
  };
  const top_logprobs = topLogprobs ? topLogprobs.map(byText) : null;
  return { logprobs: { tokens: spelt, token_logprobs: [...logprobs], top_logprobs, text_offset } };
}
