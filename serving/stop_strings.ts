/**
 * Stop strings in streamed text, also where one is spread over several tokens: text that may be the beginning of a stop
 * string is held back until it is certain.
 *
 * @module
 */

/**
 * Looks for stop strings in pieces of text. However the text is cut, the result is the same: the stop string that is
 * complete first ends it, and of two that end together the longer one.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { StopStrings } from "./stop_strings.ts";
 *
 * const stops = new StopStrings(["END"]);
 * assertEquals(stops.push("Hello E"), "Hello ");
 * assertEquals(stops.push("N"), "");
 * assertEquals(stops.push("D of it"), "");
 * assertEquals(stops.stopped, true);
 * ```
 */
export class StopStrings {
  readonly #stops: readonly string[];
  #held = "";
  #stopped = false;

  /** @param stops None of them empty. */
  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** Whether a stop string was found. All text behind it is dropped. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** Takes a piece and returns the text that is now certain. */
  push(piece: string): string {
    if (this.#stopped) return "";
    const text = this.#held + piece;
    const start = this.#find(text);
    if (start !== undefined) {
      this.#stopped = true;
      this.#held = "";
      return text.slice(0, start);
    }
    const certain = text.length - this.#beginningAtEnd(text);
    this.#held = text.slice(certain);
    return text.slice(0, certain);
  }

  /** What was held back, when no more text comes. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** Where the stop string begins that is complete first. */
  #find(text: string): number | undefined {
    let best: { start: number; end: number } | undefined;
    for (const stop of this.#stops) {
      const start = text.indexOf(stop);
      if (start < 0) continue;
      const end = start + stop.length;
      if (!best || end < best.end || (end === best.end && start < best.start)) best = { start, end };
    }
    return best?.start;
  }

  /** Length of the longest end of `text` that a stop string begins with. */
  #beginningAtEnd(text: string): number {
    const longest = Math.max(0, ...this.#stops.map((stop) => stop.length - 1));
    for (let length = Math.min(longest, text.length); length > 0; length--) {
      const end = text.slice(-length);
      if (this.#stops.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }
}
