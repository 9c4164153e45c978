/**
 * The WGSL of every matrix product y = x W^T, whatever stores W: `matmul.ts` and `quantised_matmul.ts` are kernels over it,
 * `weight_format.ts` gives the text that reads W, `variants.ts` picks the form.
 *
 *     y[t, r] = sum over c of x[t, c] * W[r, c]                     x [tokens, columns], W [rows, columns]
 *     gated:    silu(y[t, r]) * y[t, r + rows / 2]                  silu(v) = v / (1 + exp(-v))
 *
 * Columns are taken in parts of 32. A running vec4 keeps the sums of columns 0, 1, 2, 3 modulo 4; it takes one fused
 * multiply-add for each four columns in ascending order and is added up at the end. Where lanes share a row, which of its parts
 * a lane takes goes by the format alone, however many of them the text of a form unrolls. So the order never depends on the
 * number of tokens.
 *
 * @module
 */
import { siluGateFunction } from "./activation.ts";
import { type Dim, formatShape, maxOf } from "../tensor/dim.ts";
import {
  type Caps,
  type Cost,
  dimWgsl,
  type Kernel,
  type KernelCall,
  type KernelSource,
  type Resolver,
  type TensorType,
} from "../tensor/kernel.ts";
import { matmulReference } from "./quantised_reference.ts";
import { type ProductVariant, productVariant } from "./variants.ts";
import {
  decodeWeight,
  partColumns,
  type WeightFormat,
  type WeightReader,
  weightReader,
  weightTensorTypes,
} from "./weight_format.ts";
import { leastBytes } from "./least_bytes.ts";
import { indices } from "./unroll.ts";

/** Parameters of both product kernels. */
export interface ProductParams {
  /** How the weight is stored. */
  readonly format: WeightFormat;
  /** Whether the two halves of the rows are joined: silu(first) x second. */
  readonly gate?: boolean;
}

/** A product, taken apart. */
interface Product {
  /** How the weight is stored. */
  readonly format: WeightFormat;
  /** Rows of x. */
  readonly tokens: Dim;
  /** Rows of the weight. */
  readonly rows: number;
  /** Columns of x and of the weight. */
  readonly columns: number;
  /** Outputs a token: `rows`, or half of it when gated. */
  readonly outputs: number;
  /** Whether the rows' halves are joined. */
  readonly gate: boolean;
}

/** Takes a product's inputs apart: x, then the weight's tensors. Throws errors that name the shapes. */
function productOf(inputs: readonly TensorType[], { format, gate = false }: ProductParams): Product {
  const [x, first] = inputs;
  if (!x || !first || x.shape.length !== 2 || first.shape.length !== 2) {
    const shapes = inputs.map((input) => formatShape(input.shape)).join(" by ");
    throw new Error(`Cannot multiply ${shapes}: both sides of a product have two axes`);
  }
  const [tokens, columns] = x.shape as [Dim, number];
  const rows = first.shape[0] as number, stored = first.shape[1] as number;
  if (x.dtype !== "f32" && x.dtype !== "f16") {
    throw new Error(`Cannot multiply ${x.dtype} ${formatShape(x.shape)}: cast to f32`);
  }
  const taken = columnsOf(format, stored, columns);
  if (taken !== columns) {
    throw new Error(
      `Cannot multiply ${formatShape(x.shape)} by weight [${rows}, ${taken}]: ${columns} columns meet ${taken}`,
    );
  }
  weightTensorTypes(format, rows, columns).forEach((type, i) => {
    const given = inputs[i + 1];
    if (!given || given.dtype !== type.dtype || formatShape(given.shape) !== formatShape(type.shape)) {
      throw new Error(
        `Cannot multiply by weight [${rows}, ${columns}]: tensor ${i} has to be ${type.dtype} ${
          formatShape(type.shape)
        }, ` +
          `not ${given ? `${given.dtype} ${formatShape(given.shape)}` : "missing"}`,
      );
    }
  });
  if (gate && rows % 2 !== 0) throw new Error(`Cannot gate weight [${rows}, ${columns}]: its rows have no two halves`);
  return { format, tokens, rows, columns, outputs: gate ? rows / 2 : rows, gate };
}

