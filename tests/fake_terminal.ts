/**
 * A terminal in memory and a model without weights, for tests of the command line without a process or a GPU.
 *
 * @module
 */
import type { Library, LoadedModel, LoadOptions } from "../cli/library.ts";
import { runCli } from "../cli/run.ts";
import { OutputClosed, type Terminal } from "../cli/terminal.ts";
import { memorySource } from "../model/source.ts";
import type { EngineStats } from "../serving/engine_types.ts";
import type { Chunk, Completion, GenerateOptions } from "../serving/request.ts";

/** What a run is given. */
export interface FakeOptions {
  /** Standard input, chunk by chunk; a function runs before the next is read. */
  stdin?: (string | (() => void))[];
  env?: Record<string, string>;
  /** Whether all three streams are terminals. */
  tty?: boolean;
  model?: Partial<FakeModel>;
  files?: Record<string, string>;
  /** Writes to standard output that succeed before its reader is gone. */
  closeAfter?: number;
  library?: Partial<Library>;
  gpu?: GPU;
}

/** What came of a run. */
export interface FakeResult {
  code: number;
  stdout: string;
  stderr: string;
  /** What the model was asked, in order. */
  requests: GenerateOptions[];
  loads: { source: string | undefined; options: LoadOptions | undefined }[];
  files: Record<string, string>;
}

/** A model that answers what `answer` says. */
export interface FakeModel extends LoadedModel {
  answer(request: GenerateOptions): string[];
  /** Called before each piece. */
  onPiece(index: number): void;
}

const USAGE = { promptTokens: 3, completionTokens: 2, cachedTokens: 0 };
const TIMINGS = { firstTokenMs: 310, promptTokensPerSecond: 340, decodeTokensPerSecond: 52.1, totalMs: 400 };

const STATS: EngineStats = {
  ...{ waiting: 3, running: 8, blocks: 100, usedBlocks: 31, blockSize: 16, prefixHits: 0, prefixMisses: 0 },
  ...{ preemptions: 0, steps: 9, promptTokens: 40, generatedTokens: 20, schedulingMs: 1, peakBytes: 24_100_000 },
  ...{ promptTokensPerSecond: 1200, generatedTokensPerSecond: 212 },
};

function withoutSignal({ signal: _, ...request }: GenerateOptions): GenerateOptions {
  return structuredClone(request);
}

function fakeModel(overrides: Partial<FakeModel>, requests: GenerateOptions[]): FakeModel {
  const model: FakeModel = {
    name: "fake",
    contextLength: 8,
    tokenizer: {
      encode: (text) => text.split(" ").map((word) => word.length),
      tokenBytes: (id) => new TextEncoder().encode(`<${id}>`),
    },
    chatTemplate: { render: () => "" },
    memory: { weights: 1000, kvCache: 1000, peak: 24_100_000 },
    answer: () => ["One ", "mouse"],
    onPiece() {},
    async *generate(request): AsyncGenerator<Chunk> {
      requests.push(withoutSignal(request));
      const pieces = model.answer(request);
      for (const [index, text] of pieces.entries()) {
        await Promise.resolve();
        model.onPiece(index);
        if (request.signal?.aborted) {
          yield { index: 0, text: "", tokens: [], finishReason: "abort", usage: USAGE, timings: TIMINGS };
          return;
        }
        const last = index === pieces.length - 1;
        yield {
          index: 0,
          text,
          tokens: [index + 7],
          ...(last && { finishReason: "stop", usage: USAGE, timings: TIMINGS }),
        };
      }
    },
    complete(request): Promise<Completion> {
      requests.push(withoutSignal(request));
      const text = model.answer(request).join("");
      return Promise.resolve({ text, tokens: [7, 8], finishReason: "stop", usage: USAGE, timings: TIMINGS });
    },
    stats: () => STATS,
    nll: (ids) => Promise.resolve({ mean: ids.length, count: ids.length - 1 }),
    [Symbol.asyncDispose]: () => Promise.resolve(),
    ...overrides,
  };
  return model;
}

