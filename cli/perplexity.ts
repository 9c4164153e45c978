/**
 * `tinyllm perplexity`: how well a model predicts a text. The mean negative log-likelihood of each token after those before
 * it, in nats; nothing is put before the text.
 *
 * @module
 */
import type { CommandContext } from "./context.ts";
import { EXIT, fileErrorText, UsageError } from "./errors.ts";
import type { LoadedModel } from "./library.ts";
import { readAll } from "./lines.ts";
import { loadModel } from "./load.ts";
import { ProgressLine } from "./progress.ts";
import { formatInteger, styleOf } from "./style.ts";

/** What is printed. */
export interface PerplexityResult {
  /** Mean negative log-likelihood, nats a token. */
  nll: number;
  /** Its exponential. */
  perplexity: number;
  /** Tokens of the text. */
  tokens: number;
  /** Tokens that were predicted: all but the first of each window. */
  predictedTokens: number;
  /** Tokens of a window. */
  contextLength: number;
}

/** Runs the command. */
export async function perplexity(context: CommandContext): Promise<number> {
  const { interrupts, operands: [file = "-"], options, terminal } = context;
  const text = await readText(context);
  await using model = await loadModel(context);
  const ids = text === undefined ? options.tokenIds! : encode(model, text);
  if (ids.length < 2) {
    const name = text === undefined ? "--token-ids" : file === "-" ? "standard input" : `"${file}"`;
    throw new Error(`Cannot measure ${name}: perplexity needs 2 tokens or more, and it has ${ids.length}`);
  }
  const signal = interrupts.begin();
  const result = await measure(context, model, ids, signal);
  if (signal.aborted) return await tellStopped(context, result, ids.length);
  const { bold } = styleOf(terminal, terminal.stdout);
  const lines = [
    `mean NLL    ${bold(result.nll.toFixed(6))}`,
    `perplexity  ${bold(result.perplexity.toFixed(4))}`,
    `tokens      ${formatInteger(result.tokens)}, ${formatInteger(result.predictedTokens)} of them predicted`,
  ];
  await terminal.stdout.write((options.json ? JSON.stringify(result) : lines.join("\n")) + "\n");
  return EXIT.ok;
}

/** Says what was measured before Ctrl-C, where that is anything. */
async function tellStopped({ terminal }: CommandContext, done: PerplexityResult, tokens: number): Promise<number> {
  if (done.predictedTokens > 0) {
    const part = `${formatInteger(done.tokens)} of ${formatInteger(tokens)} tokens`;
    await terminal.stderr.write(
      `Stopped after ${part}: mean NLL ${done.nll.toFixed(6)}, perplexity ${done.perplexity.toFixed(4)}\n`,
    );
  }
  return EXIT.interrupted;
}

/**
 * A text longer than the context is measured window by window, each from an empty context. Once `signal` is aborted what was
 * measured until then is all.
 */
async function measure(
  { terminal }: CommandContext,
  model: LoadedModel,
  ids: readonly number[],
  signal: AbortSignal,
): Promise<PerplexityResult> {
  const { contextLength } = model;
  await using progress = new ProgressLine(terminal);
  // A window takes seconds on a CPU: Ctrl-C does not wait for its end.
  const aborted = new Promise<undefined>((resolve) => signal.addEventListener("abort", () => resolve(undefined)));
  let sum = 0, predicted = 0, start = 0;
  for (; start < ids.length - 1; start += contextLength) {
    await progress.report(`Measuring: ${formatInteger(start)} of ${formatInteger(ids.length)} tokens`);
    const window = await Promise.race([model.nll(ids.slice(start, start + contextLength)), aborted]);
    if (signal.aborted || !window) break;
    sum += window.mean * window.count;
    predicted += window.count;
  }
  const nll = sum / predicted;
  const tokens = signal.aborted ? start : ids.length;
  return { nll, perplexity: Math.exp(nll), tokens, predictedTokens: predicted, contextLength };
}

function encode(model: LoadedModel, text: string): number[] {
  if (!model.tokenizer) throw new Error(`"${model.name}" has no tokenizer: give token ids, as in --token-ids "1,2,3"`);
  return model.tokenizer.encode(text);
}

/** The text as it is; undefined where it is ids. */
async function readText({ given, operands, options, terminal }: CommandContext): Promise<string | undefined> {
  const [file, ...more] = operands;
  if (more.length > 0) throw new UsageError(`perplexity takes one FILE, and was given ${operands.length}`);
  if (file !== undefined && given.has("tokenIds")) {
    throw new UsageError("FILE and --token-ids exclude each other: give one of them");
  }
  if (file === undefined && options.tokenIds !== undefined) return undefined;
  if (file === undefined && terminal.stdin.isTerminal) {
    throw new UsageError("perplexity needs a text: write tinyllm perplexity FILE, or pipe it in");
  }
  if (file === undefined || file === "-") return await readAll(terminal.stdin);
  try {
    return await terminal.readTextFile(file);
  } catch (cause) {
    throw new Error(`Cannot read "${file}": ${fileErrorText(cause)}`, { cause });
  }
}
