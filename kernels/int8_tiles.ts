/**
 * The tile form of an int8 product, for many tokens: what prefill runs.
 *
 * A workgroup computes a tile of tokens x weight rows. 64 columns of both sides at a time are put into workgroup memory, in
 * vectors of 16 codes, while the next 64 are on their way to registers. An invocation multiplies its tokens by its rows from
 * there: integers over a block of 32, then one step in floats. Where there are few tiles, slices of a workgroup take
 * parts of the columns and add up at the end.
 *
 * @module
 */
import { siluGateFunction } from "./activation.ts";
import type { Caps, KernelSource } from "../tensor/kernel.ts";
import { type Tile, tileOf, tileOutputs } from "./int8_tile.ts";
import { storesText, tileOutputPorts } from "./int8_tile_stores.ts";
import { type Int8Source, latePorts, memoryPorts } from "./int8_activations.ts";
import { inversesDeclaration, inversesWgsl, sumPorts } from "./late_norm.ts";
import { joinedSums, type TileForm } from "./int8_variants.ts";
import { addDots, floatBits, type Int8Product, sumValue } from "./int8_weight.ts";
import { indices } from "./unroll.ts";

/** Workgroup memory. Vectors of codes are padded, so that writes of neighbouring lanes meet different banks. */
function memory(tile: Tile): string {
  const { slices, vectors, scaleBlocks, affines, pair } = tile;
  const sides = [["Token", tile.threadTokens, tile.down], ["Row", tile.threadRows, tile.across]] as const;
  const structs = sides.map(([name, each, count]) =>
    `struct ${name}Codes { own: array<array<vec4u, ${count}>, ${each}>, padding: array<vec4u, 2> }\n` +
    `struct ${name}Scales { own: array<array<${name === "Token" && pair ? "vec4f" : "vec2f"}, ${count}>, ${each}> }\n`
  );
  return structs.join("") +
    `var<workgroup> token_codes: array<TokenCodes, ${slices * vectors}>;\n` +
    `var<workgroup> row_codes: array<RowCodes, ${slices * vectors}>;\n` +
    `var<workgroup> token_scales: array<TokenScales, ${slices * scaleBlocks}>;\n` +
    `var<workgroup> row_scales: array<RowScales, ${slices * affines}>;\n` +
    (slices > 1 ? `var<workgroup> partial: array<f32, ${(slices - 1) * tile.threads * joinedSums}>;\n` : "");
}

/** Weight row of row `at` of the tile, clamped; with a gate the tile's second half holds the partners of the first. */
function weightRow({ rows, product: { outputs, gate } }: Tile, at: string): string {
  if (!gate) return `min(row0 + ${at}, ${outputs - 1}u)`;
  const inHalf = `min(row0 + (${at} & ${rows / 2 - 1}u), ${outputs - 1}u)`;
  return `${inHalf} + select(0u, ${outputs}u, ${at} >= ${rows / 2}u)`;
}

/** Scales of two blocks of a token, and the sum of both. */
const scalePair = "fn scale_pair(a: vec2f, b: vec2f) -> vec4f {\n  return vec4f(a.x, b.x, a.y + b.y, 0.0);\n}\n";

/** One load of each kind that a stage takes: what is fetched, and where it is put. `i` counts elements. */
interface Staging {
  readonly count: number;
  readonly type: string;
  readonly name: string;
  /** Value of element `i` of stage `stage`. */
  readonly fetch: string;
  /** Statements that store it under `value`. */
  put(value: string): string;
}

