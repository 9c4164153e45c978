import { assertEquals, assertThrows } from "@std/assert";
import { type ChatMessage, type ChatRenderOptions, ChatTemplate } from "./chat_template.ts";

function render(template: string, messages: ChatMessage[], options: ChatRenderOptions = {}, config = {}): string {
  return ChatTemplate.fromConfig({ chat_template: template, ...config })!.render(messages, options);
}

const user: ChatMessage = { role: "user", content: "Hi" };
const PLAIN = "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</>' }}{% endfor %}" +
  "{% if add_generation_prompt %}<assistant>{% endif %}";

Deno.test("ChatTemplate: the story model's conversation", async () => {
  const file = new URL("./assets/stories/tokenizer_config.json", import.meta.url);
  const template = ChatTemplate.fromConfig(JSON.parse(await Deno.readTextFile(file)))!;
  assertEquals(
    template.render([user], { addGenerationPrompt: true }),
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
  );
});

Deno.test("ChatTemplate: absent, named and broken templates", () => {
  assertEquals(ChatTemplate.fromConfig({}), undefined);
  assertEquals(ChatTemplate.fromConfig(undefined), undefined);
  const named = [{ name: "tool_use", template: "T" }, { name: "default", template: "D" }];
  assertEquals(ChatTemplate.fromConfig({ chat_template: named })!.render([user]), "D");
  assertThrows(() => ChatTemplate.fromConfig({ chat_template: "{% if %}" }), Error, "Cannot read the chat template");
});

Deno.test("ChatTemplate: special tokens and variables are set where they have a value", () => {
  const config = { bos_token: "<s>", eos_token: { content: "</s>" }, pad_token: null };
  const template = "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ mood }}";
  assertEquals(render(template, [user], { variables: { mood: "!" } }, config), "<s></s>False!");
});

Deno.test("ChatTemplate: keys that are null are dropped, reasoning has one name", () => {
  const message: ChatMessage = { role: "assistant", content: "a", reasoning: "why", name: null };
  const template = "{% set m = messages[0] %}{{ m.name is defined }} {{ m.reasoning_content }} {{ m.thinking }}";
  assertEquals(render(template, [message]), "False why why");
});

Deno.test("ChatTemplate: conversations and content that cannot be rendered are refused", () => {
  assertThrows(() => render(PLAIN, []), Error, "empty conversation");
  assertThrows(() => render(PLAIN, [{ role: "user" }]), Error, "something that is undefined");
  assertThrows(() => render(PLAIN, [{ role: "user", content: null }]), Error, "something that is undefined");
  assertThrows(() => render(PLAIN, [{ role: "user", content: [{ type: "text", text: "Hi" }] }]), Error, "a list");
  assertThrows(() => render(PLAIN, [{ role: "user", content: 42 as unknown as string }]), Error, "the number 42");
  assertThrows(() => render(PLAIN, [{ content: "Hi" } as ChatMessage]), Error, "undefined");
  assertThrows(() => render("{{ raise_exception('No.') }}", [user]), Error, "refuses this conversation: No.");
  assertThrows(() => render("{{ a.b.c }}", [user]), Error, 'reads "b"');
  const tools = ["search"] as unknown as Record<string, unknown>[];
  assertThrows(() => render(PLAIN, [user], { tools }), Error, 'got "search"');
});

Deno.test("ChatTemplate: the last message can be left open", () => {
  const messages: ChatMessage[] = [user, { role: "assistant", content: "Sure: " }];
  assertEquals(render(PLAIN, messages, { continueFinalMessage: true }), "<user>Hi</><assistant>Sure: ");
  const trimming = "{% for m in messages %}{{ m.content | trim }}|{% endfor %}";
  assertEquals(render(trimming, messages, { continueFinalMessage: true }), "Hi|Sure:");
  const both = { continueFinalMessage: true, addGenerationPrompt: true };
  assertThrows(() => render(PLAIN, messages, both), Error, "choose one");
  assertThrows(() => render(PLAIN, [{ role: "user" }], { continueFinalMessage: true }), Error, '"content" has no text');
  assertThrows(() => render("none of it", messages, { continueFinalMessage: true }), Error, "does not print it");
  assertEquals(messages[1]!.content, "Sure: ");
});

Deno.test("ChatTemplate: strips as Python does", () => {
  const at = (content: string, expression: string) => render(`{{ ${expression} }}`, [{ role: "user", content }]);
  assertEquals(at("\n a \n", "messages[0].content.strip('\\n')"), " a ");
  assertEquals(at("\n\na\n", "messages[0].content.lstrip('\\n')"), "a\n");
  assertEquals(at("xax", "messages[0].content.rstrip('x')"), "xa");
  assertEquals(at("\u001c\u0085a\ufeff", "messages[0].content.strip()"), "a\ufeff");
  assertEquals(at("\u001c\u0085a\ufeff", "messages[0].content | trim"), "a\ufeff");
  assertEquals(at("a", "messages[0].nothing | trim"), "");
  assertEquals(at("a", "42 | trim"), "42");
});

Deno.test("ChatTemplate: prints values as Python does", () => {
  const content = { list: ["a", "it's"], yes: true, none: null } as unknown as string;
  assertEquals(
    render("{{ messages[0].content }}", [{ role: "tool", content }]),
    `{'list': ['a', "it's"], 'yes': True, 'none': None}`,
  );
  assertEquals(render("{{ [1, 2] | tojson }}{{ 1 < 2 }}", [user]), "[1, 2]True");
});

Deno.test("ChatTemplate: tells the date", () => {
  const text = render("{{ strftime_now('%d %b %Y') }}", [user]);
  assertEquals(/^\d\d [A-Z][a-z]{2} \d{4}$/.test(text), true, text);
  assertEquals(render("{% for i in range(1, 6, 2) %}{{ i }}{% endfor %}", [user]), "135");
});
