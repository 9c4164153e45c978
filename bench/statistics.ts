/**
 * What benches say of many measurements.
 *
 * @module
 */

/** A distribution in a few numbers. */
export interface Summary {
  readonly count: number;
  readonly mean: number;
  readonly min: number;
  readonly p25: number;
  readonly p50: number;
  readonly p75: number;
  readonly p99: number;
  readonly max: number;
}

/**
 * The value below which a share `q` of all lies, interpolated between neighbours (Hyndman and Fan's type 7); NaN of none.
 *
 * @param sorted Ascending.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { quantile } from "./statistics.ts";
 *
 * assertEquals(quantile([1, 2, 4], 0.75), 3);
 * ```
 */
export function quantile(sorted: readonly number[], q: number): number {
  const at = q * (sorted.length - 1), below = Math.floor(at);
  const low = sorted[below] ?? NaN, high = sorted[Math.ceil(at)] ?? NaN;
  return low + (high - low) * (at - below);
}

/** Half of all values are below it. */
export function median(values: readonly number[]): number {
  return quantile(values.toSorted((a, b) => a - b), 0.5);
}

/** Sums a distribution up. */
export function summarise(values: readonly number[]): Summary {
  const sorted = values.toSorted((a, b) => a - b), at = (q: number): number => quantile(sorted, q);
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
  return {
    count: sorted.length,
    mean,
    min: at(0),
    p25: at(0.25),
    p50: at(0.5),
    p75: at(0.75),
    p99: at(0.99),
    max: at(1),
  };
}

/** Points of the cumulative distribution, for a plot: value and share of values up to it. */
export function cumulative(values: readonly number[], points = 50): [value: number, share: number][] {
  if (values.length === 0) return [];
  const sorted = values.toSorted((a, b) => a - b);
  return Array.from({ length: points + 1 }, (_, i) => [quantile(sorted, i / points), i / points]);
}
