/**
 * Models by name: from the Hugging Face hub to a folder in its cache.
 *
 * @module
 */
import { type HubEnvironment, ModelCache, readHubEnvironment } from "./hub_cache.ts";
import { downloadBlob, type DownloadProgress, type HubFile } from "./hub_download.ts";
import { DEFAULT_RETRIES, type HubContext, HubError, request, type RetryPolicy, withRetries } from "./hub_request.ts";

export { HubError } from "./hub_request.ts";
export type { RetryPolicy } from "./hub_request.ts";
export type { DownloadProgress } from "./hub_download.ts";
export type { HubEnvironment } from "./hub_cache.ts";

/** Options of {@link downloadModel}. */
export interface DownloadOptions {
  /** A branch, tag or commit; `main` where absent. */
  revision?: string;
  /** Called about ten times a second for each file that is being downloaded; never for files that are there. */
  onProgress?: (progress: DownloadProgress) => void;
  /** Stops the download; what has come stays, and is resumed the next time. */
  signal?: AbortSignal;
  /** Instead of the process's environment. */
  environment?: HubEnvironment;
  /** Instead of half a minute of patience. */
  retries?: Partial<RetryPolicy>;
}

/** Files downloaded at a time. */
const PARALLEL_FILES = 4;

/** What loading a model reads, all at the repository's top; no PyTorch, ONNX or GGUF copies of the same weights. */
const WANTED = new RegExp(
  "^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template" +
    "|model\\.safetensors\\.index)\\.json$|^merges\\.txt$|^chat_template\\.jinja$|^model[^/]*\\.safetensors$",
);

/** Whether a name can be a model on the hub: `org/name`, or the bare name of an old one. */
export function isHubId(name: string): boolean {
  return /^[\w-][\w.-]*(\/[\w-][\w.-]*)?$/.test(name) && !name.includes("--") && !name.includes("..");
}

/**
 * Makes sure that a model is in the cache, and returns its folder.
 *
 * Everything already there is used as it is. Without the network, because of `HF_HUB_OFFLINE` or because the hub does
 * not answer, a complete model in the cache is good enough.
 *
 * @param id `org/name`.
 * @returns the snapshot's folder, for `fileSource`.
 * @throws {HubError} naming the model and what to do, if it cannot be had.
 *
 * @example
 * ```ts
 * import { downloadModel } from "./hub.ts";
 * import { fileSource } from "./file_source.ts";
 * import type { Source } from "../source.ts";
 *
 * async function source(): Promise<Source> {
 *   const onProgress = ({ file, received, total }: { file: string; received: number; total: number }) =>
 *     console.error(`${file}: ${received} of ${total} bytes`);
 *   return fileSource(await downloadModel("Qwen/Qwen2-0.5B-Instruct", { onProgress }));
 * }
 * ```
 */
export async function downloadModel(id: string, options: DownloadOptions = {}): Promise<string> {
  const revision = options.revision ?? "main";
  if (!isHubId(id)) throw new HubError(`Cannot download ${JSON.stringify(id)}: a model on the hub is named org/name`);
  checkRevision(id, revision);
  const environment = options.environment ?? await readHubEnvironment();
  const retries = { ...DEFAULT_RETRIES, ...options.retries };
  const context: HubContext = {
    environment,
    id,
    revision,
    retries,
    ...(options.signal && { signal: options.signal }),
  };
  const cache = new ModelCache(environment.cache, id);
  const known = await cachedCommit(cache, revision);
  // A commit never changes, so a complete one needs no question.
  if (known && (environment.offline || known === revision)) return cache.snapshot(known);
  if (environment.offline) {
    throw new HubError(
      `Cannot load "${id}" (${revision}): it is not in ${environment.cache}, and HF_HUB_OFFLINE is set`,
    );
  }
  checkEndpoint(environment.endpoint);
  let listing: Listing;
  try {
    listing = await listFiles(context, known !== undefined);
  } catch (error) {
    // No status: the hub was not reached, or was not well. Its verdicts (401, 404) count.
    if (known && error instanceof HubError && error.status === undefined) return cache.snapshot(known);
    throw error;
  }
  await downloadFiles({ ...context, reached: true, revision: listing.commit }, cache, listing, options.onProgress);
  await cache.remember(revision, listing.commit);
  return cache.snapshot(listing.commit);
}

async function cachedCommit(cache: ModelCache, revision: string): Promise<string | undefined> {
  const commit = await cache.resolve(revision);
  return commit !== undefined && await cache.isComplete(commit) ? commit : undefined;
}

/** Revisions become paths in the cache, so they may not lead out of it. */
function checkRevision(id: string, revision: string): void {
  if (/^[\w.-]+(\/[\w.-]+)*$/.test(revision) && !revision.split("/").some((part) => /^\.+$/.test(part))) return;
  throw new HubError(`Cannot download "${id}": ${JSON.stringify(revision)} is no branch, tag or commit`);
}

