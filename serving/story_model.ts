/**
 * Where the story model lies: beside this file in a checkout; for a script that imports the package over HTTPS, in the cache,
 * fetched once.
 *
 * @module
 */
import type { LoadProgress } from "./model.ts";

const FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
const ASSETS = new URL("../model/assets/stories/", import.meta.url);

/** How the story model is found. */
export interface StoryModelOptions {
  /** Called as bytes come. */
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Stops the download. */
  readonly signal?: AbortSignal | undefined;
  /** The folder with its files; of this package unless given. */
  readonly assets?: URL;
  /** Where downloads are kept; see {@linkcode cacheFolder}. */
  readonly cache?: string;
}

/**
 * The folder for downloads: `TINYLLM_CACHE`, else `tinyllm` in `XDG_CACHE_HOME`, else in `.cache` of the home folder.
 *
 * @throws {Error} if none of these variables is set.
 */
export function cacheFolder(get: (name: string) => string | undefined = (name) => Deno.env.get(name)): string {
  const own = get("TINYLLM_CACHE");
  if (own) return own;
  const shared = get("XDG_CACHE_HOME");
  if (shared) return `${shared}/tinyllm`;
  const home = get("HOME") || get("USERPROFILE");
  if (home) return `${home}/.cache/tinyllm`;
  throw new Error("Cannot keep the story model: neither TINYLLM_CACHE, XDG_CACHE_HOME nor HOME is set");
}

/** The story model's folder; its files are there when this resolves. */
export async function storyModelFolder(options: StoryModelOptions = {}): Promise<string> {
  const { assets = ASSETS } = options;
  if (assets.protocol === "file:") return filePath(assets);
  const folder = `${options.cache ?? cacheFolder()}/stories-${await addressKey(assets.href)}`;
  await Deno.mkdir(folder, { recursive: true });
  for (const file of FILES) {
    if (!await exists(`${folder}/${file}`)) await fetchFile(new URL(file, assets), `${folder}/${file}`, file, options);
  }
  return folder;
}

/** Written under another name first: a file that has its name is whole. */
async function fetchFile(url: URL, path: string, file: string, options: StoryModelOptions): Promise<void> {
  const { onProgress, signal } = options;
  const partial = `${path}.${crypto.randomUUID()}.partial`;
  const response = await fetch(url, { signal: signal ?? null }).catch((cause) => {
    signal?.throwIfAborted();
    throw new Error(`Cannot fetch ${url}: ${(cause as Error).message}`, { cause });
  });
  if (!response.ok || !response.body) {
    await response.body?.cancel();
    throw new Error(`Cannot fetch ${url}: the server answered ${response.status}`);
  }
  // A compressed answer's length is not the file's.
  const total = response.headers.has("content-encoding") ? 0 : Number(response.headers.get("content-length") ?? 0);
  const start = performance.now();
  let received = 0;
  const counted = response.body.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(bytes, controller) {
        received += bytes.byteLength;
        onProgress?.(progressOf(file, received, total, performance.now() - start));
        controller.enqueue(bytes);
      },
    }),
  );
  try {
    await Deno.writeFile(partial, counted, signal ? { signal } : {});
    if (total > 0 && received !== total) {
      throw new Error(`Cannot fetch ${url}: ${received} of ${total} bytes came, try again`);
    }
    await Deno.rename(partial, path);
  } catch (cause) {
    await Deno.remove(partial).catch(() => {});
    throw cause;
  }
}

function progressOf(file: string, received: number, total: number, elapsedMs: number): LoadProgress {
  const bytesPerSecond = 1000 * received / Math.max(1, elapsedMs);
  const rest = total > 0 ? { etaSeconds: Math.max(0, total - received) / bytesPerSecond } : {};
  return { phase: "download", file, received, total, bytesPerSecond, ...rest };
}

/** Another version of the package has another address, and a folder of its own. */
async function addressKey(address: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(address));
  return Array.from(new Uint8Array(digest, 0, 6), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A file URL as a path, on Windows without the slash before the drive. */
function filePath(url: URL): string {
  const path = decodeURIComponent(url.pathname).replace(/\/$/, "");
  return /^\/[A-Za-z]:/.test(path) ? path.slice(1) : path;
}

async function exists(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(path)).isFile;
  } catch {
    return false;
  }
}
