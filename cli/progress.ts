/**
 * One line on standard error that says how far loading has come, gone when it has ended. Only on a terminal.
 *
 * @module
 */
import type { LoadProgress } from "./library.ts";
import { formatBytes, type Style, styleOf } from "./style.ts";
import type { Terminal } from "./terminal.ts";

const VERBS = { download: "Downloading", load: "Loading" } as const;
const BAR = 24;
const EIGHTHS = " ▏▎▍▌▋▊▉";
/** Ten frames a second: more costs time on a slow connection. */
const FRAME_MS = 100;

/** Draws progress. */
export class ProgressLine implements AsyncDisposable {
  readonly #terminal: Terminal;
  readonly #style: Style;
  /** By file, of the phase going on: several files come at once. */
  readonly #files = new Map<string, LoadProgress>();
  #phase: LoadProgress["phase"] | undefined;
  #drawnAt = -Infinity;
  #drawn = false;
  #pending: Promise<void> = Promise.resolve();

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
    this.#style = styleOf(terminal, terminal.stderr);
  }

  /** Takes note, and draws at times. */
  update(progress: LoadProgress): void {
    if (!this.#terminal.stderr.isTerminal) return;
    if (progress.phase !== this.#phase) this.#files.clear();
    this.#phase = progress.phase;
    this.#files.set(progress.file ?? "", progress);
    const now = this.#terminal.now();
    if (now - this.#drawnAt < FRAME_MS) return;
    this.#drawnAt = now;
    this.#draw(progressText([...this.#files.values()], this.#terminal.columns() - 1));
  }

  /** Shows a line of other work. */
  show(text: string): void {
    const now = this.#terminal.now();
    if (!this.#terminal.stderr.isTerminal || now - this.#drawnAt < FRAME_MS) return;
    this.#drawnAt = now;
    this.#draw(text.slice(0, this.#terminal.columns() - 1));
  }

  /** Wipes the line. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pending;
    if (this.#drawn) await this.#terminal.stderr.write("\r\x1b[K");
    this.#drawn = false;
  }

  #draw(line: string): void {
    this.#drawn = true;
    this.#pending = this.#pending.then(() => this.#terminal.stderr.write(`\r\x1b[K${this.#style.dim(line)}`))
      .catch(() => {});
  }
}

/** Shows a line of progress where a wait grows long; disposing ends it, any number of times. */
export function showLate(terminal: Terminal, text: string, afterMs: number): AsyncDisposable {
  const line = new ProgressLine(terminal);
  const timer = setTimeout(() => line.show(text), afterMs);
  return {
    [Symbol.asyncDispose]() {
      clearTimeout(timer);
      return line[Symbol.asyncDispose]();
    },
  };
}

/** `Downloading ████▌   45%  6.8 of 15.1 MB  8.2 MB/s  0:12 left`, as much of it as fits. */
export function progressText(files: readonly LoadProgress[], width: number): string {
  const phase = files.at(-1)?.phase ?? "load";
  const sum = (value: (file: LoadProgress) => number): number => files.reduce((total, file) => total + value(file), 0);
  const received = sum((file) => file.received), total = sum((file) => file.total);
  const share = total > 0 ? Math.min(1, received / total) : 0;
  const parts = [VERBS[phase], bar(share), `${Math.floor(share * 100)}%`.padStart(4)];
  const rate = sum((file) => file.received < file.total ? file.bytesPerSecond ?? 0 : 0);
  parts.push(` ${formatBytes(received)} of ${formatBytes(total)}`);
  if (rate > 0) parts.push(` ${formatBytes(rate)}/s`);
  const eta = Math.max(0, ...files.map((file) => file.etaSeconds ?? 0));
  if (eta > 0 && Number.isFinite(eta)) parts.push(` ${formatDuration(eta)} left`);
  while (parts.length > 1 && parts.join(" ").length > width) parts.pop();
  return parts.join(" ");
}

function bar(share: number): string {
  const eighths = Math.round(share * BAR * 8);
  const full = "█".repeat(Math.floor(eighths / 8));
  const rest = eighths % 8 === 0 ? "" : EIGHTHS[eighths % 8]!;
  return (full + rest).padEnd(BAR);
}

/** Minutes and seconds, with hours before where needed. */
function formatDuration(seconds: number): string {
  const whole = Math.round(seconds);
  const two = (value: number): string => String(value).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${two(whole % 60)}`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
}
