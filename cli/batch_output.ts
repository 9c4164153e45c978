/**
 * A batch's output: a line for each request, as soon as it is done, in OpenAI's batch format. The file is the memory of a
 * batch that was stopped: what it holds is not done again.
 *
 * @module
 */
import { type OpenAiError, openAiId, type OpenAiResponse } from "../serving/openai_response.ts";
import type { RefusedLine } from "./batch_input.ts";
import { cannotWrite } from "./errors.ts";
import type { Terminal } from "./terminal.ts";

/** How the id of each line begins, as OpenAI's do. */
const ID_PREFIX = "batch_req_";

/** A line of the output. */
export interface BatchLine {
  id: string;
  /** Null where the input's line has none. */
  custom_id: string | null;
  /** Null where the input's line is no request at all. */
  response: { status_code: number; request_id: string; body: OpenAiResponse | { error: OpenAiError } } | null;
  /** Null where the request was answered. */
  error: { code: string; message: string } | null;
}

/** The line of a request that was answered. */
export function answerLine(customId: string, body: OpenAiResponse): BatchLine {
  return lineOf(customId, { status_code: 200, request_id: openAiId("req_"), body }, null);
}

/** The line of a request that was not. */
export function errorLine({ customId, code, message, param, status }: RefusedLine): BatchLine {
  const type = (status ?? 400) < 500 ? "invalid_request_error" as const : "server_error" as const;
  const body = { error: { message, type, param: param ?? null, code } };
  const response = status === undefined ? null : { status_code: status, request_id: openAiId("req_"), body };
  return lineOf(customId, response, { code, message });
}

function lineOf(custom_id: string | null, response: BatchLine["response"], error: BatchLine["error"]): BatchLine {
  return { id: openAiId(ID_PREFIX), custom_id, response, error };
}

/** What an output holds from an earlier run. */
export interface EarlierOutput {
  /** Requests that were answered. */
  readonly finished: ReadonlySet<string>;
  /** The text with answers alone: without errors, which are tried again, and without the line a crash cut off. */
  readonly kept: string;
}

/**
 * Reads the output of an earlier run.
 *
 * @throws {Error} if a line is none that a batch writes: then the file is something else, and stays as it is.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { readEarlier } from "./batch_output.ts";
 *
 * const done = '{"id":"batch_req_1","custom_id":"a","response":{"status_code":200,"request_id":"r","body":{}},"error":null}\n';
 * const { finished, kept } = readEarlier(done + '{"id":"batch_req_2","custom_id":"c","resp', "out.jsonl");
 * assertEquals([[...finished], kept], [["a"], done]);
 * ```
 */
export function readEarlier(text: string, path: string): EarlierOutput {
  const finished = new Set<string>();
  const kept: string[] = [];
  const lines = text.split("\n");
  lines.forEach((line, index) => {
    if (line.trim() === "") return;
    const read = parseLine(line);
    if (read === undefined) {
      // Torn: the write that ends with a line break did not end. Anything else without one is somebody's file.
      if (index === lines.length - 1 && beginsAsOurs(line)) return;
      throw new Error(
        `Cannot go on with "${path}": its line ${index + 1} is no line of a batch's output. Give --output another file`,
      );
    }
    if (read.error !== null || read.response?.status_code !== 200 || read.custom_id === null) return;
    finished.add(read.custom_id);
    kept.push(`${line}\n`);
  });
  return { finished, kept: kept.join("") };
}

/** How each line begins. */
const BEGINNING = `{"id":"${ID_PREFIX}`;

function beginsAsOurs(line: string): boolean {
  return line.startsWith(BEGINNING) || BEGINNING.startsWith(line);
}

function parseLine(line: string): BatchLine | undefined {
  try {
    const json: unknown = JSON.parse(line);
    const fields = ["id", "custom_id", "response", "error"];
    const isLine = typeof json === "object" && json !== null && fields.every((field) => Object.hasOwn(json, field));
    return isLine && String((json as BatchLine).id).startsWith(ID_PREFIX) ? json as BatchLine : undefined;
  } catch {
    return undefined;
  }
}

/** What to do where a line cannot be written: in a file what is done is kept, and elsewhere it is not known what arrived. */
const REMEDIES = {
  file: "Run it again to go on: what is written is not done again",
  stream: "Give --output a file: what it holds is not done again",
} as const;

/** Writes lines, one after the other. */
export class BatchOutput implements Disposable {
  #pending: Promise<void> = Promise.resolve();

  private constructor(
    /** Requests that an earlier run answered. */
    readonly finished: ReadonlySet<string>,
    private readonly kind: keyof typeof REMEDIES,
    private readonly append: (text: string) => Promise<void>,
    private readonly opened?: Disposable,
  ) {}

  /**
   * Opens an output, with what an earlier run left there put in order. `-` is standard output, which has no earlier run; nor
   * has a device or a pipe.
   *
   * @throws {Error} if it cannot be read or written, or holds something else.
   */
  static async open(terminal: Terminal, path: string): Promise<BatchOutput> {
    if (path === "-") return new BatchOutput(new Set(), "stream", (text) => terminal.stdout.write(text));
    try {
      if (await terminal.isStream(path)) {
        const stream = await terminal.openStream(path);
        return new BatchOutput(new Set(), "stream", (text) => stream.write(text), stream);
      }
      using locks = new DisposableStack();
      locks.use(await lock(terminal, path, path));
      const text = await terminal.readTextFile(path);
      const { finished, kept } = readEarlier(text, path);
      if (kept !== text) {
        // Under another name first: a crash in between loses nothing. Locked before it takes the output's place, while the
        // old file stays locked for whoever opened that: at no time can a second run get hold of either.
        const partial = `${path}.partial`;
        await terminal.writeTextFile(partial, kept);
        locks.use(await lock(terminal, partial, path));
        await terminal.renameFile(partial, path);
      }
      const append = async (text: string): Promise<void> => {
        await terminal.appendTextFile(path, text).catch((cause) => {
          throw cannotWrite(`"${path}"`, cause);
        });
      };
      return new BatchOutput(finished, "file", append, locks.move());
    } catch (cause) {
      if (cause instanceof Error && cause.message.startsWith("Cannot")) throw cause;
      throw cannotWrite(`"${path}"`, cause);
    }
  }

  /**
   * Writes a line; resolves when it is in the file.
   *
   * @throws {Error} if it cannot be written, which nobody reading any more is too: the batch is not done then.
   */
  write(line: BatchLine): Promise<void> {
    const written = this.#pending.then(() => this.append(`${JSON.stringify(line)}\n`)).catch((cause) => {
      throw new Error(`${(cause as Error).message}. ${REMEDIES[this.kind]}`, { cause });
    });
    this.#pending = written.catch(() => {}); // whoever waits for the line is told
    return written;
  }

  /** Gives up the lock of a file, and closes a device or a pipe. */
  [Symbol.dispose](): void {
    this.opened?.[Symbol.dispose]();
  }
}

async function lock(terminal: Terminal, file: string, output: string): Promise<Disposable> {
  const held = await terminal.lockFile(file);
  if (held) return held;
  throw new Error(`Cannot write "${output}": another run is writing it. Wait for it, or give --output another file`);
}
