/**
 * What a hand-written kernel is to the graph: five parts (infer, wgsl, grid, reference, cost) and the slots into which
 * fusion may splice. `tensor/` holds kernels by reference and knows none of them; `kernels/` implements this.
 *
 * A kernel's WGSL never names a binding. It reads input `x` through a generated function `x(i)` and writes output `y`
 * through `store_y(i, value)`. Behind these stand storage types (f16 reads as f32), tables split over several bindings, and
 * whatever elementwise epilogue fusion has spliced into the store. An epilogue may read (a residual), and where
 * what it reads may lie in the buffer that is written, a read waits for every store before it: a kernel with many outputs an
 * invocation makes them all by `finished_y(i, value)` before it writes any by `write_y(i, finished)`. On an H100 that took 4 us
 * off a product of 256 tokens while results lay in one buffer.
 *
 * @module
 */
import type { Dim, Shape, Sizes } from "./dim.ts";
import type { DType } from "./dtype.ts";
import type { Node } from "./node.ts";

/** Element type and sizes of a tensor. */
export interface TensorType {
  /** Element type. */
  readonly dtype: DType;
  /** Sizes, outermost first. */
  readonly shape: Shape;
}

/** What a device can do, as kernels choose by it. Each optional feature can be switched off. */
export interface Caps {
  /** Subgroup operations work and every subgroup has `subgroupSize` lanes. */
  readonly subgroups: boolean;
  /** Lanes of a subgroup: 32 on NVIDIA, 8 on llvmpipe; 1 without subgroups. */
  readonly subgroupSize: number;
  /** Half-precision storage and arithmetic. */
  readonly f16: boolean;
  /** GPU timestamps. */
  readonly timestamps: boolean;
  /** `dot4I8Packed` is worth using. */
  readonly packedDot: boolean;
  /** 64-bit integers: where loads cost by their number (CPU devices), one takes twice the bytes. */
  readonly int64: boolean;
  /** Memory can be bound so that workgroups of one dispatch see what others write. */
  readonly coherent: boolean;
  /** A CPU device (llvmpipe): no parallel loads to hide, dispatches cost 30 us. */
  readonly cpu: boolean;
  /**
   * Invocations that workgroups have to have where dispatches are joined (`join.ts`); undefined where each stands alone. Kernels
   * that matter in decoding take their form by it.
   */
  readonly joinedLanes?: number | undefined;
  /** Greatest bytes of one storage binding. */
  readonly maxBinding: number;
  /** Greatest bytes of one uniform binding. */
  readonly maxUniformBinding: number;
  /** Most storage buffers of a shader: what it reads and what it writes. */
  readonly maxStorageBuffers: number;
  /** Greatest invocations of a workgroup. */
  readonly maxInvocations: number;
  /** Bytes of workgroup memory. */
  readonly workgroupMemory: number;
}

/** One use of a kernel: parameters and the types of what goes in and comes out. */
export interface KernelCall<P> {
  /** The op's parameters: plain data, compared by their JSON. */
  readonly params: P;
  /** Types of the inputs. */
  readonly inputs: readonly TensorType[];
  /** Types of the outputs, as `infer` gave them. */
  readonly outputs: readonly TensorType[];
}

/** How the WGSL addresses one tensor. */
export interface Port {
  /** Name of the accessor: `x` gives `fn x(i: u32)`, an output `y` gives `fn store_y(i: u32, value)`. */
  readonly name: string;
  /** Elements an index counts: 1, 2 or 4 (vec2, vec4). The last size has to be a multiple. 1 unless given. */
  readonly width?: 1 | 2 | 4;
  /** Bind as a uniform (inputs only, width 4, f32, i32 or u32): scalar loads on CPU devices. */
  readonly uniform?: boolean;
  /** Read 16-bit pairs raw: the accessor gives u32 words of the storage, whatever the dtype. */
  readonly raw?: boolean;
}

/** The WGSL of one call. */
export interface KernelSource {
  /** One port an input, in order. */
  readonly inputs: readonly Port[];
  /** One port an output, in order. */
  readonly outputs: readonly Port[];
  /** Invocations of a workgroup. */
  readonly workgroupSize: readonly [number, number, number];
  /** Module-scope declarations: workgroup variables, functions. */
  readonly declarations?: string;
  /**
   * Body of the entry point. In scope: `workgroup: vec3u`, `groups: vec3u` (number of workgroups), `local: vec3u`,
   * `lane: u32` (local invocation index), `global: vec3u`; with `subgroups`, also `subgroupLane: u32`, `subgroup: u32`
   * (lane / subgroup size).
   */
  readonly main: string;
  /** Whether the body uses subgroup operations. */
  readonly subgroups?: boolean;
}

