/**
 * The intermediate results of a program: when each lives, in which arena, and which of them share a place (`memory.ts`).
 *
 * @module
 */
import { elementCount } from "./dim.ts";
import { bytesPerElement } from "./dtype.ts";
import type { Group } from "./fuse.ts";
import { base } from "./lower.ts";
import { type Lifetime, type MemoryPlan, planMemory } from "./memory.ts";
import { type Node, output, outputTypes, stateOf, updatesOf } from "./node.ts";

/** An intermediate result, and when it lives. */
type Result = { -readonly [Key in keyof Lifetime]: Lifetime[Key] };

/** How results are planned. */
export interface ResultOptions {
  /** The program's name, for errors. */
  readonly label: string;
  /** Whether f16 is stored in 16 bits. */
  readonly f16: boolean;
  /** Buffers for them: a group writes to another one than those that it reads, if there is one. */
  readonly arenas: number;
}

/** Where results lie. */
export interface PlannedResults {
  /** Slot of the plan, and bytes, of each result. Those in one slot that live at the same time are one: updated in place. */
  readonly results: ReadonlyMap<Node, { readonly slot: number; readonly bytes: number }>;
  readonly plan: MemoryPlan;
}

/** What a group makes, in the order of its outputs. */
export function resultsOf({ root }: Group): Node[] {
  return root.op === "kernel" ? outputTypes(root).map((_, index) => output(root, index)) : [root];
}

/** Bytes of a result at its greatest sizes. */
export function resultBytes(node: Node, f16: boolean): number {
  return elementCount(node.shape) * bytesPerElement(node.dtype, f16);
}

/** Plans the memory of all results but those that are written to states. */
export function planResults(
  groups: readonly Group[],
  outputs: readonly Node[],
  { label, f16, arenas }: ResultOptions,
): PlannedResults {
  const lastUse = new Map<Node, number>(), results = new Map<Node, Result>();
  groups.forEach((group, at) => group.reads.forEach((node) => lastUse.set(node, at)));
  outputs.forEach((node) => lastUse.set(base(node), Infinity));
  groups.forEach((group, at) => {
    const updates = group.root.op === "kernel" ? updatesOf(group.root) : [],
      arena = arenaBeside(group, results, arenas);
    for (const [index, node] of resultsOf(group).entries()) {
      if (stateOf(node)) continue;
      const source = group.root.src[updates[index] ?? -1], last = lastUse.get(node) ?? at;
      if (source) results.set(node, updated(results.get(base(source)), at, last, label));
      else results.set(node, { bytes: resultBytes(node, f16), first: at, last, arena });
    }
  });
  const lifetimes = [...new Set(results.values())], plan = planMemory(lifetimes);
  const slots = new Map(lifetimes.map((result, i) => [result, plan.slot[i]!]));
  const placed = [...results].map(([node, result]) =>
    [node, { slot: slots.get(result)!, bytes: result.bytes }] as const
  );
  return { results: new Map(placed), plan };
}

/** An arena with nothing that the group reads; the first where there is none. */
function arenaBeside({ reads }: Group, results: ReadonlyMap<Node, Result>, arenas: number): number {
  const taken = new Set(reads.map((node) => results.get(node)?.arena));
  for (let arena = 0; arena < arenas; arena++) if (!taken.has(arena)) return arena;
  return 0;
}

/** A result that the dispatch at `at` updates in place lives on as the dispatch's own, which is used until `last`. */
function updated(result: Result | undefined, at: number, last: number, label: string): Result {
  if (!result) throw new Error(`Cannot compile ${label}: only buffers and results are updated in place`);
  if (result.last > at) throw new Error(`Cannot compile ${label}: a result is read after its update in place`);
  result.last = last;
  return result;
}
