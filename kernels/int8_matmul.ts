/**
 * The product of activations in 8-bit codes and an affine weight of 4 or 8 bits: what the `fast` precision computes in integers.
 * With `quantise.ts`'s scale and sum of each block of 32 columns, and the scale and bias that the weight has there:
 *
 *     y[t, r] = sum over blocks of  weightScale * scale[t, b] * (sum over c in b of weightCode[r, c] * code[t, c])
 *                                 + weightBias * sum[t, b]
 *     gated:    silu(y[t, r]) * y[t, r + rows / 2]                  silu(v) = v / (1 + exp(-v))
 *
 * Results may be stored as floats, in codes, or as a sum with what was there before and in the codes of its norm (`late_norm.ts`).
 *
 * The inner sums are exact: four products an instruction (`dot4I8Packed`), in any order. Only the outer ones round, in f32.
 * On an H100 the same product with f32 activations reaches half the speed, since turning each weight's code into a float
 * is then the limit. `int8_variants.ts` picks the form, `int8_rows.ts` and `int8_tiles.ts` are the forms.
 *
 * @module
 */
import { type Dim, formatShape, maxOf } from "../tensor/dim.ts";
import {
  type Caps,
  type Cost,
  dimWgsl,
  type Kernel,
  type KernelCall,
  type RewriteContext,
  type TensorType,
} from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import {
  activationInputs,
  codesReference,
  codeTypes,
  type Int8Source,
  makesCodes,
  makesSeveral,
  sourceOf,
} from "./int8_activations.ts";
import { normOf, squaresReference, storedCodes, sumBuffers } from "./late_norm.ts";
import type { RmsNormParams } from "./norm.ts";
import { rowsOutputs, rowsSource } from "./int8_rows.ts";
import { tilesSource } from "./int8_tiles.ts";
import { hasBlocksForm, type Int8Form, int8Form, type Int8Size, storesSums } from "./int8_variants.ts";
import { affinePairs, hasInt8Form, type Int8Product } from "./int8_weight.ts";
import {
  activationBlock,
  codeOrder,
  quantise32,
  quantise32Kernel,
  quantiseActivations,
  type QuantisedActivations,
} from "./quantise.ts";
import { linear } from "./quantised_matmul.ts";
import { argmaxReference } from "./sampling_reference.ts";
import { unpackCodes } from "./quantised_reference.ts";
import { type AffineFormat, formatName, type Weight, weightTensorTypes } from "./weight_format.ts";
import { leastBytes } from "./least_bytes.ts";

/** Parameters of an int8 product. */
export interface Int8Params {
  /** How the weight is stored: affine, 4 or 8 bits. */
  readonly format: AffineFormat;
  /** Whether the two halves of the rows are joined: silu(first) x second. */
  readonly gate?: boolean;
  /** What the product does for itself to have its activations, with whose inputs in place of codes and scales. */
  readonly source?: Int8Source;
  /** Whether the outputs are codes and scales (`quantise32`) of y. With `gate` only. */
  readonly quantise?: boolean;
  /** Weight rows of a part: the outputs are the greatest y of each part, and its row, i32. */
  readonly greatestOf?: number;
  /** The norm of the sum with another input, which is stored with its codes; that input and the norm's weight are the last ones. */
  readonly sumNorm?: RmsNormParams;
}

interface Sizes extends Omit<Int8Product, "tokens"> {
  readonly tokens: Dim;
}

