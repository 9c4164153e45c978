/**
 * Brings a checkpoint's tensors onto a device in the one form that kernels read: dense, or group-affine codes. Matrices that
 * are applied to the same input (q, k and v; gate and up) become one where their formats agree, so that a step has fewer
 * dispatches. Bytes travel in pieces: no file is ever held whole.
 *
 * @module
 */
import {
  type FloatType,
  packAffine,
  packDense,
  type Weight,
  type WeightFormat,
  weightTensorTypes,
} from "../kernels/weight_format.ts";
import type { Device } from "../tensor/device.ts";
import { elementCount, formatShape } from "../tensor/dim.ts";
import { buffer } from "../tensor/node.ts";
import { Slabs } from "../tensor/slab.ts";
import { Storage } from "../tensor/storage.ts";
import { type Checkpoint, readTensor, readTensorChunks } from "./checkpoint.ts";
import type { DecoderConfig } from "./config.ts";
import { bfloat16ToFloat32, float16ToFloat32 } from "./float.ts";
import { quantizationOf } from "./quantization.ts";
import type { TensorInfo } from "./safetensors.ts";

/** A weight matrix on a device. */
export interface StoredWeight {
  /** How it is stored. */
  readonly format: WeightFormat;
  /** Outputs. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
  /** Its tensors, in the format's order. */
  readonly storages: readonly Storage[];
}

/** A matrix of a checkpoint before it is loaded. */
export interface Located {
  /** Its name, without `.weight`. */
  readonly path: string;
  /** How it is stored. */
  readonly format: WeightFormat;
  /** Outputs. */
  readonly rows: number;
  /** Inputs. */
  readonly columns: number;
}

/** Most bytes of a slab of weights: a few hold any model. */
const SLAB_BYTES = 1 << 30;

const floatTypes: Readonly<Record<string, FloatType>> = { F32: "f32", F16: "f16", BF16: "bf16" };

/**
 * Bytes that the weights of a checkpoint take on a device, as its headers tell: vectors become f32, every storage is aligned, and a
 * head that is the embedding is left out.
 */
export function weightBytes({ tensors }: Checkpoint, { tieWordEmbeddings }: DecoderConfig): number {
  const used = [...tensors.values()].filter(({ name }) => !(tieWordEmbeddings && name.startsWith("lm_head.")));
  return used.reduce((sum, { shape, length }) => {
    return sum + Slabs.round(shape.length === 1 ? 4 * elementCount(shape) : length);
  }, 0);
}

/** The graph's view of a stored matrix. */
export function weightNode({ format, rows, columns, storages }: StoredWeight): Weight {
  return { format, rows, columns, tensors: storages.map((storage) => buffer(storage)) };
}

/** Reads weights by their names in the checkpoint. */
export class WeightLoader {
  readonly #storages: Storage[] = [];
  readonly #slabs: Slabs;
  #loaded = 0;

  /** A loader for one checkpoint and device; `onBytes` is told the bytes loaded so far. */
  constructor(
    readonly device: Device,
    readonly checkpoint: Checkpoint,
    readonly config: DecoderConfig,
    readonly onBytes: (loaded: number) => void = () => {},
    readonly signal?: AbortSignal,
  ) {
    const most = Math.min(device.gpu.limits.maxBufferSize, SLAB_BYTES);
    this.#slabs = new Slabs(device, most, "weights", weightBytes(checkpoint, config));
  }

  /** Everything loaded so far. */
  get storages(): readonly Storage[] {
    return this.#storages;
  }

  /** Frees everything loaded so far. */
  release(): void {
    this.#storages.forEach((storage) => storage.release());
  }

