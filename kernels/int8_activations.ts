/**
 * Where an int8 product takes its activations from: codes in memory, or, for one token, what a kernel before it would turn
 * into codes. Every workgroup then does that kernel's work for itself, since a dispatch costs more than the repetition.
 *
 * @module
 */
import { maxOf } from "../tensor/dim.ts";
import type { Caps, Kernel, KernelCall, Port, RewriteContext, TensorType } from "../tensor/kernel.ts";
import type { Node } from "../tensor/node.ts";
import { mergeOctetsWgsl, type MergeParams, mergeSizesOf } from "./attention_merge_wgsl.ts";
import { attentionMergeKernel } from "./decode_attention.ts";
import type { RmsNormParams } from "./norm.ts";
import { rmsNormQuantise32Kernel } from "./quantise.ts";
import { normaliseDeclarations, normaliseWgsl } from "./quantise_wgsl.ts";

/** The kernel whose work a product does, with its parameters. The product has its inputs in place of codes and scales. */
export type Int8Source =
  | { readonly kind: "norm"; readonly params: RmsNormParams }
  | { readonly kind: "merge"; readonly params: MergeParams };

/**
 * Columns up to which every workgroup makes the codes of a token for itself, and the weight rows up to which it does: longer
 * rows, or more workgroups, and they are better made once. Any of these is enough.
 */
const mostOwn: readonly { readonly columns: number; readonly rows: number }[] = [
  { columns: 2048, rows: 65536 },
  { columns: 4096, rows: 8192 },
];

/** Tiles up to which partial results of attention are merged so: 1,024 positions. */
const mostTiles = 8;

function kernelOf({ kind }: Int8Source): Kernel<unknown> {
  return (kind === "norm" ? rmsNormQuantise32Kernel : attentionMergeKernel) as Kernel<unknown>;
}

/** Inputs that come before the weight's. */
export function activationInputs(source: Int8Source | undefined): number {
  return source?.kind === "merge" ? 4 : 2;
}

/** Types of codes and scales: those given, or those that the source would make. */
export function codeTypes(source: Int8Source | undefined, inputs: readonly TensorType[]): readonly TensorType[] {
  const given = inputs.slice(0, activationInputs(source));
  return source ? kernelOf(source).infer(given, source.params) : given;
}

/** Codes and scales of a call, in float64 where the source makes them. */
export function codesReference(
  source: Int8Source | undefined,
  types: readonly TensorType[],
  inputs: readonly ArrayLike<number>[],
): readonly ArrayLike<number>[] {
  const count = activationInputs(source), given = inputs.slice(0, count);
  if (!source) return given;
  const call = { params: source.params, inputs: types.slice(0, count), outputs: codeTypes(source, types) };
  return kernelOf(source).reference(call, given);
}

/** The source that makes `codes` and `scales`, where a product had better do its work. */
export function sourceOf(
  [codes, scales, first]: readonly Node[],
  { readers }: RewriteContext,
): { source: Int8Source; inputs: readonly Node[] } | undefined {
  if (codes?.op !== "kernel" || maxOf(codes.shape[0]!) !== 1) return undefined;
  if (readers(codes) !== 2 || readers(scales!) !== 1) return undefined;
  const columns = 4 * (codes.shape[1] as number), rows = first!.shape[0] as number;
  if (!mostOwn.some((most) => columns <= most.columns && rows <= most.rows)) return undefined;
  const { src: inputs, kernel } = codes;
  if (kernel === rmsNormQuantise32Kernel as Kernel<unknown>) {
    return { source: { kind: "norm", params: codes.params as RmsNormParams }, inputs };
  }
  if (kernel !== attentionMergeKernel as Kernel<unknown>) return undefined;
  const few = (inputs[0]!.shape[1] as number) <= mostTiles && inputs[3]!.shape[0] === 1;
  return few ? { source: { kind: "merge", params: codes.params as MergeParams }, inputs } : undefined;
}

/** How a shader reads its activations: through `codes(i)`, 16 columns, and `scales(i)`, of a block. */
export interface Activations {
  readonly ports: readonly Port[];
  readonly declarations: string;
  /** Waits for nothing; comes first. */
  readonly loads: string;
  /** Ends with a barrier. Empty where codes come from memory. */
  readonly rest: string;
}

const fromMemory: Activations = {
  ports: [{ name: "codes", width: 4 }, { name: "scales", width: 2 }],
  declarations: "",
  loads: "",
  rest: "",
};

/** The text for workgroups of `lanes` invocations. `types` are those of the product's inputs. */
export function activationsOf(
  source: Int8Source | undefined,
  types: readonly TensorType[],
  columns: number,
  lanes: number,
  caps: Caps,
): Activations {
  if (!source) return fromMemory;
  const store = { codes: "keep_codes", scales: "keep_scales" }, own = ownCodes(columns);
  if (source.kind === "norm") {
    const from = `workgroup.x * ${columns / 8}u`, { eps } = source.params;
    const { loads, rest } = normaliseWgsl({ columns, lanes, eps, from, to: "0u", store }, caps);
    const ports: Port[] = [{ name: "x", width: 4 }, { name: "weight", width: 4 }];
    return { ports, declarations: normaliseDeclarations(lanes) + own, loads, rest: `${rest}\nworkgroupBarrier();\n` };
  }
  const call: KernelCall<MergeParams> = { params: source.params, inputs: types.slice(0, 4), outputs: [] };
  const { loads, rest } = mergeOctetsWgsl(mergeSizesOf(call), source.params, lanes, store, caps);
  const ports: Port[] = [
    ...[{ name: "sums", width: 4 }, { name: "stats", width: 2 }] as const,
    ...[{ name: "query_start" }, { name: "context_lens" }],
  ];
  return { ports, declarations: own, loads, rest: `${rest}\nworkgroupBarrier();\n` };
}

/** Workgroup memory for the codes of a token, under the names by which they are read from memory. */
function ownCodes(columns: number): string {
  return `var<workgroup> own_codes: array<vec2u, ${columns / 8}>;
var<workgroup> own_scales: array<vec2f, ${columns / 32}>;
fn keep_codes(at: u32, words: vec2u) { own_codes[at] = words; }
fn keep_scales(at: u32, scale: vec2f) { own_scales[at] = scale; }
fn codes(at: u32) -> vec4u { return vec4u(own_codes[2u * at], own_codes[2u * at + 1u]); }
fn scales(at: u32) -> vec2f { return own_scales[at]; }
`;
}