/** Takes a product's inputs apart: activations, then the weight's tensors. Throws errors that name the shapes. */
function sizesOf(inputs: readonly TensorType[], params: Int8Params): Sizes {
  const { format, gate = false, source, quantise = false, greatestOf, sumNorm } = params;
  if (!hasInt8Form(format)) {
    throw new Error(
      `Cannot multiply int8 activations by ${formatName(format)}: weights of 4 and 8 bits have this product`,
    );
  }
  const given = [...codeTypes(source, inputs), ...inputs.slice(activationInputs(source))];
  const [codes, scales, first] = given;
  if (!codes || !scales || !first || codes.shape.length !== 2 || first.shape.length !== 2) {
    const shapes = inputs.map((input) => formatShape(input.shape)).join(" by ");
    throw new Error(
      `Cannot multiply ${shapes}: takes codes and scales of activations, then codes and scales of a weight`,
    );
  }
  const [tokens, words] = codes.shape as [Dim, number], columns = 4 * words, rows = first.shape[0] as number;
  const wanted: TensorType[] = [
    { dtype: "u32", shape: [tokens, words] },
    { dtype: "f32", shape: [tokens, columns / activationBlock, 2] },
    ...weightTensorTypes(format, rows, columns),
  ];
  wanted.forEach((type, i) => {
    if (given[i]?.dtype === type.dtype && formatShape(given[i].shape) === formatShape(type.shape)) return;
    const found = given[i] ? `${given[i].dtype} ${formatShape(given[i].shape)}` : "missing";
    throw new Error(
      `Cannot multiply int8 activations ${formatShape([tokens, columns])} by a weight of ${rows} rows: ` +
        `input ${i} has to be ${type.dtype} ${formatShape(type.shape)}, not ${found}`,
    );
  });
  if (gate && rows % 2 !== 0) throw new Error(`Cannot gate weight [${rows}, ${columns}]: its rows have no two halves`);
  if (quantise && !(gate && rows % (2 * activationBlock) === 0)) {
    throw new Error(`Cannot store the outputs of weight [${rows}, ${columns}] in codes: gated blocks of 32 can be`);
  }
  if (sumNorm) checkSum(inputs, tokens, rows);
  const outputs = gate ? rows / 2 : rows;
  return {
    format,
    tokens,
    rows,
    columns,
    outputs,
    gate,
    source,
    quantise,
    sums: sumNorm !== undefined,
    argmax: greatestOf !== undefined,
    types: inputs,
  };
}

/** The sum's other half and the weight of its norm come last. */
function checkSum(inputs: readonly TensorType[], tokens: Dim, rows: number): void {
  const [addend, weight] = inputs.slice(-2), wanted = formatShape([tokens, rows]);
  if (rows % activationBlock !== 0) {
    throw new Error(`Cannot store sums of ${rows} columns in codes: blocks of 32 can be`);
  }
  if (addend && formatShape(addend.shape) === wanted && weight && formatShape(weight.shape) === `[${rows}]`) return;
  throw new Error(`Cannot add to ${wanted}: takes another ${wanted} and the norm's weight [${rows}], last`);
}

/** Codes of activations as numbers, columns in their natural order. */
function activationCodes(words: ArrayLike<number>): Int8Array {
  const stored = new Int8Array(Uint32Array.from(words).buffer), codes = new Int8Array(stored.length);
  for (let i = 0; i < codes.length; i++) codes[(i & ~7) + codeOrder[i & 7]!] = stored[i]!;
  return codes;
}

/** Calls `term` with both parts of the sum for each output and block: the reference, and what its tolerance is made of. */
export function int8Terms(
  call: { readonly params: Int8Params; readonly inputs: readonly TensorType[] },
  inputs: readonly ArrayLike<number>[],
  term: (output: number, product: number, bias: number) => void,
): void {
  const { format, rows, columns } = sizesOf(call.inputs, call.params), blocks = columns / activationBlock;
  const x = activationCodes(inputs[0]!), scales = inputs[1]!, weight = unpackCodes(inputs[2]!, format.bits);
  const affine = affinePairs(inputs[3]!, format.scales);
  for (let output = 0; output < x.length / columns * rows; output++) {
    const token = Math.floor(output / rows), row = output % rows;
    for (let block = 0; block < blocks; block++) {
      let dot = 0;
      for (let c = block * activationBlock; c < (block + 1) * activationBlock; c++) {
        dot += x[token * columns + c]! * weight[row * columns + c]!;
      }
      const at = 2 * (token * blocks + block);
      const pair = 2 * Math.floor((row * blocks + block) * activationBlock / format.groupSize);
      term(output, affine[pair]! * scales[at]! * dot, affine[pair + 1]! * scales[at + 1]!);
    }
  }
}

/** The greatest value of each part of a row, and its place in the row. */
function greatestReference(y: Float64Array, outputs: number, each: number): Float64Array[] {
  const parts = Math.ceil(outputs / each), values: number[] = [], places: number[] = [];
  for (let at = 0; at < y.length / outputs * parts; at++) {
    const row = Math.floor(at / parts) * outputs, first = at % parts * each;
    const part = y.slice(row + first, row + Math.min(outputs, first + each)), best = argmaxReference(part);
    values.push(part[best]!);
    places.push(first + best);
  }
  return [Float64Array.from(values), Float64Array.from(places)];
}

/** Whether the outputs are something else than y already. */
function isFinished({ quantise, greatestOf, sumNorm }: Int8Params): boolean {
  return quantise === true || greatestOf !== undefined || sumNorm !== undefined;
}

