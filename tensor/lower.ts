/**
 * Lowers a fused group of nodes to scalar expressions: movement operations become index arithmetic, elementwise ones
 * applications, and each reduction a phase whose result the rest refers to by name. Which nodes have memory of their own is
 * given; lowering finds out what else would need it.
 *
 * @module
 */
import { maxOf } from "./dim.ts";
import { type Expr, ExprBuilder } from "./expr.ts";
import type { Node, ReduceKind } from "./node.ts";
import { sourceIndex, type ViewNode } from "./view.ts";

/** A reduction inside a group: `combine(body over variable in 0..count-1)`, once a row. */
export interface Phase {
  /** The reduction's node. */
  readonly node: Node;
  /** Name of the result. */
  readonly name: string;
  /** How it combines. */
  readonly kind: ReduceKind;
  /** Number of elements. */
  readonly count: number;
  /** The loop variable. */
  readonly variable: string;
  /** One element. */
  readonly body: Expr;
}

/** What a group is, before it is code. */
export interface Lowered {
  /** Group's expressions come from this builder. */
  readonly builder: ExprBuilder;
  /** Names of the output's index variables, by axis; undefined where the size is 1. */
  readonly index: readonly (string | undefined)[];
  /** Index variables that number rows: all of them where nothing is reduced. */
  readonly rows: ReadonlySet<string>;
  /** Reductions, in the order in which they must run. */
  readonly phases: readonly Phase[];
  /** One output element. */
  readonly body: Expr;
  /** Realised nodes that are read. */
  readonly reads: ReadonlySet<Node>;
  /** The kernel whose store this group is spliced into. */
  readonly anchor: (Node & { op: "kernel" }) | undefined;
  /** Nodes computed inside, the root included. */
  readonly inlined: ReadonlySet<Node>;
}

/** Lowering found a node that has to be realised first. */
export class NeedsMemory {
  /** @param node The node that needs memory of its own. */
  constructor(readonly node: Node) {}
}

/** The node whose memory a reshape of it shares. */
export function base(node: Node): Node {
  while (node.op === "reshape") node = node.src[0]!;
  return node;
}

/** Whether a node always has memory of its own: leaves, state and kernels. */
export function hasMemory(node: Node): boolean {
  return node.op === "buffer" || node.op === "input" || node.op === "assign" || node.op === "kernel" ||
    node.op === "output";
}

/** One workgroup writes a whole row: beyond this many elements a second dispatch over all of them is the faster way. */
const MAX_ROW = 1 << 15;

/** Name that stands for the anchor's stored value. */
export const ANCHOR_VALUE = "value";

class Lowerer {
  readonly builder = new ExprBuilder();
  readonly reads = new Set<Node>();
  readonly inlined = new Set<Node>();
  readonly phases: Phase[] = [];
  readonly index: (string | undefined)[];
  rows: Set<string> | undefined;
  anchor: (Node & { op: "kernel" }) | undefined;
  #memo = new Map<string, Expr>();
  #output: Expr[];
  #path: Node[] = [];

  constructor(readonly root: Node, readonly realised: ReadonlySet<Node>, readonly context: LowerContext) {
    this.index = root.shape.map((dim, axis) => maxOf(dim) === 1 ? undefined : `i${axis}`);
    this.#output = root.shape.map((dim, axis) => this.#axis(`i${axis}`, maxOf(dim)));
  }

