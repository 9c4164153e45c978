/**
 * The flags of a bench: `--name=value`, `--name` alone, and words. A name that nobody asks for is an error, since a misspelt
 * flag costs a run; `--help` prints how the bench is called, and runs nothing.
 *
 * @module
 */
import { debugLevel, EXIT, fileErrorText, inOneLine } from "../cli/errors.ts";
import { denoTerminal } from "../cli/terminal.ts";
import { nearest } from "../serving/nearest.ts";

/** What was asked for is at fault: its message names that, and what would be right. */
export class UsageError extends Error {}

/**
 * Runs a bench or a demo from the command line. What goes wrong is said in a line, with its stack where TINYLLM_DEBUG is set, and
 * ends the process as the command line's own errors do: with 2 where it was called wrongly, else with 1.
 *
 * @param usage How it is called, for `--help`.
 */
export async function runBench(
  usage: string,
  main: (args: readonly string[]) => Promise<void> | void,
): Promise<void> {
  if (Deno.args.includes("--help") || Deno.args.includes("-h")) {
    console.log(`Usage: ${usage}`);
    Deno.exit(EXIT.ok); // under `deno bench` too, which would print its empty table
  }
  try {
    await main(Deno.args);
  } catch (cause) {
    const debug = debugLevel(denoTerminal()) >= 1;
    console.error(debug || !(cause instanceof Error) ? cause : `error: ${inOneLine(cause.message)}`);
    Deno.exit(cause instanceof UsageError ? EXIT.usage : EXIT.failed);
  }
}

/**
 * Reads a file that a bench was given.
 *
 * @throws naming it, where it cannot be read.
 */
export async function readInput(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch (cause) {
    throw new Error(`Cannot read "${path}": ${fileErrorText(cause)}`, { cause });
  }
}

/** What numbers a flag may take, by their name for messages. */
const RANGES = {
  "whole number of at least 1": (value: number): boolean => Number.isSafeInteger(value) && value >= 1,
  "whole number of at least 0": (value: number): boolean => Number.isSafeInteger(value) && value >= 0,
  "number above 0": (value: number): boolean => value > 0,
};

/** One of the ranges of numbers that flags have. */
export type NumberRange = keyof typeof RANGES;

/** Words and flags of a command line. */
export class BenchArguments {
  /** What is no flag; a lone dash is none. */
  readonly words: readonly string[];
  /** Values of the flags, by their names with dashes; undefined where a name stands alone. */
  readonly #flags = new Map<string, string | undefined>();
  readonly #asked = new Set<string>();

  constructor(args: readonly string[]) {
    const isFlag = (arg: string): boolean => arg.startsWith("-") && arg !== "-";
    this.words = args.filter((arg) => !isFlag(arg));
    for (const arg of args.filter(isFlag)) {
      const [name, ...value] = arg.split("=");
      this.#flags.set(name!, value.length === 0 ? undefined : value.join("="));
    }
  }

  /** Whether `--name` is there. */
  has(name: string): boolean {
    this.#asked.add(`--${name}`);
    return this.#flags.has(`--${name}`);
  }

  /** Whether `--name` is there, which has no value. */
  on(name: string): boolean {
    const on = this.has(name), value = this.#flags.get(`--${name}`);
    if (value === undefined) return on;
    throw new UsageError(`--${name} takes no value, and was given "${value}": write --${name} alone`);
  }

  /** The text of `--name=text`. */
  text(name: string): string | undefined;
  text(name: string, fallback: string): string;
  text(name: string, fallback?: string): string | undefined {
    if (!this.has(name)) return fallback;
    const value = this.#flags.get(`--${name}`);
    if (value) return value;
    throw new UsageError(`--${name} needs a value: write --${name}=VALUE`);
  }

  /** The text, one of `choices`, the first unless given. */
  choice<T extends string>(name: string, choices: readonly T[]): T {
    const value = this.text(name, choices[0]!), choice = choices.find((word) => word === value);
    if (choice !== undefined) return choice;
    throw new UsageError(`--${name} needs one of ${choices.join(", ")}, and was given "${value}"`);
  }

  /** The number of `--name=number`; `inf` is one where there is no bound. */
  number(name: string, fallback: number, range?: NumberRange): number;
  number(name: string, fallback?: number, range?: NumberRange): number | undefined;
  number(
    name: string,
    fallback?: number,
    range: NumberRange = "whole number of at least 1",
  ): number | undefined {
    const value = this.text(name);
    return value === undefined ? fallback : readNumber(name, value, range);
  }

  /** The whole numbers of `--name=1,2,3`, each at least 1; `--name` alone asks for the usual ones. */
  numbers(name: string, fallback: readonly number[]): readonly number[] {
    const value = this.has(name) ? this.#flags.get(`--${name}`) : undefined;
    if (value === undefined) return fallback;
    return value.split(",").map((one) => readNumber(name, one, "whole number of at least 1"));
  }

  /**
   * Refuses flags that were never asked for, and words that have no place.
   *
   * @param words The words that may stand there, or how many may; any number unless given.
   */
  check(words: readonly string[] | number = Infinity): void {
    const unknown = [...this.#flags.keys()].find((name) => !this.#asked.has(name));
    if (unknown !== undefined) {
      const near = nearest(unknown, [...this.#asked]);
      const remedy = near === undefined
        ? `there are ${[...this.#asked].join(", ") || "none"}`
        : `did you mean ${near}?`;
      throw new UsageError(`Unknown flag ${unknown}: ${remedy}`);
    }
    const word = typeof words === "number" ? this.words[words] : this.words.find((given) => !words.includes(given));
    if (word === undefined) return;
    const remedy = typeof words === "number" || words.length === 0 ? "leave it out" : `give ${words.join(", ")}`;
    throw new UsageError(`Unknown "${word}": ${remedy}`);
  }
}

function readNumber(name: string, text: string, range: NumberRange): number {
  const value = text === "inf" ? Infinity : text.trim() === "" ? NaN : Number(text);
  if (RANGES[range](value)) return value;
  throw new UsageError(`--${name} needs a ${range}, and was given "${text}"`);
}
