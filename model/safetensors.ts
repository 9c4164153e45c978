/**
 * The safetensors format: 8 bytes of header length (little-endian u64), a JSON header that gives each tensor's dtype,
 * shape and place, then the tensors' bytes, back to back. Only the header is held in memory; tensors are read in
 * pieces.
 *
 * Files come from anywhere, so everything the header says is checked against the file before it is believed.
 * Format: https://github.com/huggingface/safetensors#format
 *
 * @module
 */
import type { Source } from "./source.ts";

/** Bytes of one element of each known dtype. */
export const DTYPE_BYTES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
} as const;

/** A dtype as safetensors spells it. */
export type SafetensorsDtype = keyof typeof DTYPE_BYTES;

/** One tensor and where its bytes are. */
export interface TensorInfo {
  /** Its name, such as `model.layers.0.mlp.up_proj.weight`. */
  readonly name: string;
  /** The type of its elements. */
  readonly dtype: SafetensorsDtype;
  /** Row-major; `[]` is a scalar. */
  readonly shape: readonly number[];
  /** The file it is in, as the source knows it. */
  readonly path: string;
  /** Its first byte in the file. Any number: writers need not align it to the element. */
  readonly offset: number;
  /** Its bytes: the product of the shape times the element's size. */
  readonly length: number;
}

/** A parsed header. */
export interface SafetensorsFile {
  /** The file, as the source knows it. */
  readonly path: string;
  /** By name, in the order of the bytes. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** The header's `__metadata__`, such as `{ format: "pt" }`. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** What is wrong with a malformed file. */
export type SafetensorsProblem =
  | "missing file"
  | "truncated file"
  | "trailing bytes"
  | "header length"
  | "header text"
  | "duplicate name"
  | "tensor entry"
  | "unknown dtype"
  | "absurd size"
  | "wrong length"
  | "overlap"
  | "hole"
  | "index";

/** A file for messages: its path alone would not tell which of many models it belongs to. */
export interface FilePlace {
  /** Where it comes from. */
  readonly source: Pick<Source, "name">;
  /** The file, as the source knows it. */
  readonly path: string;
}

/** A malformed safetensors file, or an index that does not fit its files. */
export class SafetensorsError extends Error {
  /**
   * Words the problem of a file.
   *
   * @param problem which check failed.
   * @param file which file, and where it is.
   */
  constructor(readonly problem: SafetensorsProblem, file: FilePlace, reason: string) {
    super(`Cannot load "${file.path}" of "${file.source.name}": ${reason}`);
    this.name = "SafetensorsError";
  }
}

/** The format's own limit on the header; the reference implementation refuses longer ones too. */
const MAX_HEADER_BYTES = 100_000_000;

/**
 * Reads and checks a file's header.
 *
 * @throws {SafetensorsError} for each way in which a file can be malformed.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { memorySource } from "./source.ts";
 * import { openSafetensors } from "./safetensors.ts";
 *
 * const header = new TextEncoder().encode('{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}');
 * const bytes = new Uint8Array([header.length, 0, 0, 0, 0, 0, 0, 0, ...header, 7, 8]);
 * const { tensors } = await openSafetensors(memorySource({ "x.safetensors": bytes }), "x.safetensors");
 * assertEquals(tensors.get("x")?.shape, [2]);
 * ```
 */
export async function openSafetensors(source: Source, path: string): Promise<SafetensorsFile> {
  const file: FilePlace = { source, path };
  const size = await source.size(path);
  if (size === undefined) throw new SafetensorsError("missing file", file, "there is no such file");
  if (size < 8) throw new SafetensorsError("truncated file", file, `it has ${size} bytes, a header length takes 8`);
  const prefix = await source.read(path, 0, 8);
  const headerBytes = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (headerBytes > BigInt(MAX_HEADER_BYTES)) {
    throw new SafetensorsError(
      "header length",
      file,
      `header says ${headerBytes} bytes, the format allows ${MAX_HEADER_BYTES}: is it a safetensors file?`,
    );
  }
  const dataStart = 8 + Number(headerBytes);
  if (dataStart > size) {
    throw new SafetensorsError(
      "header length",
      file,
      `header says ${headerBytes} bytes, file has ${size - 8} after it`,
    );
  }
  const header = parseHeader(file, await source.read(path, 8, Number(headerBytes)));
  const tensors: TensorInfo[] = [];
  let metadata: Record<string, string> = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") metadata = parseMetadata(file, entry);
    else tensors.push(parseEntry(file, name, entry, dataStart));
  }
  checkLayout(file, tensors, dataStart, size);
  return { path, tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])), metadata };
}