function stagings(tile: Tile): Staging[] {
  const { product, weight, vectors, blocks, affines, across, down, scaleBlocks, pair } = tile;
  const shift = (count: number): string => `${Math.log2(count)}u`, mask = (count: number): string => `${count - 1}u`;
  const token = (count: number): string => `min(token0 + (i >> ${shift(count)}), tokens - 1u)`;
  const place = (at: string, count: number): string => `own[(${at}) >> ${shift(count)}][(${at}) & ${mask(count)}]`;
  const totalBlocks = product.columns / 32, loads = blocks * weight.loads;
  const group = affines > 1
    ? `stage * ${affines}u + (i & ${mask(affines)})`
    : `((stage * ${blocks}u) >> ${shift(weight.groupBlocks)})`;
  return [
    {
      count: tile.tokens * vectors,
      type: "vec4u",
      name: "token_codes",
      fetch: `codes(${token(vectors)} * ${2 * totalBlocks}u + stage * ${vectors}u + (i & ${mask(vectors)}))`,
      put: (value) =>
        `token_codes[slice * ${vectors}u + (i & ${mask(vectors)})].${
          place(`i >> ${shift(vectors)}`, down)
        } = ${value};`,
    },
    {
      count: tile.rows * loads,
      type: "vec4u",
      name: "row_codes",
      fetch: `weights((${weightRow(tile, `(i >> ${shift(loads)})`)}) * ${totalBlocks * weight.loads}u + ` +
        `stage * ${loads}u + (i & ${mask(loads)}))`,
      put: (value) => {
        const each = vectors / loads, at = place(`i >> ${shift(loads)}`, across);
        return weight.words([value, value]).slice(0, each).map((words, half) =>
          `row_codes[slice * ${vectors}u + (i & ${mask(loads)}) * ${each}u + ${half}u].${at} = ${words};`
        ).join(" ");
      },
    },
    {
      count: tile.tokens * scaleBlocks,
      type: pair ? "vec4f" : "vec2f",
      name: "token_scales",
      fetch: pair
        ? `scale_pair(scales(${token(1)} * ${totalBlocks}u + stage * 2u), scales(${
          token(1)
        } * ${totalBlocks}u + stage * 2u + 1u))`
        : `scales(${token(blocks)} * ${totalBlocks}u + stage * ${blocks}u + (i & ${mask(blocks)}))`,
      put: (value) =>
        `token_scales[slice * ${scaleBlocks}u + (i & ${mask(scaleBlocks)})].${
          place(`i >> ${shift(scaleBlocks)}`, down)
        } = ${value};`,
    },
    {
      count: tile.rows * affines,
      type: "vec2f",
      name: "row_scales",
      fetch: weight.affine(`(${weightRow(tile, `(i >> ${shift(affines)})`)}) * ${weight.groups}u + ${group}`),
      put: (value) =>
        `row_scales[slice * ${affines}u + (i & ${mask(affines)})].${
          place(`i >> ${shift(affines)}`, across)
        } = ${value};`,
    },
  ];
}

/** A statement for each element that an invocation stages. */
function eachElement({ threads }: Tile, { count }: Staging, text: (piece: number) => string): string {
  return indices(Math.ceil(count / threads)).map((piece) => {
    const body = `let i = own + ${piece * threads}u; ${text(piece)}`;
    return (piece + 1) * threads > count ? `if (own + ${piece * threads}u < ${count}u) { ${body} }\n` : `{ ${body} }\n`;
  }).join("");
}

/** Integer sums over the two vectors of a block of 32 columns. */
function dotText(tile: Tile, block: string): string {
  const { weight, vectors } = tile, tokens = indices(tile.threadTokens), rows = indices(tile.threadRows);
  let text = tokens.flatMap((m) => rows.map((r) => `var dot_${m}_${r}: i32 = ${floatBits};`)).join(" ") + "\n";
  if (weight.offset) text += tokens.map((m) => `var codes_${m} = 0;`).join(" ") + "\n";
  for (const half of [0, 1]) {
    const at = `slice * ${vectors}u + ${block} * 2u + ${half}u`;
    text += "{\n" + tokens.map((m) => `let x_${m} = token_codes[${at}].own[${m}][ty];`).join("\n") + "\n";
    if (weight.offset) {
      text += tokens.map((m) => addDots(`codes_${m}`, `x_${m}`, "vec4u(0x01010101u)")).join("\n") + "\n";
    }
    for (const r of rows) {
      text += `{ let w = row_codes[${at}].own[${r}][tx];\n` +
        tokens.map((m) => addDots(`dot_${m}_${r}`, `x_${m}`, "w")).join("\n") + "}\n";
    }
    text += "}\n";
  }
  return text;
}

