/**
 * The engine at work: on a terminal two lines that change in place, elsewhere a line now and then.
 *
 * @module
 */
import type { EngineStats } from "../serving/engine_types.ts";
import type { BatchCounts } from "./batch_run.ts";
import { bar, formatDuration, LOG_MS, Panel } from "./progress.ts";
import { formatInteger, formatRate } from "./style.ts";
import type { Terminal } from "./terminal.ts";

const FRAME_MS = 200;
const BAR = 24;
const KV_BAR = 8;

/** What is shown. */
export interface BatchStatus extends BatchCounts {
  /** Requests of this run. */
  readonly total: number;
  /** Milliseconds since the first was started. */
  readonly elapsedMs: number;
  readonly engine:
    & Pick<EngineStats, "running" | "waiting" | "blocks" | "usedBlocks">
    & Pick<EngineStats, "promptTokensPerSecond" | "generatedTokensPerSecond">;
}

/** Shows what `status` says, at once and again and again until disposed. */
export function showBatch(terminal: Terminal, status: () => BatchStatus): AsyncDisposable {
  if (!terminal.stderr.isTerminal) {
    const timer = setInterval(() => terminal.stderr.write(`${statusText(status())}\n`).catch(() => {}), LOG_MS);
    return { [Symbol.asyncDispose]: () => Promise.resolve(clearInterval(timer)) };
  }
  const panel = new Panel(terminal);
  const draw = (): void => panel.draw(panelLines(status()));
  draw();
  const timer = setInterval(draw, FRAME_MS);
  return {
    [Symbol.asyncDispose]() {
      clearInterval(timer);
      return panel[Symbol.asyncDispose]();
    },
  };
}

/**
 * The lines on a terminal:
 *
 *     Batch   ███████▌                   31%  5 of 16 · 1 failed · 0:12 left
 *     Engine  8 running · 3 waiting · KV ██▌      31% · 212 tok/s and prompts at 1,200
 */
export function panelLines(status: BatchStatus): string[] {
  const { done, failed, total, engine } = status;
  const share = (done + failed) / total;
  const batch = [`${formatInteger(done + failed)} of ${formatInteger(total)}`];
  if (failed > 0) batch.push(`${formatInteger(failed)} failed`);
  const left = leftText(status);
  if (left) batch.push(left);
  const kv = `KV ${bar(kvShare(status), KV_BAR)} ${percent(kvShare(status))}`;
  const parts = [`${engine.running} running`, `${engine.waiting} waiting`, kv, ratesText(status)];
  return [`Batch   ${bar(share, BAR)} ${percent(share)}  ${batch.join(" · ")}`, `Engine  ${parts.join(" · ")}`];
}

/** The same in one line of a log. */
export function statusText(status: BatchStatus): string {
  const { done, failed, total, engine } = status;
  const parts = [`${formatInteger(done + failed)} of ${formatInteger(total)} requests`];
  if (failed > 0) parts.push(`${formatInteger(failed)} failed`);
  parts.push(`${engine.running} running`, `${engine.waiting} waiting`, `KV ${percent(kvShare(status)).trim()}`);
  parts.push(ratesText(status));
  const left = leftText(status);
  return [...parts, ...(left ? [left] : [])].join(", ");
}

function kvShare({ engine }: BatchStatus): number {
  return engine.usedBlocks / Math.max(1, engine.blocks);
}

function percent(share: number): string {
  return `${Math.floor(100 * share)}%`.padStart(4);
}

function ratesText({ engine }: BatchStatus): string {
  const { promptTokensPerSecond, generatedTokensPerSecond } = engine;
  const rate = (value: number): string => value >= 1000 ? formatInteger(value) : formatRate(value);
  const prompts = promptTokensPerSecond > 0 ? ` and prompts at ${rate(promptTokensPerSecond)}` : "";
  return `${rate(generatedTokensPerSecond)} tok/s${prompts}`;
}

/** By the requests that ended so far; before the first there is nothing to go by. */
function leftText({ done, failed, total, elapsedMs }: BatchStatus): string | undefined {
  const ended = done + failed;
  if (ended === 0 || ended === total) return undefined;
  return `${formatDuration(elapsedMs / 1000 * (total - ended) / ended)} left`;
}
