/**
 * From words to options: the command line first, then the environment for what it leaves open.
 *
 * @module
 */
import { UsageError } from "./errors.ts";
import { nearest } from "../serving/nearest.ts";
import { SAMPLING_FIELDS } from "../serving/openai_request.ts";
import { type CommandName, type NamedOption, OPTION_ROWS, type Options, variableOf } from "./options.ts";
import { readSwitch } from "./values.ts";

/** A command line, understood. */
export interface ParsedArguments {
  readonly options: Options;
  /** What is no flag: a prompt, a file, a model. */
  readonly operands: readonly string[];
  /** The options that the command line itself gives, not the environment. */
  readonly given: ReadonlySet<keyof Options>;
}

const BY_NAME: ReadonlyMap<string, NamedOption> = new Map(
  OPTION_ROWS.flatMap((row) => spellings(row).map((name) => [name, row] as const)),
);

/** All that names a flag, with its dashes. */
function spellings(row: NamedOption): string[] {
  const long = [row.flag, ...row.aliases ?? []].map((name) => `--${name}`);
  return row.short === undefined ? long : [`-${row.short}`, ...long];
}

/**
 * Reads the words after the command, and the environment.
 *
 * @param command undefined before a command is known: then every flag is allowed.
 * @throws {UsageError} naming the flag, or the variable, and what it needs.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { parseArguments } from "./arguments.ts";
 *
 * const { options, operands } = parseArguments("generate", ["-n", "5", "Hi", "--temp=0"], () => undefined);
 * assertEquals(options, { maxTokens: 5, temperature: 0 });
 * assertEquals(operands, ["Hi"]);
 * ```
 */
export function parseArguments(
  command: CommandName | undefined,
  words: readonly string[],
  env: (name: string) => string | undefined,
): ParsedArguments {
  const options: Options = {};
  const operands: string[] = [];
  for (let index = 0; index < words.length; index++) {
    const word = words[index]!;
    if (word === "--") {
      operands.push(...words.slice(index + 1));
      break;
    }
    // A lone dash is an operand by custom: standard input.
    if (!word.startsWith("-") || word === "-") {
      operands.push(word);
      continue;
    }
    const flag = readFlag(command, word);
    if (flag.row.value === undefined) assign(options, flag.row, flag.on);
    else setOption(options, flag.row, flag.name, flag.inline ?? nextValue(flag.row, flag.name, words[++index]));
  }
  const given = new Set(Object.keys(options) as (keyof Options)[]);
  readEnvironment(options, command, env);
  return { options, operands, given };
}

interface Flag {
  readonly row: NamedOption;
  /** As it was spelt, without the value. */
  readonly name: string;
  /** The value behind an equals sign. */
  readonly inline: string | undefined;
  /** Of a switch: whether it is turned on. */
  readonly on: boolean;
}

function readFlag(command: CommandName | undefined, word: string): Flag {
  const equals = word.indexOf("=");
  const name = equals < 0 ? word : word.slice(0, equals);
  const inline = equals < 0 ? undefined : word.slice(equals + 1);
  let row = BY_NAME.get(name);
  const positive = row === undefined && name.startsWith("--no-") ? BY_NAME.get(`--${name.slice(5)}`) : undefined;
  if (positive && positive.value === undefined && !positive.action) row = positive;
  if (row === undefined) throw unknownFlag(command, name);
  if (command !== undefined && !row.commands.includes(command)) {
    throw new UsageError(`${name} does not apply to ${command}, only to ${row.commands.join(", ")}: leave it out`);
  }
  if (row.value === undefined && inline !== undefined) {
    throw new UsageError(`${name} takes no value, and was given "${inline}": write ${name} alone`);
  }
  return { row, name, inline, on: positive === undefined };
}

function unknownFlag(command: CommandName | undefined, name: string): UsageError {
  const rows = OPTION_ROWS.filter((row) => command === undefined || row.commands.includes(command));
  const letter = BY_NAME.get(name.slice(0, 2));
  if (!name.startsWith("--") && letter?.value) {
    return new UsageError(`Unknown flag ${name}: did you mean ${name.slice(0, 2)} ${name.slice(2)}?`);
  }
  const field = name.replace(/^--/, "").replaceAll("-", "_");
  if (name.startsWith("--") && SAMPLING_FIELDS.includes(field)) {
    return new UsageError(`Unknown flag ${name}: write "${field}" into the body of a request, and run tinyllm batch`);
  }
  const near = nearest(name, rows.flatMap(spellings).filter((spelling) => spelling.startsWith("--")));
  const remedy = near === undefined ? "text that begins with a dash goes behind --" : `did you mean ${near}?`;
  return new UsageError(`Unknown flag ${name}: ${remedy}`);
}

/** A value may begin with a dash, as a negative number does, but is no flag of its own. */
function nextValue(row: NamedOption, name: string, next: string | undefined): string {
  if (next !== undefined && !BY_NAME.has(next.split("=")[0]!)) return next;
  throw new UsageError(`${name} needs a value: write ${name} ${row.value!.placeholder}`);
}

/** The row of a flag's name or letter, with or without its dashes. */
export function findOption(name: string): NamedOption | undefined {
  return BY_NAME.get(name) ?? BY_NAME.get(`--${name}`) ?? BY_NAME.get(`-${name}`);
}

/**
 * Sets an option to what `value` says, a switch as in the environment.
 *
 * @param name what messages call it.
 * @throws {UsageError} for a value that the option does not take.
 */
export function setOption(options: Options, row: NamedOption, name: string, value: string): void {
  try {
    assign(options, row, row.value === undefined ? readSwitch(value) : row.value.read(value, options[row.key]));
  } catch (error) {
    throw new UsageError(`${name} ${(error as Error).message}`, { cause: error });
  }
}

function assign(options: Options, row: NamedOption, value: unknown): void {
  // The table's type pairs each key with its reader's type; a loop over it loses that.
  (options as Record<string, unknown>)[row.key] = value;
}

function readEnvironment(
  options: Options,
  command: CommandName | undefined,
  env: (name: string) => string | undefined,
): void {
  for (const row of OPTION_ROWS) {
    const applies = command !== undefined && row.commands.includes(command) && !row.action;
    if (!applies || options[row.key] !== undefined) continue;
    const name = variableOf(row);
    const value = env(name);
    if (value !== undefined) setOption(options, row, `${name} in the environment`, value);
  }
}
