/**
 * An engine in a thread of its own, seen from the caller's: requests go as messages, and all that a run of steps brings comes back
 * in one. A read-back blocks its thread for as long as the device works, so the caller's stays free this way.
 *
 * @module
 */
import { Worker } from "node:worker_threads";
import type { Source } from "../model/source.ts";
import type { EngineClient, EngineRequest, EngineStats, LogitsSink, OutputSink } from "./engine_types.ts";
import type { EngineInfo } from "./load_engine.ts";
import type { LoadOptions } from "./model.ts";
import type { NamedSource } from "./model_source.ts";
import { type FromEngine, type PlainError, plainError, revivedError, type ToEngine } from "./worker_protocol.ts";

/**
 * Milliseconds after which a thread that was told to end has let go of its device. That it has ended is said before, and nothing
 * says it afterwards; it took 40 ms on llvmpipe.
 */
const LETTING_GO = 300;

/** The threads of this process. */
const threads = {
  running: new Set<EngineThread>(),
  /** When one was last told to end. */
  lastEnd: -Infinity,
  watched: false,
  /** Whether the process ends since nothing is left to do, rather than by `Deno.exit`. */
  runsOut: false,
};

/**
 * A process that ends while one of its threads takes its device apart crashes or hangs in the driver, on NVIDIA nearly every time
 * (https://github.com/gfx-rs/wgpu/issues/8365). Where nothing is left to do, the runtime has all threads do just that: so they
 * are told to before, and the process waits for them. One that idles does no harm to `Deno.exit`.
 */
function watchEnd(): void {
  if (threads.watched) return;
  threads.watched = true;
  addEventListener("beforeunload", () => threads.runsOut = true);
  addEventListener("unload", () => {
    if (threads.runsOut) { for (const thread of threads.running) void thread.end(); }
    const left = threads.lastEnd + LETTING_GO - performance.now();
    if (left > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, left);
  });
}

/** A thread in which an engine can be loaded. */
export class EngineThread {
  /** Whether it answers: one that does not cannot be used. */
  readonly ready: Promise<boolean>;
  #keepsAlive = true;

  /** A thread that was started, and does not keep the process alive. */
  constructor(readonly worker: Worker) {
    this.ready = new Promise((resolve) => {
      worker.once("message", () => resolve(true));
      worker.once("error", () => resolve(false));
      worker.once("exit", () => {
        this.#ended();
        resolve(false);
      });
    });
    this.keepAlive(false);
    threads.running.add(this);
    watchEnd();
  }

  /** Says whether the process waits for it. */
  keepAlive(alive: boolean): void {
    if (alive === this.#keepsAlive) return; // the runtime counts these calls
    this.#keepsAlive = alive;
    if (alive) this.worker.ref();
    else this.worker.unref();
  }

  /** Ends it, and waits for its end. */
  async end(): Promise<void> {
    this.keepAlive(true); // or a process that has nothing else to do ends in the middle of waiting
    this.#ended();
    await this.worker.terminate();
  }

  #ended(): void {
    if (threads.running.delete(this)) threads.lastEnd = performance.now();
  }
}

/** An engine in another thread, and its model. */
export interface LoadedWorkerEngine extends EngineInfo {
  readonly engine: WorkerEngine;
}

/** Someone who waits for logits or for a text. */
interface Job {
  readonly sink: LogitsSink;
  readonly resolve: (text: string) => void;
  readonly reject: (cause: Error) => void;
}

/** Where the modules of a thread lie, its script and all that this imports. */
const THREAD_FOLDERS = ["../serving", "../model", "../kernels", "../tensor"];

/**
 * Starts a thread. It holds no model yet, and does not keep the process alive.
 *
 * @returns undefined where the process may not start one: a thread takes leave to read its modules, and nobody is asked for it. One
 * that gets no further than its first import would have the runtime print a stack trace.
 */
