/**
 * What the caller's thread and the engine's say to each other. Everything is data that can be cloned: functions stay where they are,
 * and errors travel as their name and message.
 *
 * @module
 */
import { DeviceLostError, OutOfMemoryError } from "../tensor/device_errors.ts";
import type { EngineOutput, EngineRequest, EngineStats } from "./engine_types.ts";
import type { EngineInfo, EngineLoadOptions } from "./load_engine.ts";
import type { LoadProgress } from "./model.ts";
import { RequestError } from "./request_error.ts";

/** Where the engine's thread finds the files: a folder, or a source that the caller's thread reads for it. */
export type SourcePlace = { readonly folder: string } | { readonly name: string };

/** Options without functions; `debug` says whether anyone listens. */
export type PlainLoadOptions = Omit<EngineLoadOptions, "debug" | "onProgress" | "signal"> & { readonly debug: boolean };

/** An error in transit. */
export interface PlainError {
  readonly name: string;
  readonly message: string;
}

/** To the engine's thread. */
export type ToEngine =
  | { readonly type: "load"; readonly source: SourcePlace; readonly options: PlainLoadOptions }
  | { readonly type: "answer"; readonly id: number; readonly value?: unknown; readonly error?: PlainError }
  | { readonly type: "add"; readonly request: EngineRequest }
  | { readonly type: "abort"; readonly id: number; readonly index?: number }
  | { readonly type: "logits"; readonly id: number; readonly tokens: readonly number[] }
  | { readonly type: "explain"; readonly id: number }
  | { readonly type: "close"; readonly cause: PlainError };

/** The functions of a source that the engine's thread asks for. */
export type SourceMethod = "list" | "size" | "read" | "readText";

/** From the engine's thread. */
export type FromEngine =
  | { readonly type: "ready" }
  | { readonly type: "ask"; readonly id: number; readonly method: SourceMethod; readonly args: readonly unknown[] }
  | { readonly type: "progress"; readonly progress: LoadProgress }
  | { readonly type: "debug"; readonly text: string }
  | { readonly type: "loaded"; readonly info: EngineInfo; readonly stats: EngineStats }
  | { readonly type: "loadFailed"; readonly error: PlainError }
  | {
    /** All that a run of steps brought, in one message. */
    readonly type: "news";
    readonly outputs: readonly EngineOutput[];
    readonly failures: readonly { readonly id: number; readonly error: PlainError }[];
    readonly stats: EngineStats;
  }
  | { readonly type: "logits"; readonly id: number; readonly first: number; readonly data: Float32Array<ArrayBuffer> }
  | { readonly type: "done"; readonly id: number; readonly text?: string; readonly error?: PlainError }
  | { readonly type: "closed" };

/** Errors that callers tell apart by their class. */
const CLASSES: Readonly<Record<string, new (message: string) => Error>> = {
  DeviceLostError,
  OutOfMemoryError,
  RangeError,
  RequestError,
  TypeError,
};

/** An error as data. */
export function plainError(cause: unknown): PlainError {
  return cause instanceof Error
    ? { name: cause.name, message: cause.message }
    : { name: "Error", message: String(cause) };
}

/** The error that it was, of its own class where callers know it. */
export function revivedError({ name, message }: PlainError): Error {
  const error = new (CLASSES[name] ?? Error)(message);
  if (!(name in CLASSES)) error.name = name;
  return error;
}
