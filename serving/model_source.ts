/**
 * From a model's name to its files: a folder, a model on the Hugging Face hub, or nothing: the story model.
 *
 * @module
 */
import { fileSource } from "../model/deno/file_source.ts";
import { downloadModel, type DownloadProgress, HubError, isHubId } from "../model/deno/hub.ts";
import type { Source } from "../model/source.ts";
import type { LoadOptions, LoadProgress } from "./model.ts";
import { storyModelFolder } from "./story_model.ts";

/** A model's name for people, and its files. */
export interface NamedSource {
  readonly name: string;
  readonly source: Source;
  /** The folder that holds the files, where one does: another thread can read them itself. */
  readonly folder?: string;
}

/**
 * The files of a model, downloaded where need be.
 *
 * @param source A folder, a Hugging Face id (`Qwen/Qwen2-0.5B-Instruct`), or nothing: the story model. A folder of that name goes first.
 * @throws {Error} if there is no such model, or it cannot be downloaded.
 *
 * @example
 * ```ts
 * import { openSource } from "@tinyllm/tinyllm";
 *
 * const source = await openSource();
 * console.log(await source.list());
 * ```
 */
export async function openSource(source?: string | Source, options: LoadOptions = {}): Promise<Source> {
  return (await openNamed(source, options)).source;
}

/** As {@linkcode openSource}, with the model's name. */
export async function openNamed(source: string | Source | undefined, options: LoadOptions): Promise<NamedSource> {
  const { revision, onProgress, signal } = options;
  if (source === undefined) {
    refuseRevision(revision, "the story model");
    return fromFolder("the story model", await storyModelFolder({ onProgress, signal }));
  }
  if (typeof source !== "string") {
    if (typeof source?.readText !== "function") {
      throw new TypeError(`Cannot load ${Deno.inspect(source)}: give a folder, a Hugging Face id or a Source`);
    }
    refuseRevision(revision, source.name);
    return { name: source.name, source };
  }
  const name = source.replace(/(?<=.)\/+$/, "");
  const kind = await kindOf(name);
  if (kind === "folder") {
    refuseRevision(revision, name);
    return fromFolder(name, name);
  }
  if (kind === "file") throw new Error(`Cannot load "${source}": it is a file, give the folder that holds it`);
  if (!isHubId(name)) {
    throw new Error(
      `Cannot load "${source}": there is no such folder, and it is no Hugging Face id such as "Qwen/Qwen2-0.5B-Instruct"`,
    );
  }
  const folder = await downloadModel(name, {
    ...(revision !== undefined && { revision }),
    ...(signal && { signal }),
    ...(onProgress && { onProgress: (progress: DownloadProgress) => onProgress(downloadProgress(progress)) }),
  }).catch((cause) => {
    if (!(cause instanceof HubError)) throw cause;
    // A folder may have been meant, and its name misspelt.
    cause.message += `. There is no folder "${source}" here either.`;
    throw cause;
  });
  return fromFolder(name, folder);
}

function fromFolder(name: string, folder: string): NamedSource {
  return { name, source: fileSource(folder), folder };
}

/** To ignore it would be to load something else than was asked for. */
function refuseRevision(revision: string | undefined, name: string): void {
  if (revision === undefined) return;
  throw new Error(
    `Cannot load revision "${revision}" of "${name}": only models on the hub have revisions, leave it out`,
  );
}

function downloadProgress(progress: DownloadProgress): LoadProgress {
  return { phase: "download", ...progress };
}

async function kindOf(path: string): Promise<"folder" | "file" | undefined> {
  try {
    return (await Deno.stat(path)).isDirectory ? "folder" : "file";
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound || cause instanceof Deno.errors.NotADirectory) return undefined;
    throw cause;
  }
}
