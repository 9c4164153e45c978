/**
 * The sizes that programs are captured for. A step runs in the smallest program that holds it: more sizes waste less of each
 * step, and take longer to compile all of.
 *
 * @module
 */
import { TILE } from "../kernels/attention_layout.ts";
import { fewTiles } from "../kernels/attention_merge_layout.ts";
import { mostTilesOfOne } from "../kernels/decode_layout.ts";

/** Most tokens of programs on a CPU device: compiling costs it a second a program, and small steps are slow anyway. */
const CPU_TOKENS = [1, 8, 64, 512];

/** Most tokens of programs on a GPU. */
const GPU_TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];

/** Most sequences of programs of more tokens: logits are held for each, and kernels go by it. */
const SEQUENCES = [8, 64];

/**
 * Bounds of the programs' tokens, in ascending order, the last one the greatest step's.
 *
 * @param most Most tokens of a step. @param cpu Whether the device computes on the CPU.
 */
export function tokenBuckets(most: number, cpu: boolean): number[] {
  return [...(cpu ? CPU_TOKENS : GPU_TOKENS).filter((bucket) => bucket < most), most];
}

/**
 * Bounds of the sequences of programs of so many tokens, in ascending order.
 *
 * @param maxTokens A bound of tokens. @param most Most sequences of a step. @param cpu Whether the device computes on the CPU.
 */
export function sequenceBuckets(maxTokens: number, most: number, cpu: boolean): number[] {
  const greatest = Math.min(maxTokens, most);
  return [...(cpu ? [] : SEQUENCES).filter((bucket) => bucket < greatest), greatest];
}

/** Positions up to which attention's tiles are so few that the product behind merges them: a dispatch less in each layer. */
const SHORT_CONTEXT = fewTiles * TILE;

/** Positions up to which a single sequence's attention is joined with other dispatches. */
const JOINED_CONTEXT = mostTilesOfOne * TILE;

/** A bound of tokens of programs that decode, and how they are compiled. */
export interface DecodePrograms {
  readonly maxTokens: number;
  /** Whether the device computes on the CPU. */
  readonly cpu: boolean;
  /** Whether dispatches may be joined. */
  readonly joined: boolean;
}

/**
 * Bounds of the blocks of a sequence in programs that decode, in ascending order: where a single sequence is decoded on a GPU, or
 * dispatches are joined, shorter contexts have faster forms.
 *
 * @param most Blocks of a whole context. @param blockSize Tokens of a block.
 */
export function blockBuckets({ maxTokens, cpu, joined }: DecodePrograms, most: number, blockSize: number): number[] {
  const positions = [
    ...(!cpu && (joined || maxTokens === 1) ? [SHORT_CONTEXT] : []),
    ...(joined && maxTokens === 1 ? [JOINED_CONTEXT] : []),
  ];
  return [...positions.map((bound) => bound / blockSize).filter((blocks) => blocks < most), most];
}
