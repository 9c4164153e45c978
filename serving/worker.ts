/**
 * The engine's thread: loads an engine, does what messages say, and tells what comes of it. Runs in a Worker alone.
 *
 * @module
 */
import { parentPort } from "node:worker_threads";
import { fileSource } from "../model/deno/file_source.ts";
import type { Source } from "../model/source.ts";
import type { Engine } from "./engine.ts";
import type { EngineOutput, OutputSink } from "./engine_types.ts";
import { loadEngine } from "./load_engine.ts";
import {
  type FromEngine,
  type PlainError,
  plainError,
  type PlainLoadOptions,
  revivedError,
  type SourceMethod,
  type SourcePlace,
  type ToEngine,
} from "./worker_protocol.ts";

/** Someone who waits for the caller's thread to read a file. */
interface Asker {
  readonly resolve: (value: unknown) => void;
  readonly reject: (cause: Error) => void;
}

/** One engine and its correspondence. */
class EngineThread {
  readonly #send: (message: FromEngine, transfer?: ArrayBuffer[]) => void;
  readonly #askers = new Map<number, Asker>();
  #asked = 0;
  #engine: Engine | undefined;
  #outputs: EngineOutput[] = [];
  #failures: { id: number; error: PlainError }[] = [];
  #newsDue = false;
  #idleDue = false;

  constructor(send: (message: FromEngine, transfer?: ArrayBuffer[]) => void) {
    this.#send = send;
  }

  /** Does what a message says. */
  async take(message: ToEngine): Promise<void> {
    const engine = this.#engine;
    if (message.type === "load") return await this.#load(message.source, message.options);
    if (message.type === "answer") return this.#answer(message);
    if (!engine) return; // loading failed, and the thread is about to end
    switch (message.type) {
      case "add":
        this.#watchIdle(engine);
        return engine.addRequest(message.request, this.#sink(message.request.id));
      case "abort":
        return engine.abort(message.id, message.index);
      case "logits":
        return await this.#logits(engine, message.id, message.tokens);
      case "explain":
        return this.#send({ type: "done", id: message.id, text: await engine.explain() });
      case "close":
        await engine.close(revivedError(message.cause));
        this.#sendNews();
        return this.#send({ type: "closed" });
    }
  }

  async #load(place: SourcePlace, { debug, ...options }: PlainLoadOptions): Promise<void> {
    try {
      const source = "folder" in place ? fileSource(place.folder) : this.#remoteSource(place.name);
      const { engine, ...info } = await loadEngine(source, {
        ...options,
        onProgress: (progress) => this.#send({ type: "progress", progress }),
        ...(debug && { debug: (text: string): void => this.#send({ type: "debug", text }) }),
      });
      this.#engine = engine;
      this.#send({ type: "loaded", info, stats: engine.stats() });
    } catch (cause) {
      this.#send({ type: "loadFailed", error: plainError(cause) });
    }
  }

  /** A source whose files the caller's thread reads. */
  #remoteSource(name: string): Source {
    const ask = <T>(method: SourceMethod, ...args: unknown[]): Promise<T> =>
      new Promise<unknown>((resolve, reject) => {
        const id = this.#asked++;
        this.#askers.set(id, { resolve, reject });
        this.#send({ type: "ask", id, method, args });
      }) as Promise<T>;
    return {
      name,
      list: () => ask("list"),
      size: (path) => ask("size", path),
      read: (path, offset, length) => ask("read", path, offset, length),
      readText: (path) => ask("readText", path),
    };
  }

  #answer({ id, value, error }: ToEngine & { type: "answer" }): void {
    const asker = this.#askers.get(id);
    this.#askers.delete(id);
    if (error) asker?.reject(revivedError(error));
    else asker?.resolve(value);
  }

  #sink(id: number): OutputSink {
    return {
      output: (output) => {
        this.#outputs.push(output);
        this.#newsSoon();
      },
      fail: (cause) => {
        this.#failures.push({ id, error: plainError(cause) });
        this.#newsSoon();
      },
    };
  }

  /** All that is told in one turn, as after a run of steps, is one message. */
  #newsSoon(): void {
    if (this.#newsDue) return;
    this.#newsDue = true;
    queueMicrotask(() => this.#sendNews());
  }

  #sendNews(): void {
    this.#newsDue = false;
    this.#send({ type: "news", outputs: this.#outputs, failures: this.#failures, stats: this.#engine!.stats() });
    this.#outputs = [];
    this.#failures = [];
  }

  /** Once nothing runs any more the figures are told again: what ran past the last end counts in them. */
  #watchIdle(engine: Engine): void {
    if (this.#idleDue) return;
    this.#idleDue = true;
    queueMicrotask(async () => {
      await engine.idle();
      this.#idleDue = false;
      this.#newsSoon();
    });
  }

  async #logits(engine: Engine, id: number, tokens: readonly number[]): Promise<void> {
    try {
      await engine.logits(tokens, (first, data) => this.#send({ type: "logits", id, first, data }));
      this.#send({ type: "done", id });
    } catch (cause) {
      this.#send({ type: "done", id, error: plainError(cause) });
    }
  }
}

if (parentPort) {
  const port = parentPort;
  const thread = new EngineThread((message) => port.postMessage(message));
  // What a message causes to fail is nobody's to catch here: it ends the thread, and the other one tells everyone who waits.
  port.on("message", (message: ToEngine) => void thread.take(message));
  port.postMessage({ type: "ready" } satisfies FromEngine);
}