/** The float of an integer sum. */
function dotValue(tile: Tile, m: number, r: number): string {
  return sumValue(tile.weight.offset ? `dot_${m}_${r} + (codes_${m} << 7u)` : `dot_${m}_${r}`);
}

/** One block of 32 columns: integer sums over its two vectors, then one step of the float sums. */
function blockText(tile: Tile): string {
  const { blocks, affines } = tile, tokens = indices(tile.threadTokens), rows = indices(tile.threadRows);
  let text = dotText(tile, "block");
  const group = affines > 1 ? `slice * ${affines}u + block` : "slice";
  text += tokens.map((m) => `let scale_${m} = token_scales[slice * ${blocks}u + block].own[${m}][ty];`).join("\n") +
    "\n";
  for (const r of rows) {
    text += `{ let s = row_scales[${group}].own[${r}][tx];\n` + tokens.map((m) => {
      return `sum_${m}_${r} = fma(s.x * scale_${m}.x, ${dotValue(tile, m, r)}, fma(s.y, scale_${m}.y, sum_${m}_${r}));`;
    }).join("\n") + "}\n";
  }
  return `for (var block = 0u; block < ${blocks}u; block++) {\n${text}}\n`;
}

/** Two blocks that share each row's scale: their integer sums meet as floats, which that scale multiplies once. */
function pairText(tile: Tile): string {
  const tokens = indices(tile.threadTokens), rows = indices(tile.threadRows);
  const cells = (text: (m: number, r: number) => string): string =>
    tokens.flatMap((m) => rows.map((r) => text(m, r))).join("\n") + "\n";
  const first = cells((m, r) => `both_${m}_${r} = scale_${m}.x * ${dotValue(tile, m, r)};`);
  const second = cells((m, r) => `both_${m}_${r} = fma(scale_${m}.y, ${dotValue(tile, m, r)}, both_${m}_${r});`);
  const sums = rows.map((r) =>
    `{ let s = row_scales[slice].own[${r}][tx];\n` +
    tokens.map((m) => `sum_${m}_${r} = fma(s.x, both_${m}_${r}, fma(s.y, scale_${m}.z, sum_${m}_${r}));`).join("\n") +
    "}\n"
  );
  return tokens.map((m) => `let scale_${m} = token_scales[slice].own[${m}][ty];\n`).join("") +
    cells((m, r) => `var both_${m}_${r}: f32;`) +
    `{\n${dotText(tile, "0u")}${first}}\n{\n${dotText(tile, "1u")}${second}}\n${sums.join("")}`;
}

/** Adds the slices' sums to those of slice 0, one slice after the other, a few sums at a time: workgroup memory is short. */
function joinSlices(tile: Tile): string {
  const { slices, threads } = tile;
  if (slices === 1) return "";
  const names = indices(tile.threadTokens).flatMap((m) => indices(tile.threadRows).map((r) => `sum_${m}_${r}`));
  const at = (s: string, cell: number): string => `partial[${s} * ${joinedSums * threads}u + ${cell * threads}u + own]`;
  return indices(names.length / joinedSums).map((round) => {
    const cells = names.slice(round * joinedSums, (round + 1) * joinedSums);
    return `${round > 0 ? "workgroupBarrier();\n" : ""}if (slice > 0u) { ${
      cells.map((sum, cell) => `${at("(slice - 1u)", cell)} = ${sum};`).join(" ")
    } }\nworkgroupBarrier();\nif (slice == 0u) { ${
      indices(slices - 1).flatMap((s) => cells.map((sum, cell) => `${sum} += ${at(`${s}u`, cell)};`)).join(" ")
    } }\n`;
  }).join("");
}

