/**
 * A program: a graph captured once, and a flat list of dispatches replayed many times. A run uploads everything that
 * changes in one write, encodes one pass and submits it once, alone or with others.
 *
 * @module
 */
import type { Arenas } from "./arenas.ts";
import { SIZES_WORDS } from "./assemble.ts";
import { joinDispatches, type Joined, tryBarriers } from "./chains.ts";
import { Compiler, type Dispatch, type DispatchInfo, type InputSlot } from "./compiler.ts";
import type { Device } from "./device.ts";
import { elementCount, formatShape, resolveDim, type Sizes } from "./dim.ts";
import { float16Bits, type HostArray } from "./dtype.ts";
import { JOINED_LANES } from "./join.ts";
import type { Resolver } from "./kernel.ts";
import { base } from "./lower.ts";
import { type Node, stateOf } from "./node.ts";
import type { ReadOptions } from "./readback.ts";
import { type Rule, RULES } from "./rules.ts";
import { Submission } from "./submission.ts";

/** Values of one run. */
export interface RunValues {
  /** Values of inputs by name: at most as many as the input's greatest shape holds. */
  readonly inputs?: Readonly<Record<string, ArrayLike<number>>>;
  /** Values of symbolic sizes by name. */
  readonly sizes?: Sizes;
}

/** Options of {@linkcode compile}. */
export interface CompileOptions {
  /** Rewrite rules; all of them unless given. */
  readonly rules?: readonly Rule[];
  /** Name for errors and `explain()`. */
  readonly label?: string;
  /** Compile for {@linkcode Program.join}: kernels take forms that can be joined. */
  readonly join?: boolean;
  /** Memory for results that other programs use too; the program's own unless given, and on CPU devices. */
  readonly arenas?: Arenas;
}

/**
 * Workgroups of joined dispatches: the first number that a device keeps resident is taken. Two a processor of an H100, where
 * workgroup memory allows it, or one.
 */
const JOINED_WORKGROUPS = [264, 132];

/**
 * Dispatches of a run that is worth being submitted in two parts, of which the first is a quarter: encoding takes some 8 us a dispatch,
 * and another submission 50 to 110.
 */
const MANY_DISPATCHES = 96;

/** What a run encodes: a dispatch of the compiler's, or a joined one. */
type Step = Pick<Dispatch, "pipeline" | "bindGroup" | "grid" | "fixed">;

/** Workgroups along x, y and z. */
type Grid = readonly [number, number, number];

function gridsOf(steps: readonly Step[], sizes: Sizes): Grid[] {
  const resolve: Resolver = (dim) => resolveDim(dim, sizes);
  return steps.map(({ fixed, grid }) => fixed ?? grid(resolve));
}

function encodeSteps(pass: GPUComputePassEncoder, steps: readonly Step[], grids: readonly Grid[]): void {
  let last: GPUComputePipeline | undefined;
  for (const [i, { pipeline, bindGroup }] of steps.entries()) {
    const [x, y, z] = grids[i]!;
    if (x === 0 || y === 0 || z === 0) continue;
    if (pipeline !== last) pass.setPipeline(last = pipeline);
    pass.setBindGroup(0, bindGroup);
    pass.dispatchWorkgroups(x, y, z);
  }
}

/** A compiled graph. Make one with {@linkcode compile}. */
export class Program {
  #dispatches: readonly Dispatch[];
  /** The dispatches, those that are joined in one. */
  #steps: readonly Step[];
  #joined: Pick<Joined, "dispatches" | "grids"> = { dispatches: [], grids: [] };
  #compiler: Compiler;
  #disposed = false;
  #sizes: Uint32Array<ArrayBuffer>;
  #inputs: Map<string, InputSlot>;
  #ahead: { readonly sizes: Sizes; readonly commands: GPUCommandBuffer } | undefined;
  #grids: { readonly sizes: Sizes; readonly grids: readonly Grid[] } | undefined;
  /** What the last run was given to, if it was not submitted alone. */
  #submission: Submission | undefined;

  /** Use {@linkcode compile}. */
  constructor(readonly device: Device, outputs: readonly Node[], options: CompileOptions) {
    const { label = "a program", rules = RULES, join = false, arenas } = options, { caps } = device;
    const joinedLanes = join && caps.coherent && caps.maxInvocations >= JOINED_LANES ? JOINED_LANES : undefined;
    this.#compiler = new Compiler(device, outputs, label, rules, { ...caps, joinedLanes }, arenas);
    this.#dispatches = this.#steps = this.#compiler.compile();
    this.#sizes = new Uint32Array(this.#compiler.host, 0, SIZES_WORDS);
    this.#inputs = new Map(this.#compiler.inputs.map((slot) => [slot.node.name, slot]));
    device.check();
    device.debug?.(`${this.#compiler.label}: ${this.bytes} bytes\n${this.explain()}`);
  }

