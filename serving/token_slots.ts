/**
 * Where the device keeps the tokens that steps drew, until the host has read them: a ring of slots. Later steps name the slot of a
 * token that is in flight where its id would stand.
 *
 * @module
 */
import { mostInFlight } from "../kernels/sampling_rows.ts";
import type { Scheduled } from "./scheduled_step.ts";
import type { Sequence } from "./sequence.ts";

/** A token that was drawn: its index in the sequence, and its slot. */
interface Draw {
  readonly position: number;
  readonly slot: number;
}

/** Hands out the slots. Bookkeeping alone: it knows no device. */
export class TokenSlots {
  /** Slots of the ring. */
  readonly size: number;
  readonly #draws = new WeakMap<Sequence, Draw[]>();
  #next = 0;

  /**
   * A ring that lasts until its tokens have been read.
   *
   * @param maxNumSeqs Most draws of a step.
   * @param maxSteps Most steps of a run. Before it has been read, steps of the next are made.
   */
  constructor(maxNumSeqs: number, maxSteps: number) {
    if (2 * maxSteps > mostInFlight) {
      throw new RangeError(`Cannot submit ${maxSteps} steps before one is read: give at most ${mostInFlight / 2}`);
    }
    // A step may name slots of the run before, while its own run draws; and what does not fit at the ring's end leaves a gap.
    this.size = 2 * (maxSteps + 1) * maxNumSeqs;
  }

  /** Takes slots for the draws of a step, next to each other, in their order. Returns the first. */
  take(scheduled: readonly Scheduled[]): number {
    const count = scheduled.reduce((sum, { draws }) => sum + (draws ? 1 : 0), 0);
    const first = this.#next + count > this.size ? 0 : this.#next;
    this.#next = first;
    for (const { sequence, start, numTokens, draws } of scheduled) {
      if (!draws) continue;
      const unread = this.#unread(sequence);
      unread.push({ position: start + numTokens, slot: this.#next++ });
    }
    return first;
  }

  /** The slot of a token in flight; undefined for any other. */
  slotOf(sequence: Sequence, position: number): number | undefined {
    return this.#unread(sequence).find((draw) => draw.position === position)?.slot;
  }

  /** The slots of a sequence's tokens in flight below index `end`, in their order. */
  slotsOf(sequence: Sequence, end: number): number[] {
    return this.#unread(sequence).filter(({ position }) => position < end).map(({ slot }) => slot);
  }

  /** The draws of a sequence that the host has not read, in their order. */
  #unread(sequence: Sequence): Draw[] {
    let draws = this.#draws.get(sequence);
    if (!draws) this.#draws.set(sequence, draws = []);
    while (draws.length > 0 && draws[0]!.position < sequence.tokens.length) draws.shift();
    return draws;
  }
}
