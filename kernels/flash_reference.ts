/**
 * Flash attention in plain TypeScript: what to read before the kernel.
 *
 * Attention is out = softmax(scale * q kᵀ) v. Written down as it stands, it needs all scores of a query before the
 * first weight is known. The online softmax (Milakov and Gimelshein 2018) does not: it walks the keys tile by tile and
 * keeps, for each query, three things about the keys seen so far:
 *
 *     m    the greatest score
 *     l    the sum of exp(score - m)
 *     acc  the sum of exp(score - m) * value
 *
 * When a tile brings a greater score, m grows to m', and what was summed against the old maximum is scaled by exp(m -
 * m'), which is at most 1. After the last tile the output is acc / l. Nothing of size queries x keys is ever stored,
 * and that is all there is to FlashAttention (Dao et al. 2022), apart from where a GPU keeps the tiles.
 *
 * {@linkcode attentionReference} is the definition itself, and the test holds one against the other.
 *
 * @module
 */

/** A tensor in float64: row-major values and sizes. */
export interface ReferenceTensor {
  /** Row-major values. */
  readonly data: ArrayLike<number>;
  /** Sizes, outermost first. */
  readonly shape: readonly number[];
}

/** What both references take. */
export interface AttentionOptions {
  /** Query i of L sees key j of S if j <= i + S - L: the queries are the last L positions. Off unless given. */
  readonly causal?: boolean;
  /** Factor on the scores: 1 / sqrt(D) unless given. */
  readonly scale?: number;
  /** Added to the scaled scores; broadcast to [..., heads, L, S]. Minus infinity hides a key. */
  readonly mask?: ReferenceTensor;
}

/** Attention as both references see it: sizes, and the score of a query and a key. */
interface Problem {
  /** Heads of all sequences: the product of the leading sizes. */
  readonly heads: number;
  readonly queries: number;
  readonly keys: number;
  readonly headDim: number;
  /** Score of query i and key j of a head; minus infinity where the query does not see the key. */
  score(head: number, i: number, j: number): number;
  /** Feature d of value j as a head sees it. */
  value(head: number, j: number, d: number): number;
}

/** Element of a mask at [..., i, j] of `shape`, its sizes aligned at the right as NumPy does; sizes of 1 repeat. */
function maskReader(mask: ReferenceTensor | undefined, shape: readonly number[]): (index: number[]) => number {
  if (!mask) return () => 0;
  const skipped = shape.length - mask.shape.length;
  if (skipped < 0 || mask.shape.some((size, axis) => size !== 1 && size !== shape[axis + skipped])) {
    throw new Error(`Cannot attend: a mask [${mask.shape.join(", ")}] does not broadcast to [${shape.join(", ")}]`);
  }
  return (index) => {
    const flat = mask.shape.reduce((at, size, axis) => at * size + (size === 1 ? 0 : index[axis + skipped]!), 0);
    return mask.data[flat]!;
  };
}

/** Whole-number coordinates of a flat index. */
function coordinates(flat: number, sizes: readonly number[]): number[] {
  const index: number[] = [];
  for (const size of sizes.toReversed()) {
    index.unshift(flat % size);
    flat = Math.floor(flat / size);
  }
  return index;
}

function problemOf(q: ReferenceTensor, k: ReferenceTensor, v: ReferenceTensor, options: AttentionOptions): Problem {
  const [queryHeads, queries, headDim] = q.shape.slice(-3) as [number, number, number];
  const [keyHeads, keys] = k.shape.slice(-3) as [number, number];
  const leading = q.shape.slice(0, -2);
  if (
    q.shape.length < 3 || k.shape.at(-1) !== headDim || queryHeads % keyHeads !== 0 || `${k.shape}` !== `${v.shape}`
  ) {
    throw new Error(`Cannot attend: q [${q.shape}], k [${k.shape}] and v [${v.shape}] do not fit together`);
  }
  const scale = options.scale ?? 1 / Math.sqrt(headDim);
  const masked = maskReader(options.mask, [...leading, queries, keys]);
  // Query head h of a sequence uses key head floor(h / (queryHeads / keyHeads)).
  const keyHead = (head: number) =>
    Math.floor(head / queryHeads) * keyHeads + Math.floor((head % queryHeads) / (queryHeads / keyHeads));
  return {
    heads: leading.reduce((a, b) => a * b, 1),
    queries,
    keys,
    headDim,
    score(head, i, j) {
      if (options.causal && j > i + keys - queries) return -Infinity;
      const at = (head * queries + i) * headDim, from = (keyHead(head) * keys + j) * headDim;
      let sum = 0;
      for (let d = 0; d < headDim; d++) sum += q.data[at + d]! * k.data[from + d]!;
      return sum * scale + masked([...coordinates(head, leading), i, j]);
    },
    value: (head, j, d) => v.data[(keyHead(head) * keys + j) * headDim + d]!,
  };
}

