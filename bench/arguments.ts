/**
 * The flags of a bench: `--name=value`, `--name` alone, and words. A name that nobody asks for is an error, since a misspelt
 * flag costs a run; `--help` prints how the bench is called, and runs nothing.
 *
 * @module
 */

/** What was asked for is at fault: its message is all that is printed. */
export class UsageError extends Error {}

/** Prints how a bench is called, where that is asked for. Returns whether it was. */
export function printHelp(usage: string, args: readonly string[]): boolean {
  const asked = args.includes("--help") || args.includes("-h");
  if (asked) console.log(`Usage: ${usage}`);
  return asked;
}

/**
 * Runs a bench from the command line: what was asked for wrongly, and a file that is not there, is said in a line.
 *
 * @param usage How it is called, for `--help`.
 */
export async function runBench(
  usage: string,
  main: (args: readonly string[]) => Promise<void> | void,
): Promise<void> {
  if (printHelp(usage, Deno.args)) return;
  try {
    await main(Deno.args);
  } catch (cause) {
    if (!(cause instanceof UsageError || cause instanceof Deno.errors.NotFound)) throw cause;
    console.error(cause.message);
    Deno.exit(1);
  }
}

/** Words and flags of a command line. */
export class BenchArguments {
  /** What is no flag. */
  readonly words: readonly string[];
  readonly #flags = new Map<string, string>();
  readonly #asked = new Set<string>();

  constructor(args: readonly string[]) {
    this.words = args.filter((arg) => !arg.startsWith("--"));
    for (const arg of args.filter((arg) => arg.startsWith("--"))) {
      const [name, ...value] = arg.slice(2).split("=");
      this.#flags.set(name!, value.join("="));
    }
  }

  /** Whether `--name` is there. */
  has(name: string): boolean {
    this.#asked.add(name);
    return this.#flags.has(name);
  }

  /** The text of `--name=text`. */
  text(name: string): string | undefined;
  text(name: string, fallback: string): string;
  text(name: string, fallback?: string): string | undefined {
    return this.has(name) ? this.#flags.get(name)! : fallback;
  }

  /** The text, one of `choices`, the first unless given. */
  choice<T extends string>(name: string, choices: readonly T[]): T {
    const value = this.text(name, choices[0]!), choice = choices.find((word) => word === value);
    if (choice === undefined) throw new UsageError(`--${name}=${value}: give one of ${choices.join(", ")}`);
    return choice;
  }

  /** The number of `--name=number`. */
  number(name: string, fallback: number): number {
    return this.numbers(name, [fallback])[0]!;
  }

  /** The numbers of `--name=1,2,3`; `--name` alone asks for the usual ones. */
  numbers(name: string, fallback: readonly number[]): readonly number[] {
    const value = this.text(name, "");
    if (value === "") return fallback;
    const numbers = value.split(",").map(Number);
    if (numbers.some(Number.isNaN)) throw new UsageError(`--${name}=${value}: give numbers`);
    return numbers;
  }

  /** Refuses flags that were never asked for, and words that are not among `words`. */
  check(words?: readonly string[]): void {
    const unknown = [...this.#flags.keys()].find((name) => !this.#asked.has(name));
    if (unknown !== undefined) {
      throw new UsageError(
        `Unknown flag --${unknown}: there are ${[...this.#asked].map((name) => `--${name}`).join(", ") || "none"}`,
      );
    }
    const word = words && this.words.find((given) => !words.includes(given));
    if (word !== undefined) throw new UsageError(`Unknown "${word}": give ${words!.join(", ")}`);
  }
}
