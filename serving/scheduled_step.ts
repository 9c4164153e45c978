/**
 * A step: what it computes of which sequences.
 *
 * @module
 */
import type { BlockCopy } from "./block_manager.ts";
import type { Sequence, Task } from "./sequence.ts";

/** What a step computes of one sequence: the tokens from index `start` on. */
export interface Scheduled {
  readonly sequence: Sequence;
  readonly start: number;
  /** At least 1. The last of them may be in flight: then the device has it, and the host does not. */
  readonly numTokens: number;
  /** Whether the step draws the next token, that of index `start + numTokens`. */
  readonly draws: boolean;
}

/** A step. Its batch has to be built before anything else is asked of the scheduler: block tables change. */
export interface ScheduledStep {
  /** 1 for the first step, then 2, and so on. Steps have to be submitted in this order. */
  readonly number: number;
  /** A step generates, or it scores one sequence: the logits of all its tokens are wanted then. */
  readonly task: Task;
  /** What it computes: each sequence at most once, at least one. */
  readonly scheduled: readonly Scheduled[];
  /** Tokens in all. */
  readonly numTokens: number;
  /** Blocks to copy before it, all at once. */
  readonly copies: readonly BlockCopy[];
}

/** Whether a step decodes alone: each of its sequences has one token, and draws the next. */
export function decodes({ task, scheduled }: ScheduledStep): boolean {
  return task === "generate" && scheduled.every(({ draws, numTokens }) => draws && numTokens === 1);
}

/** A step in the making. */
export class StepBuilder implements ScheduledStep {
  readonly scheduled: Scheduled[] = [];
  readonly copies: BlockCopy[] = [];
  numTokens = 0;

  /** A step of nothing, with room for `maxTokens` tokens. */
  constructor(readonly number: number, readonly task: Task, readonly maxTokens: number) {}

  /** Tokens that it has room for. */
  get budget(): number {
    return this.maxTokens - this.numTokens;
  }
}
