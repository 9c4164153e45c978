/**
 * What the next step computes. One rule, no phases of prefill and decode (vLLM V1): every running sequence has tokens that are
 * not computed yet, and a step fills one budget of tokens, running sequences first, then waiting ones in their order. A prompt
 * that is longer than what is left of the budget is computed in chunks, beside what decodes.
 *
 * Steps may be scheduled before earlier ones have been read. What a step will have computed and drawn counts at once; what
 * becomes of blocks waits until the steps that use them have retired. The engine's loop is
 *
 *     step = scheduler.schedule()            // takes blocks, counts tokens as computed and draws as in flight
 *     … submit it, perhaps more; read the tokens that it drew, and for each that counts
 *     sequence.append(token)                 // or scheduler.finish(sequence), with its last token appended or dropped
 *     scheduler.retire(step.number)
 *
 * When memory runs out the last of the running sequences yields its blocks: it waits in its old place, and is computed again
 * later, as far as the prefix cache does not have it still.
 *
 * @module
 */
import { BlockManager } from "./block_manager.ts";
import { RequestError } from "./request_error.ts";
import { type ScheduledStep, StepBuilder } from "./scheduled_step.ts";
import type { Sequence, SequenceState, Task } from "./sequence.ts";
import { goesBefore, WaitingQueue } from "./waiting_queue.ts";

/** Who goes first: who came first, or who has the lower priority number, and of those who came first. */
export type SchedulingPolicy = "fcfs" | "priority";

/** What a scheduler works with. */
export interface SchedulerOptions {
  /** Blocks of the pool. */
  readonly numBlocks: number;
  /** Tokens of a block. */
  readonly blockSize: number;
  /** Bytes of a block, for messages. */
  readonly blockBytes?: number;
  /** Most sequences that run at a time. */
  readonly maxNumSeqs: number;
  /** Most tokens of a step; at least `maxNumSeqs`, so that a step has a token for each. */
  readonly maxNumBatchedTokens: number;
  /** Most tokens of a step while sequences decode, whose next tokens wait for its end; `maxNumBatchedTokens` unless given. */
  readonly maxNumMixedTokens?: number;
  /** Most tokens of a step that scores; `maxNumBatchedTokens` unless given. */
  readonly maxNumScoredTokens?: number;
  /** Most tokens of a sequence. */
  readonly contextLength: number;
  /** `fcfs` unless given. */
  readonly policy?: SchedulingPolicy;
  /** Whether computed blocks are found again by sequences that begin with the same tokens. On unless `false`. */
  readonly prefixCache?: boolean;
}

/** Decides which sequences run. */
export class Scheduler {
  /** The pool. Sequences of this scheduler take and free blocks through it alone. */
  readonly blocks: BlockManager;
  readonly #options: SchedulerOptions;
  readonly #byPriority: boolean;
  readonly #waiting: WaitingQueue;
  /** In the order in which they yield, the last first. */
  #running: Sequence[] = [];
  /** Those whose logits are computed: they hold all their blocks, and never yield. */
  #scoring: Sequence[] = [];
  /** Samples that wait until the prompt of the sequence is computed, to share its blocks. */
  readonly #forks = new Map<Sequence, Sequence[]>();
  #submitted = 0;
  #arrivals = 0;
  #serials = 0;
  #lastTask: Task = "generate";
  #numPreemptions = 0;

  /** A scheduler of nothing. */
  constructor(options: SchedulerOptions) {
    const { numBlocks, blockSize, maxNumSeqs, maxNumBatchedTokens, policy, prefixCache = true } = options;
    const fewest = Math.min(maxNumBatchedTokens, options.maxNumMixedTokens ?? maxNumBatchedTokens);
    if (!(maxNumSeqs >= 1 && fewest >= maxNumSeqs)) {
      throw new RangeError(
        `Cannot run ${maxNumSeqs} sequences in steps of ${fewest} tokens: ` +
          `give at least one sequence, and at least as many tokens as sequences`,
      );
    }
    this.#options = options;
    this.#byPriority = policy === "priority";
    this.#waiting = new WaitingQueue(this.#byPriority);
    this.blocks = new BlockManager(numBlocks, blockSize, { prefixCache });
  }

