/**
 * Standard input as whole text, or line by line.
 *
 * @module
 */
import type { Input } from "./terminal.ts";

/** All of standard input. */
export async function readAll(input: Input): Promise<string> {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: false });
  let text = "";
  for (let bytes = await input.read(); bytes; bytes = await input.read()) {
    text += decoder.decode(bytes, { stream: true });
  }
  return text + decoder.decode();
}

/** `text` without the one line break that ends a file or an `echo`. */
export function withoutLineBreak(text: string): string {
  return text.replace(/\r?\n$/, "");
}

/** Reads lines. */
export class LineReader {
  readonly #input: Input;
  readonly #decoder = new TextDecoder();
  #rest = "";
  #ended = false;

  constructor(input: Input) {
    this.#input = input;
  }

  /** The next line without its line break; undefined at the end. */
  async next(): Promise<string | undefined> {
    while (!this.#ended && !this.#rest.includes("\n")) {
      const bytes = await this.#input.read();
      this.#ended = bytes === undefined;
      this.#rest += this.#decoder.decode(bytes, { stream: !this.#ended });
    }
    if (this.#rest === "") return undefined;
    const end = this.#rest.indexOf("\n");
    const line = end < 0 ? this.#rest : this.#rest.slice(0, end);
    this.#rest = end < 0 ? "" : this.#rest.slice(end + 1);
    return line.replace(/\r$/, "");
  }
}
