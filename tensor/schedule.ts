/**
 * The order of dispatches. Groups run in the order in which their roots were traced, so that sources come first; state makes
 * that a rule of its own: what reads a version has to run before the write that replaces it, and a write may read the version
 * it replaces only where it writes.
 *
 * @module
 */
import type { Expr } from "./expr.ts";
import type { Group } from "./fuse.ts";
import { type Node, stateOf, updatesOf } from "./node.ts";

/** Places of nodes in the trace; nodes without one stand at their id. */
export type TraceOrder = ReadonlyMap<Node, number>;

const placeOf = (node: Node, order: TraceOrder): number => order.get(node) ?? node.id;

/** Groups in an order in which they can run. */
export function schedule(groups: readonly Group[], order: TraceOrder): Group[] {
  return groups.toSorted((a, b) => placeOf(a.root, order) - placeOf(b.root, order));
}

/**
 * A node that has to be computed on its own, before a write that fusion would let it fall behind; undefined where every
 * read is in its place. Throws where a read was traced after the write.
 */
export function misplacedRead(groups: readonly Group[], order: TraceOrder): Node | undefined {
  const writers = new Map<string, number>();
  for (const { root, kernel } of groups) {
    for (const version of writtenVersions(root, kernel)) writers.set(version, placeOf(root, order));
  }
  for (const group of groups) {
    for (const read of group.reads) {
      const late = lateRead(group, read, writers, order);
      if (late) return late;
    }
    if (!writesOwnElement(group)) return group.root.src[1]!;
  }
  return undefined;
}

/** What to compute before the write that replaces `read`, if the group runs after it. */
function lateRead(group: Group, read: Node, writers: ReadonlyMap<string, number>, order: TraceOrder): Node | undefined {
  const state = stateOf(read), writer = state && writers.get(`${state.storage.id}v${state.version + 1}`);
  if (writer === undefined || writer >= placeOf(group.root, order)) return undefined;
  if (group.kernel && group.kernel !== group.root && placeOf(group.kernel, order) < writer) return group.kernel;
  const reader = [...group.lowered?.inlined ?? []].find((node) =>
    node !== group.root && node.src.includes(read) && placeOf(node, order) < writer
  );
  if (reader) return reader;
  throw new Error(`Cannot order the program: "${state!.storage.label}" is read after it was overwritten`);
}

/** `<storage>v<version>` of every state a group makes. */
function writtenVersions(root: Node, kernel: Node | undefined): string[] {
  const replaced = root.op === "assign" ? [root.src[0]!] : [];
  if (kernel?.op === "kernel") updatesOf(kernel).forEach((source) => source >= 0 && replaced.push(kernel.src[source]!));
  return replaced.flatMap((node) => {
    const state = stateOf(node);
    return state ? [`${state.storage.id}v${state.version + 1}`] : [];
  });
}

/** Whether a write reads the version it replaces only at the very element it writes. */
function writesOwnElement({ root, lowered }: Group): boolean {
  if (root.op !== "assign" || !lowered || !lowered.reads.has(root.src[0]!)) return true;
  const { builder, index, phases, body } = lowered;
  const own = root.shape.map((dim, axis) =>
    index[axis] === undefined ? builder.literal(0) : builder.variable(index[axis], "u32", Number(dim) - 1)
  );
  return phases.length === 0 && loadsOnlyAt(body, root.src[0]!, builder.flatten(own, root.shape));
}

function loadsOnlyAt(expr: Expr, node: Node, index: Expr): boolean {
  if (expr.kind === "load" && expr.node === node && expr.args[0] !== index) return false;
  return expr.args.every((arg) => loadsOnlyAt(arg, node, index));
}
