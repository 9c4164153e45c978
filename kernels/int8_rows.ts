/**
 * The matrix-vector form of an int8 product, for one token and for a few at once: what decoding runs.
 *
 * A team of lanes shares a few weight rows. A lane takes blocks of 32 columns: 16 bytes of each row (4 bits), and for every
 * token the block's codes, scale and sum. Teams side by side have other rows; slices take turns at the columns. Sums
 * meet by shuffles within a team, then in workgroup memory.
 *
 * @module
 */
import { siluGateFunction } from "./activation.ts";
import { type Caps, INPUTS_READY, type KernelSource } from "../tensor/kernel.ts";
import type { RowsForm } from "./int8_variants.ts";
import { addDots, floatBits, type Int8Product, type Int8Weight, int8Weight, sumValue } from "./int8_weight.ts";
import { type Activations, activationsOf, lateFactor, makesCodes } from "./int8_activations.ts";
import { blockFunctions, quantiseFinished } from "./quantise_wgsl.ts";
import { indices } from "./unroll.ts";
import { outputPorts, sumPorts } from "./late_norm.ts";

/** Outputs of a team for each token. */
function teamOutputs({ gate }: Int8Product, { rows }: RowsForm): number {
  return gate ? rows / 2 : rows;
}

function threadsOf({ lanes, groups, slices }: RowsForm): number {
  return lanes * groups * slices;
}

/** Outputs of a workgroup for each token. */
export function rowsOutputs(product: Int8Product, form: RowsForm): number {
  return form.groups * teamOutputs(product, form);
}

function eachSum(form: RowsForm, text: (name: string, row: number, token: number) => string): string {
  return indices(form.rows).flatMap((row) => indices(form.tokens).map((m) => text(`sum_${row}_${m}`, row, m))).join(
    " ",
  );
}

/** Who an invocation is, and where its rows and tokens begin; tails are clamped to what is there. */
function prologue(product: Int8Product, form: RowsForm, weight: Int8Weight): string {
  const { lanes, groups, tokens } = form, each = teamOutputs(product, form), blocks = product.columns / 32;
  const lines = [
    `let member = lane & ${lanes - 1}u;`,
    `let team = (lane >> ${Math.log2(lanes)}u) & ${groups - 1}u;`,
    `let slice = lane >> ${Math.log2(lanes * groups)}u;`,
    `let tokens = ${product.tokens};`,
    `let token0 = workgroup.x * ${tokens}u;`,
    `let output0 = workgroup.y * ${groups * each}u;`,
  ];
  for (const row of indices(form.rows)) {
    const output = `min(output0 + team * ${each}u + ${row % each}u, ${product.outputs - 1}u)`;
    lines.push(
      `let row_${row} = ${row < each ? output : `row_${row - each} + ${product.outputs}u`};`,
      `let weights_${row} = row_${row} * ${blocks * weight.loads}u;`,
      `let affine_${row} = row_${row} * ${weight.groups}u;`,
    );
  }
  for (const m of indices(tokens)) lines.push(`let x_${m} = min(token0 + ${m}u, tokens - 1u) * ${blocks}u;`);
  return lines.join("\n") + "\n" + eachSum(form, (name) => `var ${name} = 0.0;`) + "\n";
}

/** Loads blocks `at` of every row. */
function loadsText(at: readonly string[], form: RowsForm, weight: Int8Weight): string {
  const shift = Math.log2(weight.groupBlocks);
  let text = "";
  at.forEach((block, u) => {
    text += `let at_${u} = ${block};\n`;
    for (const row of indices(form.rows)) {
      for (const i of indices(weight.loads)) {
        text += `let w_${u}_${row}_${i} = weights(weights_${row} + at_${u} * ${weight.loads}u + ${i}u);\n`;
      }
      text += `let s_${u}_${row} = ${weight.affine(`affine_${row} + (at_${u} >> ${shift}u)`)};\n`;
    }
  });
  return text;
}

