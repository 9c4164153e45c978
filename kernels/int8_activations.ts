/**
 * Where an int8 product takes its activations from: codes in memory, or, for few tokens, what a kernel before it would turn
 * into codes. Every workgroup then does that kernel's work for itself, since a dispatch costs more than the repetition. After a norm
 * codes lack a factor for each token, by which the product multiplies its results (`late_norm.ts`).
 *
 * @module
 */
import { formatShape, maxOf } from "../tensor/dim.ts";
import type { Caps, Kernel, KernelCall, Port, RewriteContext, TensorType } from "../tensor/kernel.ts";
import type { Node } from "../tensor/node.ts";
import { fewTiles, type MergeParams, mergeSizesOf } from "./attention_merge_layout.ts";
import { mergeOctetsWgsl } from "./attention_merge_wgsl.ts";
import { attentionMergeKernel } from "./decode_attention.ts";
import { inverseReference, inversesDeclaration, inversesWgsl } from "./late_norm.ts";
import type { RmsNormParams } from "./norm.ts";
import { rmsNormQuantise32Kernel } from "./quantise.ts";
import { normaliseDeclarations, normaliseWgsl } from "./quantise_wgsl.ts";
import { indices } from "./unroll.ts";

/**
 * What a product does beside multiplying codes in memory: the work of a kernel that makes them, whose inputs it has in place of codes
 * and scales, or that of a late norm, whose sums of squares are a third input.
 */
export type Int8Source =
  | { readonly kind: "norm"; readonly params: RmsNormParams }
  | { readonly kind: "merge"; readonly params: MergeParams }
  | { readonly kind: "late"; readonly params: RmsNormParams };

/** A source that makes codes. */
type OwnSource = Exclude<Int8Source, { readonly kind: "late" }>;

/** Whether every workgroup makes the codes for itself. */
export function makesCodes(source: Int8Source | undefined): source is OwnSource {
  return source !== undefined && source.kind !== "late";
}

/**
 * Columns up to which every workgroup makes the codes of a token for itself, and the weight rows up to which it does: longer
 * rows, or more workgroups, and they are better made once. Any of these is enough.
 */
const mostOwn: readonly { readonly columns: number; readonly rows: number }[] = [
  { columns: 2048, rows: 65536 },
  { columns: 4096, rows: 8192 },
];

/** Tokens and columns up to which workgroups of joined dispatches make or share the codes of several tokens. */
const mostSeveral = { tokens: 8, columns: 1024 } as const;

/** Tiles up to which partial results of attention are merged so, of one token and of several: 1,024 and 512 positions. */
const mostTiles = { one: fewTiles, several: 4 } as const;

function kernelOf({ kind }: OwnSource): Kernel<unknown> {
  return (kind === "norm" ? rmsNormQuantise32Kernel : attentionMergeKernel) as Kernel<unknown>;
}

/** Inputs that come before the weight's. */
export function activationInputs(source: Int8Source | undefined): number {
  return source?.kind === "merge" ? 4 : source?.kind === "late" ? 3 : 2;
}

/** Types of codes and scales: those given, or those that the source would make. */
export function codeTypes(source: Int8Source | undefined, inputs: readonly TensorType[]): readonly TensorType[] {
  const given = inputs.slice(0, activationInputs(source));
  return makesCodes(source) ? kernelOf(source).infer(given, source.params) : given.slice(0, 2);
}

/** Codes and scales of a call, in float64 where the source makes them. */
export function codesReference(
  source: Int8Source | undefined,
  types: readonly TensorType[],
  inputs: readonly ArrayLike<number>[],
): readonly ArrayLike<number>[] {
  const count = activationInputs(source), given = inputs.slice(0, count);
  if (source?.kind === "late") return withInverses(given, types[2]!.shape[1] as number, source.params);
  if (!source) return given;
  const call = { params: source.params, inputs: types.slice(0, count), outputs: codeTypes(source, types) };
  return kernelOf(source).reference(call, given);
}

/** Codes and scales with the factor that they lack. */
function withInverses(
  [codes, scales, squares]: readonly ArrayLike<number>[],
  blocks: number,
  params: RmsNormParams,
): readonly ArrayLike<number>[] {
  const inverses = inverseReference(squares!, blocks, params);
  return [codes!, Float64Array.from(scales!, (scale, i) => scale * inverses[Math.floor(i / (2 * blocks))]!)];
}

/** Whether a workgroup may make the codes of several tokens: it has many lanes then. */
export function makesSeveral({ joinedLanes, subgroups, cpu }: Caps): boolean {
  return joinedLanes !== undefined && subgroups && !cpu;
}

