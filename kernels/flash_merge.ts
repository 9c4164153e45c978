/**
 * Flash attention of few queries to long contexts, in two dispatches: parts of contexts side by side (`flash_parts.ts`), then a merge
 * of each row's. `single_parts.ts` has the formula.
 *
 * In steps in which other sequences decode a token each (`mixed_attention.ts`), a third dispatch has attended to those already. The
 * merge writes into its results, and merges what it left in parts of its own.
 *
 * @module
 */
import { type Dim, maxOf } from "../tensor/dim.ts";
import { type Caps, dimWgsl, type Kernel, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { type Node, rewrittenKernel } from "../tensor/node.ts";
import { attendedPorts, type PagedAttentionParams, sizesOf } from "./attention_layout.ts";
import { sequenceWgsl } from "./attention_merge_layout.ts";
import { eachRow } from "./attention_reference.ts";
import { flashForm, inCodes, outputsOf } from "./flash_attention.ts";
import { keepRows } from "./flash_form.ts";
import { type FlashParts, flashPartsKernel, flashPartsOf, partsOfRow } from "./flash_parts.ts";
import { rowPartsWgsl } from "./flash_parts_wgsl.ts";
import { blockFunctions, octet, quantiseOctet } from "./quantise_wgsl.ts";
import { quantise32Kernel } from "./quantise.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";
import { mergedPartsWgsl, partsWgsl, singlePorts } from "./single_parts.ts";

/** Parameters of the merge. */
export interface FlashMergeParams {
  /** How the contexts of sequences with more than one query are cut. */
  readonly parts: FlashParts;
  /** Factor on scores. */
  readonly scale: number;
  /** Whether the result is stored in 8-bit codes and scales (`quantise32`). */
  readonly quantise?: boolean;
  /** Whether sequences of one query are attended to already: results, and parts of long contexts, are inputs 4 and on. */
  readonly singlesGiven?: boolean;
}

type Call = KernelCall<FlashMergeParams>;

/** Invocations of a workgroup, an octet of a row each. */
const lanes = 64;

/** Sizes of a merge. `singleParts` is the most parts of single queries: 1 where they come without. */
function mergeSizesOf({ params: { parts, quantise, singlesGiven }, inputs }: Pick<Call, "params" | "inputs">): {
  rows: Dim;
  sequences: Dim;
  heads: number;
  headDim: number;
  singleParts: number;
} {
  const [rows, pairs, headDim] = inputs[0]!.shape as [Dim, number, number], heads = pairs / parts.most;
  const singles = singlesGiven ? inputs[quantise ? 6 : 5] : undefined;
  return {
    ...{ rows, heads, headDim, sequences: inputs[3]!.shape[0]! },
    singleParts: singles ? (singles.shape[1] as number) / heads : 1,
  };
}

/** WGSL that merges the parts that a row has in `low` and `high`; leaves where a single query has none. */
function partsText(call: Call): string {
  const { sequences, heads, headDim, singleParts } = mergeSizesOf(call), { parts, scale, singlesGiven } = call.params;
  const place = { heads, octets: headDim / octet, octet: "feature" };
  const others = `let parts = ${rowPartsWgsl("seen", parts)};
    if (parts > 0u) {
      ${
    mergedPartsWgsl({
      ...place,
      ...{ values: "flash_values", sums: "flash_sums", first: `row * ${parts.most * heads}u + head` },
      ...{ exponent: 1, written: parts.most },
    })
  }
    }`;
  if (!singlesGiven) return `{ ${others} }`;
  const merged = mergedPartsWgsl({
    ...place,
    ...{ values: "part_values", sums: "part_sums", first: `sequence * ${singleParts * heads}u + head` },
    ...{ exponent: scale * Math.LOG2E, written: singleParts },
  });
  return `if (sequence < ${dimWgsl(sequences)} && query_start(sequence + 1u) - query_start(sequence) == 1) {
    ${
    singleParts === 1 ? "return;" : `let parts = ${partsWgsl("seen", singleParts)};
    if (parts == 1u) { return; }
    ${merged}`
  }
  } else {
    ${others}
  }`;
}

/** The shader: an octet of a row a lane. Rows that see no key have no parts, and give zeros. */
function wgsl(call: Call, caps: Caps): KernelSource {
  const { rows, sequences, heads, headDim, singleParts } = mergeSizesOf(call);
  const { quantise = false, singlesGiven } = call.params;
  const octets = headDim / octet, all = heads * octets;
  const singles = singlesGiven ? singlePorts(quantise, singleParts) : [];
  const store = quantise ? quantiseOctet(`row * ${all}u + at`, `at < ${all}u`, caps) : `if (at < ${all}u) {
    store_attended((row * ${all}u + at) * 2u, low);
    store_attended((row * ${all}u + at) * 2u + 1u, high);
  }`;
  return {
    inputs: [
      ...[{ name: "flash_values", width: 4 }, { name: "flash_sums", width: 2 }] as const,
      ...[{ name: "query_start" }, { name: "context_lens" }, ...singles],
    ],
    outputs: attendedPorts(quantise),
    workgroupSize: [lanes, 1, 1],
    subgroups: quantise && caps.subgroups,
    declarations: quantise ? blockFunctions(lanes, caps) : "",
    main: `${rowWgsl(dimWgsl(rows))}
  ${sequenceWgsl(sequences)}
  let at = workgroup.x * ${lanes}u + lane;
  let head = min(at, ${all - 1}u) / ${octets}u;
  let feature = min(at, ${all - 1}u) % ${octets}u;
  var low = vec4f();
  var high = vec4f();
  ${partsText(call)}
  ${store}`,
  };
}

/** Merges the parts of every row but those of single queries, whose results are given: whole, since their reference has no parts. */
function reference(call: Call, inputs: readonly ArrayLike<number>[]): Float64Array[] {
  const { rows, heads, headDim } = mergeSizesOf(call), { parts, quantise, singlesGiven } = call.params;
  const [values, sums, starts, contexts] = inputs as [
    ArrayLike<number>,
    ArrayLike<number>,
    ArrayLike<number>,
    ArrayLike<number>,
  ];
  const attended = new Float64Array(maxOf(rows) * heads * headDim), singles: number[] = [];
  eachRow(starts, contexts, (row, seen, b) => {
    if (singlesGiven && starts[b + 1]! - starts[b]! === 1) return void singles.push(row);
    for (let head = 0; head < heads; head++) {
      const own = Array.from({ length: partsOfRow(seen, parts) }, (_, i) => (row * parts.most + i) * heads + head);
      const most = Math.max(...own.map((at) => sums[2 * at]!));
      const weights = own.map((at) => sums[2 * at + 1]! * 2 ** (sums[2 * at]! - most));
      const all = weights.reduce((a, b) => a + b, 0), to = (row * heads + head) * headDim;
      own.forEach((at, i) => {
        for (let d = 0; d < headDim; d++) attended[to + d]! += weights[i]! / all * values[at * headDim + d]!;
      });
    }
  });
  const results = quantise ? quantise32Kernel.reference({ ...call, params: null }, [attended]) : [attended];
  return keepRows(results, inputs.slice(4), singles, maxOf(rows));
}

/**
 * The merge as a kernel. Inputs are the outputs of `flashPartsKernel`, queryStart and contextLens; with `singlesGiven` then the
 * outputs of `singleAttentionKernel`, of which the results become the outputs in place. Outputs are those of `flashAttentionKernel`.
 */
export const flashMergeKernel: Kernel<FlashMergeParams> = {
  name: "flash_attention_merge",
  infer(inputs, params) {
    const { rows, heads, headDim } = mergeSizesOf({ inputs, params });
    const types = [{ dtype: "f32", shape: [rows, heads * headDim] }] as const;
    return params.quantise ? quantise32Kernel.infer(types, null) : [...types];
  },
  wgsl,
  grid(call, _caps, resolve) {
    const { rows, heads, headDim } = mergeSizesOf(call);
    return rowGrid(Math.ceil(heads * headDim / octet / lanes), resolve(rows));
  },
  reference,
  cost(call, _caps, resolve) {
    // How long contexts are is not known here: rows count as having all parts.
    const { rows, heads, headDim } = mergeSizesOf(call), elements = resolve(rows) * heads * headDim;
    return { flops: 2 * elements * call.params.parts.most, bytes: 4 * elements * (call.params.parts.most + 1) };
  },
  updates: ({ params: { singlesGiven, quantise } }) => !singlesGiven ? [] : quantise ? [4, 5] : [4],
  withQuantise32: (inputs, params, context) => inCodes(flashMergeKernel, 4, inputs, params, context),
};

/**
 * Attention by parts of tiles and their merge, or nothing, where the contexts of a program are not cut.
 *
 * @param inputs Those of attention: q, keys, values, queryStart, contextLens, blockTables.
 * @param singles Attention of the sequences of one query, where it is given.
 */
export function flashInParts(
  inputs: readonly Node[],
  params: PagedAttentionParams,
  caps: Caps,
  singles?: Node,
): Node | undefined {
  const form = flashForm({ inputs }, caps), { blockSize, scale } = params;
  const parts = form && flashPartsOf(sizesOf({ inputs, params, outputs: [] }), form, blockSize);
  if (!parts) return undefined;
  const attended = rewrittenKernel(flashPartsKernel, inputs, {
    blockSize,
    scale,
    parts,
    othersOnly: singles !== undefined,
  });
  const given = [...outputsOf(attended), inputs[3]!, inputs[4]!];
  return singles
    ? rewrittenKernel(flashMergeKernel, [...given, ...outputsOf(singles)], { parts, scale, singlesGiven: true })
    : rewrittenKernel(flashMergeKernel, given, { parts, scale });
}
