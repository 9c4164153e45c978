/**
 * Which form of an int8 product runs, by device, number of tokens and shape of the weight. Two forms: `rows` is a
 * matrix-vector product for a few tokens at once, `tile` keeps a block of both sides in workgroup memory. Figures are
 * from timing the forms on one H100, weights read from memory; `deno task bench:variants` does so anew and says where another
 * form is faster than the one chosen here.
 *
 * A program takes its form by the greatest number of tokens that it is made for, so within a program a token's result does
 * not depend on its batch. Two programs may add up in different orders; exact products (`product.ts`) never do.
 *
 * @module
 */
import type { Caps } from "../tensor/kernel.ts";

/** A matrix-vector product: `lanes` neighbours share `rows` weight rows, a workgroup has `groups` x `slices` such teams. */
export interface RowsForm {
  /** Tells the forms apart. */
  readonly kind: "rows";
  /** Weight rows that a lane reads side by side. Even. */
  readonly rows: number;
  /** Tokens that one reading of the weights serves. */
  readonly tokens: number;
  /** Lanes that share a row's columns: a power of two, at most a subgroup where there are subgroups. */
  readonly lanes: number;
  /** Teams with rows of their own in a workgroup: a power of two. */
  readonly groups: number;
  /** Teams that take turns at the columns of the same rows. */
  readonly slices: number;
  /** Blocks of 32 columns that a lane loads ahead. */
  readonly unroll: number;
}

/** Tiles of `tokens` x `rows` outputs, `threadTokens` x `threadRows` an invocation. All powers of two. */
export interface TileForm {
  /** Tells the forms apart. */
  readonly kind: "tile";
  /** Tokens of a tile. */
  readonly tokens: number;
  /** Weight rows of a tile. */
  readonly rows: number;
  /** Tokens of an invocation. */
  readonly threadTokens: number;
  /** Weight rows of an invocation. Even. */
  readonly threadRows: number;
  /** Parts of the columns that invocations of one workgroup take, where there are few tiles. */
  readonly slices: number;
}

/** One form of the product. */
export type Int8Form = RowsForm | TileForm;

/** What the choice of a form depends on. */
export interface Int8Size {
  /** Greatest number of tokens. */
  readonly maxTokens: number;
  /** Weight rows. */
  readonly rows: number;
  /** Columns. */
  readonly columns: number;
  /** Whether the outputs of a workgroup have to be whole blocks of 32, two rows each: gated and stored in codes. */
  readonly blocks?: boolean;
  /** Whether a sum is stored, and the codes of its norm: a workgroup has whole blocks of 32 outputs. */
  readonly sums?: boolean;
  /** Whether every workgroup makes the activations' codes for itself: fewer and larger ones then. */
  readonly makesCodes?: boolean;
}

/** Sums of an invocation that slices hand on at a time: workgroup memory decides how many workgroups a processor holds. */
export const joinedSums = 4;

/** Bytes of workgroup memory that a tile form takes. */
export function tileBytes({ tokens, rows, threadTokens, threadRows, slices }: TileForm, stageColumns: number): number {
  const threads = (tokens / threadTokens) * (rows / threadRows);
  const vectors = stageColumns / 16, blocks = stageColumns / 32;
  const stage = vectors * 16 * (tokens + rows + 4) + blocks * 8 * (tokens + rows);
  return slices * stage + (slices - 1) * threads * joinedSums * 4 + tokens * 4; // a late norm's factors
}

/** Columns that a tile form takes into workgroup memory at a time. */
export function stageColumns(columns: number): 32 | 64 {
  return columns % 64 === 0 ? 64 : 32;
}

/** Tokens that one reading of the weights serves in a matrix-vector form. */
function servedTokens(maxTokens: number): number {
  return maxTokens <= 2 ? maxTokens : maxTokens <= 4 ? 4 : 8;
}