/** A terminal whose Ctrl-C is `interrupt()`. */
export function fakeTerminal(options: FakeOptions): {
  terminal: Terminal;
  interrupt: () => void;
  output: { stdout: string; stderr: string };
  files: Record<string, string>;
} {
  const output = { stdout: "", stderr: "" };
  const files = { ...options.files };
  const handlers = new Set<() => void>();
  const pending = [...options.stdin ?? []];
  const isTerminal = options.tty ?? false;
  let writes = 0, clock = 0;
  const terminal: Terminal = {
    stdout: {
      isTerminal,
      write(text) {
        if (writes++ >= (options.closeAfter ?? Infinity)) {
          return Promise.reject(new OutputClosed("Nobody reads the output"));
        }
        output.stdout += text;
        return Promise.resolve();
      },
    },
    stderr: { isTerminal, write: (text) => (output.stderr += text, Promise.resolve()) },
    stdin: {
      isTerminal,
      setRaw() {},
      async read() {
        let next = pending.shift();
        while (typeof next === "function") {
          next();
          // Lets what the function has set off happen first.
          await new Promise((resolve) => setTimeout(resolve));
          next = pending.shift();
        }
        return next === undefined ? undefined : new TextEncoder().encode(next);
      },
    },
    env: (name) => options.env?.[name],
    columns: () => 80,
    now: () => clock += 1000,
    onInterrupt(handler) {
      handlers.add(handler);
      return { [Symbol.dispose]: () => handlers.delete(handler) };
    },
    readTextFile(path) {
      const text = files[path];
      return text === undefined ? Promise.reject(new Deno.errors.NotFound("No such file")) : Promise.resolve(text);
    },
    writeTextFile: (path, text) => (files[path] = text, Promise.resolve()),
    appendTextFile: (path, text) => (files[path] = (files[path] ?? "") + text, Promise.resolve()),
    renameFile(from, to) {
      files[to] = files[from]!;
      delete files[from];
      return Promise.resolve();
    },
    lockFile(path) {
      files[path] ??= "";
      return Promise.resolve({ [Symbol.dispose]() {} });
    },
    isStream: (path) => Promise.resolve(path.startsWith("/dev/")),
    openStream(path) {
      const write = (text: string): Promise<void> => {
        if (path === "/dev/full") return Promise.reject(new Error('Cannot write "/dev/full": No space left on device'));
        return terminal.appendTextFile(path, text);
      };
      return Promise.resolve({ isTerminal: false, write, [Symbol.dispose]() {} });
    },
  };
  return { terminal, interrupt: () => handlers.forEach((handler) => handler()), output, files };
}

/** Runs a command line in memory. `prepare` gets hold of Ctrl-C. */
export async function runFake(
  args: string[],
  options: FakeOptions = {},
  prepare: (interrupt: () => void) => void = () => {},
): Promise<FakeResult> {
  const { terminal, interrupt, output, files } = fakeTerminal(options);
  prepare(interrupt);
  const requests: GenerateOptions[] = [];
  const loads: FakeResult["loads"] = [];
  const library: Library = {
    loadModel(source, loadOptions) {
      loads.push({ source, options: loadOptions });
      loadOptions?.onProgress?.({ phase: "load", file: "model.safetensors", received: 5e6, total: 1e7 });
      return Promise.resolve(fakeModel(options.model ?? {}, requests));
    },
    openSource: () => Promise.resolve(memorySource({})),
    estimateMemory: () =>
      Promise.resolve({ weights: 1e6, kvCache: 2e6, activations: 3e6, total: 6e6, contextLength: 64 }),
    ...options.library,
  };
  const code = await runCli(args, terminal, { library: () => Promise.resolve(library), gpu: () => options.gpu });
  return { code, ...output, requests, loads, files };
}
