/**
 * Lines on standard error that say how far something has come, gone when it has ended. Elsewhere than on a terminal a line of a log now
 * and then, where work is long.
 *
 * @module
 */
import type { LoadProgress } from "./library.ts";
import { formatBytes, formatInteger, styleOf } from "./style.ts";
import type { Terminal } from "./terminal.ts";

const VERBS = { download: "Downloading", load: "Loading", compile: "Compiling" } as const;
const BAR = 24;
const EIGHTHS = " ▏▎▍▌▋▊▉";
/** Ten frames a second: more costs time on a slow connection. */
const FRAME_MS = 100;

/** Milliseconds from one line of a log to the next: minutes without a word look like a program that hangs. */
export const LOG_MS = 10_000;

/** Lines on standard error that are drawn over, and gone at the end. */
export class Panel implements AsyncDisposable {
  readonly #terminal: Terminal;
  readonly #paint: (line: string) => string;
  /** Lines that stand there. */
  #height = 0;
  #pending: Promise<void> = Promise.resolve();

  /** @param paint Marks up a line; dim unless given. */
  constructor(terminal: Terminal, paint: (line: string) => string = styleOf(terminal, terminal.stderr).dim) {
    this.#terminal = terminal;
    this.#paint = paint;
  }

  /** Puts these lines in place of those before, cut to the terminal's width. */
  draw(lines: readonly string[]): void {
    const width = this.#terminal.columns() - 1;
    const drawn = lines.map((line) => `\r\x1b[K${this.#paint(line.slice(0, width))}`).join("\n");
    this.#write(this.#toTop() + drawn);
    this.#height = lines.length;
  }

  /** Wipes them. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#height > 0) this.#write(`${this.#toTop()}\r\x1b[K${this.#height > 1 ? "\x1b[J" : ""}`);
    this.#height = 0;
    await this.#pending;
  }

  #toTop(): string {
    return this.#height > 1 ? `\x1b[${this.#height - 1}A` : "";
  }

  #write(text: string): void {
    this.#pending = this.#pending.then(() => this.#terminal.stderr.write(text)).catch(() => {});
  }
}

/** Draws how far loading has come. */
export class ProgressLine implements AsyncDisposable {
  readonly #terminal: Terminal;
  readonly #panel: Panel;
  /** By file, of the phase going on: several files come at once. */
  readonly #files = new Map<string, LoadProgress>();
  #phase: LoadProgress["phase"] | undefined;
  #drawnAt = -Infinity;
  /** When a log had its last line, or would have had it. */
  #loggedAt: number | undefined;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
    this.#panel = new Panel(terminal);
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
    this.#panel.draw([progressText([...this.#files.values()], this.#terminal.columns() - 1)]);
  }

  /** Shows a line of other work. */
  show(text: string): void {
    const now = this.#terminal.now();
    if (!this.#terminal.stderr.isTerminal || now - this.#drawnAt < FRAME_MS) return;
    this.#drawnAt = now;
    this.#panel.draw([text]);
  }

  /** Shows a line of long work; where there is no terminal, a log gets one now and then. */
  async report(text: string): Promise<void> {
    if (this.#terminal.stderr.isTerminal) return this.show(text);
    const now = this.#terminal.now();
    this.#loggedAt ??= now;
    if (now - this.#loggedAt < LOG_MS) return;
    this.#loggedAt = now;
    await this.#terminal.stderr.write(`${text}\n`).catch(() => {});
  }

  /** Wipes the line. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#panel[Symbol.asyncDispose]();
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
  const parts = [VERBS[phase], bar(share, BAR), `${Math.floor(share * 100)}%`.padStart(4)];
  const rate = sum((file) => file.received < file.total ? file.bytesPerSecond ?? 0 : 0);
  const amount = phase === "compile" ? (programs: number) => formatInteger(programs) : formatBytes;
  parts.push(` ${amount(received)} of ${amount(total)}${phase === "compile" ? " programs" : ""}`);
  if (rate > 0) parts.push(` ${formatBytes(rate)}/s`);
  const eta = Math.max(0, ...files.map((file) => file.etaSeconds ?? 0));
  if (eta > 0 && Number.isFinite(eta)) parts.push(` ${formatDuration(eta)} left`);
  while (parts.length > 1 && parts.join(" ").length > width) parts.pop();
  return parts.join(" ");
}

/** `████▌    `: a share of `width` characters, to an eighth of one. */
export function bar(share: number, width: number): string {
  const eighths = Math.round(Math.min(1, Math.max(0, share)) * width * 8);
  const full = "█".repeat(Math.floor(eighths / 8));
  const rest = eighths % 8 === 0 ? "" : EIGHTHS[eighths % 8]!;
  return (full + rest).padEnd(width);
}

/** Minutes and seconds, with hours before where needed. */
export function formatDuration(seconds: number): string {
  const whole = Math.round(seconds);
  const two = (value: number): string => String(value).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${two(whole % 60)}`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
}