/** Multiplies what {@linkcode loadsText} has loaded, `count` blocks, by every token's. */
function productsText(count: number, { form, weight, activations }: Parts, first = 0): string {
  let text = "";
  for (const u of indices(count).map((i) => first + i)) {
    for (const row of indices(form.rows)) {
      const [low, high] = weight.words(indices(weight.loads).map((i) => `w_${u}_${row}_${i}`));
      text += `let low_${u}_${row} = ${low};\nlet high_${u}_${row} = ${high};\n`;
    }
    for (const m of indices(form.tokens)) {
      text += `{\n${activations.block(m, `at_${u}`)}${tokenText(u, m, form, weight)}}\n`;
    }
  }
  return text;
}

/** One token's block, `low`, `high` and `scale`, times that of every row. */
function tokenText(u: number, m: number, form: RowsForm, weight: Int8Weight): string {
  let text = "";
  if (weight.offset) {
    text += `var codes_sum = 0;\n${addDots("codes_sum", "low", "ones")}\n${addDots("codes_sum", "high", "ones")}\n` +
      `let start = ${floatBits} + (codes_sum << 7u);\n`;
  }
  for (const row of indices(form.rows)) {
    text += `var dot_${row} = ${weight.offset ? "start" : floatBits};\n` +
      `${addDots(`dot_${row}`, `low_${u}_${row}`, "low")}\n${addDots(`dot_${row}`, `high_${u}_${row}`, "high")}\n` +
      `sum_${row}_${m} = fma(s_${u}_${row}.x * scale.x, ${sumValue(`dot_${row}`)}, ` +
      `fma(s_${u}_${row}.y, scale.y, sum_${row}_${m}));\n`;
  }
  return text;
}

/** What a shader is put together from. */
interface Parts {
  readonly form: RowsForm;
  readonly weight: Int8Weight;
  readonly activations: Activations;
}

/** Loads of weights that a lane has under way before it waits for the activations, 16 bytes each. */
const mostAhead = 8;

/**
 * All blocks of a row: a loop of `unroll` at a time, then what is left. Where the activations are made by the workgroup, or by a
 * dispatch that this one is joined to, the first loads come before that, since they wait for the memory alone.
 */
function columnsText(product: Int8Product, parts: Parts, caps: Caps): string {
  const { form, weight, activations } = parts, joined = caps.joinedLanes !== undefined;
  const blocks = product.columns / 32, stride = form.lanes * form.slices, { unroll } = form;
  const whole = Math.floor(blocks / stride), some = blocks % stride !== 0;
  // Loads come first, so that they overlap.
  const body = (first: string, count: number): string =>
    loadsText(indices(count).map((u) => `${first} + ${u * stride}u`), form, weight) + productsText(count, parts);
  let text = `let begin = slice * ${form.lanes}u + member;\n`, done = 0;
  if (weight.offset) text += "let ones = vec4u(0x01010101u);\n";
  if (activations.rest === "" && !joined) text += activations.loads;
  else {
    const room = joined ? Math.max(unroll, Math.floor(mostAhead / (form.rows * weight.loads))) : unroll;
    done = Math.min(room, whole);
    const tail = some && done === whole && (whole === 0 || (joined && whole < room));
    const at = indices(done).map((u) => `begin + ${u * stride}u`);
    if (tail) at.push(`min(begin + ${whole * stride}u, ${blocks - 1}u)`);
    text += `${loadsText(at, form, weight)}${INPUTS_READY}\n${activations.loads}${activations.rest}`;
    text += productsText(done, parts);
    if (tail) return `${text}if (begin + ${whole * stride}u < ${blocks}u) {\n${productsText(1, parts, done)}}\n`;
  }
  const loops = Math.floor((whole - done) / unroll);
  if (loops > 1) {
    text += `for (var step = 0u; step < ${loops}u; step++) {\n` +
      `let first = begin + ${done * stride}u + step * ${unroll * stride}u;\n${body("first", unroll)}}\n`;
  } else if (loops === 1) text += `{\n${body(`begin + ${done * stride}u`, unroll)}}\n`;
  const left = whole - done - loops * unroll, next = whole - left;
  if (left > 0) text += `{\n${body(`begin + ${next * stride}u`, left)}}\n`;
  if (some) text += `if (begin + ${whole * stride}u < ${blocks}u) {\n${body(`begin + ${whole * stride}u`, 1)}}\n`;
  return text;
}

