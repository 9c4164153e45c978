/**
 * A conversation, and its form in a file.
 *
 * @module
 */
import { z } from "zod";
import type { ChatMessage } from "../model/chat_template.ts";

/** What has been said. */
export interface Conversation {
  system?: string | undefined;
  /** Of user and assistant, in turn. */
  messages: { role: "user" | "assistant"; content: string }[];
}

const FILE = z.object({
  model: z.string().optional(),
  system: z.string().optional(),
  messages: z.array(z.object({ role: z.enum(["user", "assistant"]), content: z.string() })),
});

/** The messages for a chat template, the system's first. */
export function messagesOf({ messages, system }: Conversation): ChatMessage[] {
  return [...(system === undefined ? [] : [{ role: "system", content: system }]), ...messages];
}

/** The text of a file that {@link parseConversation} reads. */
export function conversationText(conversation: Conversation, model: string): string {
  const { messages, system } = conversation;
  return JSON.stringify({ model, system, messages }, null, 2) + "\n";
}

/**
 * Reads a saved conversation.
 *
 * @throws {Error} naming what is wrong with the file.
 */
export function parseConversation(text: string, path: string): Conversation {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new Error(`Cannot load "${path}": ${(cause as Error).message}`, { cause });
  }
  const { success, data, error } = FILE.safeParse(json);
  if (success) return { system: data.system, messages: data.messages };
  const [issue] = error.issues;
  throw new Error(`Cannot load "${path}": ${issue?.path.join(".") || "it"}: ${issue?.message ?? "is no conversation"}`);
}
