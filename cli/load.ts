/**
 * From options to a loaded model, and to what is asked of it.
 *
 * @module
 */
import type { GenerateOptions, SamplingOptions } from "../serving/request.ts";
import { debugLevel, UsageError } from "./errors.ts";
import { withFlags } from "./flags.ts";
import type { CommandContext } from "./context.ts";
import type { LoadedModel, LoadOptions } from "./library.ts";
import type { Options } from "./options.ts";
import { ProgressLine } from "./progress.ts";
import { formatInteger } from "./style.ts";

/** The options that say how to load a model. */
export function loadOptions(options: Options): LoadOptions {
  const { precision, kvDtype, kvMemory, memoryLimit, device, contextLength, revision } = options;
  const { maxNumSeqs, maxNumBatchedTokens, prefixCache, policy } = options;
  const engine = { maxNumSeqs, maxNumBatchedTokens, prefixCache, policy };
  return present({ precision, kvDtype, kvMemory, memoryLimit, device, contextLength, revision, ...engine });
}

/** The options that say how tokens are chosen. */
export function samplingOptions(options: Options): SamplingOptions {
  const { maxTokens, temperature, topK, topP, minP, seed, stop, logitBias, ignoreEos } = options;
  const { repetitionPenalty, presencePenalty, frequencyPenalty } = options;
  const penalties = { repetitionPenalty, presencePenalty, frequencyPenalty };
  return present({ maxTokens, temperature, topK, topP, minP, ...penalties, seed, stop, logitBias, ignoreEos });
}

/**
 * Loads the model of `-m`, with a line of progress; Ctrl-C stops it.
 *
 * @param more What the command asks for beside the flags.
 */
export async function loadModel(context: CommandContext, more: Pick<LoadOptions, "warmUp"> = {}): Promise<LoadedModel> {
  const { terminal, interrupts } = context;
  const signal = interrupts.begin();
  try {
    const model = await loadWithProgress(context, more, signal);
    const { contextLength, contextShortage } = model;
    if (contextShortage !== undefined) {
      await terminal.stderr.write(
        `The context is ${formatInteger(contextLength)} tokens: ${withFlags(contextShortage)}\n`,
      );
    }
    return model;
  } finally {
    interrupts.end();
  }
}

async function loadWithProgress(
  { options, terminal, library }: CommandContext,
  more: Pick<LoadOptions, "warmUp">,
  signal: AbortSignal,
): Promise<LoadedModel> {
  await using progress = new ProgressLine(terminal);
  if (options.model !== undefined) progress.show(`Looking for ${options.model}`);
  const { loadModel } = await library();
  const onProgress = progress.update.bind(progress);
  const debug = (text: string): void => void terminal.stderr.write(`${text}\n`).catch(() => {});
  return await loadModel(options.model, {
    ...loadOptions(options),
    ...more,
    ...(debugLevel(terminal) >= 2 && { debug }),
    onProgress,
    signal,
  });
}

/**
 * A prompt as the model takes it: ids, raw text, or one user's message.
 *
 * A model without a chat template was never taught conversations: it gets the text as it is.
 */
export function requestOf(
  model: LoadedModel,
  options: Options,
  prompt: string | undefined,
): Pick<GenerateOptions, "tokens" | "prompt" | "messages"> {
  if (prompt === undefined) return { tokens: options.tokenIds! };
  if (!model.tokenizer) {
    throw new Error(`"${model.name}" has no tokenizer: give token ids, as in --token-ids "1,2,3"`);
  }
  if (options.raw || !model.chatTemplate) {
    if (options.system !== undefined) {
      const reason = options.raw ? "with --raw" : `since "${model.name}" has no chat template`;
      throw new UsageError(`--system has no place ${reason}: write it into the prompt`);
    }
    return { prompt };
  }
  const system = options.system === undefined ? [] : [{ role: "system", content: options.system }];
  return { messages: [...system, { role: "user", content: prompt }] };
}

type Present<T> = { [Key in keyof T]?: Exclude<T[Key], undefined> };

/** The fields that are there: an absent option is not the same as `undefined`. */
function present<T extends object>(fields: T): Present<T> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Present<T>;
}
