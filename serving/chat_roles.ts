/**
 * Roles of messages. Some templates print any role, others leave a message of an unknown one out without a word: a misspelt role would go
 * unnoticed.
 *
 * @module
 */
import type { ChatMessage, ChatTemplate } from "../model/chat_template.ts";
import { nearest } from "./nearest.ts";

/** OpenAI's roles; what a model makes of each is its template's. */
export const CHAT_ROLES: readonly string[] = ["developer", "system", "user", "assistant", "tool", "function"];

/**
 * What is wrong with the roles of messages, as half a sentence; undefined where there is nothing.
 *
 * @param template Roles that it names are known too.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { unknownRole } from "./chat_roles.ts";
 *
 * const template = { names: (role: string) => role === "ipython" };
 * assertEquals(unknownRole([{ role: "user" }, { role: "ipython" }], template), undefined);
 * assertEquals(unknownRole([{ role: "usr" }], template), 'the role of message 0 is "usr", did you mean user?');
 * ```
 */
export function unknownRole(
  messages: readonly ChatMessage[],
  template: Pick<ChatTemplate, "names">,
): string | undefined {
  const index = messages.findIndex(({ role }) => !CHAT_ROLES.includes(role) && !template.names(role));
  if (index < 0) return undefined;
  const { role } = messages[index]!, meant = nearest(role, CHAT_ROLES);
  const remedy = meant === undefined ? `give one of ${CHAT_ROLES.join(", ")}` : `did you mean ${meant}?`;
  return `the role of message ${index} is ${JSON.stringify(role)}, ${remedy}`;
}
