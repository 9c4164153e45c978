/**
 * The two ways a command ends early: it was called wrongly (exit code 2), or the user stopped it (130). All other errors
 * end it with 1.
 *
 * @module
 */
import { OPTION_ROWS } from "./options.ts";
import type { Terminal } from "./terminal.ts";

/** The command line says something that cannot be meant; the message names the flag and the remedy. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Exit codes. */
export const EXIT = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** Why a file could not be read or written, without the path that the message names already. */
export function fileErrorText(error: unknown): string {
  if (error instanceof Deno.errors.NotFound) return "there is no such file or folder";
  if (error instanceof Deno.errors.IsADirectory) return "it is a folder, give a file";
  return error instanceof Error ? error.message.replace(/ \(os error \d+\)(: \w+ '.*')?$/, "") : String(error);
}

/** The error of an output that takes no more. */
export function cannotWrite(name: string, cause: unknown): Error {
  return new Error(`Cannot write ${name}: ${fileErrorText(cause)}`, { cause });
}

/** What TINYLLM_DEBUG asks for: 1 where errors come from, 2 also what the GPU runs. */
export function debugLevel(terminal: Pick<Terminal, "env">): number {
  return Number(terminal.env("TINYLLM_DEBUG") ?? 0) || 0;
}

/** An error in one line; all of it, with its stack, where `debug` is set. */
export function errorText(error: unknown, debug: boolean): string {
  if (!(error instanceof Error)) return String(error);
  if (debug) return Deno.inspect(error, { colors: false });
  return withFlags(error.message).replace(/\s*\n\s*/g, " ").trim() || error.name;
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
 * What the library says, with flags in place of the options that it names.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { withFlags } from "./errors.ts";
 *
 * assertEquals(withFlags("kvMemory is 9, give contextLength"), "--kv-memory is 9, give --context");
 * ```
 */
export function withFlags(message: string): string {
  return message.replace(/\b[a-z]+(?:[A-Z][a-z]+)+\b/g, (word) => FLAGS.get(word) ?? word);
}
