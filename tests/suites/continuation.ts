/** What is recorded about a prompt, in a form of its own for each suite, and how a model is held against it. */
import type { SequenceRunner } from "./sequence_runner.ts";
import { differValues } from "./tensors.ts";

/** Largest difference of a logit: a wrong epsilon shows at 2e-3, the references' own error is below 1e-4. */
export const LOGIT_ERROR = 5e-4;
const LOGPROB_ERROR = 1e-3;

/** A prompt and what follows it. */
export interface Continuation {
  ids: readonly number[];
  /** Logits `[positions, vocabulary]` at these positions of the prompt. */
  positions?: readonly number[];
  logits?: ArrayLike<number>;
  /** The likeliest token at each step, whatever ends a sequence. */
  greedy: readonly number[];
  /** Natural logarithms of their probabilities. */
  logprobs?: readonly number[];
}

/** Most tokens of a prompt, and of a prompt with its continuation. */
export function longest(continuations: readonly Continuation[]): { maxPrompt: number; maxContext: number } {
  return {
    maxPrompt: Math.max(...continuations.map(({ ids }) => ids.length)),
    maxContext: Math.max(...continuations.map(({ ids, greedy }) => ids.length + greedy.length)),
  };
}

/** The first difference between a model and what was recorded, or undefined. Greedy tokens go through the cache. */
export async function differContinuation(
  runner: SequenceRunner,
  { ids, positions = [], logits, greedy, logprobs }: Continuation,
): Promise<string | undefined> {
  const { vocabSize } = runner.config;
  const rows = positions.includes(ids.length - 1) ? positions : [...positions, ids.length - 1];
  const got = await runner.prompt(ids, rows);
  if (logits) {
    const difference = differValues(got.subarray(0, positions.length * vocabSize), logits, LOGIT_ERROR);
    if (difference !== undefined) return `logits: ${difference}`;
  }
  const last = rows.indexOf(ids.length - 1);
  let current = got.subarray(last * vocabSize, (last + 1) * vocabSize);
  for (const [step, token] of greedy.entries()) {
    const best = argmax(current);
    if (best !== token) return `greedy: token ${step} is ${best}, expected ${token}`;
    const logprob = logSoftmax(current, best), expected = logprobs?.[step] ?? logprob;
    if (!(Math.abs(logprob - expected) <= LOGPROB_ERROR)) {
      return `greedy: log-probability of token ${step} is ${logprob}, expected ${expected}`;
    }
    if (step + 1 < greedy.length) current = await runner.next(best);
  }
  return undefined;
}

function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

function logSoftmax(logits: Float32Array, token: number): number {
  const most = logits.reduce((a, b) => Math.max(a, b));
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - most), 0);
  return logits[token]! - most - Math.log(sum);
}
