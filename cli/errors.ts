/**
 * The two ways a command ends early: it was called wrongly (exit code 2), or the user stopped it (130). All other errors
 * end it with 1.
 *
 * @module
 */
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

/** A message without its line breaks. */
export function inOneLine(message: string): string {
  return message.replace(/\s*\n\s*/g, " ").trim();
}

/** The error of an output that takes no more. */
export function cannotWrite(name: string, cause: unknown): Error {
  return new Error(`Cannot write ${name}: ${fileErrorText(cause)}`, { cause });
}

/** What TINYLLM_DEBUG asks for: 1 where errors come from, 2 also what the GPU runs. */
export function debugLevel(terminal: Pick<Terminal, "env">): number {
  return Number(terminal.env("TINYLLM_DEBUG") ?? 0) || 0;
}