  /** Number of dispatches of a run; joined ones count as one. */
  get dispatchCount(): number {
    return this.#steps.length;
  }

  /** Bytes of GPU memory that the program owns. */
  get bytes(): number {
    return this.#compiler.owned.reduce((sum, resident) => sum + resident.bytes, 0);
  }

  /** What each dispatch is, before any were joined. */
  get dispatches(): readonly DispatchInfo[] {
    return this.#dispatches.map((dispatch) => dispatch.info);
  }

  /**
   * Uploads the run's values and submits its dispatches in one pass. Returns at once; results are there for the next
   * submission and for {@linkcode Program.read}. Runs of a program are submitted in their order.
   *
   * @param submission Where the run waits to be submitted with others, if it is not to be submitted alone.
   * @param begin Whether the first of many dispatches, and all runs that wait, are submitted before the others are encoded: where the
   * device has nothing to do meanwhile.
   */
  run(values: RunValues = {}, submission?: Submission, begin = false): void {
    const within = submission ?? new Submission(this.device), from = this.#upload(values, within);
    const { sizes = {} } = values, ahead = this.#ahead;
    this.#ahead = undefined;
    const encoded = ahead && !from && this.#sameSizes(ahead.sizes, sizes), check = (): void => this.#check();
    const first = begin && !encoded && this.#steps.length >= MANY_DISPATCHES ? this.#steps.length >> 2 : 0;
    if (first > 0) within.begin(this.#commands(sizes, from, 0, first), this.#compiler.upload.buffer, check);
    within.add(encoded ? ahead.commands : this.#commands(sizes, first > 0 ? undefined : from, first), check);
    this.#submission = submission;
    if (!submission) within.flush();
  }

  /**
   * Encodes the next run's commands now: they depend on sizes alone, and values are uploaded when it is submitted. Between
   * {@linkcode Program.run} and {@linkcode Program.read} the device is busy, so this costs no time (a decoder of 0.5B
   * parameters on an H100: 0.7 of 2.7 ms a token). A run of other sizes drops what was encoded.
   */
  encodeAhead(sizes: Sizes = {}): void {
    this.#check();
    if (this.#ahead && this.#sameSizes(this.#ahead.sizes, sizes)) return;
    this.#ahead = { sizes: { ...sizes }, commands: this.#commands(sizes) };
  }

  /**
   * Joins short dispatches that follow each other, with a barrier over all workgroups between them, if the device keeps as many
   * workgroups resident as that needs: a trial tells. For programs compiled with `join`, of short dispatches: decoding a few
   * sequences costs 30 dispatches then in place of 125. Results are the same, bit for bit.
   *
   * @param workgroups Numbers of workgroups to try.
   * @returns Whether dispatches are joined now.
   *
   * @example
   * ```ts
   * import { assertEquals } from "@std/assert";
   * import { compile, constant, input, map, openDevice } from "@tinyllm/tinyllm/tensor";
   *
   * const device = await openDevice();
   * using program = compile(device, () => map("add", input("x", "f32", [4]), constant(1, "f32")), { join: true });
   * assertEquals(await program.join(), false); // a single dispatch: there is nothing to join
   * device.close();
   * ```
   */
  async join(workgroups: readonly number[] = JOINED_WORKGROUPS): Promise<boolean> {
    this.#check();
    const all = this.#dispatches.map(({ joinable }) => joinable);
    for (const count of workgroups) {
      const joined = joinDispatches(this.device, all, count, this.#compiler.caps);
      if (!joined) return false;
      if (await tryBarriers(this.device, joined, count) && !this.#disposed) {
        this.#compiler.owned.push(joined.counters);
        this.#replace(joined, count);
        return true;
      }
      joined.counters.release();
    }
    return false;
  }

  #replace(joined: Joined, workgroups: number): void {
    const steps: Step[] = [...this.#dispatches], fixed = [workgroups, 1, 1] as const;
    for (const { first, count, pipeline, bindGroup } of joined.dispatches.toReversed()) {
      steps.splice(first, count, { pipeline, bindGroup, grid: () => fixed, fixed });
    }
    this.#steps = steps;
    this.#joined = joined;
    this.#ahead = this.#grids = undefined;
  }

  #sameSizes(a: Sizes, b: Sizes): boolean {
    return [...this.#compiler.sizeSlots.keys()].every((name) => a[name] === b[name]);
  }

  /** @param from Where the values have to be copied from. @param first First dispatch. @param end That behind the last one. */
  #commands(sizes: Sizes, from?: GPUBuffer, first = 0, end?: number): GPUCommandBuffer {
    const encoder = this.device.gpu.createCommandEncoder(), { upload, host } = this.#compiler;
    if (from) encoder.copyBufferToBuffer(from, 0, upload.buffer, 0, host.byteLength);
    const pass = encoder.beginComputePass();
    encodeSteps(pass, this.#steps.slice(first, end), this.#gridsOf(sizes).slice(first, end));
    pass.end();
    return encoder.finish();
  }

  #check(): void {
    if (this.#disposed) throw new Error("Cannot run: the program was disposed");
    this.device.check();
    for (const storage of this.#compiler.storages) {
      if (storage.released) throw new Error(`Cannot run: "${storage.label}" was released`);
    }
  }

  /** Uploads sizes and values of a run. Returns where its commands have to copy them from; undefined where they are in place. */
  #upload(values: RunValues, within: Submission): GPUBuffer | undefined {
    this.#check();
    const sizes = values.sizes ?? {};
    for (const [name, slot] of this.#compiler.sizeSlots) this.#sizes[slot] = sizes[name] ?? 0;
    const resolve: Resolver = (dim) => resolveDim(dim, sizes);
    for (const { word, grid } of this.#joined.grids) this.#sizes.set(grid(resolve).slice(0, 2), word);
    for (const slot of this.#inputs.values()) this.#fill(slot, values.inputs?.[slot.node.name]);
    for (const name of Object.keys(values.inputs ?? {})) {
      if (!this.#inputs.has(name)) throw new Error(`Cannot run: the program has no input "${name}"`);
    }
    const { upload, host } = this.#compiler, before = this.#submission;
    // The values of a run that waits elsewhere are where this one's are to be.
    if (before !== within && before?.holds(upload.buffer)) before.flush();
    return within.upload(upload.buffer, host);
  }

  #fill({ node, view }: InputSlot, values: ArrayLike<number> | undefined): void {
    if (values === undefined) {
      throw new Error(`Cannot run: no value for input "${node.name}" of ${formatShape(node.shape)}`);
    }
    if (values.length > view.length) {
      throw new Error(`Cannot run: ${values.length} values for input "${node.name}" of ${formatShape(node.shape)}`);
    }
    if (view instanceof Uint16Array) view.set(Array.from(values, float16Bits));
    else view.set(values);
  }

  /** Workgroups of all steps. Finding them costs as much as encoding does, and the next run's sizes are mostly the same. */
  #gridsOf(sizes: Sizes): readonly Grid[] {
    if (!this.#grids || !this.#sameSizes(this.#grids.sizes, sizes)) {
      this.#grids = { sizes: { ...sizes }, grids: gridsOf(this.#steps, sizes) };
    }
    return this.#grids.grids;
  }

  /**
   * Reads output `index` of the last run that was submitted; `sizes` gives the extent of a symbolic one.
   *
   * @param options What it is submitted with, and what is done while it waits.
   */
  async read(index: number, sizes: Sizes = {}, options: ReadOptions = {}): Promise<HostArray> {
    const node = this.#compiler.outputs[index];
    if (!node) throw new Error(`Cannot read output ${index}: the program has ${this.#compiler.outputs.length}`);
    const owner = base(node), place = this.#compiler.place(owner);
    return await this.device.read(place.buffer, node.dtype, elementCount(node.shape, sizes), place.offset, options);
  }

  /** GPU microseconds of each dispatch of one run, by timestamps: a pass a dispatch, so the sum exceeds a run's time. */
  async profile(values: RunValues = {}): Promise<number[]> {
    if (!this.device.caps.timestamps) throw new Error("Cannot profile: the device has no timestamps");
    const alone = new Submission(this.device);
    this.#upload(values, alone);
    const { gpu } = this.device, count = this.#dispatches.length * 2;
    const querySet = gpu.createQuerySet({ type: "timestamp", count });
    const resolved = this.device.allocate(
      count * 8,
      GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
      "timestamps",
    );
    const encoder = gpu.createCommandEncoder();
    this.#dispatches.forEach((dispatch, i) => {
      const timestampWrites = { querySet, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 };
      const pass = encoder.beginComputePass({ timestampWrites });
      encodeSteps(pass, [dispatch], gridsOf([dispatch], values.sizes ?? {}));
      pass.end();
    });
    encoder.resolveQuerySet(querySet, 0, count, resolved.buffer, 0);
    alone.add(encoder.finish());
    alone.flush();
    const bytes = await this.device.orFailure(this.device.readback.read(resolved.buffer, 0, count * 8));
    const ticks = new BigUint64Array(bytes.slice().buffer);
    querySet.destroy();
    resolved.release();
    return this.#dispatches.map((_, i) => Number(ticks[2 * i + 1]! - ticks[2 * i]!) / 1000);
  }

  /**
   * A table of the dispatches: name, what was fused, shape, bytes, operations, and which of them are joined; with
   * `microseconds` from {@linkcode Program.profile}, time and percent of the roofline.
   */
  explain(
    options: { wgsl?: boolean; microseconds?: readonly number[]; bytesPerSecond?: number; flopsPerSecond?: number } =
      {},
  ): string {
    const { wgsl = false, microseconds, bytesPerSecond = Infinity, flopsPerSecond = Infinity } = options;
    return this.#dispatches.map(({ info }, i) => {
      const { name, fused, shape, cost } = info;
      const time = microseconds?.[i];
      const least = Math.max(cost.bytes / bytesPerSecond, cost.flops / flopsPerSecond) * 1e6;
      const timing = time === undefined
        ? ""
        : `  ${time.toFixed(1)} us${least > 0 ? ` (${(100 * least / time).toFixed(0)}%)` : ""}`;
      const parts = (fused.length > 0 ? `  [${fused.join(" ")}]` : "") + this.#joinedAs(i);
      const line = `${`${i}`.padStart(3)}  ${name.padEnd(28)} ${
        formatShape(shape).padEnd(24)
      } ${cost.bytes} B  ${cost.flops} FLOP${timing}${parts}`;
      return wgsl ? `${line}\n${info.wgsl}` : line;
    }).join("\n");
  }

  /** The joined dispatch that dispatch `index` is a part of. */
  #joinedAs(index: number): string {
    const at = this.#joined.dispatches.findIndex(({ first, count }) => first <= index && index < first + count);
    return at < 0 ? "" : `  joined ${at}`;
  }

