/**
 * The one module that talks to WebGPU's adapter: it probes features, accounts memory against a limit (drivers
 * overcommit and do not say what they have), caches pipelines, moves bytes, and turns loss of the device into one clear error
 * for everyone who waits.
 *
 * @module
 */
import { type Feature, probe, request } from "./adapter.ts";
import type { Binding } from "./assemble.ts";
import { elementCount, type Shape } from "./dim.ts";
import { type DType, float16Bits, float16Value, type HostArray } from "./dtype.ts";
import type { Caps } from "./kernel.ts";
import { DeviceLostError, OutOfMemoryError } from "./device_errors.ts";
import { Readback, type ReadOptions } from "./readback.ts";
import { type Resident, Storage } from "./storage.ts";

export type { Feature } from "./adapter.ts";
export { DeviceLostError, OutOfMemoryError } from "./device_errors.ts";

/** How a device is opened. */
export interface DeviceOptions {
  /** Which adapter: the fast one unless given; `fallback` asks for a CPU device. */
  readonly preference?: "high-performance" | "low-power" | "fallback";
  /** Features to do without. */
  readonly disable?: readonly Feature[];
  /** Most bytes of buffers at one time. Unlimited unless given. */
  readonly memoryLimit?: number;
  /** Told what each program runs, once it is compiled: a line a dispatch. */
  readonly debug?: (text: string) => void;
}

const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** Largest piece of one upload: larger ones double the peak of host memory in the driver. */
const UPLOAD_PIECE = 1 << 24;

/** A device with its limits, its memory account and its pipelines. */
export class Device {
  /** What kernels may use. */
  readonly caps: Caps;
  /** Reads results back. */
  readonly readback: Readback;
  /** Bytes of buffers alive, those of reading back among them. */
  allocated = 0;
  /** Most bytes alive at one time. */
  peak = 0;
  /** Told what each program runs, once it is compiled. */
  debug: ((text: string) => void) | undefined;
  #failure: Error | undefined;
  #fail!: (cause: Error) => void;
  #failed: Promise<never>;
  #pipelines = new Map<string, { pipeline: GPUComputePipeline; layout: GPUBindGroupLayout }>();
  #layouts = new Map<string, GPUBindGroupLayout>();
  #verdicts = new Set<Promise<void>>();
  #closed = false;
  #health: Resident | undefined;

  /**
   * Use {@linkcode openDevice} or {@linkcode wrapDevice}.
   *
   * @param gpu The WebGPU device. @param adapter What it came from. @param memoryLimit Most bytes of buffers.
   * @param caps What it can do.
   */
  constructor(
    readonly gpu: GPUDevice,
    readonly info: GPUAdapterInfo,
    caps: Caps,
    readonly memoryLimit: number,
    fastReadback: boolean,
  ) {
    this.caps = caps;
    this.readback = new Readback(gpu, fastReadback, (bytes, usage, what) => this.allocate(bytes, usage, what));
    this.#failed = new Promise((_, reject) => this.#fail = reject);
    this.#failed.catch(() => {});
    gpu.lost.then((loss) => {
      const why = this.#closed ? "it was closed" : loss.message || loss.reason || "the driver gave no reason";
      this.fail(new DeviceLostError(`The GPU device was lost: ${why}. Load the model again.`));
    });
    gpu.addEventListener("uncapturederror", (event) => {
      event.preventDefault();
      const { error } = event as GPUUncapturedErrorEvent;
      const memory = typeof GPUOutOfMemoryError !== "undefined" && error instanceof GPUOutOfMemoryError;
      this.fail(
        memory ? new OutOfMemoryError(`The GPU ran out of memory at ${mib(this.allocated)}`) : new Error(error.message),
      );
    });
  }

  /** Marks the device unusable: everyone who waits and everyone who comes gets `cause`. The first cause stays. */
  fail(cause: Error): void {
    this.#failure ??= cause;
    this.#fail(this.#failure);
  }

