/**
 * `tinyllm chat`: a conversation on the terminal, or with a script that writes lines.
 *
 * @module
 */
import type { Chunk } from "../serving/request.ts";
import { type ChatSession, type Next, runChatCommand } from "./chat_commands.ts";
import type { CommandContext } from "./context.ts";
import { messagesOf } from "./conversation.ts";
import { debugLevel, EXIT } from "./errors.ts";
import { errorText } from "./flags.ts";
import { LineEditor, type LineResult } from "./line_editor.ts";
import { LineReader } from "./lines.ts";
import { loadModel, samplingOptions } from "./load.ts";
import { writeStatistics } from "./statistics.ts";
import { styleOf } from "./style.ts";
import { OutputClosed, type Terminal } from "./terminal.ts";

const PROMPT = ">>> ";
const CONTINUATION = "... ";

/** Runs the command. */
export async function chat(context: CommandContext): Promise<number> {
  const { interrupts, options, terminal } = context;
  await using model = await loadModel(context);
  if (!model.tokenizer || !model.chatTemplate) {
    throw new Error(
      `"${model.name}" has no ${
        model.tokenizer ? "chat template" : "tokenizer"
      }, so it cannot chat: try tinyllm generate --raw`,
    );
  }
  const session: ChatSession = {
    terminal,
    model,
    conversation: { system: options.system, messages: [] },
    options: { ...options },
    contextTokens: 0,
  };
  const interactive = terminal.stdin.isTerminal && terminal.stderr.isTerminal;
  if (interactive) await say(terminal, `${model.name}. /help lists the commands, /bye ends.`);
  interrupts.onIdle = () => void say(terminal, "Ctrl-C again ends the chat").catch(() => {});
  return await converse(context, session, lineSource(terminal, interactive), interactive);
}

/** Reads and answers until the end. */
async function converse(
  context: CommandContext,
  session: ChatSession,
  readLine: (prompt: string) => Promise<LineResult>,
  interactive: boolean,
): Promise<number> {
  const { interrupts, terminal } = context;
  let failed = false;
  for (;;) {
    const message = await readMessage(readLine);
    if (message.kind === "end") break;
    if (message.kind === "interrupt") {
      // Who clears what was typed does not mean to leave yet.
      if (message.wasEmpty) interrupts.press();
      else interrupts.reset();
      if (interrupts.leaving) return EXIT.interrupted;
      continue;
    }
    if (message.text.trim() === "") continue;
    interrupts.reset();
    try {
      if (await handle(context, session, message.text) === "end") break;
    } catch (error) {
      if (error instanceof OutputClosed) throw error;
      failed = true;
      const { red } = styleOf(terminal, terminal.stderr);
      const text = errorText(error, debugLevel(terminal) >= 1);
      await terminal.stderr.write(`${red("error:")} ${text}\n`);
    }
  }
  // A script learns of errors by the exit code; a person has seen them.
  return failed && !interactive ? EXIT.failed : EXIT.ok;
}

async function handle(context: CommandContext, session: ChatSession, text: string): Promise<Next> {
  const { messages } = session.conversation;
  let next: Next = "answer";
  if (text.startsWith("/") && !text.includes("\n")) {
    const result = await runChatCommand(session, text);
    if (result.text !== undefined) await say(context.terminal, result.text);
    next = result.next ?? "read";
  } else {
    messages.push({ role: "user", content: text });
  }
  if (next === "answer") await answer(context, session);
  return next;
}

/** Answers the last message. Stopped half-way, the answer so far stays part of the conversation. */
async function answer({ interrupts, terminal }: CommandContext, session: ChatSession): Promise<void> {
  const { conversation, model, options } = session;
  const signal = interrupts.begin();
  const request = { ...samplingOptions(options), messages: messagesOf(conversation), signal };
  let text = "";
  let last: Chunk | undefined;
  try {
    for await (const chunk of model.generate(request)) {
      last = chunk;
      text += chunk.text;
      await terminal.stdout.write(chunk.text);
    }
    await terminal.stdout.write("\n");
    conversation.messages.push({ role: "assistant", content: text });
  } catch (error) {
    // The message could not be answered: without it the conversation can go on.
    conversation.messages.pop();
    throw error;
  } finally {
    interrupts.end();
  }
  if (last?.usage) session.contextTokens = last.usage.promptTokens + last.usage.completionTokens;
  if (last) await writeStatistics(terminal, model, last);
}

/** A line, or several as one message. */
async function readMessage(readLine: (prompt: string) => Promise<LineResult>): Promise<LineResult> {
  let line = await readLine(PROMPT);
  if (line.kind !== "line") return line;
  const quoted = line.text.trimStart().startsWith('"""');
  const lines = [quoted ? line.text.trimStart().slice(3) : line.text];
  const open = (): boolean => quoted ? !lines.at(-1)!.trimEnd().endsWith('"""') : lines.at(-1)!.endsWith("\\");
  while (open()) {
    if (!quoted) lines.push(lines.pop()!.slice(0, -1));
    line = await readLine(CONTINUATION);
    if (line.kind === "interrupt") return { kind: "interrupt", wasEmpty: false };
    if (line.kind === "end") return { kind: "line", text: lines.join("\n") };
    lines.push(line.text);
  }
  const text = lines.join("\n");
  return { kind: "line", text: quoted ? text.trimEnd().slice(0, -3).replace(/^\n|\n$/g, "") : text };
}

function lineSource(terminal: Terminal, interactive: boolean): (prompt: string) => Promise<LineResult> {
  if (interactive) {
    const editor = new LineEditor(terminal);
    return (prompt) => editor.read(prompt);
  }
  const reader = new LineReader(terminal.stdin);
  return async () => {
    const text = await reader.next();
    return text === undefined ? { kind: "end" } : { kind: "line", text };
  };
}

async function say(terminal: Terminal, text: string): Promise<void> {
  const { dim } = styleOf(terminal, terminal.stderr);
  await terminal.stderr.write(dim(text) + "\n");
}