/** The norm whose factors are still to come. */
function lateNorm({ product: { source } }: Tile): (Int8Source & { kind: "late" }) | undefined {
  return source?.kind === "late" ? source : undefined;
}

/** The workgroup that finds its tokens' factors. */
function lateUse(tile: Tile): { columns: number; tokens: number; lanes: number } {
  return { columns: tile.product.columns, tokens: tile.tokens, lanes: tile.threads * tile.slices };
}

/** Multiplies the sums by the factors of their tokens: barriers have been between. */
function lateText({ threadTokens, threadRows, down }: Tile): string {
  return indices(threadTokens).map((m) =>
    `{ let inverse = inverses[${m * down}u + ty]; ${
      indices(threadRows).map((r) => `sum_${m}_${r} *= inverse;`).join(" ")
    } }\n`
  ).join("");
}

function main(tile: Tile, caps: Caps): string {
  const { product, threads, across, slices } = tile, parts = stagings(tile);
  const pieces = parts.flatMap((part) =>
    indices(Math.ceil(part.count / threads)).map((piece) => `var next_${part.name}_${piece}: ${part.type};`)
  );
  const fetch = parts.map((part) => eachElement(tile, part, (p) => `next_${part.name}_${p} = ${part.fetch};`)).join("");
  const put = parts.map((part) => eachElement(tile, part, (p) => part.put(`next_${part.name}_${p}`))).join("");
  const sums = indices(tile.threadTokens).flatMap((m) =>
    indices(tile.threadRows).map((r) => `var sum_${m}_${r} = 0.0;`)
  );
  const compute = tile.pair ? pairText(tile) : blockText(tile);
  const last = slices * tile.sliceStages > tile.stages, late = lateNorm(tile);
  const inverses = late ? inversesWgsl(lateUse(tile), late.params, caps) : { loads: "", rest: "" };
  return `let slice = ${slices === 1 ? "0u" : `lane >> ${Math.log2(threads)}u`};
let own = lane & ${threads - 1}u;
let tx = own & ${across - 1}u;
let ty = own >> ${Math.log2(across)}u;
let tokens = ${product.tokens};
let token0 = workgroup.x * ${tile.tokens}u;
let row0 = workgroup.y * ${tileOutputs(tile)}u;
${sums.join(" ")}
${pieces.join(" ")}
let begin = slice * ${tile.sliceStages}u;
${inverses.loads}{ let stage = min(begin, ${tile.stages - 1}u);
${fetch}}
${inverses.rest}for (var done = 0u; done < ${tile.sliceStages}u; done++) {
${put}workgroupBarrier();
if (done + 1u < ${tile.sliceStages}u) { let stage = min(begin + done + 1u, ${tile.stages - 1}u);
${fetch}}
${last ? `if (begin + done < ${tile.stages}u) {\n${compute}}\n` : compute}workgroupBarrier();
}

${joinSlices(tile)}${late ? lateText(tile) : ""}${storesText(tile, caps)}`;
}

/** The WGSL of a product in this form. */
export function tilesSource(product: Int8Product, form: TileForm, caps: Caps): KernelSource {
  const tile = tileOf(product, form, caps), { quantise, argmax, sums } = product, late = lateNorm(tile);
  return {
    inputs: [...(late ? latePorts : memoryPorts), ...tile.weight.ports, ...(sums ? sumPorts : [])],
    outputs: tileOutputPorts(product),
    workgroupSize: [tile.threads * tile.slices, 1, 1],
    subgroups: quantise || argmax || sums || (late !== undefined && caps.subgroups),
    declarations: (late ? inversesDeclaration(tile) : "") + tile.weight.declarations + (tile.pair ? scalePair : "") +
      (product.gate ? siluGateFunction : "") +
      memory(tile),
    main: main(tile, caps),
  };
}