  #tensor(name: string): TensorInfo {
    const tensor = this.checkpoint.tensors.get(name);
    if (!tensor) throw new Error(`Cannot load the model: its checkpoint has no tensor "${name}"`);
    return tensor;
  }

  #float(tensor: TensorInfo): FloatType {
    const type = floatTypes[tensor.dtype];
    if (!type) throw new Error(`Cannot load "${tensor.name}": its type is ${tensor.dtype}, not F32, F16 or BF16`);
    return type;
  }

  #store(storage: Storage): Storage {
    this.#storages.push(storage);
    this.#slabs.place(storage);
    return storage;
  }

  #count(bytes: number): void {
    this.signal?.throwIfAborted();
    this.#loaded += bytes;
    this.onBytes(this.#loaded);
  }

  /** A vector (a norm's weight, a bias, several biases end to end) as f32. */
  async vector(names: readonly string[], lengths: readonly number[]): Promise<Storage> {
    const parts: Float32Array[] = [];
    for (const [i, name] of names.entries()) {
      const tensor = this.#tensor(name);
      if (elementCount(tensor.shape) !== lengths[i]) {
        throw new Error(`Cannot load "${name}": its shape is ${formatShape(tensor.shape)}, expected [${lengths[i]}]`);
      }
      const type = this.#float(tensor), bytes = await readTensor(this.checkpoint.source, tensor);
      const halves = new Uint16Array(bytes.buffer, 0, bytes.byteLength >> 1);
      const words = type === "f32"
        ? new Float32Array(bytes.buffer)
        : type === "f16"
        ? float16ToFloat32(halves)
        : bfloat16ToFloat32(halves);
      parts.push(words);
      this.#count(bytes.byteLength);
    }
    const values = new Float32Array(lengths.reduce((a, b) => a + b, 0));
    parts.reduce((at, part) => (values.set(part, at), at + part.length), 0);
    return this.#store(new Storage("f32", [values.length], values, names.join(" + ")));
  }

  /** How the matrix `<path>.weight` is stored, checked against its expected size. */
  locate(path: string, rows: number, columns: number): Located {
    const weight = this.#tensor(`${path}.weight`), scales = this.checkpoint.tensors.get(`${path}.scales`);
    const stored = scales && {
      inFeatures: columns,
      weightColumns: weight.shape[1] ?? 0,
      scaleColumns: scales.shape[1] ?? 0,
    };
    const affine = quantizationOf(this.config.quantization, path, stored);
    if (weight.shape.length !== 2 || weight.shape[0] !== rows || (!affine && weight.shape[1] !== columns)) {
      throw new Error(
        `Cannot load "${weight.name}": its shape is ${formatShape(weight.shape)}, expected [${rows}, ${columns}]`,
      );
    }
    if (!affine) return { path, rows, columns, format: { kind: "dense", dtype: this.#float(weight) } };
    const biases = this.#tensor(`${path}.biases`);
    if (
      weight.dtype !== "U32" || biases.dtype !== scales!.dtype ||
      formatShape(biases.shape) !== formatShape(scales!.shape) || scales!.shape[0] !== rows
    ) {
      throw new Error(`Cannot load "${path}": codes, scales and biases do not belong together`);
    }
    const format = { kind: "affine", ...affine, scales: this.#float(scales!) } as WeightFormat;
    return { path, rows, columns, format };
  }

  /** Loads matrices with equal formats as one, rows end to end. Different formats are an error here. */
  async matrix(parts: readonly Located[]): Promise<StoredWeight> {
    const { format, columns } = parts[0]!;
    if (!parts.every((part) => sameFormat(part.format, format))) {
      throw new Error(`Cannot join ${parts.map((part) => part.path).join(", ")}: their formats differ`);
    }
    const rows = parts.reduce((sum, part) => sum + part.rows, 0);
    const label = parts.map((part) => part.path).join(" + ");
    const storages = weightTensorTypes(format, rows, columns).map((type) =>
      this.#store(new Storage(type.dtype, type.shape, undefined, label))
    );
    let row = 0;
    for (const part of parts) {
      if (format.kind === "affine") await this.#affine(part, format.scales, storages, row);
      else await this.#dense(part, format.dtype, storages[0]!, row);
      row += part.rows;
    }
    return { format, rows, columns, storages };
  }

  async #dense(part: Located, dtype: FloatType, storage: Storage, row: number): Promise<void> {
    const tensor = this.#tensor(`${part.path}.weight`), width = (storage.shape[1] as number) * 4;
    if (dtype !== "f32" && part.columns % 2 === 1) { // odd rows are padded: rare and small
      const packed = packDense(await readTensor(this.checkpoint.source, tensor), dtype, part.columns);
      this.device.write(storage, row * width, new Uint8Array(packed.buffer));
      return this.#count(tensor.length);
    }
    await this.#stream(tensor, storage, row * width);
  }

  async #affine(part: Located, scaleType: FloatType, [codes, affine]: readonly Storage[], row: number): Promise<void> {
    const { source } = this.checkpoint;
    await this.#stream(this.#tensor(`${part.path}.weight`), codes!, row * (codes!.shape[1] as number) * 4);
    const scales = this.#tensor(`${part.path}.scales`), biases = this.#tensor(`${part.path}.biases`);
    const packed = packAffine(await readTensor(source, scales), await readTensor(source, biases), scaleType);
    this.device.write(affine!, row * (affine!.shape[1] as number) * 4, new Uint8Array(packed.buffer));
    this.#count(scales.length + biases.length);
  }

  async #stream(tensor: TensorInfo, storage: Storage, at: number): Promise<void> {
    for await (const { offset, bytes } of readTensorChunks(this.checkpoint.source, tensor)) {
      this.device.write(storage, at + offset, bytes);
      this.#count(bytes.byteLength);
    }
  }
}

/** Whether two matrices can lie in one. */
export function sameFormat(a: WeightFormat, b: WeightFormat): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
