/**
 * Holds real checkpoints against recorded greedy continuations: `deno run -A scripts/real_models.ts MODELS CASES [FILTER]`.
 * MODELS holds a folder a model, CASES a JSON file a case (`model`, `ids`, `greedy`). Too large for the tests; run by hand.
 *
 * @module
 */
import { loadModel } from "../mod.ts";

interface Case {
  readonly model: string;
  readonly ids: number[];
  readonly greedy: number[];
  readonly stops: boolean;
}

const [models, cases, filter = ""] = Deno.args;
if (!models || !cases) throw new Error("Usage: deno run -A scripts/real_models.ts MODELS CASES [FILTER]");
let passed = 0, failed = 0;
const files = [...Deno.readDirSync(cases)].map((entry) => entry.name).filter((name) => name.includes(filter)).sort();
for (const file of files) {
  const wanted = JSON.parse(await Deno.readTextFile(`${cases}/${file}`)) as Partial<Case>;
  if (!wanted.model || !wanted.ids || !wanted.greedy) continue;
  await using model = await loadModel(`${models}/${wanted.model}`, { kvDtype: "f32", contextLength: 1024 });
  const { tokens, timings, finishReason } = await model.complete({
    tokens: wanted.ids,
    temperature: 0,
    repetitionPenalty: 1,
    maxTokens: wanted.greedy.length,
  });
  const expected = wanted.stops ? wanted.greedy.slice(0, -1) : wanted.greedy;
  const right = tokens.length === expected.length && tokens.every((token, i) => token === expected[i]);
  if (right) passed++;
  else failed++;
  console.log(
    `${right ? "ok  " : "FAIL"} ${file}: ${tokens.length} tokens, ${finishReason}, ` +
      `${timings.promptTokensPerSecond.toFixed(1)} prompt tok/s, ${timings.decodeTokensPerSecond.toFixed(2)} tok/s`,
  );
}
console.log(`${passed} passed, ${failed} failed`);
if (failed > 0) Deno.exit(1);