export function startEngineThread(): EngineThread | undefined {
  const script = new URL("./worker.ts", import.meta.url);
  const mayRead = (folder: string): boolean =>
    Deno.permissions.querySync({ name: "read", path: new URL(folder, import.meta.url) }).state === "granted";
  if (script.protocol === "file:" && !THREAD_FOLDERS.every(mayRead)) return undefined;
  // The runtime starts threads from files and from data: a package's module on the web is imported by the latter.
  const start = script.protocol === "file:"
    ? script
    : new URL(`data:text/javascript,import ${JSON.stringify(script.href)};`);
  return new EngineThread(new Worker(start));
}

/**
 * Loads a model's engine in a thread that is ready. Whatever fails, the thread ends.
 *
 * @throws {Error} as loading in this thread would; the signal's reason where it is aborted.
 */
export async function loadWorkerEngine(
  thread: EngineThread,
  { source, folder }: NamedSource,
  options: LoadOptions,
): Promise<LoadedWorkerEngine> {
  const { onProgress, debug, signal, ...plain } = options;
  const engine = new WorkerEngine(thread, source);
  const stop = (): void => engine.fail(signal!.reason);
  signal?.addEventListener("abort", stop);
  try {
    signal?.throwIfAborted();
    const place = folder === undefined ? { name: source.name } : { folder };
    const info = await engine.load({ type: "load", source: place, options: { ...plain, debug: debug !== undefined } }, {
      ...(onProgress && { onProgress }),
      ...(debug && { debug }),
    });
    return { engine, ...info };
  } catch (cause) {
    await thread.end();
    throw cause;
  } finally {
    signal?.removeEventListener("abort", stop);
  }
}

/** The caller's side of an engine. */
export class WorkerEngine implements EngineClient {
  readonly #thread: EngineThread;
  readonly #source: Source;
  readonly #sinks = new Map<number, { readonly sink: OutputSink; open: number }>();
  readonly #jobs = new Map<number, Job>();
  #listeners: Pick<LoadOptions, "onProgress" | "debug"> = {};
  #numJobs = 0;
  #stats: EngineStats | undefined;
  #loading: { resolve: (info: EngineInfo) => void; reject: (cause: Error) => void } | undefined;
  #failure: Error | undefined;
  #closing: Promise<void> | undefined;
  #isClosing = false;
  #closed: () => void = () => {};

