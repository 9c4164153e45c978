/**
 * The edge where requests in OpenAI's form become requests of a model: bodies of `/v1/chat/completions` and
 * `/v1/completions` (OpenAI's API reference), with the extensions that vLLM made common (`top_k`, `min_p`,
 * `repetition_penalty`, `ignore_eos`, `stop_token_ids`, `priority`, `cache_salt`).
 *
 * What would change an answer and is not supported is refused by name; what only tells the service about the caller is
 * taken and left alone.
 *
 * @module
 */
import { z } from "zod";
import type { ChatMessage } from "../model/chat_template.ts";
import { CHAT_ROLES } from "./chat_roles.ts";
import { MAX_TOP_LOGPROBS } from "./engine_types.ts";
import { nearest } from "./nearest.ts";
import { BOUNDS } from "./parameters.ts";
import type { GenerateOptions, SamplingOptions } from "./request.ts";

/** Whether a request is a conversation or plain text. */
export type OpenAiKind = "chat" | "completion";

/** The path of each kind of request. */
export const OPENAI_PATHS: Readonly<Record<string, OpenAiKind>> = {
  "/v1/chat/completions": "chat",
  "/v1/completions": "completion",
};

/** A request body, understood. */
export interface OpenAiRequest {
  readonly kind: OpenAiKind;
  /** The model that is asked for. */
  readonly model: string | undefined;
  /** What to continue: one for a conversation, one or more for plain text. */
  readonly prompts: readonly Pick<GenerateOptions, "messages" | "prompt" | "tokens">[];
  /** What the body says of sampling, no more. */
  readonly sampling: SamplingOptions;
}

/** A body that cannot be run: the message says why, `param` which field is at fault. */
export class OpenAiRequestError extends Error {
  override readonly name = "OpenAiRequestError";

  /**
   * Words what is wrong.
   *
   * @param param The field, spelt as in the body; undefined where it is the body itself.
   */
  constructor(message: string, readonly param?: string) {
    super(message);
  }
}

/** Answers to one prompt are bounded, as OpenAI bounds them. */
const MOST_ANSWERS = 128;
/** Plain completions are this long unless they say otherwise: the default of OpenAI's endpoint. */
const COMPLETION_TOKENS = 16;

const whole = (least: number, most = Number.MAX_SAFE_INTEGER): z.ZodNumber =>
  z.number().int().min(least, `give a whole number of at least ${least}`).max(
    most,
    `give a whole number up to ${most}`,
  );
const tokenId = whole(0, 2 ** 31 - 1);
const finite = z.number();
const between = (least: number, most: number): z.ZodNumber => {
  const remedy = `give a number from ${least} to ${most}`;
  return z.number().min(least, remedy).max(most, remedy);
};
const text = z.string().min(1, "give at least one character");

/** Tells a service who asks and how to account for it; an answer does not depend on it. */
const ACCOUNTING = {
  user: z.unknown().optional(),
  metadata: z.unknown().optional(),
  store: z.unknown().optional(),
  service_tier: z.unknown().optional(),
  stream_options: z.unknown().optional(),
  safety_identifier: z.unknown().optional(),
  prompt_cache_key: z.unknown().optional(),
  parallel_tool_calls: z.unknown().optional(),
};

/** Says how to draw an answer, or when. */
const SAMPLING = {
  max_tokens: whole(1).nullish(),
  temperature: finite.min(0, "give a number from 0 (greedy)").nullish(),
  top_p: finite.gt(0, "give a number above 0, up to 1").max(1, "give a number above 0, up to 1").nullish(),
  top_k: whole(-1).nullish(),
  min_p: finite.min(0, "give a number from 0 to 1").max(1, "give a number from 0 to 1").nullish(),
  repetition_penalty: between(...BOUNDS.repetitionPenalty).nullish(),
  presence_penalty: between(...BOUNDS.penalty).nullish(),
  frequency_penalty: between(...BOUNDS.penalty).nullish(),
  logit_bias: z.record(z.string().regex(/^\d+$/, "its keys are token ids"), between(...BOUNDS.bias)).nullish(),
  seed: whole(Number.MIN_SAFE_INTEGER).nullish(),
  stop: z.union([text, z.array(text)], "give a text, or a list of texts, none empty").nullish(),
  stop_token_ids: z.array(tokenId).nullish(),
  ignore_eos: z.boolean().nullish(),
  n: whole(1, MOST_ANSWERS).nullish(),
  priority: whole(Number.MIN_SAFE_INTEGER).nullish(),
  cache_salt: text.nullish(),
};

const CHAT_LOGPROBS = {
  logprobs: z.boolean().nullish(),
  top_logprobs: whole(0, MAX_TOP_LOGPROBS).nullish(),
};

/** Fields of a body that say how to draw an answer, or when, and what to tell of it. */
export const SAMPLING_FIELDS: readonly string[] = Object.keys({ ...SAMPLING, ...CHAT_LOGPROBS });

const SHARED = {
  ...SAMPLING,
  model: z.string().nullish(),
  stream: z.literal(false, "a batch is not streamed: leave it out").nullish(),
  ...ACCOUNTING,
};

const PART = z.looseObject({
  type: z.literal("text", 'give parts of type "text": the model reads no others'),
  text: z.string(),
});

const MESSAGE = z.looseObject({
  role: z.enum(CHAT_ROLES, `give one of ${CHAT_ROLES.join(", ")}`),
  content: z.union([z.string(), z.array(PART)], "give a text, or a list of parts of text").nullish(),
});

const CHAT = z.strictObject({
  ...SHARED,
  messages: z.array(MESSAGE).min(1, "give at least one message"),
  max_completion_tokens: whole(1).nullish(),
  ...CHAT_LOGPROBS,
  response_format: z.looseObject({ type: z.literal("text", 'only "text" is supported') }).nullish(),
});

