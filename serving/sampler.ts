/**
 * How the logits of a step become tokens: which form of sampling a program has, and what it is told for each row.
 *
 * @module
 */
import { argmax } from "../kernels/argmax.ts";
import { sample } from "../kernels/sampling.ts";
import { adjustmentWords, greedyBelow, inFlightAdjustments, rowWord, rowWords } from "../kernels/sampling_rows.ts";
import { topLogprobs } from "../kernels/top_logprobs.ts";
import { cast, input, map, type Node, pad, reshape } from "../tensor/node.ts";
import { MAX_TOP_LOGPROBS } from "./engine_types.ts";
import type { TokenLogprob } from "./request.ts";
import type { Scheduled } from "./scheduled_step.ts";
import type { Sequence } from "./sequence.ts";
import { SequenceRow } from "./sequence_row.ts";
import type { TokenSlots } from "./token_slots.ts";

/** Smallest bound of a program's sampling adjustments; larger ones are powers of 4 times this. */
const ADJUSTMENTS = 256;

/** A token that was drawn. */
export interface Sampled {
  readonly token: number;
  /** Its natural log-probability under the raw logits, where asked for. */
  readonly logprob?: number;
  /** The likeliest tokens at its place, where asked for. */
  readonly top?: readonly TokenLogprob[];
}

/** What is reported of a drawn token: its id alone, its log-probability, the likeliest tokens too. */
export type Details = "none" | "logprob" | "top";

/** How the logits of a program become its output. */
export interface Sampler {
  /** `greedy` where no row needs more than the likeliest token. */
  readonly kind: "greedy" | "sample";
  readonly details: Details;
  /** Bound of the sparse list of penalties and biases; 0 without one. */
  readonly adjustments: number;
}

/** How the rows of a step are drawn: by the likeliest token, at random, or with penalties or biases. */
export type WayOfDrawing = "greedy" | "sample" | "penalised";

/** The sampler of rows that report ids alone; penalised ones outgrow it, and then need one of the same kernels for more of them. */
export function samplerOf(way: WayOfDrawing): Sampler {
  const adjustments = way === "penalised" ? ADJUSTMENTS : 0;
  return { kind: way === "greedy" ? "greedy" : "sample", details: "none", adjustments };
}

/** A sampler, and what its program is told. */
export interface SamplerInputs {
  readonly sampler: Sampler;
  readonly inputs: Readonly<Record<string, ArrayLike<number>>>;
}

/** A name for each different sampler. */
export function describeSampler({ kind, details, adjustments }: Sampler): string {
  const reported = { none: "", logprob: ", log-probabilities", top: ", likeliest tokens" }[details];
  return `${kind}${adjustments > 0 ? `, ${adjustments} adjustments` : ""}${reported}`;
}

/** Index of the token that is drawn: it keys the random numbers, so company changes nothing. */
function indexOf({ start, numTokens }: Scheduled): number {
  return start + numTokens;
}

/** The rows of one step's draws. Keeps what does not change of a sequence from step to step. */
export class SamplerRows {
  readonly #rows = new WeakMap<Sequence, SequenceRow>();
  /** Used again: what a step is told holds until the next one is made. */
  #adjustments = new Int32Array(0);

