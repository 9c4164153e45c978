/** A chat model from its messages to its answer: template, tokenizer and greedy continuation, for each case recorded. */
import { ChatTemplate } from "../../model/chat_template.ts";
import type { ChatMessage } from "../../model/chat_template.ts";
import { fileSource } from "../../model/deno/file_source.ts";
import { readJson, type Source } from "../../model/source.ts";
import { Tokenizer } from "../../model/tokenizer.ts";
import { openDevice } from "../../tensor/device.ts";
import { differContinuation, longest } from "./continuation.ts";
import type { Report } from "./report.ts";
import { SequenceRunner } from "./sequence_runner.ts";

interface StoryCase {
  messages: ChatMessage[];
  text: string;
  ids: number[];
  greedy: number[];
  greedy_text: string;
}

/** Runs the cases of `expected.json`, on the folder's own weights or else the default model's. */
export async function run(folder: string, report: Report): Promise<void> {
  const { cases } = JSON.parse(await Deno.readTextFile(`${folder}/expected.json`)) as { cases: StoryCase[] };
  const source = await modelOf(folder);
  const config = await readJson(source, "tokenizer_config.json");
  const tokenizer = Tokenizer.fromJson(await readJson(source, "tokenizer.json"), config);
  const template = ChatTemplate.fromConfig(config);
  if (template === undefined) throw new Error(`Cannot run the stories: ${source.name} has no chat template`);
  const device = await openDevice();
  try {
    const { maxPrompt, maxContext } = longest(cases);
    using runner = await SequenceRunner.open(device, source, maxPrompt, maxContext);
    for (const recorded of cases) {
      const name = recorded.messages.at(-1)?.content?.toString() ?? "no message";
      const difference = differText(recorded, tokenizer, template) ?? await differContinuation(runner, recorded);
      if (difference === undefined) report.pass(name);
      else report.fail(name, difference);
    }
  } finally {
    device.close();
  }
}

async function modelOf(folder: string): Promise<Source> {
  const own = fileSource(folder);
  if ((await own.list()).some((path) => /^model.*\.safetensors$/.test(path))) return own;
  return fileSource(`${import.meta.dirname}/../../model/assets/stories`);
}

function differText(recorded: StoryCase, tokenizer: Tokenizer, template: ChatTemplate): string | undefined {
  const text = template.render(recorded.messages, { addGenerationPrompt: true });
  if (text !== recorded.text) return `text: got ${JSON.stringify(text)}, expected ${JSON.stringify(recorded.text)}`;
  const ids = tokenizer.encode(text);
  if (ids.join() !== recorded.ids.join()) return `ids: got ${ids}, expected ${recorded.ids}`;
  const answer = tokenizer.decode(recorded.greedy);
  if (answer === recorded.greedy_text) return undefined;
  return `answer: got ${JSON.stringify(answer)}, expected ${JSON.stringify(recorded.greedy_text)}`;
}
