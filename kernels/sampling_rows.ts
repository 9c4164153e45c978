/**
 * How each row of a batch is sampled, and the two flat arrays that tell the GPU so: one record of words a row, and one sparse
 * list of the tokens whose logits change (penalties and logit bias). Sparse, because a history has a few thousand different
 * tokens at most and a vocabulary 150,000; one list, because every buffer that a dispatch names costs time.
 *
 * @module
 */

/** How one row is sampled. Everything is off unless given. */
export interface SamplingRow {
  /** Divides the logits; below 1e-5 the row is greedy. 0 unless given. */
  readonly temperature?: number;
  /** Keep the k largest logits and all that tie with the k-th. 0 or less, or the vocabulary's size and more: off. */
  readonly topK?: number;
  /** Keep the most probable tokens while the sum before is below this. 1: off. */
  readonly topP?: number;
  /** Drop tokens less probable than this times the most probable one. 0: off. */
  readonly minP?: number;
  /** Divides positive and multiplies negative logits of tokens in `history`. 1: off. */
  readonly repetitionPenalty?: number;
  /** Subtracted from the logits of tokens that the output holds. 0: off. */
  readonly presencePenalty?: number;
  /** Subtracted once for each time that the output holds the token. 0: off. */
  readonly frequencyPenalty?: number;
  /** Key of the random numbers, taken modulo 2^64. 0 unless given. */
  readonly seed?: bigint | number;
  /** Index of the token to draw in its sequence: with `seed` it determines the random numbers. 0 unless given. */
  readonly index?: number;
  /** Each different token of prompt and output, with how often the output holds it (0: the prompt alone has it). */
  readonly history?: ReadonlyMap<number, number>;
  /**
   * Slots of the output's last tokens, which the host has not read yet (see `keepTokens`): they count as those in `history` do.
   * At most {@linkcode mostInFlight}.
   */
  readonly inFlight?: readonly number[];
  /** Added to the logits by token, after the penalties. */
  readonly logitBias?: ReadonlyMap<number, number>;
}

/** Where a row's record keeps what: word offsets. f32 values are stored by their bits. */
export const rowWord = {
  temperature: 0,
  topK: 1,
  topP: 2,
  minPMargin: 3,
  repetitionPenalty: 4,
  presencePenalty: 5,
  frequencyPenalty: 6,
  index: 7,
  seedLow: 8,
  seedHigh: 9,
  adjustmentsStart: 10,
  adjustmentsCount: 11,
} as const;

/** Words of a row's record: the last size of the `rows` tensor. */
export const rowWords = 12;

/** Most tokens of a row that the host has not read. */
export const mostInFlight = 64;

/**
 * Words of an adjustment: token, whether the history has it, its count in the output, bits of its bias. A token of -1 - s stands for
 * the one in slot s; a row's adjustments begin with such ones.
 */
export const adjustmentWords = 4;

/** Temperatures below this are greedy (vLLM's bound). */
export const greedyBelow = 1e-5;

/** Logits below this count as minus infinity: such tokens are never drawn. */
export const lowestLogit: number = -3e38;

/** What {@linkcode encodeSamplingRows} gives. */
export interface EncodedSamplingRows {
  /** `[rows, 12]` words, a record a row. */
  readonly rows: Uint32Array<ArrayBuffer>;
  /** `[entries, 4]`: token, seen (0 or 1), count in the output, bits of the f32 bias; no known token twice in a row. */
  readonly adjustments: Int32Array<ArrayBuffer>;
  /** Every row is greedy and without penalties or bias: `greedy(logits)` gives the same. */
  readonly greedy: boolean;
}

/** Lays out the rows of a step for the GPU. Throws a `RangeError` that names the wrong value. */
export function encodeSamplingRows(rows: readonly SamplingRow[]): EncodedSamplingRows {
  const words = new Uint32Array(rows.length * rowWords);
  const floats = new Float32Array(words.buffer);
  const adjustments: number[] = [];
  let greedy = true;
  rows.forEach((row, r) => {
    const at = r * rowWords;
    const { temperature = 0, topK = 0, topP = 1, minP = 0, seed = 0, index = 0 } = row;
    checkSamplingRow(row);
    floats[at + rowWord.temperature] = temperature;
    words[at + rowWord.topK] = Math.max(0, Math.min(topK, 0x7fffffff));
    floats[at + rowWord.topP] = topP;
    // p < minP pMax says l - lMax < T ln(minP); in float64 here, so that minP 1 gives a margin of exactly 0.
    floats[at + rowWord.minPMargin] = minP > 0 ? Math.max(temperature * Math.log(minP), lowestLogit) : lowestLogit;
    floats[at + rowWord.repetitionPenalty] = row.repetitionPenalty ?? 1;
    floats[at + rowWord.presencePenalty] = row.presencePenalty ?? 0;
    floats[at + rowWord.frequencyPenalty] = row.frequencyPenalty ?? 0;
    words[at + rowWord.index] = index;
    const key = BigInt.asUintN(64, BigInt(seed));
    words[at + rowWord.seedLow] = Number(key & 0xffffffffn);
    words[at + rowWord.seedHigh] = Number(key >> 32n);
    const start = adjustments.length / adjustmentWords;
    appendAdjustments(adjustments, row);
    words[at + rowWord.adjustmentsStart] = start;
    words[at + rowWord.adjustmentsCount] = adjustments.length / adjustmentWords - start;
    greedy &&= temperature < greedyBelow;
  });
  return { rows: words, adjustments: Int32Array.from(adjustments), greedy: greedy && adjustments.length === 0 };
}

