/**
 * A checkpoint: the tensors of one safetensors file or of several shards under one map of names, read in bounded
 * pieces, so that loading a model never holds a second copy of its weights.
 *
 * @module
 */
import { DTYPE_BYTES, openSafetensors, SafetensorsError, type TensorInfo } from "./safetensors.ts";
import { checkPath, readJson, type Source } from "./source.ts";

/** The tensors of a checkpoint. */
export interface Checkpoint {
  /** Where the bytes come from. */
  readonly source: Source;
  /** The safetensors files it consists of. */
  readonly paths: readonly string[];
  /** All tensors by name. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The sum of all tensors' bytes. */
  readonly totalBytes: number;
}

/** A piece of a tensor's bytes. */
export interface TensorChunk {
  /** The first byte's place in the tensor; a multiple of the element size. */
  readonly offset: number;
  /** Whole elements, little-endian, in a buffer of their own (offset 0, so any typed array fits over it). */
  readonly bytes: Uint8Array<ArrayBuffer>;
}

const INDEX = "model.safetensors.index.json";

/** Pieces of 8 MiB: large enough that a request costs nothing beside its bytes. */
const CHUNK_BYTES = 8 * 1024 * 1024;

/**
 * Opens a checkpoint: the shards that `model.safetensors.index.json` names, else `model.safetensors`, else every
 * `model*.safetensors` there is. Files of other names belong to something else.
 *
 * @throws {SafetensorsError} if there is none, a file is malformed, two files have a tensor of the same name, or the
 * index names a file or tensor that is not there.
 *
 * @example
 * ```ts
 * import { assertRejects } from "@std/assert";
 * import { openCheckpoint } from "./checkpoint.ts";
 * import { memorySource } from "./source.ts";
 *
 * await assertRejects(() => openCheckpoint(memorySource({})), Error, "no model*.safetensors");
 * ```
 */
export async function openCheckpoint(source: Source): Promise<Checkpoint> {
  const index = await readIndex(source);
  const paths = index ? [...new Set(index.values())].sort() : await findFiles(source);
  const tensors = new Map<string, TensorInfo>();
  let totalBytes = 0;
  for (const path of paths) {
    const file = await openShard(source, path, index !== undefined);
    for (const tensor of file.tensors.values()) {
      const other = tensors.get(tensor.name);
      if (other) {
        throw new SafetensorsError(
          "duplicate name",
          { source, path },
          `tensor "${tensor.name}" is in "${other.path}" too`,
        );
      }
      tensors.set(tensor.name, tensor);
      totalBytes += tensor.length;
    }
  }
  for (const [name, path] of index ?? []) {
    const found = tensors.get(name)?.path;
    if (found === path) continue;
    const where = found === undefined ? "it has none" : `it is in "${found}"`;
    throw new SafetensorsError(
      "index",
      { source, path: INDEX },
      `it names tensor ${JSON.stringify(name)} in "${path}", but ${where}`,
    );
  }
  return { source, paths, tensors, totalBytes };
}

async function openShard(source: Source, path: string, named: boolean): ReturnType<typeof openSafetensors> {
  try {
    return await openSafetensors(source, path);
  } catch (error) {
    if (!named || !(error instanceof SafetensorsError) || error.problem !== "missing file") throw error;
    throw new SafetensorsError("index", { source, path: INDEX }, `it names the file "${path}", which is not there`);
  }
}

/** The index's `weight_map`, file by tensor name; undefined where there is no index. */
async function readIndex(source: Source): Promise<Map<string, string> | undefined> {
  const json = await readJson(source, INDEX).catch((error: Error) => {
    throw error.cause instanceof SyntaxError
      ? new SafetensorsError("index", { source, path: INDEX }, error.cause.message)
      : error;
  });
  if (json === undefined) return undefined;
  const map = (json as { weight_map?: unknown } | null)?.weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map) || Object.keys(map).length === 0) {
    throw new SafetensorsError("index", { source, path: INDEX }, "it has no weight_map");
  }
  for (const [name, path] of Object.entries(map)) {
    if (typeof path !== "string" || !path.endsWith(".safetensors")) {
      throw new SafetensorsError(
        "index",
        { source, path: INDEX },
        `it puts tensor "${name}" in ${JSON.stringify(path)}, no safetensors file`,
      );
    }
    checkPath(path);
  }
  return new Map(Object.entries(map));
}

async function findFiles(source: Source): Promise<string[]> {
  if (await source.size("model.safetensors") !== undefined) return ["model.safetensors"];
  const paths = (await source.list()).filter((path) => /^model[^/]*\.safetensors$/.test(path));
  if (paths.length > 0) return paths;
  throw new SafetensorsError("missing file", { source, path: "model.safetensors" }, "there is no model*.safetensors");
}

/**
 * The bytes of a tensor, piece by piece, in order.
 *
 * @param chunkBytes most bytes of a piece; rounded down to whole elements, at least one.
 *
 * @example
 * ```ts
 * import { openCheckpoint, readTensorChunks } from "./checkpoint.ts";
 * import type { Source } from "./source.ts";
 *
 * async function sumOfBytes(source: Source, name: string): Promise<number> {
 *   const { tensors } = await openCheckpoint(source);
 *   let sum = 0;
 *   for await (const { bytes } of readTensorChunks(source, tensors.get(name)!)) {
 *     for (const byte of bytes) sum += byte;
 *   }
 *   return sum;
 * }
 * ```
 */
export async function* readTensorChunks(
  source: Source,
  tensor: TensorInfo,
  chunkBytes: number = CHUNK_BYTES,
): AsyncGenerator<TensorChunk> {
  const element = DTYPE_BYTES[tensor.dtype];
  const step = Math.max(element, chunkBytes - chunkBytes % element);
  for (let offset = 0; offset < tensor.length; offset += step) {
    const length = Math.min(step, tensor.length - offset);
    yield { offset, bytes: await source.read(tensor.path, tensor.offset + offset, length) };
  }
}

/**
 * Copies a tensor's bytes to the start of `target`, piece by piece.
 *
 * @throws {RangeError} if `target` is shorter than the tensor.
 */
export async function readTensorInto(
  source: Source,
  tensor: TensorInfo,
  target: Uint8Array,
  chunkBytes: number = CHUNK_BYTES,
): Promise<void> {
  if (target.byteLength < tensor.length) {
    throw new RangeError(
      `Cannot read "${tensor.name}": it has ${tensor.length} bytes, the target ${target.byteLength}`,
    );
  }
  for await (const { offset, bytes } of readTensorChunks(source, tensor, chunkBytes)) target.set(bytes, offset);
}

/** All bytes of a tensor at once, for small ones such as norms and biases. */
export function readTensor(source: Source, tensor: TensorInfo): Promise<Uint8Array<ArrayBuffer>> {
  return source.read(tensor.path, tensor.offset, tensor.length);
}