  /** Use {@linkcode loadWorkerEngine}. */
  constructor(thread: EngineThread, source: Source) {
    const { worker } = thread;
    this.#thread = thread;
    this.#source = source;
    worker.on("message", (message: FromEngine) => this.#take(message));
    const ended = (why: string, cause?: unknown): void =>
      this.fail(new Error(`The engine's thread ended: ${why}. Load the model again.`, { cause }));
    worker.on("error", (cause: Error) => ended(cause?.message ?? String(cause), cause));
    worker.on("exit", () => ended("it stopped"));
  }

  /** Loads the engine behind it. */
  load(message: ToEngine, listeners: Pick<LoadOptions, "onProgress" | "debug">): Promise<EngineInfo> {
    this.#listeners = listeners;
    const loaded = new Promise<EngineInfo>((resolve, reject) => this.#loading = { resolve, reject });
    this.#send(message);
    return loaded;
  }

  checkOpen(): void {
    if (this.#failure) throw this.#failure;
  }

  addRequest(request: EngineRequest, sink: OutputSink): void {
    this.checkOpen();
    const { id } = request;
    if (this.#sinks.has(id)) throw new Error(`Cannot take request ${id}: one of that number is not over`);
    this.#sinks.set(id, { sink, open: request.n });
    this.#send({ type: "add", request });
  }

  abort(id: number, index?: number): void {
    if (this.#sinks.has(id)) this.#send({ type: "abort", id, ...(index !== undefined && { index }) });
  }

  async logits(tokens: readonly number[], sink: LogitsSink): Promise<void> {
    await this.#job((id) => ({ type: "logits", id, tokens }), sink);
  }

  stats(): EngineStats {
    return this.#stats!;
  }

  explain(): Promise<string> {
    return this.#job((id) => ({ type: "explain", id }), () => {});
  }

  close(cause: Error): Promise<void> {
    return this.#closing ??= this.#close(cause);
  }

  /** Ends everything with an error: the thread is gone, or is not wanted any more. The first cause stays. */
  fail(cause: Error): void {
    const failure = this.#failure ??= cause;
    this.#loading?.reject(failure);
    this.#loading = undefined;
    const sinks = [...this.#sinks.values()], jobs = [...this.#jobs.values()];
    this.#sinks.clear();
    this.#jobs.clear();
    for (const { sink } of sinks) sink.fail(failure);
    for (const { reject } of jobs) reject(failure);
    this.#closed();
    this.#keepAlive();
  }

  async #close(cause: Error): Promise<void> {
    if (!this.#failure) {
      const closed = new Promise<void>((resolve) => this.#closed = resolve);
      this.#failure = cause;
      this.#isClosing = true;
      this.#send({ type: "close", cause: plainError(cause) });
      await closed;
    }
    await this.#thread.end();
  }

  #job(message: (id: number) => ToEngine, sink: LogitsSink): Promise<string> {
    if (this.#failure) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      const id = this.#numJobs++;
      this.#jobs.set(id, { sink, resolve, reject });
      this.#send(message(id));
    });
  }

  #send(message: ToEngine): void {
    this.#thread.worker.postMessage(message);
    this.#keepAlive();
  }

  /** The process waits for the thread while someone waits for an answer, and no longer. */
  #keepAlive(): void {
    const waits = this.#sinks.size > 0 || this.#jobs.size > 0 || this.#loading !== undefined;
    this.#thread.keepAlive(waits || this.#isClosing);
  }

  #take(message: FromEngine): void {
    switch (message.type) {
      case "ready":
        return;
      case "ask":
        return void this.#answer(message);
      case "progress":
        return this.#listeners.onProgress?.(message.progress);
      case "debug":
        return this.#listeners.debug?.(message.text);
      case "loaded":
        this.#stats = message.stats;
        this.#loading?.resolve(message.info);
        this.#loading = undefined;
        return this.#keepAlive();
      case "loadFailed":
        return this.fail(revivedError(message.error));
      case "news":
        return this.#takeNews(message);
      case "logits":
        return this.#jobs.get(message.id)?.sink(message.first, message.data);
      case "done":
        return this.#end(message.id, message.text ?? "", message.error);
      case "closed":
        return this.#closed();
    }
  }

  #takeNews({ outputs, failures, stats }: FromEngine & { type: "news" }): void {
    this.#stats = stats;
    for (const output of outputs) {
      const request = this.#sinks.get(output.id);
      if (request && output.finishReason && --request.open === 0) this.#sinks.delete(output.id);
      request?.sink.output(output);
    }
    for (const { id, error } of failures) {
      const request = this.#sinks.get(id);
      this.#sinks.delete(id);
      request?.sink.fail(revivedError(error));
    }
    this.#keepAlive();
  }

  #end(id: number, text: string, error: PlainError | undefined): void {
    const job = this.#jobs.get(id);
    this.#jobs.delete(id);
    if (error) job?.reject(revivedError(error));
    else job?.resolve(text);
    this.#keepAlive();
  }

  /** Reads for the engine's thread what only this one can. */
  async #answer({ id, method, args }: FromEngine & { type: "ask" }): Promise<void> {
    try {
      const read = this.#source[method].bind(this.#source) as (...args: readonly unknown[]) => Promise<unknown>;
      this.#send({ type: "answer", id, value: await read(...args) });
    } catch (cause) {
      this.#send({ type: "answer", id, error: plainError(cause) });
    }
  }
}