  /**
   * What the program is told about the sequences that draw in a step.
   *
   * @param slots Has the tokens that penalties count, and that the host has not read.
   */
  encode(
    scheduled: readonly Scheduled[],
    details: Details,
    slots: Pick<TokenSlots, "slotsOf">,
  ): SamplerInputs {
    const drawing = scheduled.filter(({ draws }) => draws), rows = drawing.map(({ sequence }) => this.#row(sequence));
    const isPlain = rows.every((row) => row.isPlain);
    const isGreedy = drawing.every(({ sequence }) => (sequence.sampling.temperature ?? 0) < greedyBelow);
    // Log-probabilities always come from the one kernel: two would round differently, and company must change no bit.
    if (isPlain && isGreedy && details === "none") {
      return { sampler: { kind: "greedy", details, adjustments: 0 }, inputs: {} };
    }
    const samplingRows = new Uint32Array(drawing.length * rowWords), pieces: Int32Array[] = [];
    let entries = 0;
    drawing.forEach((item, r) => {
      const row = rows[r]!, index = indexOf(item), at = r * rowWords;
      samplingRows.set(row.record, at);
      samplingRows[at + rowWord.index] = index;
      if (row.isPlain) return;
      const { adjustments } = row, unread = row.hasPenalties ? slots.slotsOf(item.sequence, index) : [];
      const count = unread.length + adjustments.length / adjustmentWords;
      samplingRows[at + rowWord.adjustmentsStart] = entries;
      samplingRows[at + rowWord.adjustmentsCount] = count;
      pieces.push(inFlightAdjustments(unread), adjustments);
      entries += count;
    });
    const bound = entries === 0 ? 0 : ADJUSTMENTS * 4 ** Math.max(0, Math.ceil(Math.log2(entries / ADJUSTMENTS) / 2));
    return {
      sampler: { kind: "sample", details, adjustments: bound },
      inputs: { samplingRows, ...(bound > 0 && { adjustments: this.#joined(pieces, entries * adjustmentWords) }) },
    };
  }

  #joined(pieces: readonly Int32Array[], length: number): Int32Array {
    if (this.#adjustments.length < length) this.#adjustments = new Int32Array(2 * length);
    let at = 0;
    for (const piece of pieces) {
      this.#adjustments.set(piece, at);
      at += piece.length;
    }
    return this.#adjustments.subarray(0, length);
  }

  #row(sequence: Sequence): SequenceRow {
    let row = this.#rows.get(sequence);
    if (!row) this.#rows.set(sequence, row = new SequenceRow(sequence));
    return row;
  }
}

/** What a program makes of logits `[rows, vocabulary]`. */
export interface SampledNodes {
  /** `[rows]` i32. */
  readonly token: Node;
  /** `[rows, detailColumns]` f32, where details are reported. */
  readonly details: Node | undefined;
}

/** Columns of the details: token, log-probability, then the likeliest tokens, then theirs. */
export function detailColumns(details: Details, vocabulary: number): number {
  return details === "top" ? 2 + 2 * topCount(vocabulary) : 2;
}

function topCount(vocabulary: number): number {
  return Math.min(MAX_TOP_LOGPROBS, vocabulary);
}

/**
 * The draw as nodes.
 *
 * @param slots i32: the tokens that the host has not read.
 */
export function samplerNodes(logits: Node, sampler: Sampler, slots: Node): SampledNodes {
  const { kind, details } = sampler;
  if (kind === "greedy") return { token: argmax(logits), details: undefined };
  const { token, logprob } = drawn(logits, sampler.adjustments, slots);
  if (details === "none") return { token, details: undefined };
  const column = (node: Node): Node => reshape(node, [...node.shape, 1]);
  const columns = [column(cast(token, "f32")), column(logprob)];
  if (details === "top") {
    const { ids, logprobs } = topLogprobs(logits, topCount(logits.shape[1] as number));
    columns.push(cast(ids, "f32"), logprobs);
  }
  return { token, details: sideBySide(columns) };
}

/** One tensor, so that one read fetches all of it. An id is below 2^24, so f32 holds it exactly. */
function sideBySide(parts: readonly Node[]): Node {
  const widths = parts.map((part) => part.shape[1] as number), width = widths.reduce((a, b) => a + b);
  let at = 0;
  const placed = parts.map((part, i) => {
    const before = at;
    at += widths[i]!;
    return pad(part, [0, before], [0, width - at], 0);
  });
  return placed.reduce((a, b) => map("add", a, b));
}

function drawn(logits: Node, adjustments: number, slots: Node): { token: Node; logprob: Node } {
  const rows = input("samplingRows", "u32", [logits.shape[0]!, rowWords]);
  if (adjustments === 0) return sample(logits, rows);
  return sample(logits, rows, input("adjustments", "i32", [adjustments, adjustmentWords]), slots);
}

/** Tokens out of their details. */
export function readDetails(values: ArrayLike<number>, details: Details, vocabulary: number): Sampled[] {
  const columns = detailColumns(details, vocabulary), count = topCount(vocabulary);
  return Array.from({ length: values.length / columns }, (_, row): Sampled => {
    const at = row * columns, token = Math.round(values[at]!), logprob = values[at + 1]!;
    if (details !== "top") return { token, logprob };
    const top = Array.from({ length: count }, (_, i): TokenLogprob => {
      return { token: Math.round(values[at + 2 + i]!), logprob: values[at + 2 + count + i]! };
    });
    return { token, logprob, top: top.filter(({ token }) => token >= 0) };
  });
}
