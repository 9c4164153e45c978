/**
 * The sizes that programs are captured for. A step runs in the smallest program that holds it: more sizes waste less of each
 * step, and take longer to compile all of.
 *
 * @module
 */

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

/**
 * Positions up to which contexts have programs of their own, by the most sequences that these decode. Few tiles of attention are merged by
 * the product behind it, or join in fewer workgroups (`attention_layout.ts`); above these, and for more sequences, one program does.
 */
const CONTEXTS: readonly { readonly sequences: number; readonly positions: readonly number[] }[] = [
  { sequences: 1, positions: [1024, 10240] },
  { sequences: 8, positions: [1024] },
];

/**
 * Bounds of the blocks of a sequence in programs that decode, in ascending order: where few sequences are decoded on a GPU, short
 * contexts have faster forms.
 *
 * @param maxTokens A bound of tokens. @param most Blocks of a whole context. @param blockSize Tokens of a block.
 */
export function blockBuckets(maxTokens: number, most: number, blockSize: number, cpu: boolean): number[] {
  const positions = cpu ? [] : CONTEXTS.find(({ sequences }) => maxTokens <= sequences)?.positions ?? [];
  return [...positions.map((bound) => bound / blockSize).filter((blocks) => blocks < most), most];
}
