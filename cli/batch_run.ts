/**
 * Requests through a model, as many at once as keep the engine busy.
 *
 * @module
 */
import { type OpenAiRequest, withDefaults } from "../serving/openai_request.ts";
import { openAiResponse, type PromptAnswer } from "../serving/openai_response.ts";
import type { GenerateOptions, Sample, SamplingOptions, Usage } from "../serving/request.ts";
import { RequestError } from "../serving/request_error.ts";
import type { BatchRequest } from "./batch_input.ts";
import { answerLine, type BatchLine, errorLine } from "./batch_output.ts";
import { withFlags } from "./flags.ts";
import type { LoadedModel } from "./library.ts";

/** Counts of a run. */
export interface BatchCounts {
  /** Requests that were answered. */
  done: number;
  /** Requests that failed. */
  failed: number;
  /** Tokens of answered prompts. */
  promptTokens: number;
  /** Tokens of answers so far, of those under way too. */
  completionTokens: number;
}

/** How requests are run. */
export interface BatchRunOptions {
  readonly model: LoadedModel;
  /** What holds where a body says nothing. */
  readonly defaults: SamplingOptions;
  /** System message of conversations that have none. */
  readonly system?: string | undefined;
  /** Requests that are under way at once: those computed and those that wait to be. */
  readonly window: number;
  /** Takes a finished line. */
  readonly write: (line: BatchLine) => Promise<void>;
  /** Told why a request failed, in a sentence that names its line. */
  readonly onFailure: (message: string) => void;
  /** Counts as they grow. */
  readonly counts: BatchCounts;
}

/** The model failed, and not a request: the batch ends, what is open has no line, and a second run does it. */
class ModelFailed extends Error {
  override readonly name = "ModelFailed";

  constructor(cause: unknown) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    super(`The model failed: ${reason.replace(/\.$/, "")}. What is done is in the output: run it again to go on`, {
      cause,
    });
  }
}

/**
 * Runs all requests. One that is refused becomes a line with the error; aborting ends those under way without a line.
 *
 * @throws {Error} if the model fails rather than a request, or a line cannot be written. Nothing is under way then.
 */
export async function runRequests(
  requests: readonly BatchRequest[],
  options: BatchRunOptions,
  signal: AbortSignal,
): Promise<void> {
  const broken = new AbortController();
  const stop = AbortSignal.any([signal, broken.signal]);
  let next = 0;
  const work = async (): Promise<void> => {
    while (next < requests.length && !stop.aborted) {
      try {
        await runRequest(requests[next++]!, options, stop);
      } catch (cause) {
        broken.abort(cause);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(options.window, requests.length) }, work));
  if (broken.signal.aborted) throw broken.signal.reason;
}

async function runRequest(
  { line, customId, request }: BatchRequest,
  options: BatchRunOptions,
  signal: AbortSignal,
): Promise<void> {
  const { model, counts, write } = options;
  let answers: PromptAnswer[] | undefined;
  try {
    answers = await answer(request, options, signal);
  } catch (cause) {
    if (!(cause instanceof RequestError)) throw new ModelFailed(cause);
    if (signal.aborted) return;
    counts.failed++;
    const message = `Line ${line}: ${withFlags(cause.message)}`;
    options.onFailure(message);
    return await write(errorLine({ customId, code: "invalid_request", message, status: 400 }));
  }
  if (answers === undefined) return;
  const { kind } = request, { tokenizer } = model;
  await write(answerLine(customId, openAiResponse({ kind, model: model.name, answers, tokenizer })));
  counts.done++;
  counts.promptTokens += answers.reduce((sum, { usage }) => sum + usage.promptTokens, 0);
}

/** Answers all prompts of a request; undefined if it was aborted. */
async function answer(
  request: OpenAiRequest,
  options: BatchRunOptions,
  signal: AbortSignal,
): Promise<PromptAnswer[] | undefined> {
  const failed = new AbortController();
  const both = AbortSignal.any([signal, failed.signal]);
  const sampling = withDefaults(request, options.defaults);
  const answers = await Promise.all(request.prompts.map(async (prompt) => {
    try {
      return await collect({ ...sampling, ...withSystem(prompt, options.system), signal: both }, options);
    } catch (cause) {
      failed.abort(); // nobody needs the answers to the other prompts
      throw cause;
    }
  }));
  return signal.aborted ? undefined : answers;
}

/** The samples of one prompt. */
async function collect(request: GenerateOptions, { model, counts }: BatchRunOptions): Promise<PromptAnswer> {
  const samples = new Map<number, Sample>();
  let usage: Usage = { promptTokens: 0, completionTokens: 0, cachedTokens: 0 };
  for await (const chunk of model.generate(request)) {
    const { index, text, tokens, logprobs, topLogprobs, finishReason } = chunk;
    let sample = samples.get(index);
    if (!sample) {
      const asked = typeof request.logprobs === "number" && { topLogprobs: [] };
      sample = { text: "", tokens: [], ...(request.logprobs && { logprobs: [], ...asked }), finishReason: "stop" };
      samples.set(index, sample);
    }
    sample.text += text;
    sample.tokens.push(...tokens);
    sample.logprobs?.push(...logprobs ?? []);
    sample.topLogprobs?.push(...topLogprobs ?? []);
    if (finishReason) sample.finishReason = finishReason;
    if (chunk.usage) usage = chunk.usage;
    counts.completionTokens += tokens.length;
  }
  return { samples: [...samples].sort(([a], [b]) => a - b).map(([, sample]) => sample), usage };
}

function withSystem(
  prompt: OpenAiRequest["prompts"][number],
  system: string | undefined,
): OpenAiRequest["prompts"][number] {
  const { messages } = prompt;
  if (system === undefined || !messages || messages.some(({ role }) => role === "system")) return prompt;
  return { messages: [{ role: "system", content: system }, ...messages] };
}