/** What {@linkcode earlyLoads} has loaded. */
const earlySum: SumText = { addend: "early_addend", weight: "early_weight" };

/** The place of an output: which token of the workgroup's, and which of its outputs. */
interface Place {
  readonly token: string;
  readonly output: string;
}

/** What an output is added to, and the weight of its norm: WGSL of both. */
interface SumText {
  readonly addend: string;
  readonly weight: string;
}

/** Loads of both, of output `output` of token `token` of the workgroup's. */
function sumText({ outputs }: Int8Product, { token, output }: Place): SumText {
  const column = `min(output0 + ${output}, ${outputs - 1}u)`;
  return {
    addend: `addend(min(token0 + ${token}, tokens - 1u) * ${outputs}u + ${column})`,
    weight: `norm_weight(${column})`,
  };
}

/** The store of one output: `first` and `partner` are texts of finished sums, `sum` of what they are added to. */
function storeText(
  product: Int8Product,
  form: RowsForm,
  at: Place,
  [first, partner]: readonly string[],
  sum = sumText(product, at),
): string {
  const factor = lateFactor(product.source, at.token);
  const finish = (value: string): string => factor === undefined ? value : `${value} * ${factor}`;
  const value = product.gate ? `silu_gate(${finish(first!)}, ${finish(partner!)})` : finish(first!);
  const own = `${at.token} * ${rowsOutputs(product, form)}u + ${at.output}`;
  if (product.sums) {
    return `{ let put_at = ${own};
  let x = ${value} + ${sum.addend};
  finished[put_at] = x * ${sum.weight};
  finished_squares[put_at] = x * x;
  ${yStore(product, at, "x")} }\n`;
  }
  return product.quantise ? `finished[${own}] = ${value};\n` : yStore(product, at, value);
}

/** The store of a float. */
function yStore({ outputs }: Int8Product, at: Place, value: string): string {
  const token = `token0 + ${at.token}`, output = `output0 + ${at.output}`;
  return `if (${token} < tokens && ${output} < ${outputs}u) {\n` +
    `  store_y((${token}) * ${outputs}u + ${output}, ${value});\n}\n`;
}

/** Quantises the finished outputs of a workgroup, eight an invocation. */
function quantiseText(product: Int8Product, form: RowsForm, caps: Caps): string {
  if (!product.quantise && !product.sums) return "";
  const octets = rowsOutputs(product, form) / 8, count = octets * form.tokens, threads = threadsOf(form);
  const all = product.outputs / 8, inside = `item < ${count}u && token < tokens && octet < ${all}u`;
  const store = { codes: "store_y_codes", scales: "store_y_scales" };
  const text = (item: string): string =>
    `let item = ${item};
let token = token0 + item / ${octets}u;
let octet = item % ${octets}u + output0 / 8u;
${quantiseFinished(`8u * min(item, ${count - 1}u)`, `token * ${all}u + octet`, inside, caps, store)}
${product.sums ? squaresText(`token * ${all}u + octet`, inside, caps) : ""}`;
  const turns = indices(Math.ceil(count / threads));
  return `workgroupBarrier();\n` + turns.map((turn) => `{\n${text(`lane + ${turn * threads}u`)}\n}\n`).join("");
}

/** Adds up the squares of a block, whose octets four neighbours have, from `start` on. */
function squaresText(at: string, inside: string, caps: Caps): string {
  const eight = indices(8).map((i) => `finished_squares[start + ${i}u]`).join(" + ");
  return `let squares_of_block = block_sum(${eight}${caps.subgroups ? "" : ", lane"});
if (${inside} && (lane & 3u) == 0u) { store_y_squares((${at}) >> 2u, squares_of_block); }`;
}

