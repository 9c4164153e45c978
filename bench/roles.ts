/**
 * What the dispatches of a step are for: a role in the layer, by name and by size.
 *
 * @module
 */
import type { DecoderConfig } from "../model/config.ts";
import type { DispatchInfo } from "../tensor/mod.ts";

/** The dispatches of one role in a step. */
export interface RoleTime {
  readonly role: string;
  /** Dispatches of a step. */
  readonly dispatches: number;
  /** GPU microseconds of them all. */
  readonly microseconds: number;
  readonly bytes: number;
  readonly flops: number;
}

/** Names of kernels that are no products, and their roles, the first that fits. */
const NAMES: readonly (readonly [part: string, role: string])[] = [
  ["merge", "attention's merge"],
  ["attention", "attention"],
  ["rope", "RoPE, KV write"],
  ["write_kv", "RoPE, KV write"],
  ["norm", "norms"],
  ["quantise", "quantisation"],
  ["embedding", "embedding"],
  ["argmax", "sampling"],
  ["greedy", "sampling"],
  ["sample", "sampling"],
  ["keep_tokens", "sampling"],
];

/** The role of a dispatch. A product's is told by its multiplications, which differ from one to the other. */
export function roleOf({ name, cost }: DispatchInfo, config: DecoderConfig, tokens: number, rows: number): string {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, vocabSize } = config;
  if (!/matmul|product/.test(name)) return NAMES.find(([part]) => name.includes(part))?.[1] ?? name;
  const width = numHeads * headDim;
  const products: readonly (readonly [role: string, rows: number, size: number])[] = [
    ["QKV", tokens, (width + 2 * numKvHeads * headDim) * hiddenSize],
    ["attention's output", tokens, width * hiddenSize],
    ["gate and up", tokens, 2 * intermediateSize * hiddenSize],
    ["down", tokens, intermediateSize * hiddenSize],
    ["LM head", rows, vocabSize * hiddenSize],
  ];
  const off = ([, count, size]: (typeof products)[number]): number =>
    Math.abs(Math.log(cost.flops / (2 * count * size)));
  return products.reduce((best, product) => off(product) < off(best) ? product : best)[0];
}

/** Adds up the dispatches of each role, in the order in which they first come. */
export function timeByRole(
  dispatches: readonly DispatchInfo[],
  microseconds: readonly number[],
  config: DecoderConfig,
  tokens: number,
  rows: number,
): RoleTime[] {
  const times = new Map<string, RoleTime>();
  dispatches.forEach((info, i) => {
    const role = roleOf(info, config, tokens, rows);
    const { dispatches: count = 0, microseconds: time = 0, bytes = 0, flops = 0 } = times.get(role) ?? {};
    times.set(role, {
      ...{ role, dispatches: count + 1, microseconds: time + microseconds[i]! },
      ...{ bytes: bytes + info.cost.bytes, flops: flops + info.cost.flops },
    });
  });
  return [...times.values()];
}
