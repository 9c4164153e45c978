/**
 * The dim line behind an answer: how fast it was and what it took.
 *
 * @module
 */
import type { Timings, Usage } from "../serving/request.ts";
import type { LoadedModel } from "./library.ts";
import { formatBytes, formatRate, styleOf } from "./style.ts";
import type { Terminal } from "./terminal.ts";

/** What is known of an answer. */
export interface AnswerFigures {
  readonly usage?: Usage | undefined;
  readonly timings?: Timings | undefined;
}

/** Writes the line to standard error, if that is a terminal. */
export async function writeStatistics(terminal: Terminal, model: LoadedModel, figures: AnswerFigures): Promise<void> {
  const { usage, timings } = figures;
  if (!terminal.stderr.isTerminal || !usage || !timings) return;
  const line = statisticsText(usage, timings, model.memory.peak);
  await terminal.stderr.write(styleOf(terminal, terminal.stderr).dim(line) + "\n");
}

/** `prompt 12 tokens at 340 tok/s · 40 tokens at 52.1 tok/s · first token 0.31 s · peak GPU memory 24.1 MB`. */
export function statisticsText(usage: Usage, timings: Timings, peakBytes: number): string {
  const parts = [`prompt ${usage.promptTokens} tokens at ${formatRate(timings.promptTokensPerSecond)} tok/s`];
  const rate = usage.completionTokens > 1 ? ` at ${formatRate(timings.decodeTokensPerSecond)} tok/s` : "";
  parts.push(`answer ${usage.completionTokens} tokens${rate}`);
  parts.push(`first token ${(timings.firstTokenMs / 1000).toFixed(2)} s`, `peak GPU memory ${formatBytes(peakBytes)}`);
  return parts.join(" · ");
}
