/**
 * What the library says, in the words of the command line.
 *
 * @module
 */
import { inOneLine } from "./errors.ts";
import { OPTION_ROWS, type OptionGroup } from "./options.ts";

/** An error of a command, whose requests are made of flags, in one line; all of it, with its stack, where `debug` is set. */
export function errorText(error: unknown, debug: boolean): string {
  if (!(error instanceof Error)) return String(error);
  if (debug) return Deno.inspect(error, { colors: false });
  return inOneLine(named(error.message, ALL)) || error.name;
}

/** Flags by what the library calls their options, of some groups. One that is a word of English is not among them. */
function flagsOf(...groups: readonly OptionGroup[]): ReadonlyMap<string, string> {
  const rows = OPTION_ROWS.filter(({ group, key }) => groups.includes(group) && /[A-Z]/.test(key));
  return new Map(rows.map(({ key, flag }) => [key, `--${flag}`]));
}

const LOADING = flagsOf("Engine"), ALL = flagsOf("Engine", "Sampling");

/**
 * A quotation, as the library and the runtime quote names that people gave; or a word that may be the name of an option, and no part of
 * an address, a path or the name of a file.
 */
const QUOTED_OR_NAME =
  /"[^"]*"|(?<!\w)'[^']*'(?!\w)|(?<![\w/\\.:@=-])[a-z]+(?:[A-Z][a-z]*)+(?![\w/\\@=-]|[.:][\w/\\])/g;

/**
 * What the library says, with flags in place of the options of loading that it names; those of a request stay, since a batch's requests
 * have names of their own. What stands in quotes stays as it is.
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
  return named(message, LOADING);
}

function named(message: string, flags: ReadonlyMap<string, string>): string {
  return message.replace(QUOTED_OR_NAME, (match) => flags.get(match) ?? match);
}