  /** Sequences that take part in steps. */
  get numRunning(): number {
    return this.#running.length + this.#scoring.length;
  }

  /** Sequences that wait, preempted ones and samples of a prompt that is not computed yet among them. */
  get numWaiting(): number {
    let forks = 0;
    for (const children of this.#forks.values()) forks += children.length;
    return this.#waiting.size + forks;
  }

  /** Whether somebody waits whom the number of those that run does not keep waiting. */
  get canAdmit(): boolean {
    const next = this.#waiting.peek();
    return next !== undefined && (next.task === "score" || this.#running.length < this.#options.maxNumSeqs);
  }

  /** How often a sequence has yielded its blocks. */
  get numPreemptions(): number {
    return this.#numPreemptions;
  }

  /**
   * Takes a sequence in.
   *
   * @param forks More samples of the same prompt: it is computed once, and then they share its blocks.
   * @throws {RequestError} for one that could never run to its end.
   */
  add(sequence: Sequence, forks: readonly Sequence[] = []): void {
    for (const each of [sequence, ...forks]) this.#checkFits(each);
    sequence.arrival = ++this.#arrivals;
    this.#enqueue(sequence);
    for (const child of forks) this.#await(child, sequence.arrival);
    if (forks.length > 0) this.#forks.set(sequence, [...forks]);
  }

  /** Lets go of a sequence that is over, or that nobody wants any more, wherever it is. Letting go twice is harmless. */
  finish(sequence: Sequence): void {
    const { state } = sequence;
    if (state === "new" || state === "finished") return;
    if (state === "running") this.#stop(sequence);
    else this.#stopWaiting(sequence);
    this.blocks.free(sequence, this.#submitted);
    sequence.state = "finished";
    for (const child of this.#forks.get(sequence) ?? []) this.#waiting.push(child);
    this.#forks.delete(sequence);
  }

  /** Says that the tokens of all steps up to this one have been read and appended, or dropped. */
  retire(step: number): void {
    this.blocks.retire(step);
  }

  /** Lets go of everything, also of steps under way: after one failed nobody knows what the blocks hold. */
  clear(): void {
    const forks = [...this.#forks.values()].flat();
    for (const sequence of [...this.#running, ...this.#scoring, ...this.#waiting, ...forks]) {
      sequence.state = "finished";
      sequence.blockTable.length = sequence.numComputedTokens = sequence.numCachedBlocks = 0;
      this.#waiting.remove(sequence);
    }
    this.#running = [];
    this.#scoring = [];
    this.#forks.clear();
    this.blocks.reset();
  }

  /**
   * Proves that the bookkeeping holds: each sequence is in one place and says so, no more run than may, and the blocks are as
   * {@linkcode BlockManager.assertConsistent} wants them.
   */
  assertConsistent(): void {
    const { maxNumSeqs } = this.#options, all = new Set<Sequence>();
    const place = (sequences: Iterable<Sequence>, state: SequenceState): void => {
      for (const sequence of sequences) {
        if (all.has(sequence)) throw new Error("A sequence is in two places");
        if (sequence.state !== state) throw new Error(`A sequence that is ${state} says that it is ${sequence.state}`);
        all.add(sequence);
      }
    };
    if (this.#running.length > maxNumSeqs) throw new Error(`${this.#running.length} of ${maxNumSeqs} sequences run`);
    place(this.#running, "running");
    place(this.#scoring, "running");
    place(this.#waiting, "waiting");
    for (const children of this.#forks.values()) place(children, "waiting");
    this.blocks.assertConsistent(all);
  }

  /**
   * Makes the next step.
   *
   * @returns undefined where nothing can be computed now: what is left has to wait for steps under way to be read and to
   * retire, or there is nothing left.
   */
  schedule(): ScheduledStep | undefined {
    const number = this.#submitted + 1;
    const score = (): ScheduledStep | undefined => this.#scheduleScore(number);
    // Scores take every second step, so that neither they nor the others wait for each other's end.
    const step = (this.#lastTask === "generate" ? score() : undefined) ?? this.#scheduleTokens(number) ?? score();
    if (!step) return undefined;
    this.#submitted = number;
    this.#lastTask = step.task;
    for (const { sequence } of step.scheduled) this.#forkSamples(sequence);
    return step;
  }

  #scheduleTokens(number: number): ScheduledStep | undefined {
    const { maxNumBatchedTokens, maxNumMixedTokens = maxNumBatchedTokens } = this.#options;
    const decodes = this.#running.some((each) =>
      each.numComputedTokens >= each.numPromptTokens && !this.#isEnding(each)
    );
    const most = decodes ? Math.min(maxNumMixedTokens, maxNumBatchedTokens) : maxNumBatchedTokens;
    const step = new StepBuilder(number, "generate", most);
    this.#continueRunning(step);
    this.#admit(step);
    return step.numTokens > 0 ? step : undefined;
  }

  #scheduleScore(number: number): ScheduledStep | undefined {
    const sequence = this.#scoring.find((each) => each.numPendingTokens > 0);
    if (!sequence) return undefined;
    const { maxNumBatchedTokens, maxNumScoredTokens = maxNumBatchedTokens } = this.#options;
    const step = new StepBuilder(number, "score", maxNumScoredTokens);
    this.#take(step, sequence, Math.min(step.budget, sequence.numPendingTokens));
    return step;
  }

  /** Each running sequence keeps a token of the budget, so that no prompt in front of it stalls it. */
  #continueRunning(step: StepBuilder): void {
    for (let i = 0; i < this.#running.length; i++) {
      const sequence = this.#running[i]!, behind = this.#running.length - 1 - i;
      const wanted = Math.min(this.#pending(sequence), step.budget - behind);
      if (wanted <= 0) continue;
      const numTokens = Math.min(wanted, this.#makeRoom(sequence));
      if (numTokens > 0) this.#take(step, sequence, numTokens);
    }
  }

  /**
   * Room behind the computed tokens of a running sequence. Where there is none, and none will come from steps under way, the
   * last running sequences yield, this one after all others. None of them is part of the step yet, as it is made in their order.
   */
  #makeRoom(sequence: Sequence): number {
    while (sequence.state === "running") {
      const room = this.blocks.room(sequence);
      if (room > 0) return room;
      if (this.blocks.isRetiring || this.#running.some((each) => this.#isEnding(each))) return 0;
      if (!this.#emptyWaiting()) this.#preempt(this.#running.at(-1)!);
    }
    return 0;
  }

  #preempt(sequence: Sequence): void {
    this.#stop(sequence);
    this.#yieldBlocks(sequence);
    this.#enqueue(sequence);
  }

  #yieldBlocks(sequence: Sequence): void {
    this.blocks.free(sequence, this.#submitted);
    sequence.numPreemptions++;
    this.#numPreemptions++;
  }

  /** Takes the blocks of forked sequences that have not begun to run. Returns whether there were any. */
  #emptyWaiting(): boolean {
    let any = false;
    for (const sequence of this.#waiting) {
      if (sequence.blockTable.length === 0) continue;
      this.#yieldBlocks(sequence);
      any = true;
    }
    return any;
  }

  /** Admits whom there is room for, in their order: who does not fit is not overtaken, and so waits for no newcomer. */
  #admit(step: StepBuilder): void {
    for (let next = this.#waiting.peek(); next && step.budget > 0; next = this.#waiting.peek()) {
      if (!this.#tryAdmit(step, next)) return;
    }
  }

  #tryAdmit(step: StepBuilder, sequence: Sequence): boolean {
    const scores = sequence.task === "score";
    if (!scores && this.#running.length >= this.#options.maxNumSeqs) return false;
    if (sequence.numInFlight > 0) return false; // preempted, and the token that it goes on from is not known
    const match = this.blocks.match(sequence, step.number);
    // What this step computes the next one finds: a prefix that is shared is computed once.
    if (match.fresh) return false;
    // With a block in reserve for each that runs: who is admitted shall not be the one to yield a few steps later.
    const missing = this.blocks.missingBlocks(sequence, match, sequence.length) + this.#running.length;
    if (missing > this.blocks.numFreeBlocks) {
      const idle = this.numRunning === 0 && !this.blocks.isRetiring;
      return idle && this.#emptyWaiting(); // then it is tried again
    }
    this.#waiting.remove(sequence);
    if (sequence.blockTable.length === 0) this.blocks.claim(sequence, match);
    this.#start(sequence);
    if (scores) this.blocks.append(sequence, sequence.length);
    else this.#take(step, sequence, Math.min(step.budget, sequence.numPendingTokens));
    return true;
  }

  /** Makes tokens of a sequence part of a step. */
  #take(step: StepBuilder, sequence: Sequence, numTokens: number): void {
    const start = sequence.numComputedTokens;
    this.blocks.append(sequence, numTokens, step.number, step.copies);
    sequence.numComputedTokens += numTokens;
    const draws = step.task === "generate" && sequence.numPendingTokens === 0;
    if (draws) sequence.numInFlight++;
    this.blocks.cacheFullBlocks(sequence, step.number);
    step.scheduled.push({ sequence, start, numTokens, draws });
    step.numTokens += numTokens;
  }

  /** Tokens that a running sequence can compute now: none at its end. */
  #pending(sequence: Sequence): number {
    return this.#isEnding(sequence) ? 0 : sequence.numPendingTokens;
  }

  /** Whether a running sequence has drawn all that it may: its blocks come free once that is read. */
  #isEnding({ length, maxLength }: Sequence): boolean {
    return length >= Math.min(maxLength, this.#options.contextLength);
  }

  #start(sequence: Sequence): void {
    sequence.state = "running";
    if (sequence.task === "score") {
      this.#scoring.push(sequence);
      return;
    }
    let at = this.#running.length;
    while (at > 0 && goesBefore(sequence, this.#running[at - 1]!, this.#byPriority)) at--;
    this.#running.splice(at, 0, sequence);
  }

  #stop(sequence: Sequence): void {
    const list = sequence.task === "score" ? this.#scoring : this.#running;
    list.splice(list.indexOf(sequence), 1);
  }

  #enqueue(sequence: Sequence): void {
    sequence.state = "waiting";
    this.#waiting.push(sequence);
  }

  /** A fork waits in the place of the sequence that it comes from. */
  #await(child: Sequence, arrival: number): void {
    child.arrival = arrival;
    child.serial = ++this.#serials;
    child.state = "waiting";
  }

  #stopWaiting(sequence: Sequence): void {
    this.#waiting.remove(sequence);
    for (const children of this.#forks.values()) {
      const at = children.indexOf(sequence);
      if (at >= 0) children.splice(at, 1);
    }
  }

  /** Once a prompt is computed, the other samples of it share its blocks. */
  #forkSamples(parent: Sequence): void {
    const children = this.#forks.get(parent);
    if (!children || parent.numComputedTokens < parent.numPromptTokens) return;
    this.#forks.delete(parent);
    for (const child of children) this.#share(parent, child);
  }

  #share(parent: Sequence, child: Sequence): void {
    this.blocks.fork(parent, child);
    this.#waiting.push(child);
  }

  #checkFits(sequence: Sequence): void {
    const { numPromptTokens, maxLength, task, state } = sequence, { contextLength } = this.#options;
    if (state !== "new") throw new Error(`Cannot add a sequence twice: it is ${state}`);
    const most = Math.min(task === "score" ? numPromptTokens : maxLength, contextLength);
    if (numPromptTokens + (task === "score" ? 0 : 1) > most) {
      throw new RequestError(
        `Cannot take a prompt of ${numPromptTokens} tokens: prompt and answer have ${most} in all. Give a shorter prompt, ` +
          `or load with a larger contextLength`,
      );
    }
    // The last token is drawn, and never computed.
    const blocks = this.blocks.blocksFor(task === "score" ? most : most - 1);
    if (blocks > this.blocks.numBlocks) {
      const { blockBytes } = this.#options;
      const enough = blockBytes === undefined ? "that holds them" : `of ${blocks * blockBytes} bytes or more`;
      throw new RequestError(
        `Cannot take a request of up to ${most} tokens: it needs ${blocks} blocks of ${this.blocks.blockSize}, the pool ` +
          `has ${this.blocks.numBlocks}. Ask for fewer tokens, or load with a kvMemory ${enough}`,
      );
    }
  }
}
