/**
 * How things look on a terminal: colours where wanted, sizes and numbers for people.
 *
 * @module
 */
import type { Output, Terminal } from "./terminal.ts";

/** Marks up text, or leaves it alone. */
export interface Style {
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  cyan(text: string): string;
}

/** Colours where `output` is a terminal and nothing forbids them (no-color.org). */
export function styleOf(terminal: Terminal, output: Output): Style {
  const colour = output.isTerminal && terminal.env("NO_COLOR") === undefined && terminal.env("TERM") !== "dumb";
  const paint = (on: number, off: number) => (text: string): string =>
    colour && text !== "" ? `\x1b[${on}m${text}\x1b[${off}m` : text;
  return { bold: paint(1, 22), dim: paint(2, 22), red: paint(31, 39), cyan: paint(36, 39) };
}

/** Bytes in decimal units, as file managers and model cards count: `15.1 MB`. */
export function formatBytes(bytes: number): string {
  return formatCount(bytes, ["bytes", "kB", "MB", "GB", "TB"]);
}

/** Bytes in binary units, as devices state their limits: `128 MiB`. */
export function formatBinaryBytes(bytes: number): string {
  const index = Math.max(0, Math.min(4, Math.floor(Math.log2(bytes + 1) / 10)));
  const value = bytes / 1024 ** index;
  return `${Number.isInteger(value) ? value : formatRate(value)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][index]}`;
}

/** A large number: `26.8 million`. */
export function formatMillions(count: number): string {
  return formatCount(count, ["", "thousand", "million", "billion", "trillion"]).trim();
}

/** A whole number with commas. */
export function formatInteger(value: number): string {
  return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

/** Three digits that count: 0.123, 1.23, 12.3, 123. */
export function formatRate(value: number): string {
  if (!Number.isFinite(value)) return "0";
  return value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);
}

function formatCount(value: number, units: readonly string[]): string {
  let index = 0;
  while (value >= 999.5 && index < units.length - 1) {
    value /= 1000;
    index++;
  }
  return `${index === 0 ? value : formatRate(value)} ${units[index]}`;
}

/** Breaks `text` at spaces into lines of at most `width` characters, a longer word on a line of its own. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line];
}