const COMPLETION = z.strictObject({
  ...SHARED,
  prompt: z.union(
    [
      text,
      z.array(text).min(1),
      z.array(tokenId).min(1),
      z.array(z.array(tokenId).min(1)).min(1),
    ],
    "give a text, a list of texts, token ids, or lists of them, none empty",
  ),
  logprobs: whole(0, MAX_TOP_LOGPROBS).nullish(),
  echo: z.literal(false, "a prompt is not repeated: leave it out").nullish(),
  best_of: z.literal(1, "answers are not ranked: leave it out").nullish(),
});

/**
 * Reads a request's body.
 *
 * @throws {OpenAiRequestError} naming the first field at fault, its value and what would be right.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { parseOpenAiRequest } from "./openai_request.ts";
 *
 * const { prompts, sampling } = parseOpenAiRequest("completion", { prompt: "Once", max_tokens: 5, top_k: -1 });
 * assertEquals(prompts, [{ prompt: "Once" }]);
 * assertEquals(sampling, { maxTokens: 5, topK: 0 });
 * ```
 */
export function parseOpenAiRequest(kind: OpenAiKind, body: unknown): OpenAiRequest {
  if (kind === "chat") {
    const chat = check(CHAT, body);
    if (chat.top_logprobs && !chat.logprobs) {
      throw new OpenAiRequestError(`top_logprobs is ${chat.top_logprobs}: it needs "logprobs": true`, "top_logprobs");
    }
    const maxTokens = chat.max_completion_tokens ?? chat.max_tokens;
    const logprobs = chat.logprobs ? chat.top_logprobs || true : undefined;
    const prompts = [{ messages: chat.messages.map(messageOf) }];
    return { kind, model: chat.model ?? undefined, prompts, sampling: samplingOf(chat, maxTokens, logprobs) };
  }
  const completion = check(COMPLETION, body), { model, prompt, max_tokens, logprobs } = completion;
  // 0 asks for the drawn tokens' own.
  const sampling = samplingOf(completion, max_tokens, logprobs === 0 ? true : logprobs);
  return { kind, model: model ?? undefined, prompts: promptsOf(prompt), sampling };
}

/**
 * The sampling of a request: what its body says, then `defaults`, and for plain completions the endpoint's own default
 * of 16 tokens.
 */
export function withDefaults(request: OpenAiRequest, defaults: SamplingOptions): SamplingOptions {
  const own = request.kind === "completion" ? { maxTokens: COMPLETION_TOKENS } : {};
  return { ...own, ...defaults, ...request.sampling };
}

type SharedFields = z.infer<z.ZodObject<typeof SHARED>>;

function samplingOf(
  body: SharedFields,
  maxTokens: number | null | undefined,
  logprobs: boolean | number | null | undefined,
): SamplingOptions {
  const sampling = {
    maxTokens,
    temperature: body.temperature,
    topK: typeof body.top_k === "number" ? Math.max(0, body.top_k) : undefined,
    topP: body.top_p,
    minP: body.min_p,
    repetitionPenalty: body.repetition_penalty,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    logitBias: body.logit_bias,
    seed: body.seed,
    stop: body.stop,
    stopTokenIds: body.stop_token_ids,
    ignoreEos: body.ignore_eos,
    logprobs,
    n: body.n,
    priority: body.priority,
    cacheSalt: body.cache_salt,
  };
  // OpenAI's clients write null for what was not said.
  const said = Object.entries(sampling).filter(([, value]) => value !== undefined && value !== null);
  return Object.fromEntries(said) as SamplingOptions;
}

/** Parts become one text, which every template reads. */
function messageOf({ content, ...message }: z.infer<typeof MESSAGE>): ChatMessage {
  if (!Array.isArray(content)) return { ...message, ...(content !== undefined && { content }) };
  return { ...message, content: content.map(({ text }) => text).join("") };
}

function promptsOf(prompt: z.infer<typeof COMPLETION>["prompt"]): OpenAiRequest["prompts"] {
  if (typeof prompt === "string") return [{ prompt }];
  if (prompt.every((item) => typeof item === "number")) return [{ tokens: prompt }];
  return prompt.map((item) => typeof item === "string" ? { prompt: item } : { tokens: item });
}

function check<S extends z.ZodObject>(schema: S, body: unknown): z.infer<S> {
  const { success, data, error } = schema.safeParse(body);
  if (success) return data;
  const issue = error.issues[0]!;
  if (issue.code === "unrecognized_keys") {
    // Only the body itself is strict: the field is one of its own.
    const field = issue.keys[0]!, near = nearest(field, Object.keys(schema.shape));
    const remedy = near === undefined ? "leave it out" : `did you mean ${near}?`;
    throw new OpenAiRequestError(`${field} is not supported: ${remedy}`, field);
  }
  const field = issue.path.join(".");
  if (field === "") throw new OpenAiRequestError("The body is no JSON object: give one with the request's fields");
  const found = issue.path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], body);
  const remedy = issue.code === "invalid_type"
    ? `give ${KINDS[issue.expected] ?? issue.expected}`
    : issue.code === "invalid_key"
    ? issue.issues[0]!.message
    : issue.message;
  throw new OpenAiRequestError(`${field} is ${shown(found)}: ${remedy}`, field);
}

const KINDS: Readonly<Record<string, string>> = {
  string: "a text",
  number: "a number",
  int: "a whole number",
  boolean: "true or false",
  array: "a list",
  object: "an object",
  record: "an object",
};

/** A value for a message, no longer than a line. */
function shown(value: unknown): string {
  if (value === undefined) return "missing";
  const text = JSON.stringify(value);
  return text.length <= 60 ? text : `${text.slice(0, 57)}…`;
}
