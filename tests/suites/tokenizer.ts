/**
 * Encoding, decoding, streaming and chat templates against what transformers answers: one folder a tokenizer, each with
 * `tokenizer.json` (or `.gz`), `tokenizer_config.json` and JSON lines of cases.
 */
import { ChatTemplate } from "../../model/chat_template.ts";
import type { ChatMessage } from "../../model/chat_template.ts";
import { StreamingDetokenizer } from "../../model/detokenizer.ts";
import { Tokenizer } from "../../model/tokenizer.ts";
import type { Report } from "./report.ts";
import { type Exception, exceptions } from "./tokenizer_exceptions.ts";

interface EncodeCase {
  text: string;
  add_special_tokens: boolean;
  ids: number[];
  decoded: string;
  decoded_skip_special: string;
}

interface LiteralCase {
  text: string;
  ids: number[];
}

interface StreamCase {
  ids: number[];
  skip_special_tokens: boolean;
  pieces: string[];
}

interface ChatCase {
  messages: ChatMessage[];
  tools: Record<string, unknown>[] | null;
  add_generation_prompt: boolean;
  continue_final_message: boolean | string;
  template_kwargs?: Record<string, unknown>;
  text?: string;
  ids?: number[];
  error?: string;
}

interface Subject {
  tokenizer: Tokenizer;
  template: ChatTemplate | undefined;
}

/** Each file of cases and how one of its lines is checked: what it returns is the difference. */
const checks: { [file in Exception["file"]]: (subject: Subject, recorded: never) => string | undefined } = {
  encode: checkEncode,
  literal: checkLiteral,
  stream: checkStream,
  chat: checkChat,
};

/** Runs the cases of every tokenizer in the folder. */
export async function run(folder: string, report: Report): Promise<void> {
  for await (const entry of Deno.readDir(folder)) {
    if (entry.isDirectory) await runTokenizer(`${folder}/${entry.name}`, entry.name, report);
  }
}

async function runTokenizer(folder: string, name: string, report: Report): Promise<void> {
  const config = JSON.parse(await Deno.readTextFile(`${folder}/tokenizer_config.json`));
  const subject: Subject = {
    tokenizer: Tokenizer.fromJson(JSON.parse(await readTokenizer(folder)), config),
    template: ChatTemplate.fromConfig(config),
  };
  for (const [file, check] of Object.entries(checks)) {
    const text = await readOptional(`${folder}/${file}.jsonl`);
    for (const [index, line] of (text ?? "").split("\n").entries()) {
      if (line === "") continue;
      const recorded = JSON.parse(line);
      const label = `${name}/${file}:${index + 1} (${recorded.group ?? "literal"})`;
      const known = exceptions.find((exception) => isExcepted(exception, name, file, recorded));
      let difference: string | undefined;
      try {
        difference = check(subject, recorded as never);
      } catch (error) {
        difference = `throws ${error instanceof Error ? error.message : error}`;
      }
      record(report, label, known, difference);
    }
  }
}

function record(report: Report, label: string, known: Exception | undefined, difference: string | undefined): void {
  if (known && difference === undefined) {
    report.fail(label, `passes, but is listed as known to differ: ${known.reason}`);
  } else if (known) report.skip(label, known.reason);
  else if (difference === undefined) report.pass(label);
  else report.fail(label, difference);
}

function isExcepted(exception: Exception, folder: string, file: string, recorded: { group?: string }): boolean {
  return exception.file === file && exception.group === recorded.group &&
    exception.folders.includes(folder) &&
    (exception.text === undefined || JSON.stringify(recorded).includes(JSON.stringify(exception.text).slice(1, -1)));
}

function checkEncode({ tokenizer }: Subject, recorded: EncodeCase): string | undefined {
  return differ(
    "ids",
    tokenizer.encode(recorded.text, { addSpecialTokens: recorded.add_special_tokens }),
    recorded.ids,
  ) ??
    differ("text", tokenizer.decode(recorded.ids, { skipSpecialTokens: false }), recorded.decoded) ??
    differ("text without special tokens", tokenizer.decode(recorded.ids), recorded.decoded_skip_special);
}

function checkLiteral({ tokenizer }: Subject, recorded: LiteralCase): string | undefined {
  return differ("ids", tokenizer.encode(recorded.text, { splitSpecialTokens: true }), recorded.ids);
}

function checkStream({ tokenizer }: Subject, recorded: StreamCase): string | undefined {
  const detokenizer = new StreamingDetokenizer(tokenizer, { skipSpecialTokens: recorded.skip_special_tokens });
  const pieces = recorded.ids.map((id) => detokenizer.push(id));
  return differ("pieces", [...pieces, detokenizer.flush()], recorded.pieces);
}

function checkChat({ tokenizer, template }: Subject, recorded: ChatCase): string | undefined {
  if (template === undefined) return "the tokenizer has no chat template";
  const render = () =>
    template.render(recorded.messages, {
      tools: recorded.tools,
      addGenerationPrompt: recorded.add_generation_prompt,
      continueFinalMessage: recorded.continue_final_message,
      variables: recorded.template_kwargs ?? {},
    });
  if (recorded.error !== undefined) {
    let text: string;
    try {
      text = render();
    } catch {
      return undefined;
    }
    return `renders ${JSON.stringify(text)}, should be refused: ${recorded.error}`;
  }
  const text = render();
  return differ("text", text, recorded.text) ?? differ("ids", tokenizer.encode(text), recorded.ids);
}

function differ(what: string, got: unknown, expected: unknown): string | undefined {
  const [left, right] = [JSON.stringify(got), JSON.stringify(expected)];
  return left === right ? undefined : `${what}: got ${left}, expected ${right}`;
}

async function readTokenizer(folder: string): Promise<string> {
  const plain = await readOptional(`${folder}/tokenizer.json`);
  if (plain !== undefined) return plain;
  const file = await Deno.open(`${folder}/tokenizer.json.gz`);
  return await new Response(file.readable.pipeThrough(new DecompressionStream("gzip"))).text();
}

async function readOptional(path: string): Promise<string | undefined> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