/** Whether several stages have room for the codes of so many tokens. */
function hasRoom(tokens: number, columns: number): boolean {
  return tokens <= mostSeveral.tokens && columns <= mostSeveral.columns;
}

/** The source that makes `codes` and `scales`, where a product had better do its work. */
export function sourceOf(
  [codes, scales, first]: readonly Node[],
  { readers, caps }: RewriteContext,
): { source: OwnSource; inputs: readonly Node[] } | undefined {
  if (codes?.op !== "kernel" || readers(codes) !== 2 || readers(scales!) !== 1) return undefined;
  const columns = 4 * (codes.shape[1] as number), rows = first!.shape[0] as number, tokens = maxOf(codes.shape[0]!);
  if (tokens !== 1 && !(makesSeveral(caps) && hasRoom(tokens, columns))) return undefined;
  if (!mostOwn.some((most) => columns <= most.columns && rows <= most.rows)) return undefined;
  const { src: inputs, kernel } = codes;
  if (kernel === rmsNormQuantise32Kernel as Kernel<unknown>) {
    return { source: { kind: "norm", params: codes.params as RmsNormParams }, inputs };
  }
  if (kernel !== attentionMergeKernel as Kernel<unknown>) return undefined;
  const alone = formatShape([inputs[0]!.shape[0]!]) === formatShape([inputs[3]!.shape[0]!]);
  const few = alone && (inputs[0]!.shape[1] as number) <= (tokens === 1 ? mostTiles.one : mostTiles.several);
  return few ? { source: { kind: "merge", params: codes.params as MergeParams }, inputs } : undefined;
}

/** WGSL of what results of a token of the workgroup are multiplied by: the factor that its codes lack. */
export function lateFactor(source: Int8Source | undefined, token: string): string | undefined {
  if (source?.kind === "late") return `inverses[${token}]`;
  return source?.kind === "norm" ? `inverse_of(${token})` : undefined;
}

/** How a shader reads its activations. */
export interface Activations {
  readonly ports: readonly Port[];
  readonly declarations: string;
  /** Waits for nothing; comes first. */
  readonly loads: string;
  /** Ends with a barrier. Empty where there is nothing to do. */
  readonly rest: string;
  /** What is left to do before results are stored; ends with a barrier, or is empty. */
  readonly last: string;
  /** WGSL that declares `low`, `high` and `scale` of a block of 32 columns, of a token of the workgroup. */
  block(token: number, at: string): string;
}

/** The workgroup that reads activations. */
export interface ActivationsUse {
  readonly columns: number;
  /** Tokens of a workgroup: `token0` on, of `tokens` in all. */
  readonly tokens: number;
  readonly lanes: number;
  /** Lanes that read the same columns. */
  readonly sharing: number;
}

/** Ports of codes in memory. */
export const memoryPorts: readonly Port[] = [{ name: "codes", width: 4 }, { name: "scales", width: 2 }];

/** Ports of codes that a late norm's factor is to follow. */
export const latePorts: readonly Port[] = [...memoryPorts, { name: "squares" }];

const fromMemory: Activations = {
  ports: memoryPorts,
  declarations: "",
  loads: "",
  rest: "",
  last: "",
  block: (token, at) =>
    `let low = codes((x_${token} + ${at}) * 2u);\nlet high = codes((x_${token} + ${at}) * 2u + 1u);\n` +
    `let scale = scales(x_${token} + ${at});\n`,
};

/** Codes in memory, and what their products are multiplied by in `inverses`: it is not needed before the end. */
function lateActivations(params: RmsNormParams, use: ActivationsUse, caps: Caps): Activations {
  const { loads, rest } = inversesWgsl(use, params, caps);
  return {
    ...fromMemory,
    ports: latePorts,
    declarations: inversesDeclaration(use),
    loads,
    last: `${rest}workgroupBarrier();\n`,
  };
}

/** Lanes that read the same columns, from which on they load them together. */
const leastSharing = 128;

