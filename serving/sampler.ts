/**
 * How the logits of a step become tokens: which form of sampling a program has, and what it is told for each row.
 *
 * @module
 */
import { argmax } from "../kernels/argmax.ts";
import { sample } from "../kernels/sampling.ts";
import { adjustmentWords, encodeSamplingRows, greedyBelow, rowWord, rowWords } from "../kernels/sampling_rows.ts";
import { topLogprobs } from "../kernels/top_logprobs.ts";
import { cast, input, map, type Node, pad, reshape } from "../tensor/node.ts";
import { MAX_TOP_LOGPROBS } from "./engine_types.ts";
import type { TokenLogprob } from "./request.ts";
import type { Scheduled } from "./scheduled_step.ts";
import type { Sequence } from "./sequence.ts";

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

/** Nothing about a row of this sequence changes from token to token but its index. */
function isPlain(sequence: Sequence): boolean {
  return !sequence.needsHistory && sequence.sampling.logitBias === undefined;
}

/** Index of the token that is drawn: it keys the random numbers. */
function indexOf({ start, numTokens }: Scheduled): number {
  return start + numTokens;
}

/** The rows of one step's draws. Keeps what does not change of a sequence from step to step. */
export class SamplerRows {
  readonly #records = new WeakMap<Sequence, Uint32Array>();

  /** What the program is told about the sequences that draw in a step. */
  encode(scheduled: readonly Scheduled[], details: Details): SamplerInputs {
    const drawing = scheduled.filter(({ draws }) => draws);
    if (drawing.every(({ sequence }) => isPlain(sequence))) {
      const greedy = drawing.every(({ sequence }) => (sequence.sampling.temperature ?? 0) < greedyBelow);
      // Log-probabilities always come from the one kernel: two would round differently, and company must change no bit.
      if (greedy && details === "none") return { sampler: { kind: "greedy", details, adjustments: 0 }, inputs: {} };
      const samplingRows = new Uint32Array(drawing.length * rowWords);
      drawing.forEach((item, r) => {
        samplingRows.set(this.#record(item.sequence), r * rowWords);
        samplingRows[r * rowWords + rowWord.index] = indexOf(item);
      });
      return { sampler: { kind: "sample", details, adjustments: 0 }, inputs: { samplingRows } };
    }
    const rows = encodeSamplingRows(drawing.map((item) => item.sequence.samplingRowAt(indexOf(item))));
    const entries = rows.adjustments.length / adjustmentWords;
    const bound = entries === 0 ? 0 : ADJUSTMENTS * 4 ** Math.max(0, Math.ceil(Math.log2(entries / ADJUSTMENTS) / 2));
    return {
      sampler: { kind: "sample", details, adjustments: bound },
      inputs: { samplingRows: rows.rows, ...(bound > 0 && { adjustments: rows.adjustments }) },
    };
  }

  #record(sequence: Sequence): Uint32Array {
    let record = this.#records.get(sequence);
    if (!record) this.#records.set(sequence, record = encodeSamplingRows([sequence.samplingRowAt(0)]).rows);
    return record;
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

/** The draw as nodes. */
export function samplerNodes(logits: Node, sampler: Sampler): SampledNodes {
  const { kind, details } = sampler;
  if (kind === "greedy") return { token: argmax(logits), details: undefined };
  const { token, logprob } = drawn(logits, sampler.adjustments);
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

function drawn(logits: Node, adjustments: number): { token: Node; logprob: Node } {
  const rows = input("samplingRows", "u32", [logits.shape[0]!, rowWords]);
  return sample(
    logits,
    rows,
    adjustments > 0 ? input("adjustments", "i32", [adjustments, adjustmentWords]) : undefined,
  );
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