/** What is stored in place of results `y`, in float64. */
function finishedReference(
  { params: { quantise: _, greatestOf, sumNorm, ...params }, inputs: types }: KernelCall<Int8Params>,
  inputs: readonly ArrayLike<number>[],
  y: Float64Array,
): Float64Array[] {
  if (greatestOf !== undefined) return greatestReference(y, sizesOf(types, params).outputs, greatestOf);
  const [addend, weight] = inputs.slice(-2), sum = sumNorm && y.map((value, i) => value + addend![i]!);
  const weighted = sum?.map((value, i) => value * weight![i % weight!.length]!);
  const { codes, scales } = quantiseActivations(weighted ?? y), stored = [Float64Array.from(codes), scales];
  return sum ? [sum, ...stored, squaresReference(sum)] : stored;
}

/** The plain definition, in float64. */
function reference(call: KernelCall<Int8Params>, inputs: readonly ArrayLike<number>[]): Float64Array[] {
  const { quantise: _, greatestOf: _greatestOf, sumNorm: _sumNorm, ...params } = call.params;
  const { source, ...plain } = params;
  if (isFinished(call.params)) return finishedReference(call, inputs, reference({ ...call, params }, inputs)[0]!);
  if (source) {
    const count = activationInputs(source), types = [...codeTypes(source, call.inputs), ...call.inputs.slice(count)];
    const codes = codesReference(source, call.inputs, inputs);
    return reference({ ...call, params: plain, inputs: types }, [...codes, ...inputs.slice(count)]);
  }
  const { rows, columns, outputs, gate } = sizesOf(call.inputs, call.params);
  const y = new Float64Array(4 * inputs[0]!.length / columns * rows);
  int8Terms(call, inputs, (output, product, bias) => y[output]! += product + bias);
  if (!gate) return [y];
  return [
    Float64Array.from({ length: y.length / 2 }, (_, i) => {
      const row = Math.floor(i / outputs) * rows + i % outputs;
      return y[row]! / (1 + Math.exp(-y[row]!)) * y[row + outputs]!;
    }),
  ];
}

/** What a product stores: results, or what they are finished to. */
function infer(inputs: readonly TensorType[], params: Int8Params): TensorType[] {
  const { tokens, outputs, quantise, sums } = sizesOf(inputs, params), { greatestOf } = params;
  if (greatestOf !== undefined) {
    const shape = [tokens, Math.ceil(outputs / greatestOf)];
    return [{ dtype: "f32", shape }, { dtype: "i32", shape }];
  }
  const y: TensorType = { dtype: "f32", shape: [tokens, outputs] };
  if (!quantise && !sums) return [y];
  const codes = quantise32Kernel.infer([y], null);
  return sums ? [y, ...codes, { dtype: "f32", shape: [tokens, outputs / activationBlock] }] : codes;
}

/** A product with what makes its activations, or with what a product before it has stored in place of a norm. */
function withSource(
  kernel: Kernel<Int8Params>,
  inputs: readonly Node[],
  params: Int8Params,
  context: RewriteContext,
): Node | undefined {
  if (params.source) return undefined;
  const late = storedCodes(inputs[0]), given = inputs.slice(2);
  if (late) {
    const source = { kind: "late", params: late.params } as const;
    return kernelNode(kernel, [...late.inputs, ...given], { ...params, source });
  }
  const made = sourceOf(inputs, context);
  return made && kernelNode(kernel, [...made.inputs, ...given], { ...params, source: made.source });
}

/**
 * The kernel with a choice of form: tests and benches name theirs. Inputs are codes [T, K / 4] and scales [T, K / 32, 2] of
 * activations, then the weight's tensors; output y [T, rows], or [T, rows / 2] with a gate.
 */
