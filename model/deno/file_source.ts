/**
 * A checkpoint in a folder, read by ranges. The only way in which the model floor touches the file system, besides the
 * hub.
 *
 * @module
 */
import { checkPath, checkRange, shortRead, type Source } from "../source.ts";

/**
 * A source of the files in a folder. Files are opened for each read and closed after it, so there is nothing to dispose
 * of.
 *
 * @param folder a path; symbolic links in it are followed, as the hub's cache consists of them.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { fileSource } from "./file_source.ts";
 *
 * const folder = await Deno.makeTempDir();
 * await Deno.writeTextFile(`${folder}/config.json`, "{}");
 * assertEquals(await fileSource(folder).list(), ["config.json"]);
 * await Deno.remove(folder, { recursive: true });
 * ```
 */
export function fileSource(folder: string): Source {
  const resolve = (path: string): string => {
    checkPath(path);
    return `${folder}/${path}`;
  };
  return {
    name: folder,
    async list() {
      return (await Array.fromAsync(listFiles(folder, ""))).sort();
    },
    async size(path) {
      const info = await missingAsUndefined(Deno.stat(resolve(path)));
      return info?.isFile ? info.size : undefined;
    },
    async read(path, offset, length) {
      checkRange(path, offset, length);
      using file = await openFile(resolve(path));
      const bytes = await readRange(file, offset, length);
      if (bytes) return bytes;
      throw new Error(shortRead(`${folder}/${path}`, offset, length, (await file.stat()).size));
    },
    async readText(path) {
      return await missingAsUndefined(Deno.readTextFile(resolve(path)));
    },
  };
}

/** Paths of the files in a folder and the folders in it, links followed; hidden ones are none of a checkpoint's. */
async function* listFiles(folder: string, prefix: string): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(`${folder}/${prefix}`)) {
    if (entry.name.startsWith(".")) continue;
    const path = prefix + entry.name;
    const info = entry.isSymlink ? await missingAsUndefined(Deno.stat(`${folder}/${path}`)) : entry;
    if (info?.isFile) yield path;
    // Folders are entered, links to folders are not: they may lead back up.
    if (entry.isDirectory) yield* listFiles(folder, `${path}/`);
  }
}

async function openFile(path: string): Promise<Deno.FsFile> {
  try {
    return await Deno.open(path);
  } catch (cause) {
    throw new Error(`Cannot read "${path}": ${(cause as Error).message}`, { cause });
  }
}

/** Exactly that range, or undefined where the file ends before. */
async function readRange(
  file: Deno.FsFile,
  offset: number,
  length: number,
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  // Checked first, so that a lying header cannot make us allocate what no file holds.
  if (offset + length > (await file.stat()).size) return undefined;
  await file.seek(offset, Deno.SeekMode.Start);
  const bytes = new Uint8Array(length);
  for (let filled = 0; filled < length;) {
    const count = await file.read(bytes.subarray(filled));
    if (count === null) return undefined;
    filled += count;
  }
  return bytes;
}

async function missingAsUndefined<T>(promise: Promise<T>): Promise<T | undefined> {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw error;
  }
}
