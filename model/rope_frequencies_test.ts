import { assertAlmostEquals, assertEquals } from "@std/assert";
import { ropeFrequencies, ropeTable } from "./rope_frequencies.ts";
import type { YarnRope } from "./rope_config.ts";

const near = (actual: number | undefined, expected: number) =>
  assertAlmostEquals(actual!, expected, Math.abs(expected) * 1e-14);

Deno.test("default: theta^(-2i / rotaryDim)", () => {
  const { inverseFrequencies, attentionFactor } = ropeFrequencies({ kind: "default", theta: 10_000, rotaryDim: 8 });
  [1, 0.1, 0.01, 0.001].forEach((expected, i) => near(inverseFrequencies[i], expected));
  assertEquals([inverseFrequencies.length, attentionFactor], [4, 1]);
});

/** The dimensions that turn 32 times and once in 64 positions are -1.33 and 2.69: a ramp from 0 to 3. */
const YARN: YarnRope = {
  kind: "yarn",
  theta: 1e6,
  rotaryDim: 32,
  factor: 4,
  originalMaxPositionEmbeddings: 64,
  betaFast: 32,
  betaSlow: 1,
  truncate: true,
};

Deno.test("yarn: kept, a third and two thirds interpolated, divided by the factor", () => {
  const { inverseFrequencies, attentionFactor } = ropeFrequencies(YARN);
  const plain = (i: number) => 1e6 ** (-i / 16);
  near(inverseFrequencies[0], 1);
  near(inverseFrequencies[1], plain(1) * (2 / 3 + 1 / 3 / 4));
  near(inverseFrequencies[2], plain(2) * (1 / 3 + 2 / 3 / 4));
  for (let i = 3; i < 16; i++) near(inverseFrequencies[i], plain(i) / 4);
  near(attentionFactor, 0.1 * Math.log(4) + 1);
});

Deno.test("yarn: attention factors given, by mscale, and of factor 1; a ramp of fractions; a ramp of no width", () => {
  assertEquals(ropeFrequencies({ ...YARN, attentionFactor: 0.5 }).attentionFactor, 0.5);
  assertEquals(ropeFrequencies({ ...YARN, mscale: 1, mscaleAllDim: 1 }).attentionFactor, 1);
  assertEquals(ropeFrequencies({ ...YARN, factor: 1 }).attentionFactor, 1);
  const end = 32 * Math.log(64 / (2 * Math.PI)) / (2 * Math.log(1e6));
  const { inverseFrequencies } = ropeFrequencies({ ...YARN, truncate: false });
  near(inverseFrequencies[1], 1e6 ** (-1 / 16) * (1 - 0.75 / end));
  // With both ends clamped to dimension 0 the ramp is a step: the first frequency stays.
  const step = ropeFrequencies({ ...YARN, originalMaxPositionEmbeddings: 6 }).inverseFrequencies;
  near(step[0], 1);
  near(step[1], 1e6 ** (-1 / 16) / 4);
});

Deno.test("llama3: short wavelengths kept, long ones divided, a smooth passage between", () => {
  const { inverseFrequencies, attentionFactor } = ropeFrequencies({
    kind: "llama3",
    theta: 500_000,
    rotaryDim: 16,
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositionEmbeddings: 64,
  });
  const plain = (i: number) => 500_000 ** (-i / 8);
  near(inverseFrequencies[0], 1); // turns 10.2 times in 64 positions
  const kept = (64 * plain(1) / (2 * Math.PI) - 1) / 3; // turns 1.98 times
  near(inverseFrequencies[1], plain(1) * (kept + (1 - kept) / 8));
  for (let i = 2; i < 8; i++) near(inverseFrequencies[i], plain(i) / 8); // turn 0.38 times and less
  assertEquals(attentionFactor, 1);
});

Deno.test("table: cosine and sine of float64 angles, with the attention factor", () => {
  const table = ropeTable(YARN, 4);
  assertEquals(table.length, 4 * 16 * 2);
  const { inverseFrequencies, attentionFactor } = ropeFrequencies(YARN);
  const at = (3 * 16 + 5) * 2;
  assertEquals(table[at], Math.fround(Math.cos(3 * inverseFrequencies[5]!) * attentionFactor));
  assertEquals(table[at + 1], Math.fround(Math.sin(3 * inverseFrequencies[5]!) * attentionFactor));
  // Far out a float32 angle would be off by 6e-4; 32,767 is its own angle at the first frequency.
  const far = ropeTable({ kind: "default", theta: 10_000, rotaryDim: 2 }, 32_768);
  assertEquals(far[2 * 32_767], Math.fround(Math.cos(32_767)));
});