/** The matrix-vector form: few rows need more lanes each, or there are fewer workgroups than a GPU has processors. */
function rowsForm(caps: Caps, { maxTokens, rows, columns, makesCodes = false }: Int8Size): RowsForm {
  const tokens = servedTokens(maxTokens);
  if (caps.cpu) {
    return { kind: "rows", rows: 2, tokens: Math.min(tokens, 4), lanes: 4, groups: 2, slices: 1, unroll: 1 };
  }
  const form = { kind: "rows", rows: 2, tokens, unroll: tokens === 1 ? 2 : 1 } as const;
  const most = caps.subgroups ? caps.subgroupSize : 32, wide = Math.min(32, most), narrow = Math.min(8, most);
  const long = columns >= 4096;
  if (tokens <= 2) {
    if (makesCodes && columns >= 2048) return { ...form, rows: 4, lanes: wide, groups: 4, slices: 2, unroll: 1 };
    if (long && rows <= 8192) return { ...form, lanes: wide, groups: 1, slices: 8, unroll: 1 };
    if (columns >= 2048 && rows <= 8192) return { ...form, lanes: wide, groups: 2, slices: 2, unroll: 1 };
    if (columns >= 2048 && rows <= 65536) return { ...form, rows: 4, lanes: wide, groups: 8, slices: 4, unroll: 1 };
    return { ...form, lanes: wide, groups: 4, slices: 1 };
  }
  if (rows <= 2048) {
    if (long) return { ...form, lanes: narrow, groups: 4, slices: 8 };
    return { ...form, tokens: maxTokens <= 8 ? 4 : 8, lanes: narrow, groups: 4, slices: 4 };
  }
  // A workgroup of a program for joining shares the tokens' codes: a vocabulary by 8 tokens takes 47 us rather than 52.
  const shares = caps.joinedLanes !== undefined && columns <= 1024 && rows > 65536;
  if (shares && maxTokens > 4 && maxTokens <= 8) return { ...form, rows: 4, lanes: 4, groups: 32, slices: 1 };
  if (columns <= 1024) return { ...form, lanes: narrow, groups: 8, slices: 2 };
  return { ...form, lanes: narrow, groups: 4, slices: 4 };
}

/** Most weights of a product that is joined with others: beyond, it is long enough to stand alone. */
const mostJoinedWeights = 14 << 20;

/**
 * Joined workgroups that an H100 holds at once. A stage of a few more takes two turns: with 288 workgroups for QKV of 8 tokens an engine
 * decodes 7,950 tok/s, and 8,370 with half as many of twice the tokens.
 */
const residentWorkgroups = 264;

/**
 * The matrix-vector form with as many invocations a workgroup as joined dispatches have, for weights that are few: a workgroup has
 * more rows, since it makes the activations' codes anew, and few products have more workgroups than are resident.
 */
function joinedForm(caps: Caps, size: Int8Size): RowsForm | undefined {
  const { joinedLanes: threads, subgroups, subgroupSize } = caps, { maxTokens, rows, columns, blocks } = size;
  if (!threads || caps.cpu || maxTokens > 8 || rows * columns > mostJoinedWeights) return undefined;
  const most = subgroups ? subgroupSize : 32, tokens = servedTokens(maxTokens), long = columns >= 4096;
  const of = (rows: number, lanes: number, slices: number, tokens: number): RowsForm => {
    return { kind: "rows", rows, tokens, lanes, groups: threads / (lanes * slices), slices, unroll: 1 };
  };
  if (blocks) {
    if (tokens === 1 && most >= 32) return of(8, 32, 1, 1);
    // Eight tokens by fours: twice the workgroups read the weights, from the cache, and a step of eight takes some 10 us less.
    return tokens > 2 && most >= 16 ? of(4, threads / 16, 1, 4) : of(2, threads / 32, 1, tokens);
  }
  if (tokens <= 2) return long ? of(4, Math.min(32, most), 8, tokens) : of(2, Math.min(32, most), 1, tokens);
  // What others have made is read past the caches: few loads a lane count for more than what they serve. Microseconds of 8 tokens
  // by 896 rows of 4,864 columns, apart: 5.1 in place of 6.5 with 2 rows and 8 tokens, and joined 2.3 less.
  if (long && most >= 32 && columns <= 32 * threads) return of(8, 32, threads / 32, 4);
  if (long || rows > 2048) return of(2, Math.min(8, most), long ? 8 : 4, tokens);
  const pairs = of(2, Math.min(8, most), 4, 2);
  const workgroups = Math.ceil(rows / (2 * pairs.groups)) * Math.ceil(maxTokens / 2);
  return rows <= 1280 && workgroups <= residentWorkgroups ? pairs : { ...pairs, tokens: 4 };
}

/** A row of the table of tiles. */
interface TileRow extends Omit<TileForm, "kind"> {
  /** Tokens above which the row holds, and up to which; all above unless given. */
  readonly above: number;
  readonly upTo?: number;
  /** Least tiles of 64 x 64. */
  readonly tiles: number;
  /** Whether columns are few (at most 1024) and rows are, too (at most 2048). */
  readonly small: boolean;
}

