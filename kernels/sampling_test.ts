/** What the table of kernels cannot show: that draws follow the distribution, and what they depend on. */
import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { type Device, openDevice } from "../tensor/device.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import type { HostArray } from "../tensor/dtype.ts";
import { penaltiesKernel } from "./penalties.ts";
import { philox } from "./philox.ts";
import { seededRandom } from "./random.ts";
import { sampleKernel } from "./sampling.ts";
import { filterReference } from "./sampling_reference.ts";
import { adjustmentWords, decodeSamplingRow, encodeSamplingRows, rowWords, type SamplingRow } from "./sampling_rows.ts";

const vocabulary = 50;
const random = seededRandom(42);
const logits = Float32Array.from({ length: vocabulary }, () => random.normal() * 2);

async function withDevice(run: (device: Device) => Promise<void>): Promise<void> {
  const device = await openDevice();
  try {
    await run(device);
  } finally {
    device.close();
  }
}

/** Draws one token for each row, all from the same logits. */
async function draw(device: Device, rows: readonly SamplingRow[]): Promise<number[]> {
  const data = new Float32Array(rows.length * vocabulary);
  rows.forEach((_, r) => data.set(logits, r * vocabulary));
  const [tokens] = await runKernel(device, sampleKernel, {
    params: { result: "token", adjusted: false },
    inputs: [
      { dtype: "f32", shape: [rows.length, vocabulary], data },
      { dtype: "u32", shape: [rows.length, rowWords], data: encodeSamplingRows(rows).rows },
    ],
  });
  return [...tokens!];
}

/** Pearson's statistic with cells of fewer than 5 expected draws merged, and its degrees of freedom. */
function chiSquared(tokens: readonly number[], probs: Float64Array): { statistic: number; freedom: number } {
  const counts = new Array<number>(vocabulary).fill(0);
  for (const token of tokens) counts[token]!++;
  const rest = { expected: 0, count: 0 };
  let statistic = 0, cells = 0;
  probs.forEach((p, token) => {
    const expected = p * tokens.length, count = counts[token]!;
    if (p === 0) assertEquals(count, 0, `token ${token} was drawn, but no filter keeps it`);
    if (expected < 5) {
      rest.expected += expected;
      rest.count += count;
      return;
    }
    statistic += (count - expected) ** 2 / expected;
    cells++;
  });
  if (rest.expected > 0) {
    statistic += (rest.count - rest.expected) ** 2 / rest.expected;
    cells++;
  }
  return { statistic, freedom: cells - 1 };
}

/** The statistic that one experiment in 10,000 exceeds (Wilson and Hilferty 1931). */
function chiSquaredBound(freedom: number): number {
  const spread = 2 / (9 * freedom);
  return freedom * (1 - spread + 3.719 * Math.sqrt(spread)) ** 3;
}

const settings: Record<string, SamplingRow> = {
  "temperature 1": { temperature: 1 },
  "temperature 0.7, top-k 12, top-p 0.9": { temperature: 0.7, topK: 12, topP: 0.9 },
  "temperature 1.5, min-p 0.05": { temperature: 1.5, minP: 0.05 },
};

Deno.test("draws follow the reference's probabilities: chi-squared over 50,000", () =>
  withDevice(async (device) => {
    for (const [name, setting] of Object.entries(settings)) {
      const rows = Array.from(
        { length: 50_000 },
        (_, r) => ({ ...setting, seed: 7 + (r % 5), index: Math.floor(r / 5) }),
      );
      const { statistic, freedom } = chiSquared(await draw(device, rows), filterReference(logits, setting).probs);
      const bound = chiSquaredBound(freedom);
      assert(statistic < bound, `${name}: chi-squared ${statistic} exceeds ${bound} at ${freedom} degrees of freedom`);
    }
  }));

