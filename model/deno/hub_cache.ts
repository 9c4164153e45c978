/**
 * Hugging Face's cache on disk, in the layout of `huggingface_hub`, so that models are shared with Python's tools:
 *
 *     models--org--name/refs/main                      the commit that a branch pointed to
 *     models--org--name/blobs/<etag>                   contents, named by hash
 *     models--org--name/snapshots/<commit>/<file>      links to blobs
 *
 * @module
 */
import { fileSource } from "./file_source.ts";
import { readJson } from "../source.ts";

/** Where the hub is, where its files are kept, and who asks. */
export interface HubEnvironment {
  /** The hub's address, without a slash at its end. */
  readonly endpoint: string;
  /** The folder that holds `models--…`. */
  readonly cache: string;
  /** The access token, for gated and private models. */
  readonly token?: string;
  /** Whether the network must not be used. */
  readonly offline: boolean;
}

/**
 * Reads the environment as `huggingface_hub` does: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME` or `XDG_CACHE_HOME`,
 * `HF_TOKEN` or the token file of `hf auth login`, `HF_HUB_OFFLINE`.
 *
 * @param get looks a variable up; the process's environment where absent.
 */
export async function readHubEnvironment(
  get: (name: string) => string | undefined = (name) => Deno.env.get(name),
): Promise<HubEnvironment> {
  const variable = (...names: string[]) => names.map((name) => get(name)?.trim()).find((value) => value);
  const userHome = variable("HOME", "USERPROFILE") ?? ".";
  const home = variable("HF_HOME") ?? `${variable("XDG_CACHE_HOME") ?? `${userHome}/.cache`}/huggingface`;
  const cache = variable("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") ?? `${home}/hub`;
  const token = variable("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") ??
    await readTrimmed(expandHome(variable("HF_TOKEN_PATH") ?? `${home}/token`, userHome));
  return {
    endpoint: (variable("HF_ENDPOINT") ?? "https://huggingface.co").replace(/\/+$/, ""),
    cache: expandHome(cache, userHome),
    ...(token && { token }),
    offline: /^(1|on|yes|true)$/i.test(variable("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") ?? ""),
  };
}

function expandHome(path: string, home: string): string {
  return path.replace(/^~(?=\/|$)/, home);
}

async function readTrimmed(path: string): Promise<string | undefined> {
  try {
    return (await Deno.readTextFile(path)).trim() || undefined;
  } catch {
    return undefined; // absent, or not ours to read: as good as no token
  }
}

/** One model's folders in the cache. */
export class ModelCache {
  readonly #folder: string;

  /** @param id `org/name`, already checked. */
  constructor(cache: string, id: string) {
    this.#folder = `${cache}/models--${id.replaceAll("/", "--")}`;
  }

  /** The folder that stands for a commit. */
  snapshot(commit: string): string {
    return `${this.#folder}/snapshots/${commit}`;
  }

  /** The file that holds the content with that hash. */
  blob(etag: string): string {
    return `${this.#folder}/blobs/${etag}`;
  }

  /** Makes the folders that a download writes to. */
  async create(commit: string): Promise<void> {
    await Deno.mkdir(this.snapshot(commit), { recursive: true });
    await Deno.mkdir(`${this.#folder}/blobs`, { recursive: true });
  }

  /** The commit that a revision pointed to when it was last resolved; a commit stands for itself if it is there. */
  async resolve(revision: string): Promise<string | undefined> {
    const commit = await readTrimmed(`${this.#folder}/refs/${revision}`) ?? revision;
    return await exists(this.snapshot(commit)) ? commit : undefined;
  }

  /** Remembers what a branch or tag points to. */
  async remember(revision: string, commit: string): Promise<void> {
    if (revision === commit) return;
    const path = `${this.#folder}/refs/${revision}`;
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    await writeAtomically(path, commit);
  }

  /** Whether a snapshot has a file of that size. */
  async has(commit: string, file: string, size: number): Promise<boolean> {
    try {
      return (await Deno.stat(`${this.snapshot(commit)}/${file}`)).size === size;
    } catch {
      return false;
    }
  }

  /** Makes a snapshot's file a link to a blob, or a copy where the system has no links; replaces what is there. */
  async link(commit: string, file: string, etag: string): Promise<void> {
    const temporary = `${this.snapshot(commit)}/.${crypto.randomUUID()}`;
    try {
      await Deno.symlink(`../../blobs/${etag}`, temporary);
    } catch {
      await Deno.copyFile(this.blob(etag), temporary);
    }
    await Deno.rename(temporary, `${this.snapshot(commit)}/${file}`);
  }

  /**
   * Whether a snapshot has what loading needs: a config, and the weights or every shard that its index names. Without
   * the hub's list this is all that can be known.
   */
  async isComplete(commit: string): Promise<boolean> {
    const source = fileSource(this.snapshot(commit));
    if (await source.size("config.json") === undefined) return false;
    const index = await readJson(source, "model.safetensors.index.json").catch(() => undefined);
    const shards = (index as { weight_map?: Record<string, string> } | undefined)?.weight_map;
    const files = shards ? new Set(Object.values(shards)) : ["model.safetensors"];
    for (const file of files) {
      if (await source.size(file) === undefined) return false;
    }
    return true;
  }
}

async function writeAtomically(path: string, text: string): Promise<void> {
  const temporary = `${path}.${crypto.randomUUID()}`;
  await Deno.writeTextFile(temporary, text);
  await Deno.rename(temporary, path);
}

/** Whether there is anything at a path. */
export async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch {
    return false;
  }
}
