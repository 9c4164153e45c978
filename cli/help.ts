/**
 * `--help`, out of the table of flags.
 *
 * @module
 */
import { type CommandName, type NamedOption, OPTION_ROWS, type OptionGroup, variableOf } from "./options.ts";
import { type Style, wrap } from "./style.ts";

/** What a command is, in help. */
export interface CommandHelp {
  /** Its operands. */
  readonly operands: string;
  /** What it does, as a phrase. */
  readonly help: string;
  /** What else there is to say, as paragraphs. */
  readonly details: readonly string[];
  /** Lines to copy. */
  readonly examples: readonly string[];
}

/** The commands, in the order of help. */
export const COMMANDS: Readonly<Record<CommandName, CommandHelp>> = {
  generate: {
    operands: "[PROMPT]",
    help: "answer a prompt, given here or on standard input",
    details: [
      "The prompt goes through the model's chat template as one user's message; --raw leaves it as it is. The answer goes " +
      "to standard output, everything else to standard error. Ctrl-C stops the answer.",
    ],
    examples: [
      'tinyllm generate "Tell me a story about a brave mouse"',
      'tinyllm generate --raw -n 40 --temp 0 "Once upon a time"',
      "tinyllm generate -m Qwen/Qwen2.5-0.5B-Instruct --json < question.txt",
    ],
  },
  chat: {
    operands: "",
    help: "talk with a model; /help inside lists its commands",
    details: [
      'Ctrl-C stops the answer, twice ends the program. A message of several lines stands between """ and """, or its lines ' +
      "end with a backslash. Arrow keys bring back earlier messages.",
    ],
    examples: ["tinyllm chat -m Qwen/Qwen2.5-0.5B-Instruct", 'tinyllm chat --system "Answer in rhymes"'],
  },
  batch: {
    operands: "",
    help: "answer a file of requests, many at once",
    details: [
      "Input and output are in OpenAI's batch format: a request a line with custom_id, method, url " +
      "(/v1/chat/completions or /v1/completions) and body, and a line for each answer, as soon as it is there. The body's " +
      'model may be "default". Sampling flags hold where a body says nothing.',
      "Run again with the same output, it goes on where it was stopped, and tries again what failed. It goes by custom_id " +
      "alone: after a change of questions, model or sampling, give another output. A line that cannot be " +
      "run becomes a line with the error, and does not stop the others; the exit code is 1 then.",
    ],
    examples: [
      "tinyllm batch --input prompts.jsonl --output out.jsonl",
      "tinyllm batch -m Qwen/Qwen2.5-0.5B-Instruct --temp 0 -n 200 -i prompts.jsonl -o out.jsonl",
    ],
  },
  perplexity: {
    operands: "FILE",
    help: "measure how well a model predicts a text",
    details: ["A text longer than the context is measured in windows of that length. - reads standard input."],
    examples: ["tinyllm perplexity -m Qwen/Qwen2.5-0.5B -c 2048 book.txt"],
  },
  show: {
    operands: "[MODEL]",
    help: "describe a model and the memory it needs, without loading it",
    details: [],
    examples: ["tinyllm show Qwen/Qwen2.5-0.5B-Instruct", "tinyllm show ./my-model -c 4096"],
  },
  devices: {
    operands: "",
    help: "list the GPUs, what they can do and their limits",
    details: [],
    examples: ["tinyllm devices --json"],
  },
};

/** The names of all commands. */
export const COMMAND_NAMES: readonly CommandName[] = Object.keys(COMMANDS) as CommandName[];

/** Wider lines are hard to read. */
const MOST_COLUMNS = 110;
/** Where flags' explanations begin. */
const INDENT = 30;
/** Where commands' explanations begin. */
const COMMAND_INDENT = 22;

/** Help for one command, or for all. */
export function helpText(command: CommandName | undefined, version: string, columns: number, style: Style): string {
  const width = Math.max(60, Math.min(columns - 1, MOST_COLUMNS));
  const parts = command === undefined ? overview(version, width, style) : commandHelp(command, width, style);
  const rows = OPTION_ROWS.filter((row) => command === undefined || row.commands.includes(command));
  const groups = Map.groupBy(rows, (row) => row.group);
  for (const [group, members] of groups) parts.push(optionGroup(group, members, width, style));
  const note =
    "Each flag can be set in the environment instead: TINYLLM_ and its name in capitals, as shown. Exit codes: " +
    "0 done, 1 failed, 2 called wrongly, 130 interrupted. TINYLLM_DEBUG=1 shows where an error comes from, " +
    "TINYLLM_DEBUG=2 also what the GPU runs, NO_COLOR=1 turns colours off.";
  return [...parts, wrap(note, width).map(style.dim).join("\n")].join("\n\n") + "\n";
}

function overview(version: string, width: number, style: Style): string[] {
  const commands = COMMAND_NAMES.flatMap((name) => {
    const { help, operands } = COMMANDS[name];
    const [first, ...rest] = wrap(help, width - COMMAND_INDENT);
    const call = `${style.cyan(name)} ${operands}` + " ".repeat(COMMAND_INDENT - 3 - name.length - operands.length);
    return [`  ${call}${first}`, ...rest.map((line) => " ".repeat(COMMAND_INDENT) + line)];
  });
  const examples = [COMMANDS.generate.examples[0]!, COMMANDS.chat.examples[0]!, COMMANDS.generate.examples[2]!];
  return [
    `${style.bold("TinyLLM")} ${version}: language models on WebGPU`,
    `${style.bold("Usage")}  tinyllm COMMAND [FLAGS]`,
    [style.bold("Commands"), ...commands].join("\n"),
    [style.bold("Examples"), ...examples.map((example) => `  ${example}`)].join("\n"),
    wrap("tinyllm COMMAND --help says more about one command and shows its flags alone.", width).join("\n"),
  ];
}

function commandHelp(command: CommandName, width: number, style: Style): string[] {
  const { operands, help, details, examples } = COMMANDS[command];
  return [
    `${style.bold("Usage")}  tinyllm ${command}${operands && ` ${operands}`} [FLAGS]`,
    wrap(`${help[0]!.toUpperCase()}${help.slice(1)}.`, width).join("\n"),
    ...details.map((paragraph) => wrap(paragraph, width).join("\n")),
    [style.bold("Examples"), ...examples.map((example) => `  ${example}`)].join("\n"),
  ];
}

function optionGroup(group: OptionGroup, rows: readonly NamedOption[], width: number, style: Style): string {
  return [style.bold(group), ...rows.flatMap((row) => optionLines(row, width, style))].join("\n");
}

/** The flag, its explanation beside it, and under it in dim letters its default and variable. */
function optionLines(row: NamedOption, width: number, style: Style): string[] {
  const short = row.short === undefined ? "    " : `-${row.short}, `;
  const value = row.value === undefined ? "" : ` ${row.value.placeholder}`;
  const plain = `  ${short}--${row.flag}${value}`;
  const painted = `  ${style.cyan(`${short}--${row.flag}`)}${value}`;
  const help = wrap(row.help + (row.repeatable ? " (repeatable)" : ""), width - INDENT);
  const note = row.action ? [] : wrap(`default: ${row.default} · ${variableOf(row)}`, width - INDENT).map(style.dim);
  const right = [...help, ...note];
  if (plain.length + 2 > INDENT) return [painted, ...right.map((line) => " ".repeat(INDENT) + line)];
  const [first, ...rest] = right;
  return [painted + " ".repeat(INDENT - plain.length) + first, ...rest.map((line) => " ".repeat(INDENT) + line)];
}
