import { assertEquals } from "@std/assert";
import { adjustmentWords, decodeSamplingRow, rowWord, rowWords } from "../kernels/sampling_rows.ts";
import { SamplerRows } from "./sampler.ts";
import type { Scheduled } from "./scheduled_step.ts";
import { Sequence } from "./sequence.ts";
import { TokenSlots } from "./token_slots.ts";

const LAST = (sequence: Sequence): Scheduled => {
  return { sequence, start: sequence.length - 1, numTokens: 1, draws: true };
};

Deno.test("greedy rows need no record, unless they report log-probabilities", () => {
  const rows = new SamplerRows(), slots = new TokenSlots(4, 2), step = [LAST(new Sequence([1, 2]))];
  assertEquals(rows.encode(step, "none", slots), {
    sampler: { kind: "greedy", details: "none", adjustments: 0 },
    inputs: {},
  });
  const { sampler, inputs } = rows.encode(step, "top", slots);
  assertEquals(sampler, { kind: "sample", details: "top", adjustments: 0 });
  assertEquals([inputs.samplingRows!.length, inputs.samplingRows![rowWord.index], inputs.adjustments], [
    ...[rowWords, 2, undefined],
  ]);
});

Deno.test("a penalised row counts tokens that are known, and names those in flight by their slots", () => {
  const slots = new TokenSlots(3, 4), rows = new SamplerRows(), device = new Int32Array(slots.size).fill(-7);
  const bias = new Map([[5, 0.5], [8, -1]]);
  const penalised = new Sequence([5, 6, 5], { repetitionPenalty: 1.5, frequencyPenalty: 0.25, logitBias: bias });
  const plain = new Sequence([9], { temperature: 1 }), biased = new Sequence([3], { logitBias: new Map([[3, 2]]) });
  const step = [LAST(plain), LAST(penalised), LAST(biased)];
  const drawn = [6, 8, 7, 7, 100, 8];
  const historyAfter = (count: number): Map<number, number> => {
    const history = new Map([[5, 0], [6, 0]]);
    for (const token of drawn.slice(0, count)) history.set(token, (history.get(token) ?? 0) + 1);
    return history;
  };
  // Three tokens are drawn before the first is read, and so on: the list says the same as if all were known.
  for (const [index, token] of drawn.entries()) {
    const items = step.map(({ sequence }) => LAST(sequence));
    const { sampler, inputs } = rows.encode(items, "none", slots);
    assertEquals(sampler, { kind: "sample", details: "none", adjustments: 256 });
    const { samplingRows, adjustments } = inputs;
    const decoded = [0, 1, 2].map((row) => decodeSamplingRow(samplingRows!, row, adjustments, device));
    assertEquals([...decoded[1]!.history].sort(), [...historyAfter(index)].sort());
    const counts = [0, 1, 2].map((row) => samplingRows![row * rowWords + rowWord.adjustmentsCount]!);
    assertEquals(counts.reduce((a, b) => a + b) * adjustmentWords, adjustments!.length);
    const entries = new Set([5, 8, ...historyAfter(penalised.tokens.length - 3).keys()]);
    assertEquals(counts, [0, entries.size + penalised.numInFlight, 1]);
    assertEquals([decoded[1]!.logitBias.get(5), decoded[1]!.logitBias.get(8), decoded[2]!.logitBias.get(3)], [
      0.5,
      -1,
      2,
    ]);
    assertEquals(decoded.map(({ index }) => index), items.map(({ sequence }) => sequence.length));
    const first = slots.take(items);
    device[first + 1] = token;
    for (const { sequence } of step) sequence.numInFlight++;
    if (penalised.numInFlight < 3) continue;
    for (const { sequence } of step) {
      while (sequence.numInFlight > 0) sequence.append(sequence === penalised ? drawn[sequence.tokens.length - 3]! : 1);
    }
  }
});

Deno.test("slots are a ring, and a token has its slot until it is known", () => {
  const slots = new TokenSlots(2, 1), a = new Sequence([1]), b = new Sequence([2, 3]);
  assertEquals(slots.size, 8);
  const draw = (...sequences: Sequence[]): number => {
    const first = slots.take(sequences.map(LAST));
    for (const sequence of sequences) sequence.numInFlight++;
    return first;
  };
  assertEquals([draw(a, b), draw(b), draw(a, b), draw(a, b)], [0, 2, 3, 5]);
  assertEquals([slots.slotOf(a, 1), slots.slotOf(a, 2), slots.slotOf(b, 2), slots.slotOf(b, 5)], [0, 3, 1, 6]);
  assertEquals([slots.slotsOf(b, 5), slots.slotsOf(b, 4), slots.slotsOf(b, 2)], [[1, 2, 4], [1, 2], []]);
  assertEquals(draw(a, b), 0, "two do not fit behind the seventh");
  b.append(7);
  assertEquals([slots.slotOf(b, 2), slots.slotsOf(b, 6)], [undefined, [2, 4, 6]]);
});