/** Columns of a weight by its first tensor's row length; a padded 16-bit row counts as what x asks for. */
function columnsOf(format: WeightFormat, stored: number, wanted: number): number {
  if (format.kind === "affine") return stored * 32 / format.bits;
  if (format.dtype === "f32") return stored;
  return wanted === 2 * stored - 1 ? wanted : 2 * stored;
}

/** The two functions that a product's body calls: four columns of x, zeros beyond the last; silu x gate. */
function declarations({ columns, gate }: Product): string {
  const width = columns % 4 === 0 ? 4 : 1;
  const guard = (value: string, at: string, zero: string): string =>
    columns % partColumns === 0 ? value : `select(${zero}, ${value}, ${at} < ${columns / width}u)`;
  const elements = indices(4).map((i) => guard(`x(base + column + ${i}u)`, `column + ${i}u`, "0.0")).join(", ");
  const body = width === 4
    ? `  return ${guard(`x(token * ${columns / 4}u + vector)`, "vector", "vec4f()")};`
    : `  let base = token * ${columns}u;\n  let column = vector * 4u;\n  return vec4f(${elements});`;
  return `fn x_four(token: u32, vector: u32) -> vec4f {\n${body}\n}\n` +
    "fn add_up(sums: vec4f) -> f32 {\n  return (sums.x + sums.y) + (sums.z + sums.w);\n}\n" +
    (gate ? siluGateFunction : "");
}

/** Names of the weight rows side by side: outputs 0 to n-1, and with a gate their partners in the other half. */
function rowNames(product: Product, variant: ProductVariant): string[] {
  const outputs = outputsOf(product, variant);
  return [...indices(outputs).map((i) => `r${i}`), ...(product.gate ? indices(outputs).map((i) => `g${i}`) : [])];
}

/** Outputs that an invocation computes for each token. */
function outputsOf(product: Product, variant: ProductVariant): number {
  return product.gate ? variant.rows / 2 : variant.rows;
}

/** Row and token indices, clamped so that a tail reads what is there, and the sums. */
function prologue(product: Product, variant: ProductVariant): string {
  const lines = [`let tokens = ${dimWgsl(product.tokens)};`, `let token0 = workgroup.y * ${variant.tokens}u;`];
  for (const m of indices(variant.tokens)) lines.push(`let t${m} = min(token0 + ${m}u, tokens - 1u);`);
  for (const i of indices(outputsOf(product, variant))) {
    lines.push(`let r${i} = min(first + ${i}u, ${product.outputs - 1}u);`);
    if (product.gate) lines.push(`let g${i} = r${i} + ${product.outputs}u;`);
  }
  for (const row of rowNames(product, variant)) {
    for (const m of indices(variant.tokens)) lines.push(`var sum_${row}_${m} = vec4f();`);
  }
  return lines.join("\n") + "\n";
}

/** Tokens whose sums stay in registers while a row's 32 weights pass: 2 gave 1.3 times as much as 8 on llvmpipe. */
const tokensAtOnce = 2;

/** One step of the sums: the weights of each row once, against every token. */
function stepBody(product: Product, variant: ProductVariant, reader: WeightReader, broadcast: boolean): string {
  const rows = rowNames(product, variant), tokens = indices(variant.tokens);
  let text = rows.map((row) => reader.begin(`w_${row}_`, row, "step")).join("");
  for (const part of indices(reader.parts)) {
    text += `{\nlet part = (step * ${reader.parts}u + ${part}u) * ${partColumns / 4}u;\n`;
    for (const m of tokens) {
      if (broadcast) text += `let lane_x${m} = x_four(t${m}, part + subgroupLane);\n`;
      for (const i of indices(8)) {
        const load = broadcast ? `subgroupBroadcast(lane_x${m}, ${i}u)` : `x_four(t${m}, part + ${i}u)`;
        text += `let x${m}_${i} = ${load};\n`;
      }
    }
    for (const row of rows) text += `{\n${reader.part(`w_${row}_`, row, "step", part)}${rowSums(row, tokens)}}\n`;
    text += "}\n";
  }
  return text;
}

