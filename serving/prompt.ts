/**
 * The token ids of a request's prompt: from raw text, through the chat template, or as they are.
 *
 * @module
 */
import type { ChatTemplate } from "../model/chat_template.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { unknownRole } from "./chat_roles.ts";
import { checkTokenIds } from "./parameters.ts";
import type { GenerateOptions } from "./request.ts";
import { asRequestError, RequestError } from "./request_error.ts";

/** What of a model turns prompts into ids. */
export interface PromptEncoder {
  /** The model's name, for messages. */
  readonly name: string;
  readonly tokenizer?: Tokenizer | undefined;
  readonly chatTemplate?: ChatTemplate | undefined;
  /** Number of token ids. */
  readonly vocabSize: number;
}

/**
 * Encodes the prompt of a request.
 *
 * @throws {RequestError} unless exactly one of `prompt`, `messages` and `tokens` is given, the model can read it, and it is not empty.
 */
export function encodePrompt(options: GenerateOptions, model: PromptEncoder): number[] {
  const ways = (["prompt", "messages", "tokens"] as const).filter((way) => options[way] !== undefined);
  if (ways.length !== 1) {
    const given = ways.length === 0 ? "none was" : `${ways.join(" and ")} were`;
    throw new RequestError(`Cannot generate: give one of prompt, messages and tokens, ${given} given`);
  }
  const { tokens } = options;
  if (tokens !== undefined && typeof tokens?.[Symbol.iterator] !== "function") {
    throw new RequestError(`Cannot generate: tokens is ${tokens}, give a list of token ids`);
  }
  const ids = tokens ? [...tokens] : idsOf(options, model);
  if (ids.length === 0) throw new RequestError(`Cannot generate: ${ways[0]} is empty, give at least one token`);
  checkTokenIds(ids, model.vocabSize, ways[0]!);
  return ids;
}

/** Whatever a template or a tokenizer makes of a text, such as a role that it does not know, concerns this request alone. */
function idsOf(options: GenerateOptions, model: PromptEncoder): number[] {
  try {
    return encodeText(options, model);
  } catch (cause) {
    throw asRequestError(cause);
  }
}

function encodeText({ prompt, messages }: GenerateOptions, model: PromptEncoder): number[] {
  const { name, tokenizer, chatTemplate } = model;
  if (prompt !== undefined && typeof prompt !== "string") {
    throw new RequestError(`Cannot generate: prompt is ${prompt}, give text`);
  }
  if (!tokenizer) {
    throw new RequestError(`Cannot generate from text: "${name}" has no tokenizer, give tokens (ids) instead`);
  }
  if (prompt !== undefined) {
    // A text that brings its own beginning-of-sequence token does not get a second one.
    const begun = tokenizer.bosToken !== undefined && prompt.startsWith(tokenizer.bosToken);
    return prompt === "" ? [] : tokenizer.encode(prompt, { addSpecialTokens: !begun });
  }
  if (!chatTemplate) {
    throw new RequestError(`Cannot generate from messages: "${name}" has no chat template, give prompt instead`);
  }
  if (!(Array.isArray(messages) && messages.every((message) => typeof message?.role === "string"))) {
    throw new RequestError('Cannot generate: messages is no list of messages, give [{ role: "user", content: "…" }]');
  }
  const unknown = unknownRole(messages, chatTemplate);
  if (unknown !== undefined) throw new RequestError(`Cannot generate: ${unknown}`);
  return tokenizer.encode(chatTemplate.render(messages, { addGenerationPrompt: true }));
}
