/**
 * What the tiles of an int8 product (`int8_tiles.ts`) do with their sums: store them as floats, as 8-bit codes, the greatest of them,
 * or a sum with another input, in floats and in the codes of its norm.
 *
 * @module
 */
import type { Caps, Port } from "../tensor/kernel.ts";
import { type Tile, tileOutputs } from "./int8_tile.ts";
import type { Int8Product } from "./int8_weight.ts";
import { outputPorts } from "./late_norm.ts";
import { smallestMax } from "./quantise_wgsl.ts";
import { indices } from "./unroll.ts";

/** Distances of the neighbours that have a token's outputs between them. */
function neighbours({ across }: Tile): number[] {
  return [1, 2, 4, 8, 16].filter((distance) => distance < across);
}

/**
 * Stores of an invocation; with `whole`, of a tile whose tokens are all there. What the spliced store reads (a residual) is read
 * before anything is written, of all tokens where they are all there.
 */
function storeCells(tile: Tile, whole: boolean): string {
  const { product: { gate, outputs }, threadTokens, threadRows, across, down } = tile;
  const rows = indices(gate ? threadRows / 2 : threadRows), wholeRows = outputs % tileOutputs(tile) === 0;
  const value = (m: number, r: number): string =>
    gate ? `silu_gate(sum_${m}_${r}, sum_${m}_${r + threadRows / 2})` : `sum_${m}_${r}`;
  const output = (r: number): string => `row0 + ${r * across}u + tx`;
  const cells = indices(threadTokens).map((m) => {
    const at = (r: number): string => `from_${m} + ${wholeRows ? output(r) : `min(${output(r)}, ${outputs - 1}u)`}`;
    const write = (r: number): string => `write_y(${at(r)}, cell_${m}_${r});`;
    return {
      from: `let token_${m} = token0 + ${m * down}u + ty;
let from_${m} = token_${m} * ${outputs}u;\n`,
      finish: rows.map((r) => `let cell_${m}_${r} = finished_y(${at(r)}, ${value(m, r)});`).join("\n") + "\n",
      write: rows.map((r) => wholeRows ? write(r) : `if (${output(r)} < ${outputs}u) { ${write(r)} }`).join("\n") +
        "\n",
    };
  });
  if (whole) return (["from", "finish", "write"] as const).flatMap((part) => cells.map((cell) => cell[part])).join("");
  return cells.map(({ from, finish, write }, m) => `${from}if (token_${m} < tokens) {\n${finish}${write}}\n`).join("");
}

/** `name` joined with that of the neighbours at some distances. */
function overNeighbours(
  name: string,
  join: (a: string, b: string) => string,
  distances: readonly number[],
): string {
  return distances.map((d) => `${name} = ${join(name, `subgroupShuffleXor(${name}, ${d}u)`)};`).join(" ");
}

/** What an invocation stores in codes. */
interface Coded {
  /** Its outputs of a token. */
  readonly rows: number;
  /** WGSL of one of them. */
  value(m: number, r: number): string;
  /** Statements about the outputs `own` of a block, before the stores and among them. */
  readonly also?: (m: number, own: readonly number[]) => { readonly before: string; readonly stores: string };
}

/**
 * Stores of an invocation in codes and scales, as `quantise_wgsl.ts` makes them. Neighbours have a block of 32 outputs between them:
 * 8 of them four each, 16 two, 32 one, so that octets are eight neighbours' outputs of one turn. In uniform control flow but for
 * the stores, where `inside` holds.
 */
function storeCodes(tile: Tile, { rows, value, also }: Coded, inside: string): string {
  const { product: { outputs }, threadTokens, across, down } = tile, each = 32 / across, over = overNeighbours;
  const distances = neighbours(tile), whole = outputs % tileOutputs(tile) === 0;
  const block = (m: number, first: number): string => {
    const own = indices(each).map((i) => first + i), all = (text: (r: number) => string) => own.map(text);
    const word = own.slice(1).reduce((some, r, i) => `select(${some}, word_${r}, turn == ${i + 1}u)`, `word_${first}`);
    const more = also?.(m, own) ?? { before: "", stores: "" };
    const there = whole ? inside : `${inside} && row0 + ${first * across}u < ${outputs}u`;
    return `{
${all((r) => `let v_${r} = ${value(m, r)};`).join(" ")}
${more.before}var greatest = ${all((r) => `abs(v_${r})`).reduce((a, b) => `max(${a}, ${b})`)};
${over("greatest", (a, b) => `max(${a}, ${b})`, distances)}
let some = greatest > ${smallestMax};
let steps = select(0.0, 127.0 / max(greatest, ${smallestMax}), some);
${all((r) => `let rounded_${r} = round(v_${r} * steps);`).join(" ")}
var sum = ${all((r) => `rounded_${r}`).join(" + ")};
${over("sum", (a, b) => `${a} + ${b}`, distances)}
let scale = select(0.0, greatest * ${1 / 127}, some);
${
      all((r) =>
        `var word_${r} = (u32(i32(rounded_${r})) & 255u) << (turn * 8u); ` +
        over(`word_${r}`, (a, b) => `${a} | ${b}`, [2, 4])
      ).join("\n")
    }
if (${there}) {
  ${more.stores}if (turn < ${each}u) { store_y_codes(words + ((${first}u + turn) * ${across}u + tx) / 8u * 2u + (tx & 1u), ${word}); }
  if (tx == 0u) { store_y_scales(token * ${outputs / 32}u + row0 / 32u + ${first / each}u, vec2f(scale, scale * sum)); }
}
}
`;
  };
  const blocks = indices(rows / each).map((b) => b * each);
  return `let turn = (tx >> 1u) & 3u;\n` + indices(threadTokens).map((m) =>
    `{ let token = token0 + ${m * down}u + ty;
let words = token * ${outputs / 4}u + row0 / 4u;
${blocks.map((first) => block(m, first)).join("")}}\n`
  ).join("");
}