  #axis(name: string, size: number): Expr {
    return size === 1 ? this.builder.literal(0) : this.builder.variable(name, "u32", Math.max(size - 1, 0));
  }

  run(): Lowered {
    const names = new Set(this.index.filter((name) => name !== undefined));
    const target = this.root.op === "assign" ? this.root.src[1]! : this.root;
    if (this.root.op === "assign") this.inlined.add(this.root);
    if (target.op === "reduce") this.rows = names;
    const body = this.lower(target, this.#output);
    const { builder, index, phases, reads, anchor, inlined } = this;
    return { builder, index, rows: this.rows ?? names, phases, body, reads, anchor, inlined };
  }

  lower(node: Node, index: readonly Expr[]): Expr {
    const key = `${node.id}:${index.map((i) => i.id).join()}`;
    let expr = this.#memo.get(key);
    if (!expr) {
      this.#path.push(node);
      expr = this.#lower(node, index);
      this.#path.pop();
      this.#memo.set(key, expr);
    }
    return expr;
  }

  #read(node: Node, index: readonly Expr[]): Expr {
    this.reads.add(node);
    return this.builder.load(node, this.builder.flatten(index, node.shape));
  }

  #lower(node: Node, index: readonly Expr[]): Expr {
    const build = this.builder;
    if (node !== this.root && node.op === "kernel" && this.#splices(node, index)) {
      return build.variable(ANCHOR_VALUE, node.dtype);
    }
    if (node !== this.root && (hasMemory(node) || this.realised.has(node))) return this.#read(node, index);
    this.inlined.add(node);
    switch (node.op) {
      case "const":
        return build.literal(node.value, node.dtype);
      case "iota":
        return build.cast(index[node.axis]!, node.dtype);
      case "map":
        return build.apply(node.fn, node.dtype, node.src.map((s) => this.lower(s, index)));
      case "cast":
        return build.cast(this.lower(node.src[0]!, index), node.dtype);
      case "reshape":
      case "permute":
      case "expand":
      case "slice":
      case "pad":
        return this.#view(node, index);
      case "gather":
        return this.#gather(node, index);
      case "reduce":
        return this.#reduce(node, index);
      default:
        throw new Error(`Cannot lower ${node.op}: it has no elementwise form`);
    }
  }

  /** Whether a kernel's result may be taken from its store: same element, nothing reduced, one kernel a group. */
  #splices(node: Node & { op: "kernel" }, index: readonly Expr[]): boolean {
    if (this.realised.has(node) || this.root.op === "assign" || !this.context.fusable(node)) return false;
    const same = index.length === this.#output.length && index.every((i, axis) => i === this.#output[axis]) &&
      node.shape.every((dim, axis) => maxOf(dim) === maxOf(this.root.shape[axis]!));
    if (!same || this.rows || (this.anchor && this.anchor !== node)) throw new NeedsMemory(this.#sharedAbove(node));
    this.anchor = node;
    this.inlined.add(node);
    return true;
  }

  /** The nearest node above a kernel that others read too: storing that one leaves the kernel free to be fused into it. */
  #sharedAbove(kernel: Node): Node {
    return this.#path.findLast((n) => n.op === "map" && n !== this.root && this.context.readers(n) > 1) ?? kernel;
  }

  /** A movement operation reads its source at another index; what a pad adds is a constant. */
  #view(node: ViewNode, index: readonly Expr[]): Expr {
    const build = this.builder, source = node.src[0]!, { index: moved, inside } = sourceIndex(build, node, index);
    if (node.op !== "pad" || !inside) return this.lower(source, moved);
    const outside = build.literal(node.value, node.dtype);
    if (source.shape.some((dim) => dim === 0)) return outside;
    return build.apply("where", node.dtype, [inside, this.lower(source, moved), outside]);
  }

  #gather(node: Node & { op: "gather" }, index: readonly Expr[]): Expr {
    const build = this.builder, [table, indices] = node.src as [Node, Node];
    const rank = indices.shape.length;
    const raw = this.lower(indices, index.slice(0, rank)), type = raw.dtype;
    const last = build.literal(maxOf(table.shape[0]!) - 1, type);
    const positive = type === "i32" ? build.apply("max", type, [raw, build.literal(0, type)]) : raw;
    const clamped = build.apply("min", type, [positive, last]);
    return this.lower(table, [build.cast(clamped, "u32"), ...index.slice(rank)]);
  }

  /** Output elements that belong to one row. */
  #rowElements(): number {
    return this.root.shape.reduce<number>((n, dim, axis) => this.rows!.has(`i${axis}`) ? n : n * maxOf(dim), 1);
  }

  #reduce(node: Node & { op: "reduce" }, index: readonly Expr[]): Expr {
    const names = new Set(index.flatMap((i) => [...i.variables]));
    // A row of the group is a row of every reduction in it: with fewer variables a reduction would be repeated, with
    // more it would be another one for each element.
    this.rows ??= names;
    if (this.anchor || names.size !== this.rows.size || [...names].some((name) => !this.rows!.has(name))) {
      throw new NeedsMemory(node);
    }
    if (node !== this.root && this.#rowElements() > MAX_ROW) throw new NeedsMemory(node);
    const source = node.src[0]!, count = maxOf(source.shape.at(-1)!), number = this.phases.length;
    const nested = this.phases.push({ node } as Phase) - 1;
    const variable = `j${number}`;
    const body = this.lower(source, [...index.slice(0, -1), this.#axis(variable, count)]);
    this.phases.splice(nested, 1);
    const phase: Phase = { node, name: `r${number}`, kind: node.kind, count, variable, body };
    this.phases.push(phase);
    return this.builder.variable(phase.name, node.dtype);
  }
}

/** What lowering asks about the graph. */
export interface LowerContext {
  /** Whether a kernel's store may be spliced into. */
  fusable(kernel: Node): boolean;
  /** Number of nodes that read this one. */
  readers(node: Node): number;
}

/** Lowers the group of `root`. Throws {@linkcode NeedsMemory} where a node inside has to be realised before. */
export function lower(root: Node, realised: ReadonlySet<Node>, context: LowerContext): Lowered {
  return new Lowerer(root, realised, context).run();
}
