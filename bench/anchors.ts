/**
 * Others' figures on the same card, beside one's own (`anchors.json`).
 *
 * @module
 */
import anchors from "./anchors.json" with { type: "json" };

/** What another engine does. */
export interface Anchor {
  readonly engine: string;
  readonly tokensPerSecond: number;
}

/** What was measured, as far as others have measured it too. */
export interface Measured {
  readonly device: string;
  readonly shape: string;
  /** Sequences. */
  readonly batch: number;
  /** Tokens of each in a step: 1 where it is decoded. */
  readonly tokens: number;
  readonly context: number;
}

/** Others' figures were taken at this length of prompt. */
const LENGTH = 512;

/**
 * Others' figures for what was measured: none on another device, nor at other lengths.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { anchorsOf } from "./anchors.ts";
 *
 * const measured = { device: "NVIDIA H100 80GB HBM3", shape: "7b", batch: 8, tokens: 1, context: 512 };
 * assertEquals(anchorsOf(measured), [{ engine: "llama.cpp CUDA", tokensPerSecond: 660 }]);
 * assertEquals(anchorsOf({ ...measured, device: "another" }), []);
 * ```
 */
export function anchorsOf({ device, shape, batch, tokens, context }: Measured): Anchor[] {
  if (device !== anchors.device || context !== LENGTH) return [];
  if (batch > 1) {
    return tokens > 1 ? [] : anchors.batched.filter(({ model, sequences }) => model === shape && sequences === batch)
      .map(({ engine, tokensPerSecond }) => ({ engine, tokensPerSecond }));
  }
  return anchors.figures.filter(({ model }) => model === shape && (tokens === 1 || tokens === LENGTH)).map((
    figure,
  ) => ({
    engine: figure.engine,
    tokensPerSecond: tokens === 1 ? figure.tokensPerSecond : figure.prefillTokensPerSecond,
  }));
}

/** Others' decoding of several sequences of a shape at once. */
export function batchedAnchors(device: string, shape: string): { engine: string; points: [number, number][] }[] {
  const batched = device === anchors.device ? anchors.batched.filter(({ model }) => model === shape) : [];
  return [...Map.groupBy(batched, ({ engine }) => engine)].map(([engine, figures]) => ({
    engine,
    points: figures.map(({ sequences, tokensPerSecond }) => [sequences, tokensPerSecond]),
  }));
}