/** Whether the row's penalties change no logit. */
export function penaltiesAreOff(
  row: Pick<SamplingRow, "repetitionPenalty" | "presencePenalty" | "frequencyPenalty">,
): boolean {
  return (row.repetitionPenalty ?? 1) === 1 && (row.presencePenalty ?? 0) === 0 && (row.frequencyPenalty ?? 0) === 0;
}

const bits = new DataView(new ArrayBuffer(4));

function floatBits(value: number): number {
  bits.setFloat32(0, value);
  return bits.getInt32(0);
}

function floatValue(word: number): number {
  bits.setUint32(0, word);
  return bits.getFloat32(0);
}

/** The adjustments that stand for tokens in slots: a row's first. */
export function inFlightAdjustments(slots: readonly number[]): Int32Array<ArrayBuffer> {
  const words = new Int32Array(slots.length * adjustmentWords);
  for (let i = 0; i < slots.length; i++) words.set([-1 - slots[i]!, 1], i * adjustmentWords);
  return words;
}

function appendAdjustments(adjustments: number[], row: SamplingRow): void {
  const history = penaltiesAreOff(row) ? undefined : row.history;
  if (!penaltiesAreOff(row)) adjustments.push(...inFlightAdjustments(row.inFlight ?? []));
  for (const [token, count] of history ?? []) {
    adjustments.push(token, 1, count, floatBits(row.logitBias?.get(token) ?? 0));
  }
  for (const [token, bias] of row.logitBias ?? []) {
    if (!history?.has(token)) adjustments.push(token, 0, 0, floatBits(bias));
  }
}

/** Refuses values outside their range, by name. */
export function checkSamplingRow(row: SamplingRow): void {
  const check = (name: string, value: number | undefined, good: (value: number) => boolean, range: string): void => {
    if (value !== undefined && !good(value)) throw new RangeError(`Cannot sample: ${name} is ${value}, ${range}`);
  };
  check("temperature", row.temperature, (t) => t >= 0 && t < Infinity, "give a number from 0 (greedy)");
  check("topK", row.topK, Number.isInteger, "give a whole number (0: off)");
  check("topP", row.topP, (p) => p >= 0 && p <= 1, "give a number from 0 to 1 (1: off)");
  check("minP", row.minP, (p) => p >= 0 && p <= 1, "give a number from 0 (off) to 1");
  check("repetitionPenalty", row.repetitionPenalty, (p) => p > 0 && p < Infinity, "give a number above 0 (1: off)");
  check("presencePenalty", row.presencePenalty, Number.isFinite, "give a finite number (0: off)");
  check("frequencyPenalty", row.frequencyPenalty, Number.isFinite, "give a finite number (0: off)");
  const count = row.inFlight?.length;
  check("inFlight.length", count, (n) => n <= mostInFlight, `read tokens before more than ${mostInFlight} are drawn`);
  check("index", row.index, (i) => Number.isInteger(i) && i >= 0 && i < 2 ** 32, "give a whole number below 2^32");
  if (typeof row.seed === "number") check("seed", row.seed, Number.isInteger, "give a whole number or a bigint");
}

/** Reads a row back from the encoded arrays, the tokens in `slots` as if known; both may be left out where the row has none. */
export function decodeSamplingRow(
  rows: ArrayLike<number>,
  row: number,
  adjustments?: ArrayLike<number>,
  slots: ArrayLike<number> = [],
): Required<SamplingRow> {
  const word = (name: keyof typeof rowWord): number => rows[row * rowWords + rowWord[name]]! >>> 0;
  const float = (name: keyof typeof rowWord): number => floatValue(word(name));
  const history = new Map<number, number>(), logitBias = new Map<number, number>(), read: number[] = [];
  const start = word("adjustmentsStart");
  for (let entry = start; adjustments && entry < start + word("adjustmentsCount"); entry++) {
    const [token, seen, count, bias] = [0, 1, 2, 3].map((i) => adjustments[entry * adjustmentWords + i]!);
    if (token! < 0) {
      read.push(slots[-1 - token!] ?? -1);
      continue;
    }
    if (seen) history.set(token!, count!);
    logitBias.set(token!, floatValue(bias! >>> 0));
  }
  for (const token of read) if (token >= 0) history.set(token, (history.get(token) ?? 0) + 1);
  const temperature = float("temperature"), margin = float("minPMargin");
  return {
    temperature,
    topK: word("topK"),
    topP: float("topP"),
    minP: margin <= Math.fround(lowestLogit) ? 0 : Math.exp(margin / Math.max(temperature, 1e-30)),
    repetitionPenalty: float("repetitionPenalty"),
    presencePenalty: float("presencePenalty"),
    frequencyPenalty: float("frequencyPenalty"),
    seed: (BigInt(word("seedHigh")) << 32n) | BigInt(word("seedLow")),
    index: word("index"),
    history,
    inFlight: [],
    logitBias,
  };
}