export function int8Kernel(choose: (caps: Caps, size: Int8Size) => Int8Form = int8Form): Kernel<Int8Params> {
  const sized = (call: KernelCall<Int8Params>, caps: Caps): { product: Sizes; form: Int8Form } => {
    const product = sizesOf(call.inputs, call.params), { tokens, rows, columns, source, quantise, sums } = product;
    const own = makesCodes(source), maxTokens = own && !makesSeveral(caps) ? 1 : maxOf(tokens);
    return {
      product,
      form: choose(caps, { maxTokens, rows, columns, blocks: quantise, sums, makesCodes: own }),
    };
  };
  const kernel: Kernel<Int8Params> = {
    name: "int8_matmul",
    infer,
    wgsl(call, caps) {
      const { product: sizes, form } = sized(call, caps), product = { ...sizes, tokens: dimWgsl(sizes.tokens) };
      return form.kind === "rows" ? rowsSource(product, form, caps) : tilesSource(product, form, caps);
    },
    grid(call, caps, resolve) {
      const { product, form } = sized(call, caps), { tokens, outputs, gate } = product;
      const each = form.kind === "rows"
        ? rowsOutputs({ ...product, tokens: "" }, form)
        : gate
        ? form.rows / 2
        : form.rows;
      return [Math.ceil(resolve(tokens) / form.tokens), Math.ceil(outputs / each), 1];
    },
    reference,
    cost(call, caps, resolve): Cost {
      const { rows, columns, tokens } = sizesOf(call.inputs, call.params);
      return { flops: 2 * resolve(tokens) * rows * columns, bytes: leastBytes(call, caps, resolve) };
    },
    slots: ["elementwise", "siluGate"],
    withSiluGate: (params) => params.gate ? undefined : { ...params, gate: true },
    withQuantise32(inputs, params, { caps }) {
      const first = inputs[activationInputs(params.source)]!, rows = first.shape[0] as number;
      const quantised = { ...params, quantise: true };
      const fits = rows % (2 * activationBlock) === 0 && hasBlocksForm(maxOf(inputs[0]!.shape[0]!), caps);
      return params.gate && fits && !params.quantise ? kernelNode(kernel, inputs, quantised) : undefined;
    },
    withGreatest(inputs, params, { caps }) {
      if (params.gate || makesCodes(params.source) || isFinished(params)) return undefined;
      const { form } = sized({ inputs, params, outputs: [] }, caps);
      const fits = form.kind === "tile" && caps.subgroups && form.rows / form.threadRows <= caps.subgroupSize;
      return fits && !caps.cpu ? kernelNode(kernel, inputs, { ...params, greatestOf: form.rows }) : undefined;
    },
    absorb: (inputs, params, context) => withSource(kernel, inputs, params, context),
    withAddend(inputs, params, { sum, addend }, context) {
      if (params.gate || isFinished(params)) return undefined;
      const { product: { rows, columns, tokens } } = sized({ inputs, params, outputs: [] }, context.caps);
      const binds = inputs.length + sumBuffers <= context.caps.maxStorageBuffers;
      const norm = binds && storesSums(context.caps, { maxTokens: maxOf(tokens), rows, columns })
        ? normOf(sum, kernel as Kernel<unknown>, context)
        : undefined;
      return norm && kernelNode(kernel, [...inputs, addend, norm.weight], { ...params, sumNorm: norm.params });
    },
  };
  return kernel;
}

/** The int8 product in the form that `int8_variants.ts` picks. */
export const int8Matmul: Kernel<Int8Params> = int8Kernel();

/**
 * A linear layer without bias on quantised activations: y = x W^T.
 *
 * @param x Activations [T, K] in codes, as `quantise32` and `rmsNormQuantise32` make them; T may be a symbol.
 * @param weight Affine weight [rows, K] of 4 or 8 bits.
 * @returns y [T, rows], f32.
 * @throws Where the weight has another format or K differs.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { input } from "../tensor/node.ts";
 * import { int8Linear } from "./int8_matmul.ts";
 * import { quantise32 } from "./quantise.ts";
 * const x = quantise32(input("x", "f32", [3, 64]));
 * const weight = {
 *   format: { kind: "affine", bits: 4, groupSize: 64, scales: "f16" },
 *   rows: 10,
 *   columns: 64,
 *   tensors: [input("codes", "u32", [10, 8]), input("affine", "u32", [10, 1])],
 * } as const;
 * assertEquals(int8Linear(x, weight).shape, [3, 10]);
 * ```
 */
export function int8Linear(x: QuantisedActivations, weight: Weight): Node {
  const { format } = weight;
  if (format.kind !== "affine") {
    throw new Error(`Cannot multiply int8 activations by ${formatName(format)}: use linear() on floats`);
  }
  return kernelNode(int8Matmul, [x.codes, x.scales, ...weight.tensors], { format });
}

/** Whether {@linkcode int8Linear} takes a weight; {@linkcode fastLinear} takes every one. */
export function hasInt8Product(weight: Weight): boolean {
  return hasInt8Form(weight.format);
}

/**
 * A linear layer without bias in the `fast` precision: activations are quantised and multiplied in integers where the weight
 * has 4 or 8 bits, and `linear()` computes every other.
 *
 * @param x Activations [T, K], f32 or f16; T may be a symbol.
 * @param weight Weight [rows, K].
 * @returns y [T, rows], f32.
 */
export function fastLinear(x: Node, weight: Weight): Node {
  return hasInt8Product(weight) ? int8Linear(quantise32(x), weight) : linear(x, weight);
}
