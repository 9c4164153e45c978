/**
 * Which dispatches of a program are joined, and the joined dispatches themselves.
 *
 * A chain ends before a dispatch like its first, so that every layer of a model makes the same chains and their shaders are
 * compiled once. Long dispatches stay alone: they fill the device, and its own scheduler deals their workgroups out better.
 *
 * @module
 */
import type { Device } from "./device.ts";
import { maxOf } from "./dim.ts";
import {
  COUNTER_WORDS,
  GRID_WORDS,
  JOINED_LANES,
  type JoinedShader,
  joinShaders,
  MOST_BARRIERS,
  MOST_STAGE_BYTES,
  type Stage,
} from "./join.ts";
import type { Caps, Cost, Resolver } from "./kernel.ts";
import type { Resident } from "./storage.ts";

/** What a compiled dispatch is made of, as far as joining needs it. */
export interface Joinable extends Omit<Stage, "grid"> {
  readonly lanes: number;
  readonly cost: Cost;
  readonly grid: (resolve: Resolver) => readonly [number, number, number];
  /** The grid, where no size is symbolic. */
  readonly fixed: readonly [number, number, number] | undefined;
}

/** Dispatches that become one. */
interface Chain {
  /** Index of the first. */
  readonly first: number;
  readonly stages: Joinable[];
}

/** A joined dispatch in place of `count` others. */
export interface JoinedDispatch {
  readonly first: number;
  readonly count: number;
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
}

/** Where a run puts the grid of a stage: two words of the sizes. */
export interface GridWord {
  readonly word: number;
  readonly grid: Joinable["grid"];
}

/** Joined dispatches of a program. */
export interface Joined {
  readonly dispatches: readonly JoinedDispatch[];
  readonly grids: readonly GridWord[];
  readonly counters: Resident;
}

/** Least and most stages of a chain. */
const LEAST_STAGES = 3, MOST_STAGES = 12;

/** Most workgroups of a stage: a few for each that is resident. */
const MOST_WORKGROUPS = 1024;

function isShort({ lanes, cost, grid }: Joinable): boolean {
  const [x, y, z] = grid(maxOf);
  return lanes === JOINED_LANES && cost.bytes <= MOST_STAGE_BYTES && z === 1 && x * y <= MOST_WORKGROUPS;
}

/** Whether a stage binds buffers as those before it do: one that is written is `storage` to all. */
function fits(stages: readonly Joinable[], next: Joinable, limit: number): boolean {
  const writes = new Map<GPUBuffer, boolean>();
  let bindings = 3;
  for (const { shader, entries } of [...stages, next]) {
    for (const [i, { type }] of shader.bindings.entries()) {
      const { buffer } = entries[i]!, written = type === "storage";
      if ((writes.get(buffer) ?? written) !== written) return false;
      writes.set(buffer, written);
      bindings++;
    }
  }
  return bindings <= limit && stages.length < MOST_STAGES;
}

/** Divides dispatches into chains. `undefined` stands for one that cannot be joined. */
function chainsOf(dispatches: readonly (Joinable | undefined)[], limit: number): Chain[] {
  const chains: Chain[] = [];
  let open: Chain | undefined;
  dispatches.forEach((dispatch, at) => {
    if (!dispatch || !isShort(dispatch)) return void (open = undefined);
    const again = open?.stages[0]?.shader.code === dispatch.shader.code;
    if (!open || again || !fits(open.stages, dispatch, limit)) chains.push(open = { first: at, stages: [] });
    open.stages.push(dispatch);
  });
  return chains.filter(({ stages }) => stages.length >= LEAST_STAGES);
}

/** Gives each shape of chain its words for grids. */
class GridWords {
  readonly grids: GridWord[] = [];
  readonly #first = new Map<string, number>();
  #next: number = GRID_WORDS.first;

  /** The stages of a chain with their grids; undefined where words have run out. */
  place({ stages }: Chain): Stage[] | undefined {
    const key = stages.map(({ shader }) => shader.code).join();
    const symbolic = stages.filter(({ fixed }) => !fixed).length;
    let word = this.#first.get(key);
    if (word === undefined) {
      word = this.#next;
      if (word + 2 * symbolic > GRID_WORDS.end) return undefined;
      this.#first.set(key, word);
      for (const { fixed, grid } of stages) {
        if (!fixed) this.grids.push({ word: this.#next, grid }), this.#next += 2;
      }
    }
    return stages.map((stage) => {
      if (stage.fixed) return { ...stage, grid: [stage.fixed[0], stage.fixed[1]] };
      word! += 2;
      return { ...stage, grid: word! - 2 };
    });
  }
}

/** Bytes of a chain's counters: a multiple of a binding's alignment. */
const countersBytes = 4 * COUNTER_WORDS * MOST_BARRIERS;

function makeDispatch(
  device: Device,
  chain: Chain,
  { code, bindings }: JoinedShader,
  own: readonly GPUBufferBinding[],
): JoinedDispatch {
  const all = [...bindings, ...own.map((entry) => ({ type: "storage", entry } as const))];
  const label = "joined dispatches", { pipeline, layout } = device.pipeline(code, all, label);
  const entries = all.map(({ entry }, binding) => ({ binding, resource: entry }));
  const bindGroup = device.gpu.createBindGroup({ layout, entries, label });
  return { first: chain.first, count: chain.stages.length, pipeline, bindGroup };
}

/**
 * Joins what can be joined. Undefined where that is less than two chains: the counters of one are put back by the next.
 *
 * @param workgroups Workgroups that have to be resident at once. @param caps What the dispatches were compiled for.
 */
export function joinDispatches(
  device: Device,
  dispatches: readonly (Joinable | undefined)[],
  workgroups: number,
  caps: Caps,
): Joined | undefined {
  const limit = caps.maxStorageBuffers, words = new GridWords();
  const chains = chainsOf(dispatches, limit).flatMap((chain) => {
    const stages = words.place(chain);
    return stages ? [{ chain, stages }] : [];
  });
  if (chains.length < 2) return undefined;
  const counters = device.allocateStorage(chains.length * countersBytes, "counters of joined dispatches");
  const set = (at: number): GPUBufferBinding => {
    return { buffer: counters.buffer, offset: at * countersBytes, size: countersBytes };
  };
  const joined = chains.map(({ chain, stages }, at) => {
    const previous = (at + chains.length - 1) % chains.length;
    const own = [set(at), set(previous), { buffer: device.health.buffer }];
    return makeDispatch(device, chain, joinShaders(stages, workgroups, caps), own);
  });
  return { dispatches: joined, grids: words.grids, counters };
}

/**
 * Whether the device keeps all workgroups of joined dispatches resident: runs their barriers, each pipeline's once.
 * Counters are zero afterwards.
 */
export async function tryBarriers(
  device: Device,
  { dispatches, counters }: Joined,
  workgroups: number,
): Promise<boolean> {
  const { gpu, health } = device, tried = new Set<GPUComputePipeline>();
  gpu.queue.writeBuffer(health.buffer, 4, new Uint32Array(1));
  const encoder = gpu.createCommandEncoder(), pass = encoder.beginComputePass();
  for (const { pipeline, bindGroup } of dispatches) {
    if (tried.has(pipeline)) continue;
    tried.add(pipeline);
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindGroup);
    pass.dispatchWorkgroups(1, workgroups, 1);
  }
  pass.end();
  encoder.clearBuffer(counters.buffer);
  gpu.queue.submit([encoder.finish()]);
  return (await device.read(health.buffer, "u32", 2))[1] === 0;
}
