/**
 * Prints a graph as lines of a small program: what a failing test shows, and what a reader of `explain()` compares with.
 *
 * @module
 */
import { formatShape } from "./dim.ts";
import type { Node } from "./node.ts";

function argument(node: Node): string {
  switch (node.op) {
    case "buffer":
      return `"${node.storage.label}" #${node.storage.id} v${node.version}`;
    case "input":
      return `"${node.name}"`;
    case "const":
      return `${node.value}`;
    case "iota":
      return `axis ${node.axis}`;
    case "permute":
      return `by ${node.order.join(",")}`;
    case "slice":
      return `from ${node.start.join(",")}`;
    case "pad":
      return `before ${node.before.join(",")} with ${node.value}`;
    case "kernel":
      return `${JSON.stringify(node.params)}`;
    case "output":
      return `${node.index}`;
    default:
      return "";
  }
}

function nameOf(node: Node): string {
  if (node.op === "map") return node.fn;
  if (node.op === "reduce") return node.kind;
  return node.op === "kernel" ? node.kernel.name : node.op;
}

/**
 * One line a node, sources first: `%2 = add(%0, %1): f32 [3, 4]`.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { constant, map } from "./node.ts";
 * import { formatGraph } from "./format.ts";
 *
 * assertEquals(formatGraph(map("exp", constant(1, "f32"))), "%0 = const 1: f32 []\n%1 = exp(%0): f32 []");
 * ```
 */
export function formatGraph(...roots: readonly Node[]): string {
  const nodes = new Set<Node>(roots);
  for (const node of nodes) node.src.forEach((source) => nodes.add(source));
  const names = new Map<Node, string>();
  return [...nodes].sort((a, b) => a.id - b.id).map((node, i) => {
    names.set(node, `%${i}`);
    const sources = node.src.length > 0 ? `(${node.src.map((source) => names.get(source)).join(", ")})` : "";
    const detail = argument(node);
    return `%${i} = ${nameOf(node)}${sources}${detail && ` ${detail}`}: ${node.dtype} ${formatShape(node.shape)}`;
  }).join("\n");
}
