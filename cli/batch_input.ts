/**
 * A batch's input: lines in OpenAI's batch format (https://platform.openai.com/docs/api-reference/batch/request-input), each
 * checked on its own, before anything is computed.
 *
 * @module
 */
import { z } from "zod";
import { OPENAI_PATHS, type OpenAiRequest, OpenAiRequestError, parseOpenAiRequest } from "../serving/openai_request.ts";

/** A line that can be run. */
export interface BatchRequest {
  /** Its line's number in the input, from 1. */
  readonly line: number;
  readonly customId: string;
  readonly request: OpenAiRequest;
}

/** A line that cannot. */
export interface RefusedLine {
  /** Null where the line has none, or one of an earlier line: no reader may take this line for that one's answer. */
  readonly customId: string | null;
  /** What is wrong, in OpenAI's words where they have one. */
  readonly code: string;
  /** The same as a sentence that names the line. */
  readonly message: string;
  /** The field of the body at fault, if one is. */
  readonly param?: string | undefined;
  /** What a server would have answered; undefined where the line is no request at all. */
  readonly status?: number;
}

/** All lines of an input. */
export interface BatchInput {
  readonly requests: readonly BatchRequest[];
  readonly refused: readonly RefusedLine[];
}

const LINE = z.looseObject({
  custom_id: z.string("give each request a text of its own").min(1, "give each request a text of its own"),
  method: z.literal("POST", 'give "POST"'),
  url: z.enum(Object.keys(OPENAI_PATHS), `give ${Object.keys(OPENAI_PATHS).join(" or ")}`),
  body: z.looseObject({}, "give an object with the request"),
});

const CODES: Readonly<Record<string, string>> = {
  custom_id: "missing_required_parameter",
  method: "invalid_method",
  url: "invalid_url",
  body: "missing_required_parameter",
};

/**
 * Reads all lines; empty ones count for nothing. A `custom_id` that an earlier line has is refused.
 *
 * @param models Names that requests may give the loaded model; the first is for messages.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { readBatch } from "./batch_input.ts";
 *
 * const line = { custom_id: "a", method: "POST", url: "/v1/completions", body: { prompt: "Once" } };
 * const { requests, refused } = readBatch(`${JSON.stringify(line)}\n{}\n`, ["default"]);
 * assertEquals(requests.map(({ customId }) => customId), ["a"]);
 * assertEquals(refused[0]?.message, "Line 2: custom_id is missing: give each request a text of its own");
 * ```
 */
export function readBatch(text: string, models: readonly string[]): BatchInput {
  const requests: BatchRequest[] = [], refused: RefusedLine[] = [];
  const places = new Map<string, number>();
  text.replace(/^\uFEFF/, "").split("\n").forEach((line, index) => {
    if (line.trim() === "") return;
    const read = readLine(line, index + 1, models, places);
    if ("request" in read) requests.push(read);
    else refused.push(read);
  });
  return { requests, refused };
}

/** @param places the line of each `custom_id` so far. */
function readLine(
  line: string,
  number: number,
  models: readonly string[],
  places: Map<string, number>,
): BatchRequest | RefusedLine {
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch (cause) {
    const message = `Line ${number}: it is no JSON (${(cause as Error).message}): write one object on one line`;
    return { customId: null, code: "invalid_json_line", message };
  }
  const given = (json as { custom_id?: unknown } | null)?.custom_id;
  const customId = typeof given === "string" && given !== "" ? given : null;
  const refuse = (code: string, reason: string, more: Partial<RefusedLine> = {}): RefusedLine => {
    return { customId, code, message: `Line ${number}: ${reason}`, ...more };
  };
  if (customId !== null) {
    const earlier = places.get(customId);
    if (earlier !== undefined) {
      const reason = `custom_id "${customId}" is that of line ${earlier} too: give each request its own`;
      return refuse("duplicate_custom_id", reason, { customId: null });
    }
    places.set(customId, number);
  }
  const { success, data, error } = LINE.safeParse(json);
  if (!success) {
    const { path: [field], message } = error.issues[0]!;
    if (field === undefined) return refuse("invalid_json_line", "it is no JSON object: write one request a line");
    const value = (json as Record<PropertyKey, unknown>)[field];
    const shown = value === undefined ? "missing" : JSON.stringify(value);
    return refuse(CODES[String(field)]!, `${String(field)} is ${shown}: ${message}`);
  }
  try {
    const request = parseOpenAiRequest(OPENAI_PATHS[data.url]!, data.body);
    if (request.model === undefined || models.includes(request.model)) {
      return { line: number, customId: data.custom_id, request };
    }
    const names = models.map((name) => `"${name}"`).join(" or ");
    const reason = `the model "${request.model}" is not the one that is loaded: give ${names}`;
    return refuse("model_not_found", reason, { param: "model", status: 404 });
  } catch (cause) {
    if (!(cause instanceof OpenAiRequestError)) throw cause;
    return refuse("invalid_request", cause.message, { param: cause.param, status: 400 });
  }
}
