/**
 * The graph: immutable, hash-consed nodes. Structurally equal nodes are one object, so a common subexpression costs
 * nothing and every cache is keyed by identity. Ids grow with construction: a node's sources have smaller ids than it
 * has, and what was traced before a write stands before it.
 *
 * @module
 */
import { checkShape, type Shape } from "./dim.ts";
import type { DType } from "./dtype.ts";
import type { Kernel } from "./kernel.ts";
import type { ScalarOpName } from "./scalar.ts";
import type { Storage } from "./storage.ts";

/** What a reduction computes. `argmax` gives the i32 position of the first greatest element. */
export type ReduceKind = "sum" | "max" | "argmax";

/** What every node has. */
export interface NodeBase {
  /** Grows with construction. */
  readonly id: number;
  /** Element type. */
  readonly dtype: DType;
  /** Sizes. */
  readonly shape: Shape;
  /** Nodes it is computed from. */
  readonly src: readonly Node[];
}

/** Every kind of node, told apart by `op`. */
export type Node =
  & NodeBase
  & (
    | { readonly op: "buffer"; readonly storage: Storage; readonly version: number }
    | { readonly op: "input"; readonly name: string }
    | { readonly op: "const"; readonly value: number }
    | { readonly op: "iota"; readonly axis: number }
    | { readonly op: "map"; readonly fn: ScalarOpName }
    | { readonly op: "cast" }
    | { readonly op: "reshape" }
    | { readonly op: "permute"; readonly order: readonly number[] }
    | { readonly op: "expand" }
    | { readonly op: "slice"; readonly start: readonly number[] }
    | { readonly op: "pad"; readonly before: readonly number[]; readonly value: number }
    | { readonly op: "reduce"; readonly kind: ReduceKind }
    | { readonly op: "gather" }
    | { readonly op: "assign" }
    | { readonly op: "kernel"; readonly kernel: Kernel<unknown>; readonly params: unknown }
    | { readonly op: "output"; readonly index: number }
  );

type Distribute<T> = T extends Node ? Omit<T, "id"> : never;

let nextId = 1;
const interned = new Map<string, WeakRef<Node>>();
const forget = new FinalizationRegistry<string>((key) => {
  if (interned.get(key)?.deref() === undefined) interned.delete(key);
});
const kernelIds = new WeakMap<object, number>();
let nextKernelId = 0;

function identify(kernel: object): number {
  let id = kernelIds.get(kernel);
  if (id === undefined) kernelIds.set(kernel, id = nextKernelId++);
  return id;
}

function argumentKey(node: Distribute<Node>): string {
  switch (node.op) {
    case "buffer":
      return `${node.storage.id}v${node.version}`;
    case "input":
      return node.name;
    case "const":
      return Object.is(node.value, -0) ? "-0" : `${node.value}`;
    case "iota":
      return `${node.axis}`;
    case "map":
      return node.fn;
    case "permute":
      return node.order.join();
    case "slice":
      return node.start.join();
    case "pad":
      return `${node.before.join()};${node.value}`;
    case "reduce":
      return node.kind;
    case "kernel":
      return `${identify(node.kernel)};${JSON.stringify(node.params)}`;
    case "output":
      return `${node.index}`;
    case "cast":
    case "reshape":
    case "expand":
    case "gather":
    case "assign":
      return "";
  }
}

/** The one node of this structure: made now, or the one made before. */
export function intern(parts: Distribute<Node>): Node {
  const key = `${parts.op}|${parts.dtype}|${parts.shape.join()}|${parts.src.map((s) => s.id).join()}|${
    argumentKey(parts)
  }`;
  const known = interned.get(key)?.deref();
  if (known) return known;
  checkShape(parts.shape, `make ${parts.op}`);
  const node = Object.freeze({ ...parts, id: nextId++ }) as Node;
  interned.set(key, new WeakRef(node));
  forget.register(node, key);
  return node;
}

/** The same operation on other sources: what rewriting does below a changed node. */
export function withSources(node: Node, src: readonly Node[]): Node {
  return src.every((s, i) => s === node.src[i]) ? node : intern({ ...node, src });
}