  /** Throws where the device cannot be used any more. */
  check(): void {
    if (this.#failure) throw this.#failure;
  }

  /** Waits for `work`, or for the device's failure, whichever comes first. */
  async orFailure<T>(work: Promise<T>): Promise<T> {
    this.check();
    try {
      // A shader that does not compile computes nothing, and its error comes a turn later: zeros must not pass for results.
      if (this.#verdicts.size > 0) await Promise.race([Promise.all(this.#verdicts), this.#failed]);
      return await Promise.race([work, this.#failed]);
    } catch (cause) {
      // An operation on a lost device fails in many ways: its loss, which may be reported a turn later, says why.
      if (!this.#failure) await Promise.race([this.#failed.catch(() => {}), new Promise((r) => setTimeout(r, 50))]);
      throw this.#failure ?? cause;
    }
  }

  /**
   * Passes where the memory limit leaves room for so many bytes more.
   *
   * @throws {OutOfMemoryError} naming what they are for, and what is in use.
   */
  checkRoom(size: number, what: string): void {
    if (this.allocated + size <= this.memoryLimit) return;
    throw new OutOfMemoryError(
      `Cannot allocate ${mib(size)} for ${what}: ${mib(this.allocated)} of ${mib(this.memoryLimit)} are in use. ` +
        `Raise memoryLimit, or use a smaller model or context.`,
    );
  }

  /** Allocates a buffer against the memory limit. Throws {@linkcode OutOfMemoryError} with the numbers. */
  allocate(bytes: number, usage: GPUBufferUsageFlags, what: string): Resident {
    this.check();
    const size = Math.ceil(Math.max(bytes, 16) / 16) * 16;
    this.checkRoom(size, what);
    if (size > this.gpu.limits.maxBufferSize) {
      throw new OutOfMemoryError(
        `Cannot allocate ${mib(size)} for ${what}: the device allows ${mib(this.gpu.limits.maxBufferSize)} a buffer`,
      );
    }
    let buffer: GPUBuffer;
    try {
      buffer = this.gpu.createBuffer({ size, usage, label: what });
    } catch (cause) {
      throw new OutOfMemoryError(`Cannot allocate ${mib(size)} for ${what}: the driver refused`, { cause });
    }
    this.allocated += size;
    this.peak = Math.max(this.peak, this.allocated);
    let alive = true;
    const release = (): void => {
      if (!alive) return;
      alive = false;
      this.allocated -= size;
      buffer.destroy();
    };
    return { buffer, offset: 0, bytes: size, owner: this, release };
  }

  /** Allocates a buffer that kernels bind, by any of their ports, and that is copied to and from. */
  allocateStorage(bytes: number, what: string): Resident {
    const { STORAGE, UNIFORM, COPY_SRC, COPY_DST } = GPUBufferUsage;
    return this.allocate(bytes, STORAGE | UNIFORM | COPY_SRC | COPY_DST, what);
  }

  /** Makes sure a storage is on this device: allocates it and uploads its host values, once. */
  resident(storage: Storage): Resident {
    this.check();
    if (storage.released) throw new Error(`Cannot use "${storage.label}": it was released`);
    if (storage.resident) {
      if (storage.resident.owner !== this) {
        throw new Error(`Cannot mix devices: "${storage.label}" lives on another device`);
      }
      return storage.resident;
    }
    return this.adopt(storage, this.allocateStorage(storage.bytes(this.caps.f16), `"${storage.label}"`));
  }

  /** Gives a storage its place, and uploads its host values there. */
  adopt(storage: Storage, place: Resident): Resident {
    storage.resident = place;
    if (storage.host) {
      const bytes = storage.dtype === "f16" && this.caps.f16 ? packHalf(storage.host) : storage.host;
      this.write(storage, 0, new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength));
      storage.host = undefined;
    }
    return place;
  }

  /** A storage of zeros on this device, or of bytes written later with {@linkcode Device.write}. */
  storage(dtype: DType, shape: Shape, label: string): Storage {
    const storage = new Storage(dtype, shape, undefined, label);
    this.resident(storage);
    return storage;
  }

  /** Writes raw bytes of the stored form at a multiple of 4, padded to one. */
  write(storage: Storage, offset: number, bytes: Uint8Array<ArrayBuffer>): void {
    const { buffer, offset: start } = this.resident(storage), from = start + offset;
    const whole = bytes.byteLength & ~3;
    for (let at = 0; at < whole; at += UPLOAD_PIECE) {
      const length = Math.min(UPLOAD_PIECE, whole - at);
      this.gpu.queue.writeBuffer(buffer, from + at, bytes, at, length);
    }
    if (whole < bytes.byteLength) {
      const tail = new Uint8Array(4);
      tail.set(bytes.subarray(whole));
      this.gpu.queue.writeBuffer(buffer, from + whole, tail);
    }
  }

  /** Reads elements of a buffer as its dtype's host array. */
  async read(
    buffer: GPUBuffer,
    dtype: DType,
    count: number,
    offset = 0,
    options: ReadOptions = {},
  ): Promise<HostArray> {
    const half = dtype === "f16" && this.caps.f16;
    const bytes = await this.orFailure(this.readback.read(buffer, offset, count * (half ? 2 : 4), options));
    if (half) return Float32Array.from(new Uint16Array(bytes.buffer, bytes.byteOffset, count), float16Value);
    if (dtype === "f32" || dtype === "f16") return new Float32Array(bytes.buffer, bytes.byteOffset, count);
    if (dtype === "i32") return new Int32Array(bytes.buffer, bytes.byteOffset, count);
    return new Uint32Array(bytes.buffer, bytes.byteOffset, count);
  }

  /** Reads a storage back. */
  readStorage(storage: Storage): Promise<HostArray> {
    const { buffer, offset } = this.resident(storage);
    return this.read(buffer, storage.dtype, elementCount(storage.shape), offset);
  }

  /**
   * Two words that joined dispatches set where a workgroup has waited in vain for others: the first in a run, the second in a
   * trial (`chains.ts`).
   */
  get health(): Resident {
    if (!this.#health) {
      this.#health = this.allocateStorage(16, "health of joined dispatches");
      this.readback.health = this.#health.buffer;
    }
    return this.#health;
  }

  /** The layout of a list of bindings. */
  layout(bindings: readonly Pick<Binding, "type">[]): GPUBindGroupLayout {
    const key = bindings.map((binding) => binding.type).join();
    let layout = this.#layouts.get(key);
    if (!layout) {
      layout = this.gpu.createBindGroupLayout({
        entries: bindings.map(({ type }, binding) => ({
          binding,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type },
        })),
      });
      this.#layouts.set(key, layout);
    }
    return layout;
  }

  /** The pipeline of a shader, compiled once a device. */
  pipeline(
    code: string,
    bindings: readonly Pick<Binding, "type">[],
    label: string,
  ): { pipeline: GPUComputePipeline; layout: GPUBindGroupLayout } {
    let made = this.#pipelines.get(code);
    if (!made) {
      const layout = this.layout(bindings);
      this.gpu.pushErrorScope("validation");
      const pipeline = this.gpu.createComputePipeline({
        label,
        layout: this.gpu.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: { module: this.gpu.createShaderModule({ code, label }), entryPoint: "main" },
      });
      const verdict = this.gpu.popErrorScope().then((error) => {
        this.#verdicts.delete(verdict);
        if (error) this.fail(new Error(`Cannot compile "${label}": ${error.message}`));
      }, () => {}); // a lost device has no verdicts
      this.#verdicts.add(verdict);
      this.#pipelines.set(code, made = { pipeline, layout });
    }
    return made;
  }

  /** Number of pipelines compiled so far. */
  get pipelineCount(): number {
    return this.#pipelines.size;
  }

  /** Gives the device back. Everything on it is gone. */
  close(): void {
    this.#closed = true;
    this.readback.destroy();
    this.gpu.destroy();
  }
}

function packHalf(values: HostArray): Uint16Array<ArrayBuffer> {
  return Uint16Array.from(values, float16Bits);
}

/**
 * Opens a device and proves its fast read-back on a sentinel.
 *
 * @example
 * ```ts
 * import { openDevice } from "@tinyllm/tinyllm/tensor";
 *
 * const device = await openDevice({ disable: ["subgroups"] });
 * console.log(device.info.description, device.caps.f16);
 * device.close();
 * ```
 */
export async function openDevice(options: DeviceOptions = {}): Promise<Device> {
  if (typeof navigator === "undefined" || !navigator.gpu) {
    throw new Error("Cannot find WebGPU: this runtime has no navigator.gpu");
  }
  const { preference = "high-performance", disable = [], memoryLimit = Infinity, debug } = options;
  const adapter = await navigator.gpu.requestAdapter(
    preference === "fallback" ? { forceFallbackAdapter: true } : { powerPreference: preference },
  );
  if (!adapter) {
    throw new Error(
      "Cannot find a GPU: no Vulkan, Metal or Direct3D 12 driver answered. `deno task setup` installs one.",
    );
  }
  const off = new Set(disable);
  const { gpu, features } = await request(adapter, off);
  const device = new Device(
    gpu,
    adapter.info,
    probe(gpu, adapter.info, features, off),
    memoryLimit,
    !off.has("fastReadback"),
  );
  device.debug = debug;
  try {
    await proveReadback(device);
  } catch (cause) {
    device.close();
    throw cause;
  }
  return device;
}

/** Wraps a device that the caller opened. Features are those it was opened with. If it is refused, nothing of it stays behind. */
export async function wrapDevice(gpu: GPUDevice, memoryLimit: number = Infinity): Promise<Device> {
  const features = new Set<string>(gpu.features as unknown as Iterable<string>);
  const device = new Device(gpu, gpu.adapterInfo, probe(gpu, gpu.adapterInfo, features, new Set()), memoryLimit, true);
  try {
    await proveReadback(device);
  } catch (cause) {
    device.readback.destroy(); // the device itself is the caller's
    throw cause;
  }
  return device;
}

async function proveReadback(device: Device): Promise<void> {
  const sentinel = new Storage("u32", [4], new Uint32Array([0x600dda7a, 1, 2, 3]), "sentinel");
  try {
    for (let round = 0; round < 2; round++) {
      const values = await device.readStorage(sentinel);
      if (values[0] !== 0x600dda7a || values[3] !== 3) {
        throw new Error("Cannot read back from the GPU: the sentinel came back wrong");
      }
      if (round === 0) device.resident(sentinel);
    }
  } finally {
    sentinel.release();
  }
}
