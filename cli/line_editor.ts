/**
 * A line typed on a terminal, with a cursor and a history: the part of readline that a chat needs.
 *
 * @module
 */
import { type Key, KeyDecoder } from "./keys.ts";
import type { Terminal } from "./terminal.ts";

/** A line being edited, as characters the way people count them. */
export class LineBuffer {
  #characters: string[] = [];
  #cursor = 0;
  readonly #history: readonly string[];
  #place: number;
  /** What was typed before the history was consulted. */
  #draft = "";

  /** @param history earlier lines, the oldest first. */
  constructor(history: readonly string[]) {
    this.#history = history;
    this.#place = history.length;
  }

  get text(): string {
    return this.#characters.join("");
  }

  /** Characters before the cursor. */
  get beforeCursor(): readonly string[] {
    return this.#characters.slice(0, this.#cursor);
  }

  /** All characters. */
  get characters(): readonly string[] {
    return this.#characters;
  }

  /** Does what a key means for the line; keys that mean more than that are the editor's. */
  apply(key: Key): void {
    switch (key.name) {
      case "text":
        return this.#replace(this.#cursor, this.#cursor, charactersOf(key.text));
      case "left":
        return this.#move(this.#cursor - 1);
      case "right":
        return this.#move(this.#cursor + 1);
      case "home":
        return this.#move(0);
      case "end":
        return this.#move(this.#characters.length);
      case "wordLeft":
        return this.#move(this.#wordStart());
      case "wordRight":
        return this.#move(this.#wordEnd());
      case "backspace":
        return this.#replace(Math.max(0, this.#cursor - 1), this.#cursor);
      case "delete":
        return this.#replace(this.#cursor, this.#cursor + 1);
      case "killToStart":
        return this.#replace(0, this.#cursor);
      case "killToEnd":
        return this.#replace(this.#cursor, this.#characters.length);
      case "killWord":
        return this.#replace(this.#wordStart(), this.#cursor);
      case "up":
        return this.#recall(this.#place - 1);
      case "down":
        return this.#recall(this.#place + 1);
    }
  }

  #move(cursor: number): void {
    this.#cursor = Math.max(0, Math.min(this.#characters.length, cursor));
  }

  #replace(start: number, end: number, characters: readonly string[] = []): void {
    this.#characters.splice(start, end - start, ...characters);
    this.#cursor = start + characters.length;
  }

  #recall(place: number): void {
    if (place < 0 || place > this.#history.length) return;
    if (this.#place === this.#history.length) this.#draft = this.text;
    this.#place = place;
    this.#characters = charactersOf(this.#history[place] ?? this.#draft);
    this.#cursor = this.#characters.length;
  }

  #wordStart(): number {
    let at = this.#cursor;
    while (at > 0 && this.#characters[at - 1]!.trim() === "") at--;
    while (at > 0 && this.#characters[at - 1]!.trim() !== "") at--;
    return at;
  }

  #wordEnd(): number {
    let at = this.#cursor;
    const length = this.#characters.length;
    while (at < length && this.#characters[at]!.trim() === "") at++;
    while (at < length && this.#characters[at]!.trim() !== "") at++;
    return at;
  }
}

/** What came of a line: its text, Ctrl-C (on an empty line or not), or the end of input. */
export type LineResult =
  | { readonly kind: "line"; readonly text: string }
  | { readonly kind: "interrupt"; readonly wasEmpty: boolean }
  | { readonly kind: "end" };

/** Reads lines from a terminal, drawn on standard error. */
export class LineEditor {
  readonly #terminal: Terminal;
  readonly #decoder = new KeyDecoder();
  readonly #history: string[] = [];
  /** Keys that came after the line they were typed behind. */
  #keys: Key[] = [];
  /** The row of the cursor, counted from the prompt's. */
  #cursorRow = 0;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  /** Reads a line. */
  async read(prompt: string): Promise<LineResult> {
    const { stderr, stdin } = this.#terminal;
    const buffer = new LineBuffer(this.#history);
    this.#cursorRow = 0;
    stdin.setRaw(true);
    try {
      // Bracketed paste: a pasted line break is text, not the end of the message.
      await stderr.write("\x1b[?2004h");
      await this.#draw(prompt, buffer);
      return await this.#edit(prompt, buffer);
    } finally {
      stdin.setRaw(false);
      await stderr.write("\x1b[?2004l\r\n");
    }
  }

  async #edit(prompt: string, buffer: LineBuffer): Promise<LineResult> {
    for (;;) {
      const key = await this.#nextKey();
      if (key === undefined || (key.name === "endOfInput" && buffer.text === "")) return { kind: "end" };
      if (key.name === "interrupt") return { kind: "interrupt", wasEmpty: buffer.text === "" };
      if (key.name === "enter") {
        buffer.apply({ name: "end" });
        await this.#draw(prompt, buffer);
        return { kind: "line", text: this.#remember(buffer.text) };
      }
      if (key.name === "clearScreen") {
        await this.#terminal.stderr.write("\x1b[H\x1b[2J");
        this.#cursorRow = 0;
      }
      buffer.apply(key.name === "endOfInput" ? { name: "delete" } : key);
      // A paste is one key, but fast typing is many: drawn once they are all in.
      if (this.#keys.length === 0) await this.#draw(prompt, buffer);
    }
  }

  async #nextKey(): Promise<Key | undefined> {
    while (this.#keys.length === 0) {
      const bytes = await this.#terminal.stdin.read();
      if (bytes === undefined) return undefined;
      this.#keys = this.#decoder.decode(bytes);
    }
    return this.#keys.shift();
  }

  #remember(text: string): string {
    if (text.trim() !== "" && text !== this.#history.at(-1)) this.#history.push(text);
    return text;
  }

  /** Draws all anew: a line may take several rows, and a change may move any of them. */
  async #draw(prompt: string, buffer: LineBuffer): Promise<void> {
    const columns = this.#terminal.columns();
    const cells = (characters: readonly string[]): number =>
      characters.reduce((sum, character) => sum + cellsOf(character), prompt.length);
    const end = cells(buffer.characters), cursor = cells(buffer.beforeCursor);
    const shown = buffer.characters.join("").replaceAll("\n", "⏎").replaceAll("\t", " ");
    const endRow = Math.floor(end / columns);
    const up = this.#cursorRow > 0 ? `\x1b[${this.#cursorRow}A` : "";
    // Exactly at the right edge the terminal waits with its wrap: a line feed does it now.
    let frame = `${up}\r\x1b[J${prompt}${shown}${end % columns === 0 ? "\r\n" : ""}\r`;
    this.#cursorRow = Math.floor(cursor / columns);
    if (endRow > this.#cursorRow) frame += `\x1b[${endRow - this.#cursorRow}A`;
    if (cursor % columns > 0) frame += `\x1b[${cursor % columns}C`;
    await this.#terminal.stderr.write(frame);
  }
}

const SEGMENTER = new Intl.Segmenter(undefined, { granularity: "grapheme" });

function charactersOf(text: string): string[] {
  return Array.from(SEGMENTER.segment(text), ({ segment }) => segment);
}

const WIDE =
  /\p{Emoji_Presentation}|\uFE0F|\p{Script=Han}|\p{Script=Hiragana}|\p{Script=Katakana}|\p{Script=Hangul}|[　-〿！-｠￠-￦]/u;

/** Columns that a character takes: two for East Asian ones and emoji. */
function cellsOf(character: string): number {
  return WIDE.test(character) ? 2 : 1;
}
