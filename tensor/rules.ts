/**
 * Rewrites of the graph before it is grouped: a table of named rules, each a pattern and what takes its place. A new
 * optimisation is a new row and a test that shows the dispatch count before and after.
 *
 * @module
 */
import { maxOf } from "./dim.ts";
import type { Caps, RewriteContext } from "./kernel.ts";
import { type Node, withSources } from "./intern.ts";
import { kernelNode } from "./node.ts";

/** One rewrite. `rewrite` gives the node that takes the place of `node`, or undefined where the pattern does not match. */
export interface Rule {
  /** Name, as `explain()` prints it. */
  readonly name: string;
  /** The pattern and its replacement. */
  rewrite(node: Node, context: RewriteContext): Node | undefined;
}

/** The half of a kernel's last axis that a slice takes: 0, 1, or undefined. */
function halfOf(node: Node): { kernel: Node & { op: "kernel" }; half: number } | undefined {
  if (node.op !== "slice") return undefined;
  const kernel = node.src[0]!;
  if (kernel.op !== "kernel" || kernel.shape.length !== 2) return undefined;
  const width = maxOf(kernel.shape[1]!), half = maxOf(node.shape[1]!);
  if (half * 2 !== width || node.start[0] !== 0) return undefined;
  return node.start[1] === 0 ? { kernel, half: 0 } : node.start[1] === half ? { kernel, half: 1 } : undefined;
}

/** `silu(first half) * second half` of one matmul's columns is computed by the matmul, which then stores half of them. */
const siluGate: Rule = {
  name: "siluGate",
  rewrite(node, context) {
    if (node.op !== "map" || node.fn !== "mul") return undefined;
    for (const [gate, up] of [node.src, [...node.src].reverse()]) {
      if (gate!.op !== "map" || gate!.fn !== "silu") continue;
      const left = halfOf(gate!.src[0]!), right = halfOf(up!);
      if (!left || !right || left.kernel !== right.kernel || left.half !== 0 || right.half !== 1) continue;
      const { kernel } = left;
      if (!kernel.kernel.slots?.includes("siluGate") || context.readers(kernel) !== 2) continue;
      const params = kernel.kernel.withSiluGate?.(kernel.params);
      if (params !== undefined) return kernelNode(kernel.kernel, kernel.src, params);
    }
    return undefined;
  },
};

/** A kernel becomes one with what makes its inputs, where it knows how. */
const absorb: Rule = {
  name: "absorb",
  rewrite: (node, context) => node.op === "kernel" ? node.kernel.absorb?.(node.src, node.params, context) : undefined,
};

/** A kernel adds something to its result, where it makes more of the sum than that. */
const addend: Rule = {
  name: "addend",
  rewrite(node, context) {
    if (node.op !== "map" || node.fn !== "add") return undefined;
    for (const [made, other] of [node.src, [...node.src].reverse()] as [Node, Node][]) {
      if (made.op !== "kernel" || made === other || context.readers(made) !== 1) continue;
      const sum = made.kernel.withAddend?.(made.src, made.params, { sum: node, addend: other }, context);
      if (sum) return sum;
    }
    return undefined;
  },
};

/** All rules, in order of application. */
export const RULES: readonly Rule[] = [siluGate, absorb, addend];

/** A rewritten graph. `order` keeps the place at which each node was traced, which decides what precedes a write. */
export interface Rewritten {
  readonly outputs: readonly Node[];
  readonly order: ReadonlyMap<Node, number>;
}

/** Nodes that `outputs` need, in order of construction. */
export function reachable(outputs: readonly Node[]): Node[] {
  const seen = new Set<Node>(outputs), stack = [...outputs];
  for (let node = stack.pop(); node; node = stack.pop()) {
    for (const source of node.src) {
      if (!seen.has(source)) {
        seen.add(source);
        stack.push(source);
      }
    }
  }
  return [...seen].sort((a, b) => a.id - b.id);
}

/** Gives nodes that a rewrite made on the way to `node` places just before its own. */
function placeBefore(node: Node, position: number, order: Map<Node, number>): void {
  const made = new Set<Node>(), stack = [...node.src];
  for (let source = stack.pop(); source; source = stack.pop()) {
    if (made.has(source) || order.has(source)) continue;
    made.add(source);
    stack.push(...source.src);
  }
  [...made].sort((a, b) => a.id - b.id).forEach((n, i) => order.set(n, position - 1 + (i + 1) / (made.size + 1)));
}

/** Who reads a node. */
interface Use {
  readonly readers: Node[];
  /** Readers, and once more where the node is an output of the program. */
  count: number;
}

function usesOf(nodes: readonly Node[], outputs: readonly Node[]): Map<Node, Use> {
  const uses = new Map<Node, Use>(nodes.map((node) => [node, { readers: [], count: 0 }]));
  for (const node of nodes) for (const source of new Set(node.src)) uses.get(source)!.readers.push(node);
  for (const use of uses.values()) use.count = use.readers.length;
  for (const node of outputs) uses.get(node)!.count++;
  return uses;
}

/** Lets kernels choose their form on a device, then applies every rule to every node, sources first. */
export function rewriteGraph(outputs: readonly Node[], caps: Caps, rules: readonly Rule[] = RULES): Rewritten {
  const nodes = reachable(outputs);
  const uses = usesOf(nodes, outputs);
  const context: RewriteContext = {
    caps,
    readers: (node) => uses.get(node)?.count ?? 0,
    readersOf: (node) => uses.get(node)?.readers ?? [],
  };
  const replaced = new Map<Node, Node>(), order = new Map<Node, number>();
  nodes.forEach((node, position) => {
    let next = withSources(node, node.src.map((source) => replaced.get(source)!));
    // What takes the node's place has its readers, also when the next rule asks.
    const take = (result: Node): void => {
      next = result;
      if (!uses.has(next)) uses.set(next, uses.get(node)!);
    };
    take(next);
    if (next.op === "kernel") take(next.kernel.expand?.(next.src, next.params, context) ?? next);
    for (const rule of rules) take(rule.rewrite(next, context) ?? next);
    replaced.set(node, next);
    placeBefore(next, position, order);
    if (!order.has(next)) order.set(next, position);
  });
  return { outputs: outputs.map((node) => replaced.get(node)!), order };
}