function parseHeader(file: FilePlace, bytes: Uint8Array): Record<string, unknown> {
  let text: string;
  let header: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    header = JSON.parse(text);
  } catch (cause) {
    throw new SafetensorsError("header text", file, `the header is not JSON (${(cause as Error).message})`);
  }
  if (!isRecord(header)) throw new SafetensorsError("header text", file, "the header is no JSON object");
  const duplicate = duplicateKey(text);
  if (duplicate !== undefined) {
    throw new SafetensorsError("duplicate name", file, `the header names ${JSON.stringify(duplicate)} twice`);
  }
  return header;
}

/** The first key that an object of valid JSON has twice, at any depth; JSON.parse would silently keep the last. */
function duplicateKey(json: string): string | undefined {
  const open: (Set<string> | undefined)[] = []; // a set for each open object, undefined for an array
  const token = /"(?:[^"\\]|\\.)*"(\s*:)?|[{}[\]]/g;
  for (let match = token.exec(json); match !== null; match = token.exec(json)) {
    const text = match[0];
    if (text === "{") open.push(new Set());
    else if (text === "[") open.push(undefined);
    else if (text === "}" || text === "]") open.pop();
    else if (match[1] !== undefined) {
      const key: string = JSON.parse(text.slice(0, -match[1].length));
      const keys = open.at(-1);
      if (keys?.has(key)) return key;
      keys?.add(key);
    }
  }
  return undefined;
}

function parseMetadata(file: FilePlace, entry: unknown): Record<string, string> {
  if (isRecord(entry) && Object.values(entry).every((value) => typeof value === "string")) {
    return entry as Record<string, string>;
  }
  throw new SafetensorsError("header text", file, "__metadata__ is no object of strings");
}

function parseEntry(file: FilePlace, name: string, entry: unknown, dataStart: number): TensorInfo {
  const fail = (problem: SafetensorsProblem, reason: string): never => {
    throw new SafetensorsError(problem, file, `tensor ${JSON.stringify(name)} ${reason}`);
  };
  if (!isRecord(entry)) return fail("tensor entry", "has no dtype, shape and data_offsets");
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== "string") return fail("tensor entry", "has no dtype");
  if (!Object.hasOwn(DTYPE_BYTES, dtype)) {
    return fail(
      "unknown dtype",
      `has dtype ${JSON.stringify(dtype)}; known are ${Object.keys(DTYPE_BYTES).join(", ")}`,
    );
  }
  if (!isSizeList(shape)) return fail("tensor entry", `has shape ${JSON.stringify(shape)}, no list of sizes`);
  if (!isSizeList(offsets) || offsets.length !== 2) {
    return fail("tensor entry", `has data_offsets ${JSON.stringify(offsets)}, not two byte offsets`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) return fail("tensor entry", `begins at byte ${begin} and ends before it, at ${end}`);
  // A zero-sized dimension makes any other harmless; without it a product above 2^53 would be rounded, and no file has
  // it.
  const product = shape.includes(0) ? 0 : shape.reduce((elements, size) => elements * size, 1);
  const length = product * DTYPE_BYTES[dtype as SafetensorsDtype];
  if (!Number.isSafeInteger(length)) {
    return fail("absurd size", `of shape [${shape.join(", ")}] would not fit any file`);
  }
  if (length !== end - begin) {
    return fail(
      "wrong length",
      `of ${dtype} [${shape.join(", ")}] takes ${length} bytes, its offsets give ${end - begin}`,
    );
  }
  return { name, dtype: dtype as SafetensorsDtype, shape, path: file.path, offset: dataStart + begin, length };
}

/** Sorts tensors by place and proves that they fill the data part exactly: none past the end, no overlap, no hole. */
function checkLayout(file: FilePlace, tensors: TensorInfo[], dataStart: number, size: number): void {
  tensors.sort((a, b) => a.offset - b.offset || a.length - b.length);
  let end = dataStart;
  let previous = "the header";
  for (const tensor of tensors) {
    const name = JSON.stringify(tensor.name);
    if (tensor.offset + tensor.length > size) {
      const needed = tensor.offset + tensor.length;
      throw new SafetensorsError("truncated file", file, `tensor ${name} ends at byte ${needed}, file has ${size}`);
    }
    if (tensor.offset < end) {
      throw new SafetensorsError(
        "overlap",
        file,
        `tensor ${name} overlaps ${previous} by ${end - tensor.offset} bytes`,
      );
    }
    if (tensor.offset > end) {
      throw new SafetensorsError(
        "hole",
        file,
        `${tensor.offset - end} bytes before tensor ${name} belong to no tensor`,
      );
    }
    end += tensor.length;
    previous = name;
  }
  if (end < size) {
    throw new SafetensorsError("trailing bytes", file, `header says the tensors end at byte ${end}, file has ${size}`);
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSizeList(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}
