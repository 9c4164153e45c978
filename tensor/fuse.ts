/**
 * Decides which nodes share a dispatch. Every output, write and kernel is a root; a root takes in the elementwise and movement
 * operations above it, and the reductions whose rows are its own. What turns out to need memory of its own (a
 * value read twice, a reduction over other rows, a value that a later write would overwrite) becomes a root too, and
 * grouping starts over: each round adds a root, so it ends.
 *
 * @module
 */
import { base, hasMemory, lower, type Lowered, NeedsMemory } from "./lower.ts";
import { type Node, outputTypes, updatesOf } from "./node.ts";
import { reachable, type Rewritten } from "./rules.ts";
import { misplacedRead, schedule } from "./schedule.ts";

/** Nodes of one dispatch. */
export interface Group {
  /** The node whose memory it writes: an elementwise result, a write, or a kernel. */
  readonly root: Node;
  /** The generated part; undefined for a kernel alone. */
  readonly lowered: Lowered | undefined;
  /** The hand-written kernel, alone or with the generated part as its store. */
  readonly kernel: (Node & { op: "kernel" }) | undefined;
  /** Realised nodes that are read: leaves and other groups' roots (or outputs of theirs). */
  readonly reads: readonly Node[];
}

/** Cheaper to compute again than to store: chains up to this many operations. */
const RECOMPUTE_LIMIT = 6;

/** Bindings that stay free for sizes and outputs. */
const RESERVED_BINDINGS = 4;

/** Where memory comes from: a root computes it; an output of a kernel shares its kernel's group. */
function producerOf(node: Node): Node {
  return node.op === "output" ? node.src[0]! : node;
}

/** Whether a node is given from outside the program. */
function isLeaf(node: Node): boolean {
  return node.op === "buffer" || node.op === "input";
}

class Grouping {
  readonly realised = new Set<Node>();
  #cache = new Map<Node, Group>();
  #readers = new Map<Node, number>();

  constructor(readonly graph: Rewritten, readonly maxBindings: number) {
    for (const node of graph.outputs) this.realised.add(base(node));
    for (const node of reachable(graph.outputs)) {
      if (node.op === "kernel") node.src.forEach((source) => this.realised.add(base(source)));
      for (const source of new Set(node.src)) this.#readers.set(source, (this.#readers.get(source) ?? 0) + 1);
    }
  }

  /** Gives a node memory of its own; groups that computed it inside are to be made anew. */
  #realise(node: Node): void {
    // Each round has to add a root: one that is there already would start over for ever.
    if (this.realised.has(node)) throw new Error(`Cannot fuse ${node.op}: it has memory of its own already`);
    this.realised.add(node);
    for (const [root, group] of this.#cache) if (group.lowered?.inlined.has(node)) this.#cache.delete(root);
  }

  /** Groups by root, or undefined where a new root was found. */
  attempt(): Map<Node, Group> | undefined {
    const groups = new Map<Node, Group>();
    const pending = this.graph.outputs.map((node) => producerOf(base(node)));
    const users = new Map<Node, Node>();
    for (let root = pending.pop(); root; root = pending.pop()) {
      if (isLeaf(root) || groups.has(root)) continue;
      const group = this.#cache.get(root) ?? this.#group(root);
      if (group) this.#cache.set(root, group);
      if (!group || !this.#claim(group, users) || !this.#fits(group)) return undefined;
      groups.set(root, group);
      pending.push(...group.reads.map((node) => producerOf(node)));
    }
    if (!this.#computesOnce(groups)) return undefined;
    const late = misplacedRead([...groups.values()], this.graph.order);
    if (late) this.#realise(late);
    return late ? undefined : groups;
  }

  /** A node that is a root of its own is read there, not computed again inside another group. */
  #computesOnce(groups: Map<Node, Group>): boolean {
    for (const { root, lowered } of groups.values()) {
      const twice = [...lowered?.inlined ?? []].find((node) => node !== root && groups.has(node));
      if (!twice) continue;
      this.#realise(twice);
      return false;
    }
    return true;
  }

  #group(root: Node): Group | undefined {
    if (root.op === "kernel") return { root, lowered: undefined, kernel: root, reads: this.#kernelReads(root) };
    try {
      const lowered = lower(root, this.realised, {
        fusable: (kernel) => this.#splices(kernel),
        readers: (node) => this.#readers.get(node) ?? 0,
      });
      const kernel = lowered.anchor;
      const reads = new Set([...lowered.reads, ...(kernel ? this.#kernelReads(kernel) : [])]);
      if (root.op === "assign") reads.add(root.src[0]!); // the version that it replaces has to exist before
      return { root, lowered, kernel, reads: [...reads] };
    } catch (cause) {
      if (!(cause instanceof NeedsMemory)) throw cause;
      this.#realise(cause.node);
      return undefined;
    }
  }

  #kernelReads(kernel: Node): Node[] {
    return kernel.src.map((source) => base(source));
  }

  #splices(node: Node): boolean {
    if (node.op !== "kernel" || !node.kernel.slots?.includes("elementwise")) return false;
    return outputTypes(node).length === 1 && updatesOf(node).every((source) => source < 0);
  }

  /** A node that is worth storing may be computed in one group only. */
  #claim(group: Group, users: Map<Node, Node>): boolean {
    for (const node of group.lowered?.inlined ?? []) {
      if (node === group.root || isCheap(node)) continue;
      const other = users.get(node);
      if (other && other !== group.root) {
        this.#realise(node);
        return false;
      }
      users.set(node, group.root);
    }
    return true;
  }

  /** Splits a group that reads more tensors than a shader may bind. */
  #fits(group: Group): boolean {
    if (group.reads.length + RESERVED_BINDINGS <= this.maxBindings || !group.lowered) return true;
    const inner = [...group.lowered.inlined].filter((n) => n !== group.root && n.op === "map" && !this.realised.has(n));
    if (inner.length === 0) return true;
    this.#realise(inner.reduce((a, b) => sizeOf(a) > sizeOf(b) ? a : b));
    return false;
  }
}

/** Operations that computing a node anew costs. */
function sizeOf(node: Node): number {
  const seen = new Set<Node>();
  const visit = (n: Node): void => {
    if (seen.has(n) || hasMemory(n)) return;
    seen.add(n);
    n.src.forEach(visit);
  };
  visit(node);
  return seen.size;
}

/** Whether a node may be computed in several groups: constants, views, short chains; never a reduction or a kernel. */
function isCheap(node: Node): boolean {
  if (node.op === "kernel" || node.op === "reduce" || node.op === "assign") return false;
  if (node.op !== "map" && node.op !== "cast" && node.op !== "gather") return true;
  const seen = new Set<Node>();
  const visit = (n: Node): boolean => {
    if (seen.has(n) || isLeaf(n)) return true;
    seen.add(n);
    if (
      n.op === "kernel" || n.op === "reduce" || n.op === "assign" || n.op === "output" || seen.size > RECOMPUTE_LIMIT
    ) return false;
    return n.src.every(visit);
  };
  return visit(node);
}

/** Groups the graph into dispatches, in an order in which they can run. */
export function fuse(graph: Rewritten, maxBindings: number): Group[] {
  const grouping = new Grouping(graph, maxBindings);
  for (;;) {
    const groups = grouping.attempt();
    if (groups) return schedule([...groups.values()], graph.order);
  }
}
