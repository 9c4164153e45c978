/**
 * The command line as a function of its arguments and surroundings; `cli.ts` gives it the process's.
 *
 * @module
 */
import configuration from "../deno.json" with { type: "json" };
import { parseArguments } from "./arguments.ts";
import { batch } from "./batch.ts";
import { chat } from "./chat.ts";
import type { Command, CommandContext } from "./context.ts";
import { devices } from "./devices.ts";
import { debugLevel, EXIT, UsageError } from "./errors.ts";
import { errorText } from "./flags.ts";
import { generate } from "./generate.ts";
import { COMMAND_NAMES, helpText } from "./help.ts";
import { Interrupts } from "./interrupts.ts";
import type { Library } from "./library.ts";
import { nearest } from "../serving/nearest.ts";
import type { CommandName } from "./options.ts";
import { perplexity } from "./perplexity.ts";
import { show } from "./show.ts";
import { styleOf } from "./style.ts";
import { type Output, OutputClosed, type Terminal } from "./terminal.ts";

const RUN: Readonly<Record<CommandName, Command>> = { generate, chat, batch, perplexity, show, devices };

/** Commands without operands. */
const FLAGS_ALONE: ReadonlySet<CommandName> = new Set(["chat", "batch", "devices"]);

/** What the command line needs of its surroundings besides a terminal. */
export interface Surroundings {
  /** Reads the library. */
  readonly library: () => Promise<Library>;
  /** WebGPU; undefined where there is none. */
  readonly gpu: () => GPU | undefined;
}

/**
 * Runs a command line.
 *
 * @returns the exit code: 0 done, 1 failed, 2 called wrongly, 130 interrupted.
 */
export async function runCli(
  args: readonly string[],
  terminal: Terminal,
  surroundings: Surroundings,
): Promise<number> {
  const left = Promise.withResolvers<number>();
  using interrupts = new Interrupts(terminal, () => left.resolve(EXIT.interrupted));
  const running = runCommand(args, { terminal, ...surroundings, interrupts });
  // After a second Ctrl-C the command's own end is of no interest any more.
  return await Promise.race([running.catch((error) => fail(error, args, terminal, interrupts)), left.promise]);
}

type Base = Omit<CommandContext, "options" | "operands" | "given">;

async function runCommand(args: readonly string[], base: Base): Promise<number> {
  const { terminal } = base;
  const help = (command: CommandName | undefined, output: Output): Promise<void> =>
    output.write(helpText(command, configuration.version, terminal.columns(), styleOf(terminal, output)));
  const [first, ...rest] = args;
  if (first === undefined) {
    await help(undefined, terminal.stderr);
    return EXIT.usage;
  }
  if (first === "help") {
    await help(rest[0] === undefined ? undefined : commandNamed(rest[0]), terminal.stdout);
    return EXIT.ok;
  }
  const command = first.startsWith("-") ? undefined : commandNamed(first);
  const parsed = parseArguments(command, command === undefined ? args : rest, terminal.env);
  if (parsed.options.help) {
    await help(command, terminal.stdout);
    return EXIT.ok;
  }
  if (parsed.options.version) {
    await terminal.stdout.write(`tinyllm ${configuration.version}\n`);
    return EXIT.ok;
  }
  if (command === undefined) {
    throw new UsageError(`A command goes before ${first}: one of ${COMMAND_NAMES.join(", ")}`);
  }
  if (parsed.operands.length > 0 && FLAGS_ALONE.has(command)) {
    throw new UsageError(`${command} takes flags alone, and was given "${parsed.operands[0]}"`);
  }
  return await RUN[command]({ ...base, ...parsed });
}

function commandNamed(word: string): CommandName {
  const command = COMMAND_NAMES.find((name) => name === word);
  if (command !== undefined) return command;
  const near = nearest(word, COMMAND_NAMES);
  const remedy = near === undefined ? `there are ${COMMAND_NAMES.join(", ")}` : `did you mean ${near}?`;
  throw new UsageError(`Unknown command "${word}": ${remedy}`);
}

/** Says what went wrong, in one line, and returns the exit code. */
async function fail(
  error: unknown,
  args: readonly string[],
  terminal: Terminal,
  interrupts: Interrupts,
): Promise<number> {
  if (error instanceof OutputClosed) return EXIT.ok;
  if (interrupts.pressed) return EXIT.interrupted;
  const style = styleOf(terminal, terminal.stderr);
  const usage = error instanceof UsageError;
  const lines = [`${style.red("error:")} ${errorText(error, debugLevel(terminal) >= 1)}`];
  if (usage) {
    const command = COMMAND_NAMES.find((name) => name === args[0]);
    lines.push(style.dim(`tinyllm ${command === undefined ? "" : `${command} `}--help shows all flags`));
  }
  await terminal.stderr.write(lines.join("\n") + "\n").catch(() => {});
  return usage ? EXIT.usage : EXIT.failed;
}