/**
 * Attention by its definition (Vaswani et al. 2017): all scores of a query, their softmax, the weighted mean of the
 * values. A query that sees no key gives zeros.
 *
 * @param q [..., heads, L, D]. @param k [..., keyHeads, S, D], where keyHeads divides heads. @param v Like k.
 * @returns [..., heads, L, D], row-major.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { attentionReference } from "./flash_reference.ts";
 *
 * // One query that likes both keys equally gets the mean of their values.
 * const q = { data: [0, 0], shape: [1, 1, 2] };
 * const k = { data: [1, 2, 3, 4], shape: [1, 2, 2] };
 * const v = { data: [10, 20, 30, 40], shape: [1, 2, 2] };
 * assertEquals([...attentionReference(q, k, v)], [20, 30]);
 * ```
 */
export function attentionReference(
  q: ReferenceTensor,
  k: ReferenceTensor,
  v: ReferenceTensor,
  options: AttentionOptions = {},
): Float64Array {
  const { heads, queries, keys, headDim, score, value } = problemOf(q, k, v, options);
  const out = new Float64Array(heads * queries * headDim);
  for (let head = 0; head < heads; head++) {
    for (let i = 0; i < queries; i++) {
      const scores = Array.from({ length: keys }, (_, j) => score(head, i, j));
      const greatest = Math.max(...scores);
      if (keys === 0 || greatest === -Infinity) continue;
      const weights = scores.map((s) => Math.exp(s - greatest));
      const sum = weights.reduce((a, b) => a + b);
      const at = (head * queries + i) * headDim;
      for (let d = 0; d < headDim; d++) {
        weights.forEach((weight, j) => out[at + d]! += weight / sum * value(head, j, d));
      }
    }
  }
  return out;
}

/** What the online softmax remembers of the keys that one query has seen. */
interface Running {
  /** The greatest score. */
  m: number;
  /** The sum of exp(score - m). */
  l: number;
  /** The sum of exp(score - m) * value. */
  readonly acc: Float64Array;
}

/** Takes a tile of scores and values in: `scores[j]` belongs to the value whose features are `value(j, d)`. */
function takeTile(running: Running, scores: readonly number[], value: (j: number, d: number) => number): void {
  const m = Math.max(running.m, ...scores);
  if (m === -Infinity) return; // no key seen yet: nothing to rescale, nothing to add
  const rescale = Math.exp(running.m - m); // 0 for the first tile with a key
  running.m = m;
  running.l *= rescale;
  for (let d = 0; d < running.acc.length; d++) running.acc[d]! *= rescale;
  scores.forEach((score, j) => {
    const weight = Math.exp(score - m);
    running.l += weight;
    for (let d = 0; d < running.acc.length; d++) running.acc[d]! += weight * value(j, d);
  });
}

/**
 * Attention tile by tile with the online softmax (Dao et al. 2022, algorithm 1, for one query at a time). The result is
 * that of {@linkcode attentionReference} up to rounding, for every tile size.
 *
 * @param q [..., heads, L, D]. @param k [..., keyHeads, S, D], where keyHeads divides heads. @param v Like k.
 * @param options Also `tile`: keys taken in at once, 32 unless given.
 * @returns [..., heads, L, D], row-major.
 *
 * @example
 * ```ts
 * import { assertAlmostEquals } from "@std/assert";
 * import { attentionReference, flashAttentionReference } from "./flash_reference.ts";
 *
 * const q = { data: [1, 2, -1, 0.5], shape: [1, 2, 2] };
 * const k = { data: [1, 0, 0, 1, 2, 2], shape: [1, 3, 2] };
 * const v = { data: [1, 2, 3, 4, 5, 6], shape: [1, 3, 2] };
 * const plain = attentionReference(q, k, v, { causal: true });
 * const flash = flashAttentionReference(q, k, v, { causal: true, tile: 2 });
 * flash.forEach((value, i) => assertAlmostEquals(value, plain[i]!, 1e-12));
 * ```
 */
export function flashAttentionReference(
  q: ReferenceTensor,
  k: ReferenceTensor,
  v: ReferenceTensor,
  options: AttentionOptions & { readonly tile?: number } = {},
): Float64Array {
  const { heads, queries, keys, headDim, score, value } = problemOf(q, k, v, options);
  const { tile = 32 } = options;
  const out = new Float64Array(heads * queries * headDim);
  for (let head = 0; head < heads; head++) {
    for (let i = 0; i < queries; i++) {
      const running: Running = { m: -Infinity, l: 0, acc: new Float64Array(headDim) };
      for (let first = 0; first < keys; first += tile) {
        const scores = Array.from({ length: Math.min(tile, keys - first) }, (_, j) => score(head, i, first + j));
        takeTile(running, scores, (j, d) => value(head, first + j, d));
      }
      // A query that saw no key has l = 0, and gives zeros.
      if (running.l > 0) out.set(running.acc.map((sum) => sum / running.l), (head * queries + i) * headDim);
    }
  }
  return out;
}
