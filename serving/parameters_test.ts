import { assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { ChatTemplate } from "../model/chat_template.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { CHAT_ROLES } from "./chat_roles.ts";
import { type ParameterDefaults, resolveParameters } from "./parameters.ts";
import { encodePrompt } from "./prompt.ts";
import type { GenerateOptions, SamplingOptions } from "./request.ts";
import { RequestError } from "./request_error.ts";

const defaults: ParameterDefaults = { generation: { eosTokenIds: [9, 8] }, eosTokenIds: [9, 8], vocabSize: 10 };

Deno.test("options go before the checkpoint's wishes, and those before neutral values", () => {
  const generation = {
    eosTokenIds: [9],
    temperature: 0.7,
    topK: 20,
    topP: 0.8,
    repetitionPenalty: 1.1,
    maxNewTokens: 5,
  };
  const wished = resolveParameters({ topK: 3 }, { ...defaults, generation });
  assertEquals(wished.maxTokens, 5);
  const { seed: _, ...sampling } = wished.sampling;
  assertEquals(sampling, {
    ...{ temperature: 0.7, topK: 3, topP: 0.8, minP: 0 },
    ...{ repetitionPenalty: 1.1, presencePenalty: 0, frequencyPenalty: 0 },
  });
  assertEquals(resolveParameters({}, defaults).sampling.temperature, 1);
  assertEquals(resolveParameters({}, defaults).maxTokens, Infinity);
});

Deno.test("a checkpoint that does not sample is greedy unless a temperature is asked for", () => {
  const greedy = { ...defaults, generation: { eosTokenIds: [9], doSample: false, temperature: 0.7 } };
  assertEquals(resolveParameters({}, greedy).sampling.temperature, 0);
  assertEquals(resolveParameters({ temperature: 0.5 }, greedy).sampling.temperature, 0.5);
});

Deno.test("every end-of-sequence id stops, unless it is to be ignored", () => {
  assertEquals(resolveParameters({ stopTokenIds: [3] }, defaults).stopTokenIds, new Set([9, 8, 3]));
  assertEquals(resolveParameters({ stopTokenIds: [3], ignoreEos: true }, defaults).stopTokenIds, new Set([3]));
});

Deno.test("seeds are drawn at random unless given", () => {
  assertEquals(resolveParameters({ seed: -4 }, defaults).sampling.seed, -4);
  assertNotEquals(resolveParameters({}, defaults).sampling.seed, resolveParameters({}, defaults).sampling.seed);
});

Deno.test("values out of range are refused by name, with the value and a remedy", () => {
  const bad: [SamplingOptions, string][] = [
    [{ temperature: -1 }, "temperature is -1, give a number from 0"],
    [{ temperature: NaN }, "temperature is NaN"],
    [{ temperature: Infinity }, "temperature is Infinity"],
    [{ topP: 0 }, "topP is 0, give a number above 0"],
    [{ topP: 1.5 }, "topP is 1.5"],
    [{ topK: 1.5 }, "topK is 1.5"],
    [{ minP: 2 }, "minP is 2"],
    [{ maxTokens: 0 }, "maxTokens is 0, give a whole number from 1"],
    [{ maxTokens: -3 }, "maxTokens is -3"],
    [{ repetitionPenalty: 0 }, "repetitionPenalty is 0"],
    [{ repetitionPenalty: 1e-40 }, "repetitionPenalty is 1e-40, give a number from 0.001 to 1000 (1 is none)"],
    [{ presencePenalty: Infinity }, "presencePenalty is Infinity"],
    [{ frequencyPenalty: 1e300 }, "frequencyPenalty is 1e+300, give a number from -1000 to 1000 (0 is none)"],
    [{ seed: 0.5 }, "seed is 0.5"],
    [{ stop: ["a", ""] }, "a stop string is empty"],
    [{ stopTokenIds: [10] }, "the model has no token 10, its ids are 0 to 9"],
    [{ logitBias: { 12: 1 } }, "Cannot use logitBias: the model has no token 12"],
    [{ logitBias: { x: 1 } as Record<number, number> }, 'Cannot use logitBias: its key "x" is no token id'],
    [{ logitBias: { "": 1 } as Record<number, number> }, 'its key "" is no token id'],
    [{ logitBias: { 2: -Infinity } }, "logitBias of token 2 is -Infinity"],
    [{ logitBias: { 2: 1e39 } }, "logitBias of token 2 is 1e+39, give a number from"],
    [{ logitBias: "a" as unknown as Record<number, number> }, "logitBias: it is a, give numbers by token id"],
    [{ stopTokenIds: 5 as unknown as number[] }, "Cannot use stopTokenIds: it is 5, give a list of token ids"],
    [{ ignoreEos: "no" as unknown as boolean }, "ignoreEos is no, give true or false"],
    [{ temperature: "hot" as unknown as number }, "temperature is hot"],
    [{ max_tokens: 3 } as SamplingOptions, 'there is no option "max_tokens", did you mean maxTokens?'],
    [{ best_of: 3 } as SamplingOptions, 'there is no option "best_of", give prompt, messages, tokens'],
  ];
  for (const [options, message] of bad) assertThrows(() => resolveParameters(options, defaults), RequestError, message);
  const none = undefined as unknown as SamplingOptions;
  assertThrows(() => resolveParameters(none, defaults), RequestError, "options is undefined, give an object such as");
});

Deno.test("a role is one of OpenAI's, or one that the template names", () => {
  const chat_template = "{% for m in messages %}{% if m.role == 'ipython' %}py{% endif %}{{ m.content }}{% endfor %}";
  const model = {
    ...{ name: "m", vocabSize: 10, chatTemplate: ChatTemplate.fromConfig({ chat_template })! },
    tokenizer: { encode: (text: string) => [text.length] } as unknown as Tokenizer,
  };
  const encode = (role: string): number[] =>
    encodePrompt({ messages: [{ role: "user", content: "a" }, { role, content: "b" }] }, model);
  for (const role of [...CHAT_ROLES, "ipython"]) assertEquals(encode(role), [role === "ipython" ? 4 : 2], role);
  const bad = [
    ["usr", 'the role of message 1 is "usr", did you mean user?'],
    ["", 'the role of message 1 is "", give one of developer, system, user, assistant, tool, function'],
    ["python", 'the role of message 1 is "python", give one of'],
  ] as const;
  for (const [role, message] of bad) assertThrows(() => encode(role), RequestError, `Cannot generate: ${message}`);
});

Deno.test("a prompt is text, messages or ids, one of them and not empty", () => {
  const model = { name: "m", vocabSize: 10 };
  assertEquals(encodePrompt({ tokens: [1, 2] }, model), [1, 2]);
  const bad: [GenerateOptions, string][] = [
    [{}, "none was given"],
    [{ prompt: "a", messages: [] }, "prompt and messages were given"],
    [{ tokens: [] }, "tokens is empty"],
    [{ tokens: [1, 10] }, "no token 10"],
    [{ tokens: [1.5] }, "no token 1.5"],
    [{ tokens: 5 as unknown as number[] }, "tokens is 5, give a list of token ids"],
    [{ prompt: "Hi" }, '"m" has no tokenizer, give tokens'],
  ];
  for (const [options, message] of bad) assertThrows(() => encodePrompt(options, model), Error, message);
});
