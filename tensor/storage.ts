/**
 * What a buffer leaf stands for: values that outlive a program. Host data waits here until a device first needs it; state
 * (a KV pool) starts as zeros. The version counts writes, so that a stale read is caught while tracing.
 *
 * @module
 */
import { elementCount, formatShape, type Shape } from "./dim.ts";
import { bytesPerElement, type DType, type HostArray } from "./dtype.ts";

/** A buffer that was put on a device: a range of a GPUBuffer, read through as many bindings as its size needs. */
export interface Resident {
  /** The device's buffer. */
  readonly buffer: GPUBuffer;
  /** Where it begins in that buffer: a multiple of 256. */
  readonly offset: number;
  /** Accounted bytes. */
  readonly bytes: number;
  /** The device that owns it: an identity, compared only. */
  readonly owner: object;
  /** Destroys the buffer and gives its bytes back. */
  release(): void;
}

let nextId = 0;

/** Bytes of a leaf, on the host, on a device, or still zeros. Shapes hold numbers only. */
export class Storage {
  /** Unique number: storages are never merged by structure. */
  readonly id: number = nextId++;
  /** Writes traced so far. */
  version = 0;
  /** Where the values are on a device. */
  resident: Resident | undefined;
  /** The device's account, so that a released storage is found out. */
  released = false;

  /**
   * Makes a storage that is on no device yet.
   *
   * @param dtype Element type.
   * @param shape Sizes, numbers only.
   * @param host Values in row-major order; zeros unless given. f16 values are given as f32 numbers.
   * @param label Name for errors and `explain()`.
   */
  constructor(
    readonly dtype: DType,
    readonly shape: Shape,
    public host?: HostArray,
    readonly label: string = "buffer",
  ) {
    for (const dim of shape) {
      if (typeof dim !== "number") throw new Error(`Cannot make buffer "${label}": size ${dim} is a symbol`);
    }
    if (host && host.length !== elementCount(shape)) {
      throw new Error(`Cannot make a tensor of ${formatShape(shape)}: ${host.length} values given`);
    }
  }

  /** Bytes on a device, rounded up to 16. */
  bytes(f16: boolean): number {
    return Math.max(16, Math.ceil(elementCount(this.shape) * bytesPerElement(this.dtype, f16) / 16) * 16);
  }

  /** Frees the device's copy. Programs that were compiled against it fail when they run next. */
  release(): void {
    this.resident?.release();
    this.resident = undefined;
    this.host = undefined;
    this.released = true;
  }
}
