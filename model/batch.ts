/**
 * The one form in which a forward pass is asked for: flat tokens of any number of sequences, and where each is. Prefill,
 * decode, chunked prefill and any mix of them are values of these; one sequence is a batch of one.
 *
 * @module
 */
import { type Dim, Sym } from "../tensor/dim.ts";
import { input, type Node } from "../tensor/node.ts";

/** The greatest batch that a program is captured for. */
export interface BatchLimits {
  /** Most tokens of a step. */
  readonly maxTokens: number;
  /** Most sequences of a step. */
  readonly maxSequences: number;
  /** Most blocks of a sequence. */
  readonly maxBlocks: number;
  /** Most rows that need logits. */
  readonly maxLogitRows: number;
  /**
   * Each sequence has one token, and all need logits: the limits of tokens, sequences and rows are one. Attention then turns and
   * writes keys by itself, and a layer has a dispatch less.
   */
  readonly decode?: boolean;
}

/** The inputs of a forward pass, all i32. */
export interface Batch {
  /**
   * `[tokens]`: ids, sequence after sequence. Where drawn tokens stay on the device, -1 - s is what slot s was given by an
   * earlier step (`tokenIds`): a step can be made before the host has read the one ahead of it.
   */
  readonly tokens: Node;
  /** `[tokens]`: position of each in its sequence, from 0. */
  readonly positions: Node;
  /** `[tokens]`: the pool row where its key and value go. */
  readonly slotMapping: Node;
  /** `[maxSequences + 1]`: first token of each sequence, then the number of tokens. */
  readonly queryStart: Node;
  /** `[sequences]`: positions that each sequence has after this step. */
  readonly contextLens: Node;
  /** `[sequences, maxBlocks]`: the blocks of each sequence's context, in order. */
  readonly blockTables: Node;
  /** `[rows]`: the tokens that need logits; all do where there is none. */
  readonly logitRows: Node | undefined;
  /** `[rows]`: the slot that keeps the token drawn from each row of logits (`keepTokens`), for programs that keep them. */
  readonly slots: Node;
}

/** The sizes and values of one step, by the names of {@linkcode batchInputs}. */
export interface BatchValues {
  /** Values of the inputs; slots only for programs that keep tokens, logitRows only for those that choose rows. */
  readonly inputs: Readonly<
    Record<Exclude<keyof Batch, "slots" | "logitRows">, Int32Array> & { slots?: Int32Array; logitRows?: Int32Array }
  >;
  /** Values of the symbolic sizes. */
  readonly sizes: { readonly tokens: number; readonly sequences: number; readonly rows: number };
}

/**
 * The input nodes of a batch within limits. A size that is at most 1 is 1: decoding one sequence knows all its sizes when it
 * is compiled, and its dispatches bind one buffer less.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { batchInputs } from "@tinyllm/tinyllm/model";
 *
 * const batch = batchInputs({ maxTokens: 64, maxSequences: 1, maxBlocks: 8, maxLogitRows: 1 });
 * assertEquals(batch.tokens.shape.map(String), ["tokens<=64"]);
 * assertEquals(batch.blockTables.shape, [1, 8]);
 * ```
 */
export function batchInputs(limits: BatchLimits): Batch {
  const size = (name: string, most: number): Dim => most === 1 ? 1 : new Sym(name, most);
  const { decode = false } = limits, tokens = size("tokens", limits.maxTokens);
  const sequences = decode ? tokens : size("sequences", limits.maxSequences);
  const rows = decode ? tokens : size("rows", limits.maxLogitRows);
  const whole = (name: keyof Batch, shape: Dim[]): Node => input(name, "i32", shape);
  return {
    tokens: whole("tokens", [tokens]),
    positions: whole("positions", [tokens]),
    slotMapping: whole("slotMapping", [tokens]),
    queryStart: whole("queryStart", [limits.maxSequences + 1]),
    contextLens: whole("contextLens", [sequences]),
    blockTables: whole("blockTables", [sequences, limits.maxBlocks]),
    logitRows: decode ? undefined : whole("logitRows", [rows]),
    slots: whole("slots", [rows]),
  };
}
