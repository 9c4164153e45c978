/**
 * How split attention's first dispatch deals a tile to the lanes of a workgroup, and how workgroup memory holds its keys and
 * values.
 *
 * @module
 */
import { maxOf } from "../tensor/dim.ts";
import { bytesPerElement, type DType } from "../tensor/dtype.ts";
import { MOST_STAGE_BYTES } from "../tensor/join.ts";
import type { Caps, KernelCall } from "../tensor/kernel.ts";
import { type Sizes, sizesOf, TILE } from "./attention_layout.ts";
import { fewTiles } from "./attention_merge_layout.ts";
import { repeat } from "./unroll.ts";

/** Parameters of split attention. The optional ones but `fast` are chosen by device and batch, and change speed, never results. */
export interface DecodeAttentionParams {
  /** Tokens of a block: a power of two. */
  readonly blockSize: number;
  /** Factor on scores, above 0: 1 / sqrt(headDim) nearly everywhere. */
  readonly scale: number;
  /** Most query heads of a workgroup. */
  readonly headsPerShare?: number;
  /** Invocations of a workgroup: a multiple of 128. */
  readonly lanes?: number;
  /** Features that a lane sums up. */
  readonly width?: 2 | 4;
  /** Whether the merge may add many tiles up in the order that is fastest. */
  readonly fast?: boolean;
}

/** How a workgroup's work is laid out. */
export interface DecodeLayout {
  /** Query heads of a workgroup, and workgroups that a row's tile takes in all. */
  readonly lines: number;
  readonly shares: number;
  readonly sharesPerKvHead: number;
  readonly lanes: number;
  /** Lanes of one key, each with some of the lines. */
  readonly splits: number;
  readonly linesPerSplit: number;
  /** Features that a lane sums up, and how many such sums it has. */
  readonly width: 2 | 4;
  readonly slots: number;
  /** Whether the pools are read as words of two halves, eight features a load rather than four. */
  readonly packedKeys: boolean;
  readonly packedValues: boolean;
  /** Keys that workgroup memory holds at a time, as stored. */
  readonly staged: number;
  /** Maxima of a line over parts of a tile. */
  readonly maxima: number;
}

/** Tiles of a context of one row up to which attention is joined where heads are so small that a processor holds two workgroups. */
export const mostTilesOfOne = 80;

/** Features of the largest head that is small. */
const smallHead = 64;

/** Whether attention takes a form that can be joined with other dispatches: long contexts fill a device by themselves. */
function isJoined({ rows, kvHeads, headDim }: Sizes, tiles: number, pool: DType, caps: Caps): boolean {
  const count = maxOf(rows), most = count === 1 && headDim <= smallHead ? mostTilesOfOne : fewTiles;
  const bytes = 2 * count * tiles * TILE * kvHeads * headDim * bytesPerElement(pool, caps.f16);
  return caps.joinedLanes !== undefined && tiles <= most && bytes <= MOST_STAGE_BYTES;
}

/**
 * Query heads of a workgroup where few rows leave processors without work: as few as give no more workgroups than an H100 holds
 * at once, since those of one key head read the same keys. With one head each they are best half as many. Microseconds of
 * the shape of Qwen2.5-0.5B, one sequence of 8,192 positions: 31.6, 13.2, 9.0 and 13.0 with 1, 2, 4 and 7 heads; with 256
 * invocations a workgroup, 8 sequences of 512 positions: 16.0, 9.7, 8.0 and 8.8. Joined workgroups take turns, and those of
 * tiles that are not seen are over at once: for them there may be some more than are resident.
 */
function fewHeads(parts: number, group: number, joined: boolean): number {
  const most = (heads: number): number => heads === 1 || (joined && heads === 2) ? 128 : joined ? 320 : 256;
  return [1, 2, 4].find((heads) => parts * Math.ceil(group / heads) <= most(heads)) ?? 8;
}