  /** Frees the program's memory. Storages it was compiled against stay. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#ahead = undefined;
    this.#compiler.owned.forEach((resident) => resident.release());
  }

  /** Same as {@linkcode Program.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Refuses what cannot be read after a run: an input, and a version of a state that the same program overwrites. */
function checkOutput(node: Node): void {
  const owner = base(node), state = stateOf(owner);
  if (owner.op === "input") throw new Error(`Cannot compile: output is input "${owner.name}" itself`);
  if (state && state.version < state.storage.version) {
    throw new Error(
      `Cannot compile: an output is version ${state.version} of "${state.storage.label}", which the program overwrites. ` +
        `Return what the write returned, or a copy (x + 0).`,
    );
  }
}

/**
 * Traces `fn`, fuses, plans memory and makes pipelines and bind groups, once. Inputs made inside with
 * {@linkcode input} and symbolic sizes get their values at each run.
 *
 * @param fn Builds the graph and returns its outputs.
 * @throws {Error} for a graph that cannot be ordered or placed, `OutOfMemoryError` where memory does not suffice.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { compile, constant, input, map, openDevice, reduceLast, Sym } from "@tinyllm/tinyllm/tensor";
 *
 * const device = await openDevice();
 * const rows = new Sym("rows", 8);
 * using program = compile(device, () => {
 *   const doubled = map("mul", input("x", "f32", [rows, 3]), constant(2, "f32"));
 *   return reduceLast(doubled, "sum");
 * });
 * assertEquals(program.dispatchCount, 1);
 * program.run({ inputs: { x: [1, 2, 3, 4, 5, 6] }, sizes: { rows: 2 } });
 * assertEquals([...await program.read(0, { rows: 2 })], [12, 30]);
 * program.run({ inputs: { x: [7, 8, 9] }, sizes: { rows: 1 } }); // replayed: nothing compiles again
 * assertEquals([...await program.read(0, { rows: 1 })], [48]);
 * device.close();
 * ```
 */
export function compile(device: Device, fn: () => Node | readonly Node[], options: CompileOptions = {}): Program {
  const traced = fn();
  const outputs = Array.isArray(traced) ? traced as Node[] : [traced as Node];
  if (outputs.length === 0) throw new Error("Cannot compile a program without outputs");
  outputs.forEach(checkOutput);
  return new Program(device, outputs, options);
}
