/**
 * Messages to the text a model was trained on: the chat template of `tokenizer_config.json`, with what transformers'
 * `apply_chat_template` does around it.
 *
 * @module
 */
import { type JinjaTemplate, parseTemplate, renderTemplate } from "./jinja_template.ts";
import { pythonStrip } from "./python_text.ts";

/** One part of a message whose content is a list. */
export interface ChatContentPart {
  /** The kind of part, such as `text`. */
  type: string;
  /** The text of a `text` part. */
  text?: string;
  /** What other kinds of part carry. */
  [key: string]: unknown;
}

/** A call of a function, in an assistant's message. */
export interface ChatToolCall {
  /** The name that the answer refers to. */
  id?: string;
  /** Always `function`. */
  type?: string;
  /** What is called. */
  function?: { name: string; arguments: unknown };
  /** Whatever else a template reads. */
  [key: string]: unknown;
}

/** A message of a conversation. */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, `tool`, or what else the template knows. */
  role: string;
  /** The text; a list of parts only where the template reads one. */
  content?: string | ChatContentPart[] | null;
  /** The functions an assistant calls. */
  tool_calls?: ChatToolCall[] | null;
  /** What an assistant thought before it answered. */
  reasoning_content?: string | null;
  /** Whatever else a template reads. */
  [key: string]: unknown;
}

/** How {@link ChatTemplate.render} renders a conversation. */
export interface ChatRenderOptions {
  /** Functions the model may call: JSON schemas in the form of OpenAI's `tools`. */
  tools?: Record<string, unknown>[] | null;
  /** End with the header of an assistant's message. Default: false. */
  addGenerationPrompt?: boolean;
  /** Leave the last message open; the name of a field continues that one. Default: false. */
  continueFinalMessage?: boolean | string;
  /** Variables for the template, such as `enable_thinking`. */
  variables?: Record<string, unknown>;
}

/** Marks where the last message ends; the space at its end shows whether the template trims messages. */
const CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG ";

const SPECIAL_TOKENS = ["bos_token", "eos_token", "pad_token", "unk_token"] as const;

/**
 * A checkpoint's chat template.
 *
 * @example
 * ```ts
 * import { ChatTemplate } from "@tinyllm/tinyllm/model";
 *
 * const template = ChatTemplate.fromConfig({
 *   chat_template: "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}",
 * });
 * console.log(template?.render([{ role: "user", content: "Hi" }])); // "<user>Hi"
 * ```
 */
export class ChatTemplate {
  readonly #template: JinjaTemplate;
  readonly #source: string;
  readonly #specialTokens: Record<string, string>;

  private constructor(source: string, specialTokens: Record<string, string>) {
    this.#template = parseTemplate(source);
    this.#source = source;
    this.#specialTokens = specialTokens;
  }

  /**
   * The template of a parsed `tokenizer_config.json`, or undefined where it has none. Of several named templates,
   * `default` is taken.
   *
   * @throws {Error} If the template is not valid Jinja.
   */
  static fromConfig(tokenizerConfig: unknown): ChatTemplate | undefined {
    const config = (tokenizerConfig ?? {}) as Record<string, unknown>;
    const source = templateSource(config.chat_template);
    if (source === undefined) return undefined;
    const tokens: Record<string, string> = {};
    for (const name of SPECIAL_TOKENS) {
      const value = config[name] as string | { content?: string } | null | undefined;
      const content = typeof value === "string" ? value : value?.content;
      if (content !== undefined) tokens[name] = content;
    }
    try {
      return new ChatTemplate(source, tokens);
    } catch (error) {
      throw new Error(`Cannot read the chat template: ${messageOf(error)}`, { cause: error });
    }
  }

  /** Whether the template has this word in quotes, as it has a role that it treats in a way of its own. */
  names(word: string): boolean {
    return word !== "" && [`'${word}'`, `"${word}"`].some((quoted) => this.#source.includes(quoted));
  }

  /**
   * The text of a conversation. Encode it without adding special tokens: it has its own.
   *
   * @throws {Error} If there is no message, or the template cannot render one.
   */
  render(messages: readonly ChatMessage[], options: ChatRenderOptions = {}): string {
    const { tools = null, addGenerationPrompt = false, continueFinalMessage = false, variables = {} } = options;
    if (messages.length === 0) throw new Error("Cannot render an empty conversation: give at least one message");
    checkTools(tools);
    const chat = messages.map(prepareMessage);
    if (continueFinalMessage !== false) {
      if (addGenerationPrompt) {
        throw new Error("Cannot both continue the last message and add a generation prompt: choose one");
      }
      markEnd(chat.at(-1)!, continueFinalMessage === true ? "content" : continueFinalMessage);
    }
    const text = renderTemplate(this.#template, {
      ...this.#specialTokens,
      messages: chat,
      tools,
      documents: null,
      add_generation_prompt: addGenerationPrompt,
      ...variables,
    });
    return continueFinalMessage === false ? text : cutAtMark(text);
  }
}

function templateSource(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) return undefined;
  const named = value as { name: string; template: string }[];
  return (named.find(({ name }) => name === "default") ?? named[0])?.template;
}

function checkTools(tools: readonly unknown[] | null): void {
  for (const tool of tools ?? []) {
    if (typeof tool !== "object" || tool === null || Array.isArray(tool)) {
      throw new Error(`Cannot render tools: each must be a JSON schema, got ${JSON.stringify(tool)}`);
    }
  }
}

/** Drops keys that are null, and gives the reasoning the name that templates read. */
function prepareMessage(message: ChatMessage): Record<string, unknown> {
  const prepared = Object.fromEntries(
    Object.entries(message).filter(([, value]) => value !== null && value !== undefined),
  );
  const reasoning = prepared.reasoning_content ?? prepared.thinking ?? prepared.reasoning;
  if (reasoning !== undefined) {
    prepared.reasoning_content = reasoning;
    prepared.thinking ??= reasoning;
  }
  return prepared;
}

function markEnd(message: Record<string, unknown>, field: string): void {
  const value = message[field];
  if (typeof value === "string") {
    message[field] = value + CONTINUE_TAG;
    return;
  }
  const parts: unknown = structuredClone(value);
  const last = Array.isArray(parts)
    ? (parts as ChatContentPart[]).findLast((part) => part.text !== undefined)
    : undefined;
  if (last === undefined) throw new Error(`Cannot continue the last message: its "${field}" has no text`);
  last.text += CONTINUE_TAG;
  message[field] = parts;
}

function cutAtMark(text: string): string {
  const end = text.lastIndexOf(CONTINUE_TAG.trim());
  if (end < 0) throw new Error("Cannot continue the last message: the chat template does not print it");
  const before = text.slice(0, end);
  return text.startsWith(CONTINUE_TAG, end) ? before : pythonStrip(before, "rstrip");
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
