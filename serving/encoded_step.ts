/**
 * A step between the host and the device: how it is read once it was encoded, and what came of it.
 *
 * @module
 */
import type { ReadOptions } from "../tensor/readback.ts";
import type { Sampled } from "./sampler.ts";
import type { ScheduledStep } from "./scheduled_step.ts";
import type { Sequence } from "./sequence.ts";

/** A step on its way. */
export interface EncodedStep {
  readonly step: ScheduledStep;
  /** The sequences that draw in it, in the order of the draws. */
  readonly drawing: readonly Sequence[];
  /** Slot of the first draw. */
  readonly firstSlot: number;
  /** Reads the details of its draws, where it was asked for them, until another step is submitted. */
  readonly readDetails: ((options?: ReadOptions) => Promise<Sampled[]>) | undefined;
  /** Reads the logits of a step that scores, until another one is submitted. */
  readonly readLogits: ((options?: ReadOptions) => Promise<Float32Array<ArrayBuffer>>) | undefined;
}

/** What the device did. */
export interface StepResult {
  readonly step: ScheduledStep;
  /** What each sequence that draws drew. */
  readonly drawn: readonly { readonly sequence: Sequence; readonly sampled: Sampled }[];
  /** `[tokens, vocabulary]`, flat, of a step that scores. */
  readonly logits: Float32Array<ArrayBuffer> | undefined;
}