/**
 * Sums of a team by shuffles. An output of a token is a cell. At each distance lanes keep one half of their cells and give the other
 * away, as long as they have two: what takes n shuffles a step otherwise takes n / 2, n / 4 and so on, and each lane ends with
 * cells of its own. Sums are those of a butterfly over all lanes, bit for bit.
 *
 * @returns Its text; names of the sums of a lane's cells, and the WGSL of the first cell and of whether this lane stores them.
 */
function teamSums(
  product: Int8Product,
  form: RowsForm,
): { text: string; cells: string[][]; first: string; own: string } {
  const each = teamOutputs(product, form), { lanes } = form;
  let cells = indices(form.tokens).flatMap((m) =>
    indices(each).map((row) => indices(form.rows / each).map((half) => `sum_${row + half * each}_${m}`))
  );
  let text = "", distance = lanes / 2;
  for (; distance >= 1 && cells.length % 2 === 0; distance /= 2) {
    const kept = cells.slice(0, cells.length / 2);
    const steps = kept.flatMap((names, i) =>
      names.map((low, n) => {
        const high = cells[i + kept.length]![n]!;
        return `${low} = select(${low}, ${high}, upper) + subgroupShuffleXor(select(${high}, ${low}, upper), ${distance}u);`;
      })
    );
    text += `{ let upper = (member & ${distance}u) != 0u;\n${steps.join("\n")} }\n`;
    cells = kept;
  }
  const alike = 2 * distance; // neighbours that end with the same cells
  for (; distance >= 1; distance /= 2) {
    text += cells.flat().map((name) => `${name} += subgroupShuffleXor(${name}, ${distance}u);`).join(" ") + "\n";
  }
  const first = `(member >> ${Math.log2(alike)}u) * ${cells.length}u`;
  return { text, cells, first, own: alike === 1 ? "true" : `(member & ${alike - 1}u) == 0u` };
}

/** Stores of a team whose lanes have finished sums. */
function teamStores(product: Int8Product, form: RowsForm, { cells, first, own }: ReturnType<typeof teamSums>): string {
  const each = teamOutputs(product, form), shift = Math.log2(each);
  const stores = cells.map(([sum, partner], i) => {
    const at = { token: `((cell + ${i}u) >> ${shift}u)`, output: `team * ${each}u + ((cell + ${i}u) & ${each - 1}u)` };
    return storeText(product, form, at, [sum!, partner ?? ""]);
  });
  return `if (${own}) {\nlet cell = ${first};\n${stores.join("")}}\n`;
}

/** Loads that the stores need, on their way while weights are multiplied: where an invocation stores one output at most. */
function earlyLoads(product: Int8Product, form: RowsForm): string {
  const outputs = rowsOutputs(product, form), at = `min(lane, ${outputs * form.tokens - 1}u)`;
  const { addend, weight } = sumText(product, { token: `${at} / ${outputs}u`, output: `${at} % ${outputs}u` });
  return `let early_addend = ${addend};\nlet early_weight = ${weight};\n`;
}

/** Whether {@linkcode earlyLoads} come before the products. */
function loadsEarly(product: Int8Product, form: RowsForm, caps: Caps): boolean {
  const alone = rowsOutputs(product, form) * form.tokens <= threadsOf(form);
  return product.sums && alone && (form.slices > 1 || !caps.subgroups);
}