/** Chooses the layout of a call on a device. */
export function decodeLayoutOf(call: KernelCall<DecodeAttentionParams>, caps: Caps): DecodeLayout {
  const sizes = sizesOf(call), { rows, heads, kvHeads, headDim, maxBlocks } = sizes, { params } = call;
  const group = heads / kvHeads;
  const few = maxOf(rows) * kvHeads <= 16, tiles = Math.ceil(maxBlocks * params.blockSize / TILE);
  const joined = isJoined(sizes, tiles, call.inputs[1]!.dtype, caps);
  const most = params.headsPerShare ?? (few ? fewHeads(maxOf(rows) * kvHeads * tiles, group, joined) : 8);
  const sharesPerKvHead = Math.ceil(group / most), lines = Math.ceil(group / sharesPerKvHead);
  // Values of four features have the type of the codes that products of several tokens keep (`int8_activations.ts`): where dispatches are
  // joined the two share their workgroup memory, and a processor holds two workgroups rather than one.
  const width = params.width ?? (few && !(joined && maxOf(rows) > 2) ? 2 : 4);
  const wanted = params.lanes ?? (joined ? caps.joinedLanes : undefined) ??
    (few ? TILE : Math.min(256, TILE * Math.ceil(lines * headDim / width / TILE)));
  const lanes = Math.max(TILE, Math.min(wanted, caps.maxInvocations - caps.maxInvocations % TILE));
  const splits = lanes / TILE;
  const packed = (input: number): boolean => call.inputs[input]!.dtype === "f16" && caps.f16 && headDim % 8 === 0;
  const packedValues = packed(2), linesPerSplit = Math.ceil(lines / splits);
  const valueBytes = headDim * (packedValues ? 2 : 4);
  const room = caps.workgroupMemory - 4 * linesPerSplit * splits * (headDim + TILE + 16) - 1024;
  let staged = TILE;
  if (packedValues !== packed(1)) staged /= 2;
  while (staged > 8 && staged * valueBytes > room) staged /= 2;
  return {
    lines,
    shares: sharesPerKvHead * kvHeads,
    sharesPerKvHead,
    lanes,
    splits,
    linesPerSplit,
    width,
    slots: Math.ceil(lines * headDim / width / lanes),
    packedKeys: packed(1),
    packedValues,
    staged,
    maxima: caps.subgroups ? Math.max(1, TILE / caps.subgroupSize) : 16,
  };
}

/** Elements of workgroup memory that hold a row of keys or values, `width` features each. */
export interface StagedRow {
  /** Loads of a row, and elements of a load. */
  readonly units: number;
  readonly parts: number;
  readonly elements: number;
  /** Element e of key k lies at e ^ (k & mask), so that lanes which read one feature of different keys use all banks. */
  readonly mask: number;
}

export function stagedRow(headDim: number, packed: boolean, width: number): StagedRow {
  const perUnit = packed ? 8 : 4, elements = headDim / width;
  const banks = 128 / (width * (packed ? 2 : 4));
  return {
    units: headDim / perUnit,
    parts: perUnit / width,
    elements,
    mask: Math.min(banks, elements & -elements) - 1,
  };
}

/** WGSL that puts a load into workgroup memory. */
export function stageWgsl(key: string, unit: string, value: string, { parts, elements, mask }: StagedRow): string {
  const piece = (i: number) => parts === 1 ? value : `${value}.${(parts === 2 ? ["xy", "zw"] : [..."xyzw"])[i]}`;
  return repeat(
    parts,
    (i) =>
      `staged[(${key}) * ${elements}u + (((${unit}) * ${parts}u + ${i}u) ^ ((${key}) & ${mask}u))] = ${piece(i)};
      `,
  );
}

/** WGSL of one staged element as f32. */
export function unstage(at: string, { packedValues, width }: DecodeLayout): string {
  return !packedValues
    ? `staged[${at}]`
    : width === 2
    ? `unpack2x16float(staged[${at}])`
    : `unpack_four(staged[${at}])`;
}
