/**
 * A checkpoint on a web server, read by ranges with nothing but `fetch`: what a browser uses, and Deno for a plain
 * address.
 *
 * @module
 */
import { checkPath, checkRange, readJson, shortRead, type Source } from "./source.ts";

/** Options of {@link httpSource}. */
export interface HttpSourceOptions {
  /** Further request headers, such as `authorization`. */
  headers?: Record<string, string>;
  /** Paths that exist there. HTTP cannot list a folder: without it `list` asks for the usual names one by one. */
  files?: readonly string[];
  /** Cancels every request. */
  signal?: AbortSignal;
}

/** The names under which checkpoints keep what a model needs besides its shards. */
const USUAL_FILES = [
  "chat_template.jinja",
  "config.json",
  "generation_config.json",
  "model.safetensors",
  "model.safetensors.index.json",
  "tokenizer.json",
  "tokenizer_config.json",
];

/**
 * A source of the files below an address.
 *
 * A server that answers a range with the whole file works too, at the price of the bytes before the range.
 *
 * @param baseUrl the folder's address, with or without a slash at its end; a query string stays on every request.
 *
 * @example
 * ```ts
 * import { httpSource } from "./http_source.ts";
 *
 * const source = httpSource("https://huggingface.co/Qwen/Qwen2-0.5B-Instruct/resolve/main");
 * console.log(source.name);
 * ```
 */
export function httpSource(baseUrl: string | URL, options: HttpSourceOptions = {}): Source {
  return new HttpSource(new URL(baseUrl), options);
}

class HttpSource implements Source {
  readonly name: string;
  readonly #base: URL;
  readonly #options: HttpSourceOptions;
  readonly #sizes = new Map<string, number>();

  constructor(base: URL, options: HttpSourceOptions) {
    this.name = base.href;
    this.#base = base;
    this.#options = options;
  }

  async list(): Promise<string[]> {
    if (this.#options.files) return [...this.#options.files].sort();
    const found = new Set<string>();
    for (const path of USUAL_FILES) {
      if (await this.size(path) !== undefined) found.add(path);
    }
    if (found.has("model.safetensors.index.json")) {
      const index = await readJson(this, "model.safetensors.index.json") as { weight_map?: Record<string, string> };
      for (const path of Object.values(index?.weight_map ?? {})) found.add(path);
    }
    return [...found].sort();
  }

  async size(path: string): Promise<number | undefined> {
    const known = this.#sizes.get(path);
    if (known !== undefined) return known;
    // One byte's range, not HEAD: a compressed answer's Content-Length is not the file's, Content-Range's total is.
    const response = await this.#fetch(path, { range: "bytes=0-0" });
    await response.body?.cancel();
    if (response.status === 404) return undefined;
    // 416: the file is empty, so that not even its first byte can be had.
    if (response.status !== 416) this.#checkStatus(path, response);
    const size = contentRangeTotal(response) ?? await this.#sizeByHead(path);
    this.#sizes.set(path, size);
    return size;
  }

  async read(path: string, offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    checkRange(path, offset, length);
    const bytes = new Uint8Array(length);
    if (length === 0) return bytes;
    const response = await this.#fetch(path, { range: `bytes=${offset}-${offset + length - 1}` });
    if (response.status === 416) {
      await response.body?.cancel();
      throw new Error(shortRead(path, offset, length, contentRangeTotal(response) ?? offset));
    }
    if (!response.ok) await response.body?.cancel();
    this.#checkStatus(path, response);
    const skip = response.status === 206 ? 0 : offset;
    const received = await fill(bytes, response, skip);
    if (received < length) throw new Error(shortRead(path, offset, length, offset + received));
    return bytes;
  }

  async readText(path: string): Promise<string | undefined> {
    const response = await this.#fetch(path, {});
    if (!response.ok) await response.body?.cancel();
    if (response.status === 404) return undefined;
    this.#checkStatus(path, response);
    return await response.text();
  }

  async #sizeByHead(path: string): Promise<number> {
    const response = await this.#fetch(path, {}, "HEAD");
    this.#checkStatus(path, response);
    const length = response.headers.get("content-length");
    if (length === null || response.headers.has("content-encoding")) {
      throw new Error(`Cannot load "${path}" from ${this.name}: the server does not tell its size`);
    }
    return Number(length);
  }

  async #fetch(path: string, headers: Record<string, string>, method = "GET"): Promise<Response> {
    checkPath(path);
    const url = new URL(this.#base);
    url.pathname = `${url.pathname.replace(/\/$/, "")}/${path.split("/").map(encodeURIComponent).join("/")}`;
    const init: RequestInit = { method, headers: { ...this.#options.headers, ...headers } };
    if (this.#options.signal) init.signal = this.#options.signal;
    try {
      return await fetch(url, init);
    } catch (cause) {
      if (this.#options.signal?.aborted) throw cause;
      throw new Error(`Cannot load "${path}" from ${this.name}: ${(cause as Error).message}`, { cause });
    }
  }

  #checkStatus(path: string, response: Response): void {
    if (response.ok) return;
    throw new Error(`Cannot load "${path}" from ${this.name}: the server answered ${response.status}`);
  }
}

/** The total of `Content-Range: bytes 0-0/1234`; undefined where absent, unknown (`*`) or hidden by CORS. */
function contentRangeTotal(response: Response): number | undefined {
  const total = response.headers.get("content-range")?.match(/\/(\d+)$/)?.[1];
  return total === undefined ? undefined : Number(total);
}

/** Fills `target` from a response's body after `skip` bytes, then drops the rest; returns how many bytes came. */
async function fill(target: Uint8Array, response: Response, skip: number): Promise<number> {
  const reader = response.body?.getReader();
  if (!reader) return 0;
  let filled = 0;
  while (filled < target.length) {
    const { done, value } = await reader.read();
    if (done) return filled;
    const useful = value.subarray(Math.min(skip, value.length));
    skip -= value.length - useful.length;
    const part = useful.subarray(0, target.length - filled);
    target.set(part, filled);
    filled += part.length;
  }
  await reader.cancel();
  return filled;
}