// An H100 has 132 processors, of which each holds four workgroups of 64 x 64 tiles: 528 fill it. Its driver lets workgroups of a
// processor share 48 KiB of workgroup memory, so that four slices of a tile fill a processor too: few tiles are sliced only
// as far as there are idle processors. Many tokens gain 3% and 11% by the first two rows; tiles of 32 tokens also waste less of the last
// one where sequences come and go. TFLOP/s of 0.5B at a clock of 1,980 MHz: gate
// and up at 512 tokens 72, down 58 at 512 and 72 at 2,048. In a step of 256 tokens down takes 9 us less in tiles of 32 x 32 than in
// those of 32 x 64; in one of 512 it is the other way round.
/** The table of tiles, read top to bottom; the first match wins. */
const tileRows: readonly TileRow[] = [
  { above: 64, tiles: 528, small: false, tokens: 32, rows: 128, threadTokens: 4, threadRows: 8, slices: 1 },
  { above: 256, tiles: 264, small: false, tokens: 32, rows: 64, threadTokens: 4, threadRows: 4, slices: 1 },
  { above: 0, tiles: 264, small: false, tokens: 32, rows: 64, threadTokens: 8, threadRows: 4, slices: 1 },
  { above: 0, tiles: 100, small: true, tokens: 32, rows: 32, threadTokens: 4, threadRows: 4, slices: 2 },
  { above: 0, upTo: 64, tiles: 100, small: false, tokens: 16, rows: 64, threadTokens: 4, threadRows: 4, slices: 2 },
  { above: 0, tiles: 100, small: false, tokens: 32, rows: 64, threadTokens: 8, threadRows: 4, slices: 2 },
  { above: 0, tiles: 40, small: true, tokens: 16, rows: 32, threadTokens: 4, threadRows: 4, slices: 2 },
  { above: 64, tiles: 40, small: false, tokens: 32, rows: 32, threadTokens: 4, threadRows: 4, slices: 4 },
  { above: 0, tiles: 40, small: false, tokens: 32, rows: 64, threadTokens: 8, threadRows: 4, slices: 4 },
  { above: 0, tiles: 0, small: true, tokens: 16, rows: 32, threadTokens: 4, threadRows: 4, slices: 4 },
  { above: 0, tiles: 0, small: false, tokens: 16, rows: 32, threadTokens: 4, threadRows: 4, slices: 8 },
];

/** The form in a row. */
function formOf({ above: _above, upTo: _upTo, tiles: _tiles, small: _small, ...form }: TileRow): TileForm {
  return { ...form, kind: "tile" };
}

/** The forms of the table that a device has room for: what benches time. */
export function tileForms(columns: number, caps: Caps): TileForm[] {
  const forms = tileRows.map(formOf);
  const distinct = new Map(forms.map((form) => [JSON.stringify(form), form]));
  return [...distinct.values()].filter((form) => tileFits(form, columns, caps));
}

/** Whether a device has room for a form, and every slice two stages at least. */
function tileFits(form: TileForm, columns: number, caps: Caps): boolean {
  const { tokens, rows, threadTokens, threadRows, slices } = form, stage = stageColumns(columns);
  const threads = slices * (tokens / threadTokens) * (rows / threadRows);
  return tileBytes(form, stage) <= caps.workgroupMemory && threads <= caps.maxInvocations &&
    (slices === 1 || columns / stage >= 2 * slices);
}

/** The forms of the rows that a size matches, the first one first, in as many slices as there is room for. */
function tileFormsOf(caps: Caps, { maxTokens, rows, columns }: Int8Size): TileForm[] {
  const tiles = Math.ceil(maxTokens / 64) * Math.ceil(rows / 64), small = columns <= 1024 && rows <= 2048;
  const matching = tileRows.filter(({ above, upTo = Infinity, ...row }) =>
    maxTokens > above && maxTokens <= upTo && tiles >= row.tiles && (small || !row.small)
  );
  return matching.map(formOf).map((form) => {
    let slices = form.slices;
    while (slices > 1 && !tileFits({ ...form, slices }, columns, caps)) slices /= 2;
    return { ...form, slices };
  });
}

function tileForm(caps: Caps, size: Int8Size): TileForm {
  if (caps.cpu) return { kind: "tile", tokens: 16, rows: 16, threadTokens: 4, threadRows: 2, slices: 1 };
  return tileFormsOf(caps, size)[0]!;
}

/** Most tokens for which weights are better read once for eight tokens than put into tiles. */
const mostRowsTokens = 32;

