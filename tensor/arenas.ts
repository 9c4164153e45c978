/**
 * Memory for the intermediate results of several programs that run one after another: what one has made is gone once another runs.
 * A model has dozens of programs, for steps of many sizes, and each alone would hold as much as its largest step takes.
 *
 * @module
 */
import type { Device } from "./device.ts";
import { OutOfMemoryError } from "./device_errors.ts";
import type { Resident } from "./storage.ts";

/**
 * Buffers that programs share. They grow with the programs that are compiled; those that have become too small stay where they are
 * bound, so that programs had better be compiled from the largest on.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { Arenas, compile, input, map, openDevice } from "@tinyllm/tinyllm/tensor";
 *
 * const device = await openDevice(), arenas = new Arenas(device, "both programs");
 * using exp = compile(device, () => map("exp", input("x", "f32", [4])), { arenas });
 * using sin = compile(device, () => map("sin", input("x", "f32", [4])), { arenas });
 * exp.run({ inputs: { x: [0, 0, 0, 0] } });
 * assertEquals([...await exp.read(0)], [1, 1, 1, 1]); // before the other one runs
 * sin.run({ inputs: { x: [0, 0, 0, 0] } });
 * assertEquals([...await sin.read(0)], [0, 0, 0, 0]);
 * arenas.release();
 * device.close();
 * ```
 */
export class Arenas {
  readonly #device: Device;
  readonly #label: string;
  /** The buffers of each arena, the largest last. */
  readonly #buffers: Resident[][] = [];

  /** No memory yet. @param label Whose results they are, for errors. */
  constructor(device: Device, label: string) {
    this.#device = device;
    this.#label = label;
  }

  /** Bytes of all buffers. */
  get bytes(): number {
    return this.#buffers.flat().reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** A buffer of arena `arena` that holds so many bytes: the one that there is, or a larger one. */
  take(arena: number, bytes: number): GPUBuffer {
    const buffers = this.#buffers[arena] ??= [], last = buffers.at(-1);
    if (last && last.bytes >= bytes) return last.buffer;
    const made = this.#larger(bytes, last?.bytes ?? 0);
    buffers.push(made);
    return made.buffer;
  }

  /** Twice as large as the last one, so that many small ones do not add up; as large as needed where that finds no room. */
  #larger(bytes: number, last: number): Resident {
    const most = this.#device.gpu.limits.maxBufferSize, doubled = Math.min(most, 2 * last);
    try {
      return this.#device.allocateStorage(Math.max(bytes, doubled), `results of ${this.#label}`);
    } catch (cause) {
      if (!(cause instanceof OutOfMemoryError) || doubled <= bytes) throw cause;
      return this.#device.allocateStorage(bytes, `results of ${this.#label}`);
    }
  }

  /** Frees the memory. Programs that were compiled with it cannot run any more. */
  release(): void {
    this.#buffers.splice(0).flat().forEach((resident) => resident.release());
  }
}
