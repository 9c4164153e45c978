/**
 * Turns a fused graph into a flat list of dispatches: lays out the upload, plans memory, and makes each group's shader,
 * pipeline and bind group. `program.ts` replays what this makes.
 *
 * @module
 */
import type { Arenas } from "./arenas.ts";
import { assemble, type Assembled, type BoundTensor, MOST_SYMBOLS, SIZES_WORDS, symbolsOf } from "./assemble.ts";
import { generate, generateFinish, type GroupCode } from "./codegen.ts";
import type { Joinable } from "./chains.ts";
import type { Device } from "./device.ts";
import { elementCount, formatShape, maxOf, type Shape } from "./dim.ts";
import { bytesPerElement, type DType, type HostArray } from "./dtype.ts";
import { fuse, type Group } from "./fuse.ts";
import type { Caps, Cost, KernelCall, Resolver } from "./kernel.ts";
import { base, type Lowered } from "./lower.ts";
import type { MemoryPlan } from "./memory.ts";
import { type Node, outputTypes, stateOf, updatesOf } from "./node.ts";
import { planResults, resultBytes, resultsOf } from "./results.ts";
import { reachable, rewriteGraph, type Rule } from "./rules.ts";
import type { Resident, Storage } from "./storage.ts";

/** One line of {@linkcode Program.explain}. */
export interface DispatchInfo {
  /** Kernel's name, or what a generated one computes. */
  readonly name: string;
  /** What was fused into it. */
  readonly fused: readonly string[];
  /** Type of what it writes. */
  readonly shape: Shape;
  /** Operations and bytes at the greatest sizes. */
  readonly cost: Cost;
  /** Its shader. */
  readonly wgsl: string;
}

/** One step of a run. `fixed` is the grid where no size is symbolic. */
export interface Dispatch {
  readonly info: DispatchInfo;
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
  readonly grid: (resolve: Resolver) => readonly [number, number, number];
  readonly fixed: readonly [number, number, number] | undefined;
  /** What joining it with others needs, in programs that are compiled for that. */
  readonly joinable: Joinable | undefined;
}

/** Where a run puts the values of an input. */
export interface InputSlot {
  readonly node: Node & { op: "input" };
  readonly offset: number;
  readonly view: HostArray | Uint16Array<ArrayBuffer>;
}

/** Where a realised node lies. */
export interface Place {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly bytes: number;
}

/** Sizes of a run, as many as the alignment of bindings. */
const SIZES_BYTES = 4 * SIZES_WORDS;

/**
 * Buffers of intermediate results. What a dispatch writes lies in another one than what it reads, if there is one: WebGPU lets a
 * dispatch read a buffer that it writes only through bindings that can be written, and loads through those are up to a fifth
 * slower on an H100 (gate and up of 64 tokens: 34 us and 29). Three suffice for a product with a residual.
 */
const ARENAS = 3;

/** Alignment of a binding's offset. */
const ALIGNMENT = 256;

/** Compiles one graph for one device. What it allocates is in `owned`. */
export class Compiler {
  readonly groups: readonly Group[];
  readonly outputs: readonly Node[];
  readonly owned: Resident[] = [];
  readonly sizeSlots = new Map<string, number>();
  readonly inputs: InputSlot[] = [];
  readonly places = new Map<Node, Place>();
  readonly storages = new Set<Storage>();
  upload!: Resident;
  host!: ArrayBuffer;

  /**
   * @param caps What kernels choose their forms by: the device's, or those of dispatches that are to be joined.
   * @param arenas Memory for results that is not the program's own.
   */
  constructor(
    readonly device: Device,
    traced: readonly Node[],
    readonly label: string,
    rules: readonly Rule[],
    readonly caps: Caps,
    readonly arenas?: Arenas,
  ) {
    const graph = rewriteGraph(traced, caps, rules);
    this.outputs = graph.outputs;
    this.groups = fuse(graph, caps.maxStorageBuffers);
    symbolsOf(reachable(graph.outputs)).forEach((symbol) => this.sizeSlots.set(symbol.name, this.sizeSlots.size));
    if (this.sizeSlots.size > MOST_SYMBOLS) {
      throw new Error(`Cannot compile ${label}: ${this.sizeSlots.size} symbolic sizes, at most ${MOST_SYMBOLS}`);
    }
  }