/** Said here, since no request could say where the address comes from. */
function checkEndpoint(endpoint: string): void {
  const url = URL.parse(endpoint);
  if (url && /^https?:$/.test(url.protocol)) return;
  throw new HubError(
    `Cannot use HF_ENDPOINT ${JSON.stringify(endpoint)}: give the hub's address, such as "https://huggingface.co"`,
  );
}

/** A revision's commit and the files to be had. */
interface Listing {
  readonly commit: string;
  readonly files: readonly HubFile[];
}

/** What the hub's API answers, as far as it is read. */
interface ApiAnswer {
  sha?: unknown;
  siblings?: { rfilename?: unknown; size?: unknown; blobId?: unknown; lfs?: { sha256?: unknown; size?: unknown } }[];
}

async function listFiles(context: HubContext, cached: boolean): Promise<Listing> {
  const { environment, id, revision } = context;
  const url = `${environment.endpoint}/api/models/${id}/revision/${encodeURIComponent(revision)}?blobs=true`;
  // With a copy at hand there is no point in waiting for a hub that does not answer.
  const patient = cached ? { ...context, retries: { ...context.retries, attempts: 1 } } : context;
  const answer = await withRetries(patient, async () => {
    using watched = await request(patient, url);
    return await watched.response.json().catch((cause) => {
      throw new HubError(`Cannot download "${id}": ${url} is no JSON`, undefined, { cause });
    }) as ApiAnswer;
  });
  const { sha, siblings } = answer;
  if (typeof sha !== "string" || !/^[\w-]+$/.test(sha) || !Array.isArray(siblings)) {
    throw new HubError(`Cannot download "${id}": ${url} names no commit and files`, 200);
  }
  const wanted = siblings.filter(({ rfilename }) => typeof rfilename === "string" && WANTED.test(rfilename));
  if (!wanted.some(({ rfilename }) => (rfilename as string).endsWith(".safetensors"))) {
    throw new HubError(
      `Cannot download "${id}": it has no model*.safetensors; take a repository with safetensors`,
      200,
    );
  }
  const files = await Promise.all(wanted.map(async (sibling): Promise<HubFile> => {
    const name = sibling.rfilename as string;
    const size = sibling.lfs?.size ?? sibling.size;
    const etag = sibling.lfs?.sha256 ?? sibling.blobId;
    if (isSize(size) && isEtag(etag)) return { name, size, etag };
    return await headFile({ ...context, reached: true, revision: sha }, name);
  }));
  // Small files first: a wrong tokenizer shows before an hour of weights.
  return { commit: sha, files: files.sort((a, b) => a.size - b.size) };
}

/** For mirrors whose list has no sizes and hashes: the headers on the file itself, before any redirect. */
async function headFile(context: HubContext, name: string): Promise<HubFile> {
  const { environment, id, revision } = context;
  const url = `${environment.endpoint}/${id}/resolve/${revision}/${encodeURIComponent(name)}`;
  const headers = { "accept-encoding": "identity" };
  return await withRetries(context, async () => {
    using watched = await request(context, url, { method: "HEAD", redirect: "manual", headers });
    const header = (...names: string[]) => names.map((key) => watched.response.headers.get(key)).find((value) => value);
    const size = Number(header("x-linked-size", "content-length") ?? NaN);
    const etag = header("x-linked-etag", "etag")?.replace(/^(W\/)?"|"$/g, "");
    if (isSize(size) && isEtag(etag)) return { name, size, etag };
    throw new HubError(`Cannot download "${id}": ${url} tells neither size nor etag`, watched.response.status);
  });
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** Etags become names in the cache. */
function isEtag(value: unknown): value is string {
  return typeof value === "string" && /^[\w-]{8,128}$/.test(value);
}

/** Downloads what a snapshot lacks, some files at a time; the first failure stops the others. */
async function downloadFiles(
  context: HubContext,
  cache: ModelCache,
  { commit, files }: Listing,
  onProgress: DownloadOptions["onProgress"],
): Promise<void> {
  await cache.create(commit);
  const failed = new AbortController();
  const signal = context.signal ? AbortSignal.any([context.signal, failed.signal]) : failed.signal;
  const waiting = [...files];
  const work = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      if (await cache.has(commit, file.name, file.size)) continue;
      await downloadBlob({ ...context, signal }, cache, file, onProgress);
      await cache.link(commit, file.name, file.etag);
    }
  };
  const workers = Array.from({ length: PARALLEL_FILES }, () =>
    work().catch((error) => {
      failed.abort(error);
      throw error;
    }));
  const results = await Promise.allSettled(workers);
  context.signal?.throwIfAborted();
  // The first to fail told the others to stop, and why: its error, not theirs.
  if (results.some(({ status }) => status === "rejected")) throw failed.signal.reason;
}
