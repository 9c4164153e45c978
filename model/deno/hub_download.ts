/**
 * One file from the hub to the cache: resumed where a former try stopped, checked by size and hash, and visible under
 * its final name only when it is right.
 *
 * @module
 */
import { createHash, type Hash } from "node:crypto";
import type { ModelCache } from "./hub_cache.ts";
import { exists } from "./hub_cache.ts";
import { asTransient, type HubContext, HubError, request, TransientError, withRetries } from "./hub_request.ts";

/** What the hub says of a file. */
export interface HubFile {
  /** Its name in the repository. */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** The blob's name in the cache: the sha256 of a large file, git's sha1 of a small one. */
  readonly etag: string;
}

/** How far a file has come. */
export interface DownloadProgress {
  /** Its name in the repository. */
  readonly file: string;
  /** Bytes there, those of former tries included. */
  readonly received: number;
  /** Bytes in all. */
  readonly total: number;
  /** Rate since this download began. */
  readonly bytesPerSecond: number;
  /** Time left at this rate; Infinity while nothing has come. */
  readonly etaSeconds: number;
}

/** Reports of one file are at least so far apart; the first and the last always come. */
const REPORT_EVERY_MS = 100;

/**
 * Brings a file into the cache's blobs, unless it is there.
 *
 * A lock on the unfinished file makes processes take turns: the second one finds the first one's blob.
 *
 * @throws {HubError} if the hub refuses, or keeps sending something else than it announced.
 */
export async function downloadBlob(
  context: HubContext,
  cache: ModelCache,
  file: HubFile,
  onProgress: (progress: DownloadProgress) => void = () => {},
): Promise<void> {
  const blob = cache.blob(file.etag);
  const unfinished = `${blob}.incomplete`;
  for (;;) {
    if (await isWhole(blob, file.size)) return;
    using target = await Deno.open(unfinished, { read: true, write: true, create: true });
    await target.lock(true);
    if (!await isSameFile(target, unfinished)) continue; // it was finished, and renamed, while we waited
    const report = reporter(file, (await target.stat()).size, onProgress);
    await fetchAll(context, target, file, report);
    await target.sync();
    await Deno.rename(unfinished, blob);
    report(file.size, true);
    return;
  }
}

async function isWhole(path: string, size: number): Promise<boolean> {
  return await exists(path) && (await Deno.stat(path)).size === size;
}

async function isSameFile(file: Deno.FsFile, path: string): Promise<boolean> {
  if (!await exists(path)) return false;
  const [held, named] = [await file.stat(), await Deno.stat(path)];
  return held.ino === named.ino && held.dev === named.dev;
}

async function fetchAll(context: HubContext, target: Deno.FsFile, file: HubFile, report: Report): Promise<void> {
  // Progress is what goes beyond every former try: a server that sends the same half again and again makes none.
  let furthest = 0;
  let progressed = false;
  let mismatches = 0;
  await withRetries(context, async () => {
    progressed = false;
    let there = (await target.stat()).size;
    if (there > file.size) await target.truncate(there = 0);
    furthest = Math.max(furthest, there);
    if (there < file.size || file.size === 0) {
      await fetchRest(context, target, file, there, (received) => {
        if (received > furthest) progressed = true;
        furthest = Math.max(furthest, received);
        report(received, false);
      });
    }
    const size = (await target.stat()).size;
    if (size < file.size) {
      throw new TransientError(`Cannot download "${file.name}": ${size} bytes came, the hub says it has ${file.size}`);
    }
    if (await hashMatches(target, file)) return;
    // Bytes of a former, broken try may be among these: one more try, from the first byte.
    await target.truncate(0);
    const message = `Cannot download "${file.name}": its hash is not ${file.etag}`;
    throw ++mismatches > 1 ? new HubError(`${message}, twice`) : new TransientError(message);
  }, () => progressed);
}

/** Appends what the server sends after byte `offset`; starts over where the server cannot resume. */
async function fetchRest(
  context: HubContext,
  target: Deno.FsFile,
  file: HubFile,
  offset: number,
  onReceived: (bytes: number) => void,
): Promise<void> {
  const { environment, id, revision } = context;
  const name = file.name.split("/").map(encodeURIComponent).join("/");
  const url = `${environment.endpoint}/${id}/resolve/${encodeURIComponent(revision)}/${name}`;
  const headers: Record<string, string> = { "accept-encoding": "identity" };
  if (offset > 0) headers.range = `bytes=${offset}-`;
  using watched = await request(context, url, { headers }).catch(async (error) => {
    if (error instanceof HubError && error.status === 416) {
      await target.truncate(0);
      throw new TransientError(error.message);
    }
    throw error;
  });
  const { response } = watched;
  const start = response.headers.get("content-range")?.match(/bytes (\d+)-/)?.[1];
  let received = response.status === 206 && Number(start) === offset ? offset : 0;
  if (response.status === 206 && received !== offset) {
    throw new HubError(`Cannot download "${file.name}": asked for bytes from ${offset} on, they came from ${start}`);
  }
  if (received < offset) await target.truncate(0);
  await target.seek(received, Deno.SeekMode.Start);
  for await (const chunk of bodyChunks(context, url, response)) {
    watched.alive();
    received += chunk.length;
    if (received > file.size) {
      await target.truncate(0);
      throw new HubError(`Cannot download "${file.name}": more bytes came than the ${file.size} the hub says it has`);
    }
    await writeAll(target, chunk);
    onReceived(received);
  }
}

/** The body's chunks; a connection that drops is told from a disk that fails. */
async function* bodyChunks(context: HubContext, url: string, response: Response): AsyncGenerator<Uint8Array> {
  const reader = response.body?.getReader();
  if (!reader) return;
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw asTransient(context, url, error);
      });
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let written = 0; written < bytes.length;) written += await file.write(bytes.subarray(written));
}

/** Large files are named by their sha256, small ones by git's sha1 of `blob <size>\0` and the content. */
async function hashMatches(target: Deno.FsFile, file: HubFile): Promise<boolean> {
  const hash = hashFor(file);
  if (!hash) return true; // a mirror's own kind of etag proves nothing
  await target.seek(0, Deno.SeekMode.Start);
  const buffer = new Uint8Array(1 << 20);
  for (let count = await target.read(buffer); count !== null; count = await target.read(buffer)) {
    hash.update(buffer.subarray(0, count));
  }
  return hash.digest("hex") === file.etag;
}

function hashFor(file: HubFile): Hash | undefined {
  if (/^[0-9a-f]{64}$/.test(file.etag)) return createHash("sha256");
  if (/^[0-9a-f]{40}$/.test(file.etag)) return createHash("sha1").update(`blob ${file.size}\0`);
  return undefined;
}

type Report = (received: number, last: boolean) => void;

/** @param resumed bytes of former tries, which say nothing about this one's rate. */
function reporter(file: HubFile, resumed: number, onProgress: (progress: DownloadProgress) => void): Report {
  const begin = performance.now();
  let first = resumed;
  let previous = -Infinity;
  return (received, last) => {
    const now = performance.now();
    first = Math.min(first, received);
    if (!last && now - previous < REPORT_EVERY_MS) return;
    previous = now;
    const bytesPerSecond = (received - first) / Math.max((now - begin) / 1000, 1e-3);
    const left = file.size - received;
    const etaSeconds = left === 0 ? 0 : left / bytesPerSecond;
    onProgress({ file: file.name, received, total: file.size, bytesPerSecond, etaSeconds });
  };
}
