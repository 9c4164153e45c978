/**
 * Views: a movement operation moves no data. It says at which index of its source an element lies, and for a pad whether it
 * lies there at all.
 *
 * @module
 */
import { maxOf } from "./dim.ts";
import type { Expr, ExprBuilder } from "./expr.ts";
import type { Node } from "./node.ts";

/** A movement operation. */
export type ViewNode = Extract<Node, { op: "reshape" | "permute" | "expand" | "slice" | "pad" }>;

/** Where an element of a view lies in its source. */
export interface SourceIndex {
  /** One index an axis of the source. */
  readonly index: readonly Expr[];
  /** Whether the source has the element: undefined where it always has. */
  readonly inside: Expr | undefined;
}

/** The source's index of the element of `node` at `index`. */
export function sourceIndex(build: ExprBuilder, node: ViewNode, index: readonly Expr[]): SourceIndex {
  const source = node.src[0]!;
  switch (node.op) {
    case "reshape":
      return { index: build.unflatten(build.flatten(index, node.shape), source.shape), inside: undefined };
    case "permute": {
      const moved: Expr[] = [];
      node.order.forEach((axis, i) => moved[axis] = index[i]!);
      return { index: moved, inside: undefined };
    }
    case "expand":
      return { index: source.shape.map((dim, axis) => dim === 1 ? build.literal(0) : index[axis]!), inside: undefined };
    case "slice":
      return { index: index.map((i, axis) => build.add(i, build.literal(node.start[axis]!))), inside: undefined };
    case "pad":
      return padIndex(build, node, index);
  }
}

function padIndex(build: ExprBuilder, node: ViewNode & { op: "pad" }, index: readonly Expr[]): SourceIndex {
  let inside: Expr | undefined;
  const moved = index.map((i, axis) => {
    const before = node.before[axis]!, size = maxOf(node.src[0]!.shape[axis]!);
    if (before === 0 && size === maxOf(node.shape[axis]!)) return i;
    const from = build.literal(before), to = build.literal(before + size);
    const test = build.apply("and", "bool", [
      build.apply("ge", "bool", [i, from]),
      build.apply("lt", "bool", [i, to]),
    ]);
    inside = inside ? build.apply("and", "bool", [inside, test]) : test;
    return before === 0 ? i : build.apply("sub", "u32", [i, from]);
  });
  return { index: moved, inside };
}
