/**
 * `tinyllm generate`: one prompt, one answer.
 *
 * @module
 */
import type { Chunk, GenerateOptions } from "../serving/request.ts";
import { EXIT, UsageError } from "./errors.ts";
import type { CommandContext } from "./context.ts";
import type { LoadedModel } from "./library.ts";
import { readAll, withoutLineBreak } from "./lines.ts";
import { loadModel, requestOf, samplingOptions } from "./load.ts";
import { showLate } from "./progress.ts";
import { writeStatistics } from "./statistics.ts";

/** A wait for the first token that is longer is explained: a long prompt takes minutes on a CPU. */
const PATIENCE_MS = 2000;

/** Runs the command. */
export async function generate(context: CommandContext): Promise<number> {
  const { interrupts, options, terminal } = context;
  const prompt = await readPrompt(context);
  await using model = await loadModel(context);
  const signal = interrupts.begin();
  const request = { ...samplingOptions(options), ...requestOf(model, options, prompt), signal };
  if (options.json) {
    const completion = await model.complete(request);
    await terminal.stdout.write(JSON.stringify(completion) + "\n");
    await writeStatistics(terminal, model, completion);
  } else {
    await stream(context, model, request);
  }
  return interrupts.pressed ? EXIT.interrupted : EXIT.ok;
}

/** Writes the answer as it comes: text, or ids for a prompt of ids. */
async function stream(context: CommandContext, model: LoadedModel, request: GenerateOptions): Promise<void> {
  const { options, terminal } = context;
  const asIds = request.tokens !== undefined && options.tokenIds !== undefined;
  let count = 0;
  let last: Chunk | undefined;
  await using reading = showLate(terminal, "Reading the prompt …", PATIENCE_MS);
  for await (const chunk of model.generate(request)) {
    if (!last) await reading[Symbol.asyncDispose]();
    last = chunk;
    const ids = chunk.tokens.map((id) => count++ === 0 ? `${id}` : `,${id}`).join("");
    await terminal.stdout.write(asIds ? ids : chunk.text);
  }
  await terminal.stdout.write("\n");
  if (last) await writeStatistics(terminal, model, last);
}

/** The prompt's text; undefined where it is ids. */
async function readPrompt({ given, operands, options, terminal }: CommandContext): Promise<string | undefined> {
  const operand = operands.length > 0 ? operands.join(" ") : undefined;
  const ways = [
    operand !== undefined && "PROMPT",
    given.has("prompt") && "--prompt",
    given.has("tokenIds") && "--token-ids",
  ]
    .filter((way) => way !== false);
  if (ways.length > 1) throw new UsageError(`${ways.join(" and ")} exclude each other: give one of them`);
  if (given.has("tokenIds") || (ways.length === 0 && options.tokenIds !== undefined)) {
    if (options.system !== undefined) throw new UsageError("--system has no place with --token-ids: leave it out");
    return undefined;
  }
  const text = operand ?? options.prompt;
  if (text !== undefined && text !== "-") return checkPrompt(text);
  if (text === undefined && terminal.stdin.isTerminal) {
    throw new UsageError('generate needs a prompt: write tinyllm generate "Once upon a time", or pipe it in');
  }
  return checkPrompt(withoutLineBreak(await readAll(terminal.stdin)));
}

function checkPrompt(text: string): string {
  if (text === "") throw new UsageError("The prompt is empty: give PROMPT some text");
  return text;
}