/**
 * A statement for `main`: from here on it reads what other kernels have made; before, only weights and what the host gave. Where
 * dispatches are joined it waits for them, so that loads above it overlap with the wait. In uniform control flow. A kernel
 * without it waits first of all.
 */
export const INPUTS_READY = "inputs_ready();";

/** Floating-point operations and least bytes of one call, for rooflines. */
export interface Cost {
  /** Floating-point operations, a multiply-add as two. */
  readonly flops: number;
  /** Bytes that must move: each input read once, each output written once. */
  readonly bytes: number;
}

/** Places where fusion may splice into a kernel. */
export type SlotKind = "elementwise" | "siluGate";

/** What a kernel may ask before it takes another form. */
export interface RewriteContext {
  /** The device. */
  readonly caps: Caps;
  /** Number of distinct nodes that read this one; outputs of the program count too. */
  readers(node: Node): number;
  /** The nodes that read this one, as they were traced: rewrites take sources first. */
  readersOf(node: Node): readonly Node[];
}

/** A sum of a kernel's result and something else. */
export interface Addition {
  /** The sum's node. */
  readonly sum: Node;
  /** What is added to the result. */
  readonly addend: Node;
}

/** A kernel family member. `P` is plain data. */
export interface Kernel<P> {
  /** Name as `explain()` prints it, snake_case. */
  readonly name: string;
  /** Output types. Throws an error that names the wrong value. */
  infer(inputs: readonly TensorType[], params: P): TensorType[];
  /** The WGSL of a call on a device. */
  wgsl(call: KernelCall<P>, caps: Caps): KernelSource;
  /** Workgroups of a run: `resolve` gives a size's value. */
  grid(call: KernelCall<P>, caps: Caps, resolve: (dim: Dim) => number): readonly [number, number, number];
  /**
   * The plain definition, in float64. Inputs are flat and shapes are numbers here. An output that updates an input is
   * given whole.
   */
  reference(call: KernelCall<P>, inputs: readonly ArrayLike<number>[]): Float64Array[];
  /** Operations and least bytes of a run. */
  cost(call: KernelCall<P>, caps: Caps, resolve: (dim: Dim) => number): Cost;
  /**
   * For each output the input that it is the next version of (written in place), or -1. All -1 unless given. The input is a buffer's
   * version, or the result of a kernel that nothing else reads later.
   */
  updates?(call: KernelCall<P>): readonly number[];
  /** Where fusion may splice; `elementwise` wraps the store of the only output, indexed in elements with width 1. */
  readonly slots?: readonly SlotKind[];
  /**
   * This op in other nodes, where they are the faster form on a device: same type, same value. Taken before any rule.
   */
  expand?(inputs: readonly Node[], params: P, context: RewriteContext): Node | undefined;
  /**
   * This op and ops that make its inputs as one, where a device is better off so: quantisation in the store of what it follows, a
   * norm where its result is used. Same type; the same value but for rounding. What else reads an input keeps it from
   * vanishing.
   */
  absorb?(inputs: readonly Node[], params: P, context: RewriteContext): Node | undefined;
  /**
   * This op plus `addend`, of the same type, where it makes more of the `sum` than its value: what readers of the sum would make of
   * it. The result takes the sum's place.
   */
  withAddend?(inputs: readonly Node[], params: P, of: Addition, context: RewriteContext): Node | undefined;
  /** This op with its only output in 8-bit codes and scales (`quantise32`), where it can store it so. */
  withQuantise32?(inputs: readonly Node[], params: P, context: RewriteContext): Node | undefined;
  /**
   * This op, which gives rows of values, as a kernel of two outputs [rows, S]: the greatest value of each of S parts of a row, and its
   * place in the row, i32; where it can store them so.
   */
  withGreatest?(inputs: readonly Node[], params: P, context: RewriteContext): Node | undefined;
  /** Parameters with the gate spliced in (output halves: silu(first half) x second half), where the slot is there. */
  withSiluGate?(params: P): P | undefined;
}

/** Makes a run's resolver out of its sizes. */
export type Resolver = (dim: Dim) => number;

/** WGSL for a size: a literal, or the generated function that reads the run's value. */
export function dimWgsl(dim: Dim): string {
  return typeof dim === "number" ? `${dim}u` : `size_${dim.name}()`;
}

/** Values of symbols in a run. */
export type { Sizes };
