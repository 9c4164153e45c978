/**
 * A bench's results: lines of JSON, on standard output and in a file, each with the device, the date and the command that
 * measured it.
 *
 * @module
 */
import { cannotWrite } from "../cli/errors.ts";
import { readInput } from "./arguments.ts";

/** What every result has. */
export interface Result {
  /** Which bench. */
  readonly bench: string;
  /** The device's name. */
  readonly device: string;
  /** When: ISO 8601. */
  readonly date: string;
  /** The task that measured it, with its arguments. */
  readonly command: string;
}

/** Where a bench's results go. */
export class Results<T extends Result> {
  readonly all: T[] = [];
  readonly #head: Result;
  readonly #path: string | undefined;
  readonly #print: (line: string) => void;

  /**
   * No results yet.
   *
   * @param path A file that lines are added to as well. @param print Takes each line: standard output, unless given.
   * @throws {Error} naming the file, where it cannot be written: now, and not once something was measured.
   */
  constructor(bench: string, device: string, args: readonly string[], path?: string, print = console.log) {
    // Where results go says nothing of what was measured.
    const quoted = args.filter((arg) => !arg.startsWith("--out=")).map((arg) =>
      / /.test(arg) ? ` "${arg}"` : ` ${arg}`
    );
    const command = `deno task bench:${bench}${quoted.join("")}`;
    this.#head = { bench, device, date: new Date().toISOString().slice(0, 19) + "Z", command };
    this.#path = path;
    this.#print = print;
    this.#append("");
  }

  /** Takes a result: a line of JSON at once, so that a run that is cut off keeps what it has. */
  add(measured: Omit<T, keyof Result>): T {
    const result = { ...this.#head, ...measured } as T;
    const line = JSON.stringify(result, rounded);
    this.#print(line);
    this.#append(`${line}\n`);
    this.all.push(result);
    return result;
  }

  #append(text: string): void {
    if (this.#path === undefined) return;
    try {
      Deno.writeTextFileSync(this.#path, text, { append: true });
    } catch (cause) {
      throw cannotWrite(`"${this.#path}"`, cause);
    }
  }
}

/** Five digits are more than any clock gives. */
function rounded(_key: string, value: unknown): unknown {
  return typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(5)) : value;
}

/**
 * Reads the lines of a file of results.
 *
 * @throws naming the file, where it is not there or has a line that was cut off.
 */
export async function readResults(path: string): Promise<Record<string, unknown>[]> {
  const lines = (await readInput(path)).split("\n").filter((line) => line.startsWith("{"));
  try {
    return lines.map((line) => JSON.parse(line));
  } catch (cause) {
    throw new Error(`Cannot read "${path}": it has a line that is no JSON (${(cause as Error).message})`, { cause });
  }
}