/** Multiplies one row's 32 weights by each token's 32 values. */
function rowSums(row: string, tokens: readonly number[]): string {
  let text = "";
  for (let from = 0; from < tokens.length; from += tokensAtOnce) {
    for (const i of indices(8)) {
      for (const m of tokens.slice(from, from + tokensAtOnce)) {
        text += `sum_${row}_${m} = fma(w_${row}_${i}, x${m}_${i}, sum_${row}_${m});\n`;
      }
    }
  }
  return text;
}

/** The stores: `value(row, token)` is the text of a finished sum. */
function epilogue(product: Product, variant: ProductVariant, value: (row: string, token: number) => string): string {
  let text = "";
  for (const m of indices(variant.tokens)) {
    for (const i of indices(outputsOf(product, variant))) {
      const result = product.gate ? `silu_gate(${value(`r${i}`, m)}, ${value(`g${i}`, m)})` : value(`r${i}`, m);
      text += `if (token0 + ${m}u < tokens && first + ${i}u < ${product.outputs}u) {\n` +
        `  store_y((token0 + ${m}u) * ${product.outputs}u + first + ${i}u, ${result});\n}\n`;
    }
  }
  return text;
}

function laneRowsMain(product: Product, variant: ProductVariant, reader: WeightReader, broadcast: boolean): string {
  return `let first = (workgroup.x * ${variant.workgroup}u + lane) * ${outputsOf(product, variant)}u;\n` +
    prologue(product, variant) +
    `for (var step = 0u; step < ${reader.steps}u; step++) {\n${stepBody(product, variant, reader, broadcast)}}\n` +
    epilogue(product, variant, (row, m) => `add_up(sum_${row}_${m})`);
}

/** Lanes that share a row where there are no subgroups. */
const sharedLanes = 32;

/**
 * The loop over a lane's steps. A lane takes `run` parts in a row, then jumps over those of the others: runs are as long as the
 * longest step of any form, so that a lane adds the same columns in all of them.
 */
function sharedSteps(
  { format, columns }: Product,
  { parts, steps }: WeightReader,
  lanes: number,
  lane: string,
): string {
  const run = weightReader(format, columns, 2).parts / parts;
  const next = run === 1 ? `${lanes}u` : `select(1u, ${(lanes - 1) * run + 1}u, step % ${run}u == ${run - 1}u)`;
  return `for (var step = ${lane} * ${run}u; step < ${steps}u; step += ${next})`;
}

function subgroupRowsMain(product: Product, variant: ProductVariant, reader: WeightReader, caps: Caps): string {
  const lanes = caps.subgroups ? caps.subgroupSize : sharedLanes;
  const team = caps.subgroups ? "subgroup" : `(lane / ${lanes}u)`;
  const member = caps.subgroups ? "subgroupLane" : `(lane % ${lanes}u)`;
  let text =
    `let first = (workgroup.x * ${variant.workgroup / lanes}u + ${team}) * ${outputsOf(product, variant)}u;\n` +
    prologue(product, variant) +
    `${sharedSteps(product, reader, lanes, member)} {\n` +
    `${stepBody(product, variant, reader, false)}}\n`;
  for (const row of rowNames(product, variant)) {
    for (const m of indices(variant.tokens)) {
      text += caps.subgroups
        ? `let total_${row}_${m} = subgroupAdd(add_up(sum_${row}_${m}));\n`
        : sharedSum(`total_${row}_${m}`, `add_up(sum_${row}_${m})`, lanes);
    }
  }
  return text + `if (${member} == 0u) {\n${epilogue(product, variant, (row, m) => `total_${row}_${m}`)}}\n`;
}

/** Adds a value over the lanes of a team through workgroup memory, pairs first. */
function sharedSum(name: string, value: string, lanes: number): string {
  let text = `partial[lane] = ${value};\nworkgroupBarrier();\n`;
  for (let distance = lanes / 2; distance >= 1; distance /= 2) {
    text +=
      `if (lane % ${lanes}u < ${distance}u) { partial[lane] += partial[lane + ${distance}u]; }\nworkgroupBarrier();\n`;
  }
  return text + `let ${name} = partial[lane];\nworkgroupBarrier();\n`;
}