  compile(): Dispatch[] {
    try {
      this.#layUpload();
      this.#placeResults();
      return this.groups.map((group) => this.#dispatch(group));
    } catch (cause) {
      this.owned.forEach((resident) => resident.release());
      throw cause;
    }
  }

  #own(bytes: number, what: string): Resident {
    const resident = this.device.allocateStorage(bytes, what);
    this.owned.push(resident);
    return resident;
  }

  /** One buffer for all that changes from run to run: sizes first, then every input at its own aligned place. */
  #layUpload(): void {
    const { f16 } = this.caps;
    let offset = SIZES_BYTES;
    const inputs = new Map<string, Node & { op: "input" }>();
    for (const node of reachable(this.outputs)) {
      if (node.op !== "input") continue;
      if (inputs.has(node.name)) throw new Error(`Cannot compile ${this.label}: two inputs are named "${node.name}"`);
      inputs.set(node.name, node);
    }
    const slots = [...inputs.values()].map((node) => {
      const bytes = Math.max(16, elementCount(node.shape) * bytesPerElement(node.dtype, f16));
      const slot = { node, offset, bytes };
      offset += Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
      return slot;
    });
    this.upload = this.#own(offset, `the inputs of ${this.label}`);
    this.host = new ArrayBuffer(offset);
    for (const { node, offset, bytes } of slots) {
      this.inputs.push({ node, offset, view: hostView(this.host, offset, node.dtype, elementCount(node.shape), f16) });
      this.places.set(node, { buffer: this.upload.buffer, offset, bytes: Math.ceil(bytes / 16) * 16 });
    }
  }

  #placeResults(): void {
    const { caps: { f16, joinedLanes }, label } = this;
    for (const node of this.groups.flatMap(resultsOf)) {
      this.#checkWritten(node, stateOf(node) ? this.#placeState(node).bytes : resultBytes(node, f16));
    }
    // Dispatches that are to be joined read and write one buffer.
    const arenas = joinedLanes === undefined ? ARENAS : 1;
    const { results, plan } = planResults(this.groups, this.outputs, { label, f16, arenas });
    const slots = this.#slots(plan);
    results.forEach(({ slot, bytes }, node) => {
      this.places.set(node, { ...slots[slot]!, bytes: Math.max(16, Math.ceil(bytes / 16) * 16) });
    });
  }

  /** Refuses what one binding cannot hold: reads are divided among several, writes are not. */
  #checkWritten(node: Node, bytes: number): void {
    const { maxBinding } = this.caps;
    if (bytes <= maxBinding) return;
    const type = `${node.dtype} ${formatShape(node.shape)}`, label = stateOf(node)?.storage.label;
    const [what, remedy] = label === undefined
      ? [`compute ${type}`, "Compute it in pieces"]
      : [`write to "${label}" of ${type}`, "Divide it"];
    throw new Error(`Cannot ${what}: ${bytes} bytes exceed the device's binding of ${maxBinding}. ${remedy}.`);
  }

  /**
   * Memory of the planned slots: few arenas, since each buffer that a dispatch names costs the CPU half a microsecond; a buffer
   * each on CPU devices, where kernels read uniforms, and where an arena would be too large for a buffer.
   */
  #slots({ bytes, arenas }: MemoryPlan): { buffer: GPUBuffer; offset: number }[] {
    const label = `results of ${this.label}`, { caps, device: { gpu } } = this, totals = new Map<number, number>();
    const offsets = bytes.map((size, slot) => {
      const arena = arenas[slot]!, offset = totals.get(arena) ?? 0;
      totals.set(arena, offset + Math.ceil(size / ALIGNMENT) * ALIGNMENT);
      return offset;
    });
    if (caps.cpu || Math.max(0, ...totals.values()) > gpu.limits.maxBufferSize) {
      return bytes.map((size) => ({ buffer: this.#own(size, label).buffer, offset: 0 }));
    }
    const take = (arena: number, total: number): GPUBuffer =>
      this.arenas?.take(arena, total) ?? this.#own(total, label).buffer;
    const buffers = new Map([...totals].map(([arena, total]) => [arena, take(arena, total)]));
    return offsets.map((offset, slot) => ({ buffer: buffers.get(arenas[slot]!)!, offset }));
  }

  /** How a dispatch that writes `results` reads a realised node. */
  #access(node: Node, results: readonly Node[]): "read" | "shared" {
    const { buffer } = this.place(node);
    return results.some((result) => this.place(result).buffer === buffer) ? "shared" : "read";
  }

  #placeState(node: Node): Place {
    const { storage } = stateOf(node)!;
    this.storages.add(storage);
    const resident = this.device.resident(storage);
    const place = { buffer: resident.buffer, offset: resident.offset, bytes: resident.bytes };
    this.places.set(node, place);
    return place;
  }

  place(node: Node): Place {
    const known = this.places.get(node);
    if (known) return known;
    if (stateOf(node)) return this.#placeState(node);
    throw new Error(`Cannot compile ${this.label}: ${node.op} of ${formatShape(node.shape)} has no memory`);
  }

  #split(node: Node): BoundTensor["split"] {
    const { bytes } = this.place(node), { maxBinding } = this.caps;
    if (bytes <= maxBinding) return undefined;
    const partBytes = Math.floor(maxBinding / 65536) * 65536;
    return { partBytes, parts: Math.ceil(bytes / partBytes) };
  }

  #dispatch(group: Group): Dispatch {
    const names = new Map<Node, string>();
    const access = (node: Node): string => names.get(node)!;
    const { tensors, nodes, code } = group.kernel
      ? this.#kernelParts(group, group.kernel, names, access)
      : this.#generatedParts(group, names, access);
    const { pipeline, bindGroup, shader, entries } = this.#bind(tensors, nodes, code, describe(group));
    const symbolic = nodes.some((node) => node.shape.some((dim) => typeof dim !== "number"));
    const { grid, main, workgroupSize: [lanes, ...more] } = code,
      fixed = symbolic ? undefined : grid((dim) => dim as number);
    const info = this.#info(group, nodes, shader.code);
    const keys = shader.bindings.map(({ tensor, part }) =>
      tensor === "sizes" ? tensor : `${base(nodes[tensor]!).id}.${part}`
    );
    const joinable = this.caps.joinedLanes === undefined || more.some((size) => size > 1)
      ? undefined
      : { shader, main, entries, keys, lanes, grid, fixed, cost: info.cost };
    return { info, pipeline, bindGroup, grid, fixed, joinable };
  }

  /** Bound tensors of a generated kernel: what it reads, and `out`. */
  #generatedParts(group: Group, names: Map<Node, string>, access: (node: Node) => string): Parts {
    const { root } = group, lowered = group.lowered!;
    const reads = [...lowered.reads];
    const written = stateOf(root)?.storage;
    const tensors = reads.map((node, i): BoundTensor => {
      names.set(node, `in${i}`);
      const alias = written !== undefined && stateOf(node)?.storage === written;
      return {
        port: { name: `in${i}` },
        type: node,
        access: alias ? { alias: "out" } : this.#access(node, [root]),
        split: alias ? undefined : this.#split(node),
      };
    });
    tensors.push({ port: { name: "out" }, type: root, access: "write" });
    const code = generate(lowered, root.shape, access, this.caps);
    return { tensors, nodes: [...reads, root], code: { ...code, subgroups: false } };
  }

  /** Bound tensors of a hand-written kernel: its ports, and what its spliced store reads. */
  #kernelParts(
    group: Group,
    kernel: Node & { op: "kernel" },
    names: Map<Node, string>,
    access: (node: Node) => string,
  ): Parts {
    const call: KernelCall<unknown> = {
      params: kernel.params,
      inputs: kernel.src.map(({ dtype, shape }) => ({ dtype, shape })),
      outputs: outputTypes(kernel),
    };
    const source = kernel.kernel.wgsl(call, this.caps);
    const updates = updatesOf(kernel), results = resultsOf(group);
    const spliced = group.lowered;
    const tensors = source.inputs.map((port, i): BoundTensor => {
      const output = updates.indexOf(i);
      return {
        port,
        type: kernel.src[i]!,
        access: output >= 0 ? { alias: source.outputs[output]!.name } : this.#access(base(kernel.src[i]!), results),
        split: output >= 0 ? undefined : this.#split(base(kernel.src[i]!)),
      };
    });
    const nodes = kernel.src.map(base);
    const extra = [...spliced?.reads ?? []];
    extra.forEach((node, i) => {
      names.set(node, `operand${i}`);
      tensors.push({
        port: { name: `operand${i}` },
        type: node,
        access: this.#access(node, results),
        split: this.#split(node),
      });
      nodes.push(node);
    });
    source.outputs.forEach((port, i) => {
      const node = results[i]!;
      const store = spliced && i === 0 ? generateFinish(spliced, node, port.name, access) : undefined;
      tensors.push({ port, type: spliced ? node : call.outputs[i]!, access: "write", store });
      nodes.push(node);
    });
    const grid = (resolve: Resolver): readonly [number, number, number] => kernel.kernel.grid(call, this.caps, resolve);
    const { workgroupSize, declarations = "", main, subgroups = false } = source;
    return { tensors, nodes, code: { workgroupSize, declarations, main, subgroups, grid } };
  }

  #bind(
    tensors: BoundTensor[],
    nodes: Node[],
    code: Parts["code"],
    name: string,
  ): { pipeline: GPUComputePipeline; bindGroup: GPUBindGroup; shader: Assembled; entries: GPUBufferBinding[] } {
    const assembled = assemble(tensors, code, this.caps, this.sizeSlots);
    const { pipeline, layout } = this.device.pipeline(assembled.code, assembled.bindings, name);
    const entries = assembled.bindings.map(({ tensor, part }): GPUBufferBinding => {
      if (tensor === "sizes") return { buffer: this.upload.buffer, offset: 0, size: SIZES_BYTES };
      const place = this.place(nodes[tensor]!), split = tensors[tensor]!.split;
      const offset = place.offset + (split ? part * split.partBytes : 0);
      const size = split ? Math.min(split.partBytes, place.bytes - part * split.partBytes) : place.bytes;
      return { buffer: place.buffer, offset, size };
    });
    const bindGroup = this.device.gpu.createBindGroup({
      layout,
      entries: entries.map((resource, binding) => ({ binding, resource })),
      label: name,
    });
    return { pipeline, bindGroup, shader: assembled, entries };
  }

  #info(group: Group, nodes: readonly Node[], wgsl: string): DispatchInfo {
    const { f16 } = this.caps;
    const bytes = [...new Set(nodes)].reduce(
      (sum, n) => sum + elementCount(n.shape) * bytesPerElement(n.dtype, f16),
      0,
    );
    const kernel = group.kernel;
    const cost = kernel
      ? kernel.kernel.cost(
        { params: kernel.params, inputs: kernel.src, outputs: outputTypes(kernel) },
        this.caps,
        maxOf,
      )
      : { bytes, flops: generatedFlops(group.lowered!) };
    return { name: describe(group), fused: fusedNames(group), shape: group.root.shape, cost, wgsl };
  }
}

