/**
 * Reading results back. `await mapAsync` sleeps 10 ms in this runtime after the GPU has finished, whatever the work; the wait
 * itself happens inside the call. On a staging buffer that was mapped once before, the mapping is there when the call
 * returns, and the bytes can be taken at once (0.1 ms). That leans on an implementation detail, so it is proven on a
 * sentinel when the device starts, checked at each read by a word that changes, and replaced by `await` where it fails.
 *
 * @module
 */
import type { Submission } from "./submission.ts";

const GUARD_BYTES = 16;

/** Makes a buffer, and tells how to free it. */
export type AllocateBuffer = (
  bytes: number,
  usage: GPUBufferUsageFlags,
  what: string,
) => { readonly buffer: GPUBuffer; readonly bytes: number; release(): void };

/** What happens along with a read. */
export interface ReadOptions {
  /** Runs that it is submitted with, behind them: a submission less. */
  readonly behind?: Submission | undefined;
  /** Called once all is submitted: the wait itself lets nothing else happen. */
  readonly meanwhile?: (() => void) | undefined;
  /**
   * Called as soon as the bytes ought to be there, before they are taken: the device has nothing to do from then on. Where the fast
   * path fails, which happens once at most, it comes too early.
   */
  readonly arrived?: (() => void) | undefined;
}

/** Reads ranges of buffers to the host. */
export class Readback {
  #staging: ReturnType<AllocateBuffer> | undefined;
  #guard: ReturnType<AllocateBuffer> | undefined;
  #capacity = 0;
  #fast: boolean | undefined;
  #ticket = 1;
  #queue: Promise<unknown> = Promise.resolve();
  /** A word that is read along, and has to be 0. */
  health: GPUBuffer | undefined;

  /**
   * A reader for a device.
   *
   * @param gpu The device. @param allowFast Whether the fast path may be tried.
   * @param allocate Makes staging memory; the device does, unless someone keeps account.
   */
  constructor(
    readonly gpu: GPUDevice,
    readonly allowFast: boolean = true,
    readonly allocate: AllocateBuffer = (size, usage, label) => {
      const buffer = gpu.createBuffer({ size, usage, label });
      return { buffer, bytes: size, release: () => buffer.destroy() };
    },
  ) {}

  /** Bytes of staging memory: as much as the largest read so far, rounded up to a power of two. */
  get bytes(): number {
    return (this.#staging?.bytes ?? 0) + (this.#guard?.bytes ?? 0);
  }

  /** Bytes that staging memory grows by when so many are read. */
  growth(bytes: number): number {
    return this.#staging && this.#capacity >= bytes ? 0 : 2 * GUARD_BYTES + capacityFor(bytes) - this.bytes;
  }

  /** Whether reads are taken without awaiting; undefined before the first. */
  get fast(): boolean | undefined {
    return this.#fast;
  }

  /** Copies `bytes` from `source` and returns them. Calls are served in order. */
  read(source: GPUBuffer, offset: number, bytes: number, options: ReadOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
    const result = this.#queue.then(() => this.#read(source, offset, bytes, options));
    this.#queue = result.catch(() => {});
    return result;
  }

  async #read(
    source: GPUBuffer,
    offset: number,
    bytes: number,
    { behind, meanwhile, arrived }: ReadOptions,
  ): Promise<Uint8Array<ArrayBuffer>> {
    if (bytes === 0) {
      behind?.flush();
      meanwhile?.();
      arrived?.();
      return new Uint8Array(0);
    }
    const size = Math.ceil(bytes / 4) * 4;
    await this.#reserve(size);
    const staging = this.#staging!.buffer, guard = this.#guard!.buffer, ticket = this.#ticket++ >>> 0;
    this.gpu.queue.writeBuffer(guard, 0, new Uint32Array([ticket]));
    const encoder = this.gpu.createCommandEncoder();
    encoder.copyBufferToBuffer(source, offset, staging, GUARD_BYTES, size);
    encoder.copyBufferToBuffer(guard, 0, staging, 0, 4);
    if (this.health) encoder.copyBufferToBuffer(this.health, 0, staging, 4, 4);
    if (behind) {
      behind.add(encoder.finish());
      behind.flush();
    } else this.gpu.queue.submit([encoder.finish()]);
    meanwhile?.();
    const range = GUARD_BYTES + size;
    if (this.#fast) {
      const mapped = staging.mapAsync(GPUMapMode.READ, 0, range);
      mapped.catch(() => {});
      tell(arrived, staging);
      const taken = this.#take(staging, ticket, size);
      if (taken) return this.#healthy(taken, bytes);
      await mapped;
      this.#fast = false;
    } else {
      await staging.mapAsync(GPUMapMode.READ, 0, range);
      tell(arrived, staging);
    }
    const copy = staging.getMappedRange(0, range).slice(0);
    staging.unmap();
    return this.#healthy(copy, bytes);
  }

  /** What was read, if all workgroups of joined dispatches have met. */
  #healthy(read: ArrayBuffer, bytes: number): Uint8Array<ArrayBuffer> {
    if (this.health && new Uint32Array(read, 4, 1)[0] !== 0) {
      throw new Error(
        "Cannot trust the GPU's results: workgroups of a joined dispatch waited in vain for others. Is another program using it? " +
          "Load the model again.",
      );
    }
    return new Uint8Array(read, GUARD_BYTES, bytes);
  }

  /** The bytes, if the mapping is there already and holds this read's ticket. */
  #take(staging: GPUBuffer, ticket: number, size: number): ArrayBuffer | undefined {
    try {
      const bytes = staging.getMappedRange(0, GUARD_BYTES + size).slice(0);
      if (new Uint32Array(bytes, 0, 1)[0] !== ticket) return undefined;
      staging.unmap();
      return bytes;
    } catch {
      return undefined;
    }
  }

  /** Makes a staging buffer that is large enough, and maps it once with `await`: what the fast path needs. */
  async #reserve(size: number): Promise<void> {
    if (this.#staging && this.#capacity >= size) return;
    this.destroy();
    const capacity = capacityFor(size), { COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
    this.#guard = this.allocate(GUARD_BYTES, COPY_SRC | COPY_DST, "the guard of reading back");
    this.#staging = this.allocate(GUARD_BYTES + capacity, MAP_READ | COPY_DST, "reading back");
    this.#capacity = capacity;
    await this.#staging.buffer.mapAsync(GPUMapMode.READ);
    this.#staging.buffer.unmap();
    this.#fast ??= this.allowFast;
  }

  /** Frees the staging memory. */
  destroy(): void {
    this.#staging?.release();
    this.#guard?.release();
    this.#staging = this.#guard = undefined;
  }
}

/** Bytes that staging memory has for reads of so many. */
function capacityFor(bytes: number): number {
  return Math.max(4096, 2 ** Math.ceil(Math.log2(bytes)));
}

/** Calls who wants to know that a staging buffer is mapped; it does not stay so where that fails. */
function tell(arrived: ReadOptions["arrived"], staging: GPUBuffer): void {
  try {
    arrived?.();
  } catch (cause) {
    staging.unmap();
    throw cause;
  }
}