Deno.test("a draw depends on seed and token index, not on the row's place or company", () =>
  withDevice(async (device) => {
    const row = (seed: number, index: number): SamplingRow => ({ temperature: 1.2, topP: 0.95, seed, index });
    const rows = Array.from({ length: 60 }, (_, r) => row(r % 3, Math.floor(r / 3)));
    const tokens = await draw(device, rows);
    assertEquals(await draw(device, rows), tokens);
    assertEquals((await draw(device, rows.toReversed())).toReversed(), tokens);
    assertEquals(await draw(device, [{ temperature: 0 }, rows[31]!]), [(await draw(device, [{}]))[0]!, tokens[31]!]);
    const ofSeed = (seed: number): number[] => tokens.filter((_, r) => r % 3 === seed);
    assertNotEquals(ofSeed(0), ofSeed(1));
    assert(new Set(ofSeed(0)).size > 3);
  }));

Deno.test("philox gives the known answers of Random123", () => {
  const ones = 0xffffffff;
  assertEquals(philox([ones, ones, ones, ones], [ones, ones]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
  assertEquals(philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]), [
    0xd16cfe09,
    0x94fdcceb,
    0x5001e420,
    0x24126ea1,
  ]);
});

Deno.test("rows survive encoding", () => {
  const row: SamplingRow = {
    temperature: 0.5,
    topK: 7,
    topP: 0.75,
    minP: 1,
    repetitionPenalty: 1.25,
    seed: -1n,
    index: 9,
    history: new Map([[3, 2], [4, 0]]),
    logitBias: new Map([[4, -1.5], [8, 100]]),
  };
  const { rows, adjustments, greedy } = encodeSamplingRows([{}, row]);
  const decoded = decodeSamplingRow(rows, 1, adjustments);
  assertEquals(greedy, false);
  assertEquals({ ...decoded, seed: 0n, logitBias: new Map() }, {
    ...row,
    seed: 0n,
    presencePenalty: 0,
    frequencyPenalty: 0,
    inFlight: [],
    logitBias: new Map(),
  });
  assertEquals(decoded.seed, 2n ** 64n - 1n);
  assertEquals(decoded.logitBias, new Map([[3, 0], [4, -1.5], [8, 100]]));
  assertEquals(encodeSamplingRows([{}, { temperature: 0, history: new Map([[1, 1]]) }]).greedy, true);
  const { rows: late, adjustments: named } = encodeSamplingRows([{ ...row, inFlight: [1, 0, 1] }]);
  const { history } = decodeSamplingRow(late, 0, named, [4, 9]);
  assertEquals(history, new Map([[3, 2], [4, 1], [9, 2]]));
  const many = { ...row, inFlight: Array(65).fill(0) };
  assertThrows(() => encodeSamplingRows([many]), RangeError, "inFlight.length is 65, read tokens before more than 64");
  assertThrows(() => encodeSamplingRows([{ topP: 1.5 }]), RangeError, "Cannot sample: topP is 1.5");
});

Deno.test("tokens that stand in slots change logits as known ones do, to the bit", () =>
  withDevice(async (device) => {
    const tokens = [3, 7, 3, 11, 12, 3], slots = Int32Array.from([7, 3, 12, 11]);
    const base = {
      ...{ repetitionPenalty: 1.1, presencePenalty: 0.3, frequencyPenalty: 0.07 },
      logitBias: new Map([[11, 0.9], [20, -1]]),
    };
    const historyOf = (known: number): Map<number, number> => {
      const history = new Map([[7, 0], [40, 0]]);
      for (const token of tokens.slice(0, known)) history.set(token, (history.get(token) ?? 0) + 1);
      return history;
    };
    const penalised = async (known: number): Promise<HostArray> => {
      const inFlight = tokens.slice(known).map((token) => slots.indexOf(token));
      const { rows, adjustments } = encodeSamplingRows([{ ...base, history: historyOf(known), inFlight }]);
      const inputs = [
        { dtype: "f32", shape: [1, vocabulary], data: logits },
        { dtype: "u32", shape: [1, rowWords], data: rows },
        { dtype: "i32", shape: [adjustments.length / adjustmentWords, adjustmentWords], data: adjustments },
        { dtype: "i32", shape: [slots.length], data: slots },
      ] as const;
      const [adjusted] = await runKernel(device, penaltiesKernel, { params: {}, inputs });
      return adjusted!;
    };
    const expected = await penalised(tokens.length);
    for (let known = 0; known < tokens.length; known++) assertEquals(await penalised(known), expected);
  }));
