/**
 * `tinyllm batch`: a file of requests in, a file of answers out, many at once.
 *
 * @module
 */
import { penaltiesAreOff } from "../kernels/sampling_rows.ts";
import { withDefaults } from "../serving/openai_request.ts";
import type { SamplingOptions } from "../serving/request.ts";
import { type BatchInput, readBatch } from "./batch_input.ts";
import { BatchOutput, errorLine } from "./batch_output.ts";
import { showBatch } from "./batch_progress.ts";
import { type BatchCounts, runRequests } from "./batch_run.ts";
import type { CommandContext } from "./context.ts";
import { EXIT, fileErrorText, UsageError } from "./errors.ts";
import { readAll } from "./lines.ts";
import { loadModel, samplingOptions } from "./load.ts";
import { formatDuration } from "./progress.ts";
import { formatInteger, formatRate } from "./style.ts";

/** What a model computes together unless told otherwise. */
const MAX_NUM_SEQS = 256;

/** Requests from which on it pays to compile all programs first: warming up is for those that ask for nothing special. */
const WORTH_WARMING_UP = 32;

/** Runs the command. */
export async function batch(context: CommandContext): Promise<number> {
  const { interrupts, options, terminal } = context;
  const { input, output } = options;
  if (input === undefined || output === undefined) {
    const missing = input === undefined ? "--input" : "--output";
    throw new UsageError(`batch needs ${missing}: write tinyllm batch --input prompts.jsonl --output out.jsonl`);
  }
  if (input === output && input !== "-") throw new UsageError(`--output is the input itself, "${input}": give another`);
  const lines = await readInput(context, input);
  using file = await BatchOutput.open(terminal, output);
  const open = lines.requests.filter(({ customId }) => !file.finished.has(customId));
  const counts: BatchCounts = { done: 0, failed: 0, promptTokens: 0, completionTokens: 0 };
  await report(context, lines, lines.requests.length - open.length);
  for (const line of lines.refused) await file.write(errorLine(line));
  const failures: string[] = [];
  let elapsedMs = (): number => 0;
  if (open.length > 0) {
    const defaults = samplingOptions(options), { system } = options;
    const warm = open.filter(({ request }) => isWarmedUp(withDefaults(request, defaults)));
    await using model = await loadModel(context, warm.length >= WORTH_WARMING_UP ? { warmUp: true } : {});
    const start = terminal.now();
    elapsedMs = () => terminal.now() - start;
    await using _shown = showBatch(terminal, () => {
      return { ...counts, total: open.length, elapsedMs: elapsedMs(), engine: model.stats() };
    });
    const write = file.write.bind(file);
    // Twice as many as are computed together: one that ends is followed at once.
    const window = 2 * (options.maxNumSeqs ?? MAX_NUM_SEQS);
    const onFailure = (message: string): void => void failures.push(message);
    await runRequests(open, { model, defaults, system, window, write, onFailure, counts }, interrupts.begin());
  }
  await nameFaults(context, failures); // now that nothing is drawn over them
  await summarise(context, counts, lines, open.length, elapsedMs());
  if (interrupts.pressed) return EXIT.interrupted;
  return counts.failed + lines.refused.length > 0 ? EXIT.failed : EXIT.ok;
}

/** Whether warming up compiles what a request needs: penalties, biases and log-probabilities have programs of their own. */
function isWarmedUp(sampling: SamplingOptions): boolean {
  const { logitBias = {}, logprobs = false } = sampling;
  return penaltiesAreOff(sampling) && Object.keys(logitBias).length === 0 && logprobs === false;
}

async function readInput({ options, terminal }: CommandContext, path: string): Promise<BatchInput> {
  const text = path === "-" ? await readAll(terminal.stdin) : await terminal.readTextFile(path).catch((cause) => {
    throw new Error(`Cannot read "${path}": ${fileErrorText(cause)}`, { cause });
  });
  const models = ["default", ...(options.model === undefined ? [] : [options.model])];
  const lines = readBatch(text, models);
  if (lines.requests.length + lines.refused.length > 0) return lines;
  const name = path === "-" ? "standard input" : `"${path}"`;
  throw new Error(`Cannot run ${name}: it has no line. Write one request a line, in OpenAI's batch format`);
}

/** Says what is skipped and what is wrong before the wait begins. */
async function report(
  { terminal }: CommandContext,
  { requests, refused }: BatchInput,
  finished: number,
): Promise<void> {
  await nameFaults({ terminal }, refused.map(({ message }) => message));
  if (finished === 0) return;
  const done = `${formatInteger(finished)} of ${formatInteger(requests.length)} requests are done already`;
  await terminal.stderr.write(`${done}\n`);
}

/** The first faults, a line each, and how many more there are. */
async function nameFaults({ terminal }: Pick<CommandContext, "terminal">, messages: readonly string[]): Promise<void> {
  const lines = messages.slice(0, MOST_REPORTED);
  if (messages.length > MOST_REPORTED) {
    lines.push(`… and ${formatInteger(messages.length - MOST_REPORTED)} more; each has its line in the output`);
  }
  for (const line of lines) await terminal.stderr.write(`${line}\n`);
}

/** Lines at fault that are named on standard error. */
const MOST_REPORTED = 5;

/** `38 of 40 requests done, 2 failed; 6,789 tokens in 0:32, 212 tok/s`. */
async function summarise(
  { interrupts, terminal }: CommandContext,
  counts: BatchCounts,
  { refused }: BatchInput,
  open: number,
  elapsedMs: number,
): Promise<void> {
  const failed = counts.failed + refused.length;
  if (open + refused.length === 0) return; // all was done already, which is said
  const parts = [`${formatInteger(counts.done)} of ${formatInteger(open + refused.length)} requests done`];
  if (failed > 0) parts.push(`, ${formatInteger(failed)} failed: see their lines in the output`);
  if (counts.done > 0) {
    const rate = formatRate(1000 * counts.completionTokens / Math.max(1, elapsedMs));
    const tokens = `${formatInteger(counts.promptTokens)} prompt and ${
      formatInteger(counts.completionTokens)
    } answer tokens`;
    parts.push(`; ${tokens} in ${formatDuration(elapsedMs / 1000)}, ${rate} tok/s`);
  }
  if (interrupts.pressed) parts.push(". Run it again to go on");
  await terminal.stderr.write(`${parts.join("")}\n`);
}