/** The WGSL of a product on a device. */
function productSource(product: Product, variant: ProductVariant, x: TensorType, caps: Caps): KernelSource {
  const reader = weightReader(product.format, product.columns, variant.tokens === 1 ? 2 : 1);
  const width = product.columns % 4 === 0 ? 4 : 1;
  const uniform = caps.cpu && width === 4 && x.dtype === "f32" && maxOf(product.tokens) === 1 &&
    product.columns * 4 <= caps.maxUniformBinding;
  const laneRows = variant.kind === "laneRows";
  // Eight lanes load a part of x together, one vec4 each, and hand it round.
  const broadcast = laneRows && caps.subgroups && caps.subgroupSize === partColumns / 4;
  const shared = laneRows || caps.subgroups ? "" : `var<workgroup> partial: array<f32, ${variant.workgroup}>;\n`;
  return {
    inputs: [{ name: "x", width, uniform }, ...reader.ports],
    outputs: [{ name: "y" }],
    workgroupSize: [variant.workgroup, 1, 1],
    subgroups: laneRows ? broadcast : caps.subgroups,
    declarations: shared + declarations(product),
    main: laneRows
      ? laneRowsMain(product, variant, reader, broadcast)
      : subgroupRowsMain(product, variant, reader, caps),
  };
}

/** Workgroups of a product: blocks of outputs along x, blocks of tokens along y. */
function productGrid(
  product: Product,
  variant: ProductVariant,
  caps: Caps,
  tokens: number,
): readonly [number, number, number] {
  const lanes = variant.kind === "laneRows" ? 1 : caps.subgroups ? caps.subgroupSize : sharedLanes;
  const outputs = variant.workgroup / lanes * outputsOf(product, variant);
  return [Math.ceil(product.outputs / outputs), Math.ceil(tokens / variant.tokens), 1];
}

/** The plain definition, in float64. */
function productReference(call: KernelCall<ProductParams>, inputs: readonly ArrayLike<number>[]): Float64Array[] {
  const { format, rows, columns, outputs, gate } = productOf(call.inputs, call.params);
  const [x, ...tensors] = inputs;
  const y = matmulReference(x!, decodeWeight(format, tensors, columns), columns);
  if (!gate) return [y];
  const tokens = y.length / rows;
  return [
    Float64Array.from({ length: tokens * outputs }, (_, i) => {
      const row = Math.floor(i / outputs) * rows + i % outputs;
      return y[row]! / (1 + Math.exp(-y[row]!)) * y[row + outputs]!;
    }),
  ];
}

function productCost(call: KernelCall<ProductParams>, caps: Caps, resolve: Resolver): Cost {
  const { rows, columns, tokens } = productOf(call.inputs, call.params);
  return { flops: 2 * resolve(tokens) * rows * columns, bytes: leastBytes(call, caps, resolve) };
}

/**
 * A product kernel: all of one but its name. Its inputs are x [tokens, columns] and the weight's tensors. Benches choose the
 * form themselves.
 */
export function productKernel(
  name: string,
  takes: WeightFormat["kind"],
  choose: (caps: Caps, maxTokens: number, weights: number) => ProductVariant = productVariant,
): Kernel<ProductParams> {
  const product = (inputs: readonly TensorType[], params: ProductParams): Product => {
    if (params.format.kind !== takes) throw new Error(`Cannot run ${name} on a ${params.format.kind} weight`);
    return productOf(inputs, params);
  };
  const variantOf = ({ tokens, rows, columns }: Product, caps: Caps): ProductVariant =>
    choose(caps, maxOf(tokens), rows * columns);
  return {
    name,
    infer(inputs, params) {
      const { tokens, outputs } = product(inputs, params);
      return [{ dtype: "f32", shape: [tokens, outputs] }];
    },
    wgsl: (call, caps) => {
      const parts = product(call.inputs, call.params);
      return productSource(parts, variantOf(parts, caps), call.inputs[0]!, caps);
    },
    grid: (call, caps, resolve) => {
      const parts = product(call.inputs, call.params);
      return productGrid(parts, variantOf(parts, caps), caps, resolve(parts.tokens));
    },
    reference: productReference,
    cost: productCost,
    slots: ["elementwise", "siluGate"],
    withSiluGate: (params) => params.gate ? undefined : { ...params, gate: true },
  };
}
