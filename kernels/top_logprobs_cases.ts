/** Cases of finding the likeliest tokens: odd vocabularies, ties, masked tokens. */
import { randomLogits } from "./sampling_cases.ts";
import type { CaseCall, KernelCase, Random } from "./spec.ts";
import { topLogprobsKernel, type TopLogprobsParams } from "./top_logprobs.ts";

const VOCABULARIES = [1, 7, 50, 64, 257, 1003, 4096];

function call(random: Random, rows: number, vocabulary: number, count: number): CaseCall<TopLogprobsParams> {
  return { params: { count }, inputs: [randomLogits(random, rows, vocabulary)] };
}

/** Cases of the kernel. */
export const cases: KernelCase<TopLogprobsParams>[] = [{
  name: "top_logprobs",
  kernel: topLogprobsKernel,
  random(random) {
    const vocabulary = VOCABULARIES[random.integer(0, VOCABULARIES.length - 1)]!;
    return call(random, random.integer(1, 5), vocabulary, random.integer(1, Math.min(20, vocabulary)));
  },
  // Ids are exact. Logits below 100 and their log-sum-exp round by 2^-18; a sum of V terms of one sign errs by a little more.
  tolerance: (_call, [, logprobs]) => [0, logprobs!.map((value) => 2e-5 + Math.abs(value) * 2 ** -21)],
  bench: {
    "stories, one row": (random) => call(random, 1, 8192, 20),
    "0.5B, 8 rows": (random) => call(random, 8, 151_936, 20),
  },
}];
