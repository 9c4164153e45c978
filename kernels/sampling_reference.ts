/**
 * Sampling in plain float64 TypeScript: what the kernels of `sampling.ts` are held against, and the place to read what
 * each parameter does. The order is that of vLLM's V1 sampler: penalties, logit bias, temperature, min-p, top-k, top-p, draw.
 *
 * @module
 */
import { philox } from "./philox.ts";
import { greedyBelow, lowestLogit, type SamplingRow } from "./sampling_rows.ts";

/** The lowest id among the largest values of a row. */
export function argmaxReference(logits: ArrayLike<number>): number {
  let best = 0;
  for (let token = 1; token < logits.length; token++) if (logits[token]! > logits[best]!) best = token;
  return best;
}

/** log of the sum of exponentials, taken relative to the largest so that nothing overflows. */
export function logSumExpReference(logits: ArrayLike<number>): number {
  const largest = logits[argmaxReference(logits)]!;
  let sum = 0;
  for (let token = 0; token < logits.length; token++) sum += Math.exp(logits[token]! - largest);
  return largest + Math.log(sum);
}

/**
 * Penalties and logit bias. For each token of the history, once: l / r where l > 0, else l r (Keskar et al. 2019, CTRL);
 * then l - frequency c - presence [c > 0], with c the token's count in the output; then the bias is added.
 * Logits of (or near) minus infinity stay.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { penaltiesReference } from "@tinyllm/tinyllm/kernels";
 *
 * const history = new Map([[0, 0], [1, 2]]); // token 0 in the prompt, token 1 twice in the output
 * const row = { repetitionPenalty: 2, frequencyPenalty: 0.5, presencePenalty: 1, history, logitBias: new Map([[2, -3]]) };
 * assertEquals([...penaltiesReference([4, -1, 3], row)], [2, -4, 0]);
 * ```
 */
export function penaltiesReference(logits: ArrayLike<number>, row: SamplingRow): Float64Array {
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = row;
  const out = Float64Array.from(logits);
  for (const [token, count] of row.history ?? []) {
    const logit = out[token]!;
    if (logit < lowestLogit) continue;
    out[token] = (logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty) - frequencyPenalty * count -
      (count > 0 ? presencePenalty : 0);
  }
  for (const [token, bias] of row.logitBias ?? []) if (out[token]! >= lowestLogit) out[token]! += bias;
  return out;
}

/** What a filter leaves of a row. */
export interface Filtered {
  /** 1 where the token stays. */
  readonly kept: Uint8Array;
  /** Softmax of logits / temperature over the kept tokens, 0 elsewhere. */
  readonly probs: Float64Array;
  /** How near the nearest decision is to its threshold, in probability: below about 1e-6 f32 may decide otherwise. */
  readonly margin: number;
}

/**
 * Divides by the temperature, then drops tokens in this order: min-p (probability below minP times the largest), top-k (below
 * the k-th largest; ties stay), top-p on what is left, renormalised (from the most probable on, the lowest id first among
 * equals, a token stays while the sum of those before it is below topP; the first always stays). Minus infinity never stays.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { filterReference } from "@tinyllm/tinyllm/kernels";
 *
 * const logits = [Math.log(0.5), Math.log(0.3), Math.log(0.15), Math.log(0.05)];
 * assertEquals([...filterReference(logits, { temperature: 1, topP: 0.7 }).kept], [1, 1, 0, 0]);
 * assertEquals([...filterReference(logits, { temperature: 1, minP: 0.2 }).kept], [1, 1, 1, 0]);
 * ```
 */
