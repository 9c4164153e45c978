/**
 * What the library says, in the words of the command line.
 *
 * @module
 */
import { inOneLine } from "./errors.ts";
import { OPTION_ROWS } from "./options.ts";

/** An error in one line; all of it, with its stack, where `debug` is set. */
export function errorText(error: unknown, debug: boolean): string {
  if (!(error instanceof Error)) return String(error);
  if (debug) return Deno.inspect(error, { colors: false });
  return inOneLine(withFlags(error.message)) || error.name;
}

/**
 * Flags by what the library calls its options of loading. Those of a request are not among them, since a batch's requests have names
 * of their own; nor is one that is a word of English.
 */
const FLAGS: ReadonlyMap<string, string> = new Map(
  OPTION_ROWS.filter(({ group, key }) => group === "Engine" && /[A-Z]/.test(key)).map((
    { key, flag },
  ) => [key, `--${flag}`]),
);

/**
 * A quotation, as the library and the runtime quote names that people gave; or a word that may be the name of an option, and no part of
 * an address, a path or the name of a file.
 */
const QUOTED_OR_NAME =
  /"[^"]*"|(?<!\w)'[^']*'(?!\w)|(?<![\w/\\.:@=-])[a-z]+(?:[A-Z][a-z]+)+(?![\w/\\@=-]|[.:][\w/\\])/g;

/**
 * What the library says, with flags in place of the options that it names. What stands in quotes stays as it is.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { withFlags } from "./flags.ts";
 *
 * assertEquals(withFlags("kvMemory is 9, give contextLength"), "--kv-memory is 9, give --context");
 * assertEquals(withFlags('Cannot read "kvMemory.json"'), 'Cannot read "kvMemory.json"');
 * assertEquals(withFlags("Cannot fetch https://x.org/kvMemory/a"), "Cannot fetch https://x.org/kvMemory/a");
 * ```
 */
export function withFlags(message: string): string {
  return message.replace(QUOTED_OR_NAME, (match) => FLAGS.get(match) ?? match);
}