interface Parts {
  readonly tensors: BoundTensor[];
  readonly nodes: Node[];
  readonly code: GroupCode & { readonly subgroups: boolean };
}

function hostView(host: ArrayBuffer, offset: number, dtype: DType, count: number, f16: boolean): InputSlot["view"] {
  if (dtype === "f16" && f16) return new Uint16Array(host, offset, count);
  if (dtype === "f32" || dtype === "f16") return new Float32Array(host, offset, count);
  return dtype === "i32" ? new Int32Array(host, offset, count) : new Uint32Array(host, offset, count);
}

/** Operations of a generated kernel at the greatest sizes: one for each operation and element. */
function generatedFlops(lowered: Lowered): number {
  return [...lowered.inlined].reduce((sum, node) => {
    if (node.op === "map") return sum + elementCount(node.shape);
    return node.op === "reduce" ? sum + elementCount(node.src[0]!.shape) : sum;
  }, 0);
}

function fusedNames(group: Group): string[] {
  return [...group.lowered?.inlined ?? []].flatMap((node) =>
    node.op === "map"
      ? [node.fn]
      : node.op === "reduce"
      ? [node.kind]
      : node.op === "kernel" || node.op === "const"
      ? []
      : [node.op]
  );
}

function describe(group: Group): string {
  if (group.kernel) return group.kernel.kernel.name + (group.lowered ? " + epilogue" : "");
  if (group.root.op === "assign") return "assign";
  return group.lowered!.phases.length > 0 ? "reduce" : "elementwise";
}