/** The text for a workgroup. `types` are those of the product's inputs. */
export function activationsOf(
  source: Int8Source | undefined,
  types: readonly TensorType[],
  use: ActivationsUse,
  caps: Caps,
): Activations {
  const { columns, tokens, lanes, sharing } = use, own = ownCodes(use);
  if (source?.kind === "late") return lateActivations(source.params, use, caps);
  if (!source) {
    const shared = tokens > 1 && caps.joinedLanes !== undefined && hasRoom(tokens, columns);
    return shared && sharing >= leastSharing
      ? { ...own, ports: memoryPorts, loads: "", rest: copyCodes(use) }
      : fromMemory;
  }
  const store = { codes: "keep_codes", scales: "keep_scales" };
  if (source.kind === "norm") {
    const octets = columns / 8, each = lanes / tokens, { eps } = source.params;
    const rows = tokens === 1
      ? { from: `workgroup.x * ${octets}u`, to: "0u" }
      : { from: `min(token0 + team_row, tokens - 1u) * ${octets}u`, to: `team_row * ${octets}u` };
    const text = { columns, lanes: each, rows: tokens, eps, ...rows, store, late: true };
    const { loads, rest } = normaliseWgsl(text, caps);
    const ports: Port[] = [{ name: "x", width: 4 }, { name: "weight", width: 4 }];
    const declarations = normaliseDeclarations(text, caps) + own.declarations;
    return { ...own, ports, declarations, loads, rest: `${rest}\nworkgroupBarrier();\n` };
  }
  const call: KernelCall<MergeParams> = { params: source.params, inputs: types.slice(0, 4), outputs: [] };
  const { loads, rest } = mergeOctetsWgsl(mergeSizesOf(call), source.params, { rows: tokens, lanes, store }, caps);
  const ports: Port[] = [
    ...[{ name: "sums", width: 4 }, { name: "stats", width: 2 }] as const,
    ...[{ name: "query_start" }, { name: "context_lens" }],
  ];
  return { ...own, ports, loads, rest: `${rest}\nworkgroupBarrier();\n` };
}

/**
 * Workgroup memory for the codes and scales of tokens. Quarters of blocks lie apart, so that neighbours, which read one quarter of
 * neighbouring blocks, use all banks.
 */
function ownCodes({ columns, tokens }: ActivationsUse): Pick<Activations, "declarations" | "block" | "last"> {
  const octets = columns / 8, blocks = columns / 32, scales = tokens * octets;
  const declarations = `var<workgroup> own_codes: array<vec2u, ${scales + tokens * blocks}>;
fn keep_codes(at: u32, words: vec2u) {
  let token = at / ${octets}u;
  let own = at % ${octets}u;
  own_codes[token * ${octets}u + (own & 3u) * ${blocks}u + (own >> 2u)] = words;
}
fn keep_scales(at: u32, scale: vec2f) { own_codes[${scales}u + at] = bitcast<vec2u>(scale); }
`;
  const quarter = (token: number, i: number, at: string): string =>
    `own_codes[${token * octets + i * blocks}u + ${at}]`;
  return {
    declarations,
    last: "",
    block: (token, at) =>
      `let low = vec4u(${quarter(token, 0, at)}, ${quarter(token, 1, at)});\n` +
      `let high = vec4u(${quarter(token, 2, at)}, ${quarter(token, 3, at)});\n` +
      `let scale = bitcast<vec2f>(own_codes[${scales + token * blocks}u + ${at}]);\n`,
  };
}

/** Puts codes and scales of the workgroup's tokens into its memory: all loads, then all stores. */
function copyCodes({ columns, tokens, lanes }: ActivationsUse): string {
  const all = (count: number, text: (turn: number, inside: string) => string): string =>
    indices(Math.ceil(count / lanes)).map((turn) =>
      `let ${name(count, turn)} = lane + ${turn * lanes}u;\n` + text(turn, `${name(count, turn)} < ${count}u`)
    ).join("");
  const name = (count: number, turn: number): string => `own_${count}_${turn}`;
  const codes = tokens * columns / 16, scales = tokens * columns / 32;
  const from = (at: string, count: number, each: number): string => {
    const own = `min(${at}, ${count - 1}u)`;
    return `min(token0 + ${own} / ${each}u, tokens - 1u) * ${each}u + ${own} % ${each}u`;
  };
  const loads = all(codes, (turn) => `let codes_${turn} = codes(${from(name(codes, turn), codes, columns / 16)});\n`) +
    all(scales, (turn) => `let scales_${turn} = scales(${from(name(scales, turn), scales, columns / 32)});\n`);
  const stores = indices(Math.ceil(codes / lanes)).map((turn) => {
    const at = name(codes, turn);
    return `if (${at} < ${codes}u) { keep_codes(2u * ${at}, codes_${turn}.xy); ` +
      `keep_codes(2u * ${at} + 1u, codes_${turn}.zw); }\n`;
  }).join("") + indices(Math.ceil(scales / lanes)).map((turn) => {
    const at = name(scales, turn);
    return `if (${at} < ${scales}u) { keep_scales(${at}, scales_${turn}); }\n`;
  }).join("");
  return `${loads}${stores}workgroupBarrier();\n`;
}
