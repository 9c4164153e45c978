/**
 * Where a checkpoint's bytes come from. The model floor reads files only through a {@link Source}, a range at a time,
 * so that the same loader serves a folder, a web server and a test's memory, in Deno and in a browser.
 *
 * @module
 */

/**
 * A read-only set of named files. Paths are relative, with forward slashes (`model.safetensors`).
 *
 * A missing file is `undefined` from `size` and `readText`; everything else that goes wrong rejects with an error that
 * names the source and the path.
 */
export interface Source {
  /** What messages call this source: a folder, an address. */
  readonly name: string;
  /** Paths of all files, sorted. */
  list(): Promise<string[]>;
  /** Size in bytes, or `undefined` for a missing file. */
  size(path: string): Promise<number | undefined>;
  /** Exactly `length` bytes from byte `offset` on, in a buffer of their own; rejects where the file ends before. */
  read(path: string, offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>;
  /** The whole file as UTF-8 text, or `undefined` for a missing file. */
  readText(path: string): Promise<string | undefined>;
}

/**
 * Refuses a path that could leave its source: absolute, with a drive or scheme, or with `.`, `..` or empty segments.
 * File names reach us from downloaded JSON (a shard index), so every source calls this before it touches anything.
 *
 * @throws {Error} for such a path.
 */
export function checkPath(path: string): void {
  const segments = path.split("/");
  if (/[\\:\0]/.test(path) || segments.some((segment) => segment === "" || segment === "." || segment === "..")) {
    throw new Error(`Cannot read ${JSON.stringify(path)}: a path must be relative and stay inside its source`);
  }
}

/**
 * Refuses a range that no file can hold.
 *
 * @throws {Error} if either number is negative, fractional or above 2^53 - 1.
 */
export function checkRange(path: string, offset: number, length: number): void {
  if (!Number.isSafeInteger(offset) || offset < 0 || !Number.isSafeInteger(length) || length < 0) {
    throw new Error(`Cannot read "${path}": ${length} bytes from byte ${offset} on is no range`);
  }
}

/**
 * Reads a file as JSON.
 *
 * @returns the parsed value, or `undefined` for a missing file.
 * @throws {Error} naming the file and the parser's complaint, if it is not JSON.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { memorySource, readJson } from "./source.ts";
 *
 * assertEquals(await readJson(memorySource({ "config.json": "[1, 2]" }), "config.json"), [1, 2]);
 * ```
 */
export async function readJson(source: Source, path: string): Promise<unknown> {
  const text = await source.readText(path);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Error(`Cannot read "${path}" of "${source.name}": it is not JSON (${(cause as Error).message})`, {
      cause,
    });
  }
}

/**
 * A source of files held in memory, for tests and for bytes that came some other way.
 *
 * @param files contents by path; a string stands for its UTF-8 bytes.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { memorySource } from "./source.ts";
 *
 * const source = memorySource({ "a.bin": new Uint8Array([1, 2, 3, 4]), "b.txt": "hi" });
 * assertEquals(await source.read("a.bin", 1, 2), new Uint8Array([2, 3]));
 * assertEquals(await source.size("missing"), undefined);
 * ```
 */
export function memorySource(files: Record<string, Uint8Array | string>): Source {
  const contents = new Map(
    Object.entries(files).map((
      [path, data],
    ) => [path, typeof data === "string" ? new TextEncoder().encode(data) : data]),
  );
  return {
    name: "memory",
    list: () => Promise.resolve([...contents.keys()].sort()),
    size: (path) => Promise.resolve(contents.get(path)?.byteLength),
    // deno-lint-ignore require-await -- async, so that a bad range rejects instead of throwing
    async read(path, offset, length) {
      checkRange(path, offset, length);
      const data = contents.get(path);
      if (data === undefined) throw new Error(`Cannot read "${path}": there is no such file in memory`);
      if (offset + length > data.byteLength) throw new Error(shortRead(path, offset, length, data.byteLength));
      return data.slice(offset, offset + length) as Uint8Array<ArrayBuffer>;
    },
    readText(path) {
      const data = contents.get(path);
      return Promise.resolve(data && new TextDecoder().decode(data));
    },
  };
}

/** The message of a read past a file's end. */
export function shortRead(path: string, offset: number, length: number, size: number): string {
  return `Cannot read "${path}": ${length} bytes from byte ${offset} on were asked for, the file has ${size}`;
}