export function filterReference(logits: ArrayLike<number>, row: SamplingRow): Filtered {
  const { temperature = 0, topK = 0, topP = 1, minP = 0 } = row;
  const vocabulary = logits.length;
  const kept = new Uint8Array(vocabulary), probs = new Float64Array(vocabulary);
  const best = argmaxReference(logits), largest = logits[best]!;
  if (temperature < greedyBelow || largest < lowestLogit) {
    kept[best] = probs[best] = 1;
    return { kept, probs, margin: 1 };
  }
  let margin = 1;
  const weight = (token: number): number => Math.exp((logits[token]! - largest) / temperature);
  let order = Array.from({ length: vocabulary }, (_, token) => token).filter((token) => logits[token]! >= lowestLogit);
  if (minP > 0) {
    for (const token of order) if (token !== best) margin = Math.min(margin, Math.abs(weight(token) - minP));
    // Compared as logits, so that minP 1 keeps what equals the largest.
    order = order.filter((token) => logits[token]! - largest >= temperature * Math.log(minP));
  }
  order.sort((a, b) => logits[b]! - logits[a]! || a - b);
  if (topK > 0 && topK < order.length) {
    const threshold = logits[order[topK - 1]!]!;
    order = order.filter((token) => logits[token]! >= threshold);
  }
  if (topP < 1) {
    const total = order.reduce((sum, token) => sum + weight(token), 0);
    let before = 0, count = 0;
    while (count < order.length && (count === 0 || before < topP * total)) {
      before += weight(order[count++]!);
      margin = Math.min(margin, Math.abs(before / total - topP));
    }
    order.length = count;
  }
  const total = order.reduce((sum, token) => sum + weight(token), 0);
  for (const token of order) {
    kept[token] = 1;
    probs[token] = weight(token) / total;
  }
  return { kept, probs, margin };
}

/**
 * An exponential variate of rate 1 for (seed, index, token): -ln(1 - u), with u in (0, 1) from word `token mod 4` of the
 * Philox block with counter (token div 4, index, 0, 0) and the seed as key.
 */
export function exponentialReference(seed: bigint | number, index: number, token: number): number {
  const key = BigInt.asUintN(64, BigInt(seed));
  const words = philox([token >>> 2, index, 0, 0], [Number(key & 0xffffffffn), Number(key >> 32n)]);
  return -Math.log1p(-(words[token & 3]! + 0.5) / 2 ** 32);
}

/** A token drawn from a row, and why. */
export interface Drawn {
  /** The token's id. */
  readonly token: number;
  /** Its log-probability under the softmax of the raw logits: before penalties, bias and temperature. */
  readonly logprob: number;
  /** How near the nearest decision is to its threshold: below about 1e-5 f32 may draw another token. At most 1. */
  readonly margin: number;
}

/**
 * Samples one row. The draw is an exponential race: with E independent exponential variates, the token with the largest
 * ln p - ln E is distributed as p (Gumbel-max; Yellott 1977). Each token has its own random number, so a tiny change of
 * the logits changes the draw only where two tokens were nearly level.
 *
 * @example
 * ```ts
 * import { assert, assertEquals } from "@std/assert";
 * import { sampleReference } from "@tinyllm/tinyllm/kernels";
 *
 * assertEquals(sampleReference([1, 3, 2], { temperature: 0 }).token, 1);
 * const counts = [0, 0];
 * for (let index = 0; index < 1000; index++) counts[sampleReference([Math.log(3), 0], { temperature: 1, index }).token]!++;
 * assert(counts[0]! > 700 && counts[0]! < 800); // 3 in 4
 * ```
 */
export function sampleReference(logits: ArrayLike<number>, row: SamplingRow): Drawn {
  const { temperature = 0, seed = 0, index = 0 } = row;
  const adjusted = penaltiesReference(logits, row);
  const logSumExp = logSumExpReference(logits);
  const filtered = filterReference(adjusted, row);
  const greedy = temperature < greedyBelow;
  let token = -1, best = -Infinity, second = -Infinity;
  for (let candidate = 0; candidate < adjusted.length; candidate++) {
    if (!greedy && !filtered.kept[candidate]) continue;
    const noise = greedy ? 0 : Math.log(exponentialReference(seed, index, candidate));
    const score = greedy ? adjusted[candidate]! : adjusted[candidate]! / temperature - noise;
    if (score > best) [token, best, second] = [candidate, score, best];
    else second = Math.max(second, score);
  }
  if (token < 0) token = argmaxReference(adjusted);
  // Greedy decisions on the logits as given are exact, ties too.
  const exact = greedy && !row.history?.size && !row.logitBias?.size;
  return { token, logprob: logits[token]! - logSumExp, margin: exact ? 1 : Math.min(filtered.margin, best - second) };
}
