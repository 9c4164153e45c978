/**
 * What every command is given.
 *
 * @module
 */
import type { Interrupts } from "./interrupts.ts";
import type { Library } from "./library.ts";
import type { Options } from "./options.ts";
import type { Terminal } from "./terminal.ts";

/** The surroundings of a command. */
export interface CommandContext {
  readonly terminal: Terminal;
  readonly options: Options;
  /** Words that are no flags. */
  readonly operands: readonly string[];
  /** The options that the command line itself gives, not the environment. */
  readonly given: ReadonlySet<keyof Options>;
  /** The library, read at the first call: help and usage errors do without. */
  readonly library: () => Promise<Library>;
  /** WebGPU; undefined where there is none. */
  readonly gpu: () => GPU | undefined;
  readonly interrupts: Interrupts;
}

/** Runs a command and returns the exit code. */
export type Command = (context: CommandContext) => Promise<number>;
