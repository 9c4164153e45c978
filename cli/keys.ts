/**
 * From what a raw terminal sends to keys: xterm's control sequences, which all terminals of today follow.
 *
 * @module
 */

/** A key without text. */
export type KeyName =
  | "enter"
  | "left"
  | "right"
  | "up"
  | "down"
  | "home"
  | "end"
  | "wordLeft"
  | "wordRight"
  | "backspace"
  | "delete"
  | "killToStart"
  | "killToEnd"
  | "killWord"
  | "clearScreen"
  | "interrupt"
  | "endOfInput";

/** A key, or a run of text typed or pasted. */
export type Key = { readonly name: KeyName } | { readonly name: "text"; readonly text: string };

/** The control characters, with their meanings in Emacs and shells. */
const CONTROLS: Readonly<Record<string, KeyName>> = {
  "\r": "enter",
  "\n": "enter",
  "\x01": "home",
  "\x02": "left",
  "\x03": "interrupt",
  "\x04": "endOfInput",
  "\x05": "end",
  "\x06": "right",
  "\x08": "backspace",
  "\x0b": "killToEnd",
  "\x0c": "clearScreen",
  "\x0e": "down",
  "\x10": "up",
  "\x15": "killToStart",
  "\x17": "killWord",
  "\x7f": "backspace",
};

/** What follows the escape character. */
const SEQUENCES: Readonly<Record<string, KeyName>> = {
  "[A": "up",
  "[B": "down",
  "[C": "right",
  "[D": "left",
  "[H": "home",
  "[F": "end",
  OA: "up",
  OB: "down",
  OC: "right",
  OD: "left",
  OH: "home",
  OF: "end",
  "[1~": "home",
  "[3~": "delete",
  "[4~": "end",
  "[7~": "home",
  "[8~": "end",
  "[1;5C": "wordRight",
  "[1;5D": "wordLeft",
  "[1;3C": "wordRight",
  "[1;3D": "wordLeft",
  b: "wordLeft",
  f: "wordRight",
  "\x7f": "killWord",
};

const PASTE_START = "\x1b[200~";
const PASTE_END = "\x1b[201~";

/** Decodes keys from chunks, whose borders may fall anywhere. */
export class KeyDecoder {
  readonly #decoder = new TextDecoder();
  #rest = "";

  /** The keys that are complete by now. */
  decode(bytes: Uint8Array): Key[] {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    const keys: Key[] = [];
    while (this.#rest !== "") {
      const [key, length] = nextKey(this.#rest);
      if (length === 0) break;
      this.#rest = this.#rest.slice(length);
      if (key) keys.push(key);
    }
    return keys;
  }
}

/** The key at the start of `input` and its length: no key for what means nothing, length 0 for an unfinished one. */
function nextKey(input: string): [Key | undefined, number] {
  if (input.startsWith(PASTE_START)) {
    const end = input.indexOf(PASTE_END);
    if (end < 0) return [undefined, 0];
    // Terminals send carriage returns for the line breaks of a paste.
    const text = input.slice(PASTE_START.length, end).replace(/\r\n?/g, "\n");
    return [{ name: "text", text }, end + PASTE_END.length];
  }
  if (input.startsWith("\x1b")) {
    // deno-lint-ignore no-control-regex
    const match = /^\x1b(\[[\d;?]*[ -/]*[@-~]|O[A-Za-z]|[^[O])/.exec(input);
    if (!match) return [undefined, 0];
    const name = SEQUENCES[match[1]!];
    return [name && { name }, match[0].length];
  }
  const control = CONTROLS[input[0]!];
  if (control) return [{ name: control }, 1];
  // deno-lint-ignore no-control-regex
  const text = /^[^\x00-\x1f\x7f]+/.exec(input)?.[0];
  return text === undefined ? [undefined, 1] : [{ name: "text", text }, text.length];
}