/** The matrix-vector form whose workgroups make 32 outputs of a token, each from two rows. */
function blocksForm(caps: Caps, { maxTokens }: Int8Size): RowsForm {
  const most = caps.subgroups ? caps.subgroupSize : 32, form = { kind: "rows", slices: 1, unroll: 1 } as const;
  if (caps.cpu) return { ...form, rows: 8, tokens: Math.min(maxTokens, 2), lanes: 4, groups: 8 };
  if (maxTokens === 1) return { ...form, rows: 8, tokens: 1, lanes: Math.min(32, most), groups: 8 };
  return { ...form, rows: 2, tokens: servedTokens(maxTokens), lanes: Math.min(8, most), groups: 32 };
}

/** Whether neighbours of a subgroup have whole blocks of 32 outputs between them, of so many each: 8 four, 16 two, 32 one. */
function hasWholeBlocks({ rows, threadRows }: TileForm, outputs: number, { subgroupSize }: Caps): boolean {
  const across = rows / threadRows;
  return across >= 8 && across <= Math.min(32, subgroupSize) && outputs % (32 / across) === 0;
}

/** Workgroups of 32 outputs that keep a GPU busy, and that are resident at once. */
const leastSumGroups = 100, mostSumGroups = 132;

/**
 * Tokens up to which tiles that store sums are the faster way: beyond, a norm's dispatch fills a GPU by itself. On an H100 an engine's
 * step of 48 tokens, prompts among them, takes 4.2 ms in place of 4.75, and one of 64 that decode 2.66 in place of 2.58.
 */
const mostSumTokens = 48;

/** The matrix-vector form whose workgroups make 32 outputs of each token: few workgroups, so that each has many invocations. */
function sumsForm(caps: Caps, { maxTokens }: Int8Size): RowsForm {
  const most = caps.subgroups ? caps.subgroupSize : 32, form = { kind: "rows", unroll: 1 } as const;
  const sliced = (shape: { rows: number; lanes: number; groups: number }, threads: number) => {
    const room = Math.min(threads, caps.maxInvocations) / (shape.lanes * shape.groups);
    return { ...form, ...shape, slices: Math.max(1, Math.floor(room)) }; // not all devices allow a power of two
  };
  if (maxTokens === 1) return { ...sliced({ rows: 4, lanes: Math.min(32, most), groups: 8 }, 1024), tokens: 1 };
  const shape = { rows: 2, lanes: Math.min(8, most), groups: 16 };
  return { ...sliced(shape, 512), tokens: servedTokens(maxTokens) };
}

/** Whether products store sums in codes. */
export function storesSums(caps: Caps, size: Int8Size): boolean {
  const { cpu, subgroups } = caps, { maxTokens, rows } = size;
  if (cpu || !subgroups || rows % 32 !== 0) return false;
  if (maxTokens <= mostRowsTokens) {
    const { tokens } = sumsForm(caps, size), groups = Math.ceil(maxTokens / tokens) * rows / 32;
    return caps.joinedLanes === undefined && groups >= leastSumGroups && groups <= mostSumGroups;
  }
  if (maxTokens > mostSumTokens) return false;
  const form = tileForm(caps, size);
  return hasWholeBlocks(form, form.threadRows, caps);
}

/** The tile form of a product that stores codes. */
function blocksTile(caps: Caps, size: Int8Size): TileForm {
  const storing = tileFormsOf(caps, size).find((form) => hasWholeBlocks(form, form.threadRows / 2, caps));
  return storing ?? { kind: "tile", tokens: 32, rows: 64, threadTokens: 4, threadRows: 8, slices: 1 };
}

/** Whether products of so many tokens have a form that stores codes. Tiles need subgroups for it. */
export function hasBlocksForm(maxTokens: number, caps: Caps): boolean {
  return maxTokens <= mostRowsTokens || (!caps.cpu && caps.subgroups && caps.subgroupSize >= 8);
}

/** The form for a device and a size. */
export function int8Form(caps: Caps, size: Int8Size): Int8Form {
  const joined = joinedForm(caps, size);
  if (joined) return joined;
  if (size.sums && size.maxTokens <= mostRowsTokens) return sumsForm(caps, size);
  if (size.blocks) return size.maxTokens <= mostRowsTokens ? blocksForm(caps, size) : blocksTile(caps, size);
  return size.maxTokens <= mostRowsTokens ? rowsForm(caps, size) : tileForm(caps, size);
}
