/**
 * How many steps are submitted together. Between two submissions a GPU idles for 50 to 110 us, so they are to be few; a group that is
 * encoded for longer than the device has something to do makes it idle too.
 *
 * @module
 */

/** Where a run stands whose next group is to be encoded. */
export interface RunProgress {
  /** Steps of the run that were submitted. */
  readonly submitted: number;
  /** Milliseconds since the first of them was. */
  readonly elapsedMs: number;
  /** Milliseconds that the device takes for a step, as far as they are known. */
  readonly stepMs: number;
  /** Milliseconds that encoding a step takes. */
  readonly encodeMs: number;
}

/**
 * As many steps as can be encoded before the device has done those that it has, but no more than these: the first limit rests on an
 * estimate, and with the second little is lost where that is wrong. So where encoding takes up to half of a step's time, a group is as
 * large as all before it: 1, 1, 2, 4, 8 steps; where it takes nearly as long as the step, steps are submitted one by one.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { groupSize } from "./group_size.ts";
 *
 * assertEquals(groupSize({ submitted: 4, elapsedMs: 1.2, stepMs: 0.6, encodeMs: 0.25 }), 4);
 * assertEquals(groupSize({ submitted: 4, elapsedMs: 1.2, stepMs: 0.6, encodeMs: 0.5 }), 2);
 * ```
 */
export function groupSize({ submitted, elapsedMs, stepMs, encodeMs }: RunProgress): number {
  const leftMs = submitted * stepMs - elapsedMs;
  return Math.max(1, Math.min(submitted, encodeMs > 0 ? Math.floor(leftMs / encodeMs) : submitted));
}
