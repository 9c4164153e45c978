/**
 * How paged attention deals its work to lanes: the part that differs between devices. Results do not: `attention.ts`
 * says why.
 *
 * @module
 */
import { type Dim, maxOf } from "../tensor/dim.ts";
import type { Caps, KernelCall, Port } from "../tensor/kernel.ts";

/** Parameters of paged attention. */
export interface PagedAttentionParams {
  /** Tokens of a block: a power of two. */
  readonly blockSize: number;
  /** Factor on scores, above 0: 1 / sqrt(headDim) nearly everywhere. */
  readonly scale: number;
  /** Queries that share a workgroup; chosen by device and batch unless given. It changes speed, never results. */
  readonly queries?: 1 | 2 | 4 | 8;
  /** Whether a prompt's keys may be added up in the order that is fastest on a GPU (`flash_attention.ts`). */
  readonly fast?: boolean;
}

/** Keys of a tile: part of the order of summation, so the same on every device. */
export const TILE = 128;

/** The results of attention, four floats at a time, or in codes and scales. */
export function attendedPorts(quantise: boolean): Port[] {
  return quantise ? [{ name: "codes", width: 2 }, { name: "scales", width: 2 }] : [{ name: "attended", width: 4 }];
}

/** Stands for minus infinity; a difference of two such, scaled, stays finite. */
export const LOWEST = "-1e37";

/** Sizes of a call. */
export interface Sizes {
  readonly rows: Dim;
  readonly sequences: Dim;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly maxBlocks: number;
}

/** How a workgroup's work is laid out. */
export interface Layout {
  /** Queries of a workgroup. */
  readonly queries: number;
  /** Workgroups that share a key head, each with `headsPerPart` query heads. */
  readonly parts: number;
  readonly headsPerPart: number;
  /** Pairs of query and head: each has its scores, its maximum and its sum. */
  readonly lines: number;
  /** Features of one load, and loads of a head. */
  readonly width: 1 | 2 | 4;
  readonly chunks: number;
  readonly lanes: number;
  /** Keys that a lane scores together, and lines that share their loads. */
  readonly keysPerStep: number;
  readonly linesPerStep: number;
  /**
   * Lanes of a subgroup that load for one another and hand values on, on a CPU, where a load costs as much as 40
   * products; or 0.
   */
  readonly shared: number;
  /** Values: a lane sums `linesPerLane` lines of `slots` chunks; `groups` lanes share a chunk. */
  readonly groups: number;
  readonly linesPerLane: number;
  readonly slots: number;
}

/** Sizes of a call. */
export function sizesOf({ inputs }: KernelCall<PagedAttentionParams>): Sizes {
  const [rows, heads, headDim] = inputs[0]!.shape as [Dim, number, number];
  const [sequences, maxBlocks] = inputs[5]!.shape as [Dim, number];
  return { rows, sequences, heads, kvHeads: inputs[1]!.shape[1] as number, headDim, maxBlocks };
}

/**
 * Queries that share a workgroup: keys and values are loaded once for all of them. On llvmpipe 4 halve the time of a
 * prefill, but compiling takes 2.4 s of CPU rather than 0.7.
 */
function queriesOf(params: PagedAttentionParams, rows: Dim, headsPerPart: number, caps: Caps): number {
  const wanted = params.queries ?? (caps.cpu || maxOf(rows) <= 16 ? 1 : 8);
  const greatest = Math.floor(((Math.min(caps.workgroupMemory, 16384) - 1024) / (4 * TILE + 64) - 3) / headsPerPart);
  return Math.max(1, 2 ** Math.floor(Math.log2(Math.min(wanted, Math.max(1, greatest)))));
}

/** Chooses the layout of a call on a device. */
export function layoutOf(call: KernelCall<PagedAttentionParams>, caps: Caps): Layout {
  const { rows, heads, kvHeads, headDim } = sizesOf(call), group = heads / kvHeads;
  let parts = 1;
  while (group % parts !== 0 || group / parts > 8) parts++;
  const headsPerPart = group / parts,
    queries = queriesOf(call.params, rows, headsPerPart, caps),
    lines = queries * headsPerPart;
  const width = headDim % 4 === 0 ? 4 : headDim % 2 === 0 ? 2 : 1, chunks = headDim / width;
  // Lanes of a CPU run one subgroup after the other: few lanes with much work each need no waiting.
  const lanes = caps.cpu ? (chunks <= 16 ? 8 : chunks <= 32 ? 16 : 32) : TILE;
  const possible = caps.cpu ? 1 : Math.max(1, Math.min(lines, Math.floor(lanes / chunks)));
  const linesPerLane = Math.ceil(lines / possible), groups = Math.ceil(lines / linesPerLane);
  return {
    queries,
    parts,
    headsPerPart,
    lines,
    width,
    chunks,
    lanes,
    keysPerStep: Math.min(2, TILE / lanes),
    linesPerStep: 8,
    shared: caps.cpu && caps.subgroups && caps.subgroupSize === 8 && chunks % 8 === 0 ? 8 : 0,
    groups,
    linesPerLane,
    slots: Math.ceil(chunks * groups / lanes),
  };
}