/** Adds up `parts` partial sums of every output in workgroup memory; one invocation stores one output. */
function sharedStores(product: Int8Product, form: RowsForm, parts: number, early: boolean): string {
  const each = teamOutputs(product, form), outputs = form.groups * each, sums = form.rows * form.tokens;
  const threads = threadsOf(form), count = outputs * form.tokens;
  const names = product.gate ? ["first", "partner"] : ["first"];
  const part = (name: string, p: string): string => {
    return `${name} += partial[at${name === "first" ? "" : " + 1u"} + ${p}];`;
  };
  const step = form.groups * sums;
  const additions = parts <= 8
    ? indices(parts).map((p) => names.map((name) => part(name, `${p * step}u`)).join(" ")).join("\n")
    : `for (var p = 0u; p < ${parts * step}u; p += ${step}u) { ${names.map((name) => part(name, "p")).join(" ")} }`;
  const body = `let token = i >> ${Math.log2(outputs)}u;
let own = i & ${outputs - 1}u;
let at = (own >> ${Math.log2(each)}u) * ${sums}u + (token * ${each}u + (own & ${each - 1}u)) * ${names.length}u;
${names.map((name) => `var ${name} = 0.0;`).join(" ")}
${additions}
${storeText(product, form, { token: "token", output: "own" }, ["first", "partner"], early ? earlySum : undefined)}`;
  if (count <= threads) return `let i = lane;\nif (i < ${count}u) {\n${body}}\n`;
  return `for (var i = lane; i < ${count}u; i += ${threads}u) {\n${body}}\n`;
}

/** Brings the lanes' sums together and stores outputs. */
function epilogue(product: Int8Product, form: RowsForm, caps: Caps): { text: string; floats: number } {
  const sums = form.rows * form.tokens, { lanes, groups, slices } = form;
  const team = caps.subgroups ? teamSums(product, form) : undefined;
  if (team && slices === 1) {
    return { text: team.text + teamStores(product, form, team) + quantiseText(product, form, caps), floats: 0 };
  }
  const parts = team ? slices : slices * lanes, part = team ? "slice" : `(slice * ${lanes}u + member)`;
  const cells = (team ?? teamSums(product, { ...form, lanes: 1 })).cells, each = cells[0]!.length;
  const put = `let put = (${part} * ${groups}u + team) * ${sums}u${team ? ` + ${team.first} * ${each}u` : ""};\n` +
    cells.flat().map((name, i) => `partial[put + ${i}u] = ${name};`).join(" ") + "\n";
  const text = team ? `${team.text}if (${team.own}) {\n${put}}\n` : put;
  return {
    text: `${text}workgroupBarrier();\n${sharedStores(product, form, parts, loadsEarly(product, form, caps))}` +
      quantiseText(product, form, caps),
    floats: parts * groups * sums,
  };
}

/** The WGSL of a product in this form. */
export function rowsSource(product: Int8Product, form: RowsForm, caps: Caps): KernelSource {
  const weight = int8Weight(product.format, product.columns, caps), { gate, quantise, sums, source, types } = product;
  const end = epilogue(product, form, caps), threads = threadsOf(form);
  const activations = activationsOf(source, types, {
    columns: product.columns,
    tokens: form.tokens,
    lanes: threads,
    sharing: form.groups * form.lanes,
  }, caps);
  const count = rowsOutputs(product, form) * form.tokens, early = loadsEarly(product, form, caps);
  const finished = (quantise || sums ? `var<workgroup> finished: array<f32, ${count}>;\n` : "") +
    (sums ? `var<workgroup> finished_squares: array<f32, ${count}>;\n` : "");
  return {
    inputs: [...activations.ports, ...weight.ports, ...(sums ? sumPorts : [])],
    outputs: outputPorts(product, 2),
    workgroupSize: [threads, 1, 1],
    subgroups: caps.subgroups,
    declarations: weight.declarations + (gate ? siluGateFunction : "") + activations.declarations + finished +
      (quantise || sums || makesCodes(source) ? blockFunctions(threads, caps) : "") +
      (end.floats > 0 ? `var<workgroup> partial: array<f32, ${end.floats}>;\n` : ""),
    main: prologue(product, form, weight) + (early ? earlyLoads(product, form) : "") +
      columnsText(product, { form, weight, activations }, caps) + activations.last + end.text,
  };
}
