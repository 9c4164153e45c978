/**
 * Runs that are submitted together. Between two submissions a GPU idles, as each waits for the end of the one before: 50 to 110 us on
 * an H100, where a whole step of a small decoder takes 560. Within a submission one run follows the other at once.
 *
 * Whatever a queue writes comes before all commands of the submission after it, so what a program reads can be written once a
 * submission. The first run of each program has its values written there; those of later runs are written to places of the
 * submission's own, and commands of theirs copy them from there. A run that is submitted alone pays for nothing.
 *
 * @module
 */
import { OutOfMemoryError } from "./device_errors.ts";
import type { Device } from "./device.ts";
import type { Resident } from "./storage.ts";

/** Commands that wait to be submitted. */
interface Pending {
  readonly commands: GPUCommandBuffer;
  /** Throws where what they use is gone. */
  readonly check: () => void;
}

/**
 * Collects runs of programs, and submits them at once. What is written or submitted elsewhere meanwhile comes before them.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { assign, buffer, compile, input, map, openDevice, Submission } from "@tinyllm/tinyllm/tensor";
 *
 * const device = await openDevice(), sum = buffer(device.storage("f32", [1], "sum"));
 * using program = compile(device, () => assign(sum, map("add", sum, input("x", "f32", [1]))));
 * using submission = new Submission(device);
 * for (const x of [1, 2, 3]) program.run({ inputs: { x: [x] } }, submission);
 * submission.flush();
 * assertEquals([...await program.read(0)], [6]);
 * device.close();
 * ```
 */
export class Submission {
  readonly #device: Device;
  #pending: Pending[] = [];
  /** Buffers that hold values of a run that waits. */
  readonly #written = new Set<GPUBuffer>();
  /** Where values of further runs are, and how many of these places are in use. */
  readonly #places: Resident[] = [];
  #used = 0;

  /** A submission of nothing. */
  constructor(device: Device) {
    this.#device = device;
  }

  /** Command buffers that wait. */
  get size(): number {
    return this.#pending.length;
  }

  /** Bytes of the places for values. */
  get bytes(): number {
    return this.#places.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Whether a buffer holds values of a run that waits. */
  holds(buffer: GPUBuffer): boolean {
    return this.#written.has(buffer);
  }

  /**
   * Uploads the values of a run, whose commands are to be added next.
   *
   * @param target Where the run reads them.
   * @returns Where its commands have to copy them from; undefined where they are in place.
   */
  upload(target: GPUBuffer, values: ArrayBuffer): GPUBuffer | undefined {
    const place = this.holds(target) ? this.#place(values.byteLength) : undefined;
    if (!place) this.#written.add(target);
    this.#device.gpu.queue.writeBuffer(place ?? target, 0, values);
    return place;
  }

  /** The next place that is free; where memory does not suffice, what waits is submitted instead. */
  #place(bytes: number): GPUBuffer | undefined {
    const at = this.#used;
    if (!(this.#places[at] && this.#places[at].bytes >= bytes)) {
      const { COPY_SRC, COPY_DST } = GPUBufferUsage;
      try {
        const place = this.#device.allocate(bytes, COPY_SRC | COPY_DST, "the inputs of runs submitted together");
        this.#places[at]?.release();
        this.#places[at] = place;
      } catch (cause) {
        if (!(cause instanceof OutOfMemoryError)) throw cause;
        this.flush();
        return undefined;
      }
    }
    this.#used++;
    return this.#places[at]!.buffer;
  }

  /**
   * Adds commands behind those that wait.
   *
   * @param check Throws where they cannot be submitted any more.
   */
  add(commands: GPUCommandBuffer, check: () => void = () => {}): void {
    this.#pending.push({ commands, check });
  }

  /**
   * Submits what waits. Returns at once.
   *
   * @throws {Error} if the device has failed, or if what a run uses was disposed or released meanwhile: nothing is submitted then.
   */
  flush(): void {
    const pending = this.#pending;
    if (pending.length === 0) return;
    this.discard();
    this.#device.check();
    for (const { check } of pending) check();
    this.#device.gpu.queue.submit(pending.map(({ commands }) => commands));
  }

  /**
   * Adds the first commands of a run and submits what waits: the others are to be added next.
   *
   * @param target Where the run reads its values: they are to stay there until the others are submitted.
   */
  begin(commands: GPUCommandBuffer, target: GPUBuffer, check: () => void): void {
    this.add(commands, check);
    this.flush();
    this.#written.add(target);
  }

  /** Drops what waits. */
  discard(): void {
    this.#pending = [];
    this.#written.clear();
    this.#used = 0;
  }

  /** Drops what waits and frees the memory. */
  dispose(): void {
    this.discard();
    this.#places.splice(0).forEach((place) => place.release());
  }

  /** Same as {@linkcode Submission.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
