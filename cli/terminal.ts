/**
 * The process as the commands see it: streams, environment, clock, files. An interface, so that tests run the whole command
 * line without a process.
 *
 * @module
 */
import { cannotWrite } from "./errors.ts";

/** Standard output or standard error. */
export interface Output {
  readonly isTerminal: boolean;
  /** Writes all of `text`; rejects with {@link OutputClosed} where nobody reads any more, else with an error that names the output. */
  write(text: string): Promise<void>;
}

/** Standard input. */
export interface Input {
  readonly isTerminal: boolean;
  /** The next bytes that are there; undefined at the end. */
  read(): Promise<Uint8Array | undefined>;
  /** Whether keys arrive one by one, unechoed, Ctrl-C among them. */
  setRaw(raw: boolean): void;
}

/** All that a command touches outside the model. */
export interface Terminal {
  readonly stdout: Output;
  readonly stderr: Output;
  readonly stdin: Input;
  /** A variable of the environment; undefined where unset, empty, or without permission to ask. */
  env(name: string): string | undefined;
  /** Width of the terminal in characters. */
  columns(): number;
  /** Milliseconds, monotonic. */
  now(): number;
  /** Calls `handler` at each Ctrl-C, instead of ending the process, until disposed. */
  onInterrupt(handler: () => void): Disposable;
  readTextFile(path: string): Promise<string>;
  writeTextFile(path: string, text: string): Promise<void>;
  /** Writes at the end of a file, which is made if there is none. */
  appendTextFile(path: string, text: string): Promise<void>;
  /** Gives a file another name; one that had that name is gone. */
  renameFile(from: string, to: string): Promise<void>;
  /**
   * Locks a file, which is made if there is none, until disposed or the process ends, however it ends; undefined where
   * another process holds the lock.
   */
  lockFile(path: string): Promise<Disposable | undefined>;
  /** Whether `path` leads into a device, a pipe or a socket, which cannot be read back. */
  isStream(path: string): Promise<boolean>;
  /** Opens such a thing to write to it. */
  openStream(path: string): Promise<Output & Disposable>;
}

/** Whoever read the output is gone, as in `tinyllm … | head -1`. */
export class OutputClosed extends Error {
  override readonly name = "OutputClosed";
}

/** Width where the output is no terminal. */
const DEFAULT_COLUMNS = 100;

/** The process's own terminal. */
export function denoTerminal(): Terminal {
  return {
    stdout: denoOutput(Deno.stdout, "standard output"),
    stderr: denoOutput(Deno.stderr, "standard error"),
    stdin: denoInput(),
    env: readEnv,
    columns: () => {
      try {
        return Deno.consoleSize().columns || DEFAULT_COLUMNS;
      } catch {
        return DEFAULT_COLUMNS;
      }
    },
    now: () => performance.now(),
    onInterrupt(handler) {
      Deno.addSignalListener("SIGINT", handler);
      return { [Symbol.dispose]: () => Deno.removeSignalListener("SIGINT", handler) };
    },
    readTextFile: (path) => Deno.readTextFile(path),
    writeTextFile: (path, text) => Deno.writeTextFile(path, text),
    appendTextFile: (path, text) => Deno.writeTextFile(path, text, { append: true }),
    renameFile: (from, to) => Deno.rename(from, to),
    async lockFile(path) {
      const file = await Deno.open(path, { append: true, create: true });
      const lock = { [Symbol.dispose]: () => file.close() };
      // Windows would keep this process's own reads and writes out too.
      if (Deno.build.os === "windows" || await file.tryLock(true)) return lock;
      file.close();
      return undefined;
    },
    async isStream(path) {
      try {
        const { isFile, isDirectory } = await Deno.stat(path);
        return !isFile && !isDirectory;
      } catch (cause) {
        if (cause instanceof Deno.errors.NotFound) return false;
        throw cause;
      }
    },
    async openStream(path) {
      const file = await Deno.open(path, { write: true });
      return { ...denoOutput(file, `"${path}"`), [Symbol.dispose]: () => file.close() };
    },
  };
}

function denoOutput(stream: Pick<Deno.FsFile, "isTerminal" | "write">, name: string): Output {
  const encoder = new TextEncoder();
  return {
    isTerminal: stream.isTerminal(),
    async write(text) {
      let bytes = encoder.encode(text);
      try {
        while (bytes.length > 0) bytes = bytes.subarray(await stream.write(bytes));
      } catch (cause) {
        if (cause instanceof Deno.errors.BrokenPipe) throw new OutputClosed("Nobody reads the output", { cause });
        throw cannotWrite(name, cause);
      }
    },
  };
}

function denoInput(): Input {
  const buffer = new Uint8Array(64 * 1024);
  return {
    isTerminal: Deno.stdin.isTerminal(),
    async read() {
      const count = await Deno.stdin.read(buffer);
      return count === null ? undefined : buffer.slice(0, count);
    },
    setRaw: (raw) => Deno.stdin.setRaw(raw),
  };
}

/** Asked first, so that a command with few permissions does not stop to ask for one. */
function readEnv(name: string): string | undefined {
  if (Deno.permissions.querySync({ name: "env", variable: name }).state !== "granted") return undefined;
  return Deno.env.get(name) || undefined;
}
