/**
 * What the commands need of the library, no more: tests put a model of their own in its place.
 *
 * @module
 */
import type {
  ChatTemplate,
  Chunk,
  GenerateOptions,
  LoadEstimate,
  LoadOptions as AllLoadOptions,
  Model,
  Source,
  Tokenizer,
} from "../mod.ts";

export type { LoadedBytes, LoadEstimate, LoadProgress } from "../mod.ts";

/** A loaded model, as the commands use it. */
export interface LoadedModel
  extends
    Pick<Model, "name" | "contextLength" | "contextShortage" | "memory" | "complete" | "nll" | "stats">,
    AsyncDisposable {
  readonly tokenizer?: Pick<Tokenizer, "encode" | "tokenBytes"> | undefined;
  readonly chatTemplate?: Pick<ChatTemplate, "render"> | undefined;
  generate(options: GenerateOptions): AsyncIterable<Chunk>;
}

/** How a model is found and loaded. */
export interface LoadOptions extends Omit<AllLoadOptions, "device"> {
  device?: "high-performance" | "low-power" | "fallback";
}

/** The library's functions that commands call. */
export interface Library {
  loadModel(source?: string, options?: LoadOptions): Promise<LoadedModel>;
  /** The files of a model, downloaded where need be; the story model's without a name. */
  openSource(source?: string, options?: LoadOptions): Promise<Source>;
  estimateMemory(source: Source, options?: LoadOptions): Promise<LoadEstimate>;
}