/** The gated outputs, in codes. */
function storeGated(tile: Tile, inside: string): string {
  const rows = tile.threadRows / 2;
  return storeCodes(tile, { rows, value: (m, r) => `silu_gate(sum_${m}_${r}, sum_${m}_${r + rows})` }, inside);
}

/** The outputs plus another input, in floats and in the codes of their norm, and the sum of squares of each block. */
function storeSums(tile: Tile, inside: string): string {
  const { product: { outputs }, threadTokens: tokens, threadRows: rows, across, down } = tile, each = 32 / across;
  const output = (r: number): string => `row0 + ${r * across}u + tx`, whole = outputs % tile.rows === 0;
  const clamped = (r: number): string => whole ? output(r) : `min(${output(r)}, ${outputs - 1}u)`;
  const weights = indices(rows).map((r) => `let weight_${r} = norm_weight(${clamped(r)});\n`).join("");
  // All loads come before the first store.
  const loads = indices(tokens).map((m) =>
    `let from_${m} = min(token0 + ${m * down}u + ty, tokens - 1u) * ${outputs}u;\n` +
    indices(rows).map((r) => `let x_${m}_${r} = sum_${m}_${r} + addend(from_${m} + ${clamped(r)});\n`).join("")
  );
  const also = (m: number, own: readonly number[]): { before: string; stores: string } => ({
    before: `var squares = ${own.map((r) => `x_${m}_${r} * x_${m}_${r}`).join(" + ")};\n` +
      overNeighbours("squares", (a, b) => `${a} + ${b}`, neighbours(tile)) + "\n",
    stores: own.map((r) => `store_y(token * ${outputs}u + ${output(r)}, x_${m}_${r});\n`).join("") +
      `if (tx == 0u) { store_y_squares(token * ${outputs / 32}u + row0 / 32u + ${own[0]! / each}u, squares); }\n`,
  });
  return weights + loads.join("") +
    storeCodes(tile, { rows, value: (m, r) => `x_${m}_${r} * weight_${r}`, also }, inside);
}

/** Without branches between them, what a spliced store reads overlaps. */
function stores(tile: Tile, caps: Caps): string {
  if (caps.cpu) return storeCells(tile, false);
  return `if (token0 + ${tile.tokens}u <= tokens) {\n${storeCells(tile, true)}} else {\n${storeCells(tile, false)}}\n`;
}

/**
 * The greatest of an invocation's outputs of a token, then of all that have the token, and its row: the lowest among equals. Past the
 * last row and for minus infinity stands the least f32, as in `argmax.ts`. In uniform control flow but for the stores.
 */
function storeBest(tile: Tile, inside: string): string {
  const { product: { outputs }, threadTokens, threadRows, rows, across, down } = tile;
  const lowest = "-3.4028234e38", wholeRows = outputs % rows === 0, slices = Math.ceil(outputs / rows);
  const value = (m: number, r: number): string => {
    const own = `max(sum_${m}_${r}, ${lowest})`;
    return wholeRows ? own : `select(${lowest}, ${own}, row0 + ${r * across}u + tx < ${outputs}u)`;
  };
  const distances = [1, 2, 4, 8, 16, 32].filter((distance) => distance < across);
  return indices(threadTokens).map((m) =>
    `{ let token = token0 + ${m * down}u + ty;
var best = ${value(m, 0)};
var best_row = row0 + tx;
${
      indices(threadRows).slice(1).map((r) =>
        `{ let next = ${value(m, r)}; if (next > best) { best = next; best_row = row0 + ${r * across}u + tx; } }`
      ).join("\n")
    }
${
      distances.map((distance) =>
        `{ let other = subgroupShuffleXor(best, ${distance}u); let other_row = subgroupShuffleXor(best_row, ${distance}u);
if (other > best || (other == best && other_row < best_row)) { best = other; best_row = other_row; } }`
      ).join("\n")
    }
if (tx == 0u && ${inside}) {
  store_value(token * ${slices}u + workgroup.y, best);
  store_place(token * ${slices}u + workgroup.y, i32(best_row));
}
}
`
  ).join("");
}

/** The outputs of a product's tiles. */
export function tileOutputPorts(product: Int8Product): Port[] {
  return product.argmax ? [{ name: "value" }, { name: "place" }] : outputPorts(product, 1);
}

/** All that is stored, by the first slice. */
export function storesText(tile: Tile, caps: Caps): string {
  const { slices, product } = tile, inside = slices > 1 ? "slice == 0u && token < tokens" : "token < tokens";
  if (product.argmax) return storeBest(tile, inside);
  if (product.sums) return storeSums(tile, inside);
  if (product.quantise) return storeGated(tile, inside);
  return slices > 1 ? `if (slice == 0u) {\n${stores(tile, caps)}}\n` : stores(tile, caps);
}
