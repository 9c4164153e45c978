/**
 * The table of commands inside a chat: `/help` and its kin.
 *
 * @module
 */
import { findOption, setOption } from "./arguments.ts";
import { type Conversation, conversationText, parseConversation } from "./conversation.ts";
import { fileErrorText, UsageError } from "./errors.ts";
import type { LoadedModel } from "./library.ts";
import { nearest } from "../serving/nearest.ts";
import { type NamedOption, OPTION_ROWS, type Options } from "./options.ts";
import { formatBytes, formatInteger } from "./style.ts";
import type { Terminal } from "./terminal.ts";

/** A chat going on. */
export interface ChatSession {
  readonly terminal: Terminal;
  readonly model: LoadedModel;
  readonly conversation: Conversation;
  /** Settings; `/set` changes them. */
  readonly options: Options;
  /** Tokens of the context that the last answer left taken. */
  contextTokens: number;
}

/** What the chat does after a command: read on, answer the last message, or end. */
export type Next = "read" | "answer" | "end";

/** A command. */
export interface ChatCommand {
  readonly names: readonly string[];
  readonly operands: string;
  readonly help: string;
  /** Does it; the text goes to standard error. */
  run(session: ChatSession, argument: string): Promise<{ text?: string; next?: Next }> | { text?: string; next?: Next };
}

const SETTINGS: readonly NamedOption[] = OPTION_ROWS.filter((row) => row.group === "Sampling");

/** All commands, in the order of `/help`. */
export const CHAT_COMMANDS: readonly ChatCommand[] = [
  { names: ["help", "?"], operands: "", help: "list these commands", run: () => ({ text: chatHelp() }) },
  {
    names: ["clear"],
    operands: "",
    help: "forget the conversation, but for the system message",
    run({ conversation }) {
      conversation.messages.length = 0;
      return { text: "The conversation starts afresh" };
    },
  },
  {
    names: ["regen"],
    operands: "",
    help: "answer the last message again",
    run({ conversation: { messages } }) {
      if (messages.at(-1)?.role === "assistant") messages.pop();
      return messages.length > 0 ? { next: "answer" } : { text: "There is no message to answer yet" };
    },
  },
  {
    names: ["system"],
    operands: "[TEXT]",
    help: "show or change the system message; - removes it",
    run({ conversation }, argument) {
      if (argument !== "") conversation.system = argument === "-" ? undefined : argument;
      return {
        text: conversation.system === undefined ? "No system message" : `System message: ${conversation.system}`,
      };
    },
  },
  {
    names: ["set"],
    operands: "[NAME [VALUE]]",
    help: "show or change a setting, such as temp; - as value resets it",
    run: set,
  },
  { names: ["show"], operands: "", help: "show the model and how full the context is", run: show },
  {
    names: ["save"],
    operands: "FILE",
    help: "write the conversation to a file",
    async run({ conversation, model, terminal }, path) {
      if (path === "") throw new UsageError("/save needs a file: write /save FILE");
      const text = conversationText(conversation, model.name);
      await terminal.writeTextFile(path, text).catch((cause) => {
        throw new Error(`Cannot save to "${path}": ${fileErrorText(cause)}`, { cause });
      });
      return { text: `Saved ${messageCount(conversation)} to ${path}` };
    },
  },
  {
    names: ["load"],
    operands: "FILE",
    help: "go on with a conversation that was saved",
    async run({ conversation, terminal }, path) {
      if (path === "") throw new UsageError("/load needs a file: write /load FILE");
      const text = await terminal.readTextFile(path).catch((cause) => {
        throw new Error(`Cannot load "${path}": ${fileErrorText(cause)}`, { cause });
      });
      const loaded = parseConversation(text, path);
      conversation.system = loaded.system;
      conversation.messages = loaded.messages;
      return { text: `Loaded ${messageCount(conversation)} from ${path}` };
    },
  },
  { names: ["bye", "exit", "quit"], operands: "", help: "end; so does Ctrl-D", run: () => ({ next: "end" }) },
];

/**
 * Runs the command that a line such as `/set temp 0.5` names.
 *
 * @throws {UsageError} where there is none of that name, or it cannot do what is asked.
 */
export async function runChatCommand(session: ChatSession, line: string): Promise<{ text?: string; next?: Next }> {
  const [, name = "", argument = ""] = /^\/(\S*)\s*([^]*)$/.exec(line) ?? [];
  const command = CHAT_COMMANDS.find(({ names }) => names.includes(name.toLowerCase()));
  if (command) return await command.run(session, argument.trim());
  const near = name === "" ? undefined : nearest(name, CHAT_COMMANDS.flatMap(({ names }) => names));
  throw new UsageError(
    `Unknown command /${name}: ${near === undefined ? "/help lists them" : `did you mean /${near}?`}`,
  );
}

function chatHelp(): string {
  const rows = CHAT_COMMANDS.map(({ names, operands, help }) => `  ${`/${names[0]} ${operands}`.padEnd(22)}${help}`);
  return [
    ...rows,
    "",
    'A message of several lines stands between """ and """, or its lines end with a backslash.',
    "Ctrl-C stops an answer, twice ends the chat.",
  ].join("\n");
}

function set({ options }: ChatSession, argument: string): { text: string } {
  const [, name = "", value = ""] = /^(\S*)\s*([^]*)$/.exec(argument) ?? [];
  if (name === "") return { text: SETTINGS.map((row) => settingText(options, row)).join("\n") };
  const row = findOption(name);
  if (!row || !SETTINGS.includes(row)) {
    const near = nearest(name, SETTINGS.map(({ flag }) => flag));
    throw new UsageError(
      `Unknown setting "${name}": ${near === undefined ? "/set lists them" : `did you mean ${near}?`}`,
    );
  }
  if (value !== "") {
    delete options[row.key];
    if (value !== "-") setOption(options, row, row.flag, value);
  }
  return { text: settingText(options, row) };
}

function settingText(options: Options, row: NamedOption): string {
  const value = options[row.key];
  return `  ${row.flag.padEnd(20)}${value === undefined ? `default: ${row.default}` : JSON.stringify(value)}`;
}

function show({ contextTokens, conversation, model, options }: ChatSession): { text: string } {
  const set = SETTINGS.filter((row) => options[row.key] !== undefined);
  const { weights, kvCache, peak } = model.memory;
  const row = (name: string, value: string): string => `  ${name.padEnd(14)}${value}`;
  return {
    text: [
      row("model", model.name),
      row("context", `${formatInteger(contextTokens)} of ${formatInteger(model.contextLength)} tokens taken`),
      row("conversation", messageCount(conversation)),
      row("system", conversation.system ?? "none"),
      row(
        "GPU memory",
        `weights ${formatBytes(weights)}, keys and values ${formatBytes(kvCache)}, at most ${formatBytes(peak)} so far`,
      ),
      ...set.map((setting) => settingText(options, setting)),
    ].join("\n"),
  };
}

function messageCount({ messages }: Conversation): string {
  return `${messages.length} message${messages.length === 1 ? "" : "s"}`;
}
