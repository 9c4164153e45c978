/**
 * Seeded traffic for a serving engine: what comes when, with which lengths.
 *
 * @module
 */
import { seededRandom } from "../kernels/random.ts";
import type { Random } from "../kernels/spec.ts";

/** A request of a workload. */
export interface WorkloadRequest {
  /** Milliseconds after the start. */
  readonly arrivalMs: number;
  readonly prompt: readonly number[];
  /** Tokens that are generated, whatever they are. */
  readonly maxTokens: number;
}

/** Traffic to replay. */
export interface Workload {
  readonly name: WorkloadName;
  readonly requests: readonly WorkloadRequest[];
}

/** How a workload is made. */
export interface WorkloadOptions {
  readonly seed: number;
  /** Ids are drawn below it. */
  readonly vocabSize: number;
  /** Requests; the workload's own number unless given. */
  readonly requests?: number | undefined;
  /** Factor on all lengths: small ones for slow devices. */
  readonly scale: number;
  /** Requests a second, as a Poisson process; all at once where infinite. */
  readonly rate: number;
}

interface Lengths {
  readonly requests: number;
  /** Least and greatest tokens of a prompt, behind what all share. */
  readonly prompt: readonly [number, number];
  readonly output: readonly [number, number];
  /** Tokens that all prompts begin with. */
  readonly shared: number;
}

/** The workloads: nano-vllm's bench, the random data set of vLLM's benchmark, and many that share a long system prompt. */
const WORKLOADS = {
  "nano": { requests: 256, prompt: [100, 1024], output: [100, 1024], shared: 0 },
  "random": { requests: 256, prompt: [1024, 1024], output: [128, 128], shared: 0 },
  "shared-prefix": { requests: 100, prompt: [16, 128], output: [64, 64], shared: 2000 },
} as const satisfies Readonly<Record<string, Lengths>>;

/** The name of a workload. */
export type WorkloadName = keyof typeof WORKLOADS;

/** All workloads. */
export const workloadNames = Object.keys(WORKLOADS) as readonly WorkloadName[];

/** Random ids below `vocabSize`. */
export function randomPrompt(random: Random, length: number, vocabSize: number): number[] {
  return Array.from({ length }, () => random.integer(0, vocabSize - 1));
}

/** Makes a workload: the same for the same options. */
export function makeWorkload(name: WorkloadName, options: WorkloadOptions): Workload {
  const { seed, vocabSize, scale, rate } = options, lengths: Lengths = WORKLOADS[name];
  // Workloads have no prompts in common, lest one finds what another left in the prefix cache.
  const random = seededRandom(seed * workloadNames.length + workloadNames.indexOf(name));
  const scaled = (length: number): number => Math.max(1, Math.round(length * scale));
  const between = ([low, high]: readonly [number, number]): number => scaled(random.integer(low, high));
  const shared = randomPrompt(random, lengths.shared === 0 ? 0 : scaled(lengths.shared), vocabSize);
  let arrivalMs = 0;
  const requests = Array.from({ length: options.requests ?? lengths.requests }, (): WorkloadRequest => {
    const own = randomPrompt(random, between(lengths.prompt), vocabSize);
    const request = { arrivalMs, prompt: [...shared, ...own], maxTokens: between(lengths.output) };
    if (Number.isFinite(rate)) arrivalMs -= 1000 * Math.log(1 - random.uniform()) / rate;
    return request;
  });
  return { name, requests };
}

/** Most tokens that a request of the workload comes to. */
export function longestRequest({ requests }: Workload): number {
  return Math.max(...requests.map(({ prompt, maxTokens }) => prompt.length + maxTokens));
}
