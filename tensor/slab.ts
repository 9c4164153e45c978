/**
 * Puts many storages into few buffers. Each buffer that a dispatch names costs the CPU half a microsecond to track, so a model's
 * weights lie in slabs: a layer's codes, scales, norms and biases count as one.
 *
 * @module
 */
import type { Device } from "./device.ts";
import type { Resident, Storage } from "./storage.ts";

/** WebGPU's alignment of a binding. */
const ALIGNMENT = 256;

interface Piece {
  readonly whole: Resident;
  readonly bytes: number;
  end: number;
  users: number;
}

/** Buffers that are filled from front to back, and freed when their last storage is released. */
export class Slabs {
  #open: Piece | undefined;
  /** Bytes of what has no place yet. */
  #left: number;

  /**
   * Makes no buffer yet.
   *
   * @param bytes Size of a slab; a larger storage gets one of its own.
   * @param label Name for errors.
   * @param total Bytes of all storages, each rounded up by {@linkcode Slabs.round}: no slab is larger than what is left of them.
   */
  constructor(readonly device: Device, readonly bytes: number, readonly label: string, total: number = Infinity) {
    this.#left = total;
  }

  /** Bytes that a storage of so many takes in a slab. */
  static round(bytes: number): number {
    return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
  }

  /** Gives a storage its place, and uploads its host values. Throws where memory does not suffice. */
  place(storage: Storage): Resident {
    const bytes = Slabs.round(storage.bytes(this.device.caps.f16));
    if (!this.#open || this.#open.end + bytes > this.#open.bytes) {
      this.#open = this.#piece(Math.max(bytes, Math.min(this.bytes, this.#left)));
    }
    this.#left -= bytes;
    const piece = this.#open, offset = piece.end;
    piece.end += bytes;
    piece.users++;
    let alive = true;
    const release = (): void => {
      if (!alive) return;
      alive = false;
      if (--piece.users > 0) return;
      piece.whole.release();
      if (this.#open === piece) this.#open = undefined;
    };
    const { buffer } = piece.whole;
    return this.device.adopt(storage, { buffer, offset, bytes, owner: this.device, release });
  }

  #piece(bytes: number): Piece {
    return { whole: this.device.allocateStorage(bytes, this.label), bytes, end: 0, users: 0 };
  }
}
