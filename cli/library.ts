/**
 * What the commands need of the library, no more: tests put a model of their own in its place.
 *
 * @module
 */
import type { ChatTemplate } from "../model/chat_template.ts";
import type { Source } from "../model/source.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { Chunk, Completion, GenerateOptions } from "../serving/request.ts";

/** A loaded model, as the commands use it. */
export interface LoadedModel extends AsyncDisposable {
  readonly name: string;
  readonly contextLength: number;
  readonly tokenizer?: Pick<Tokenizer, "encode"> | undefined;
  readonly chatTemplate?: Pick<ChatTemplate, "render"> | undefined;
  /** Bytes on the GPU. */
  readonly memory: { readonly weights: number; readonly kvCache: number; readonly peak: number };
  generate(options: GenerateOptions): AsyncIterable<Chunk>;
  complete(options: GenerateOptions): Promise<Completion>;
  nll(ids: readonly number[]): Promise<{ mean: number; count: number }>;
}

/** How far loading has come. */
export interface LoadProgress {
  phase: "download" | "load" | "compile";
  file?: string;
  /** Bytes, or pipelines. */
  received: number;
  total: number;
  bytesPerSecond?: number;
  etaSeconds?: number;
}

/** How a model is found and loaded. */
export interface LoadOptions {
  precision?: "exact" | "fast";
  kvDtype?: "f32" | "f16";
  device?: "high-performance" | "low-power" | "fallback";
  contextLength?: number;
  revision?: string;
  onProgress?: (progress: LoadProgress) => void;
  signal?: AbortSignal;
}

/** Bytes that a model needs on the GPU. */
export interface MemoryEstimate {
  weights: number;
  kvCache: number;
  activations: number;
  total: number;
}

/** The library's functions that commands call. */
export interface Library {
  loadModel(source?: string, options?: LoadOptions): Promise<LoadedModel>;
  /** The files of a model, downloaded where need be; the story model's without a name. */
  openSource(source?: string, options?: LoadOptions): Promise<Source>;
  estimateMemory(source: Source, options?: LoadOptions): Promise<MemoryEstimate>;
}
