/** Decoding encodes each step while the device works on the one before it: when that happens, and that no answer changes. */
import { assertEquals } from "@std/assert";
import type { Model } from "../mod.ts";
import { load } from "../serving/load_model.ts";
import { openNamed } from "../serving/model_source.ts";
import type { LoadOptions } from "../serving/model.ts";
import { Program } from "../tensor/program.ts";

const TINY = `${import.meta.dirname}/fixtures/models/qwen3-tiny`;

/** Loads with the engine in this thread, where its work can be watched. */
async function loadModel(folder: string, options: LoadOptions = {}): Promise<Model> {
  return await load(await openNamed(folder, options), options);
}

/** Has `name` of each object of a class tell `told`, until the returned function is called. */
function watch<T extends object>(prototype: T, name: keyof T & string, told: () => void): () => void {
  const method = prototype[name] as (...args: unknown[]) => unknown;
  const watched = function (this: T, ...args: unknown[]): unknown {
    told();
    return method.apply(this, args);
  };
  Object.assign(prototype, { [name]: watched });
  return () => void Object.assign(prototype, { [name]: method });
}

Deno.test("a step of decoding is encoded between the submission of the one before it and its read-back", async () => {
  const events: string[] = [];
  const restore = [
    watch(GPUCommandEncoder.prototype, "beginComputePass", () => events.push("encode")),
    watch(GPUQueue.prototype, "submit", () => events.push("submit")),
    watch(GPUBuffer.prototype, "mapAsync", () => events.push("read")),
  ];
  try {
    await using model = await loadModel(TINY);
    for (const sampling of [{ temperature: 0 }, { temperature: 1, repetitionPenalty: 1.1, logprobs: true }]) {
      events.length = 0;
      await model.complete({ tokens: [1, 2, 3], maxTokens: 8, ignoreEos: true, ...sampling });
      const step = ["submit", "encode", "read"]; // the submission also copies what is read
      assertEquals(events.slice(-5 * step.length), Array(5).fill(step).flat());
    }
  } finally {
    restore.forEach((undo) => undo());
  }
});

/** Requests of different prompts and lengths: sequences come and go, and the sizes of steps change. */
const REQUESTS = [3, 11, 1, 17, 8].map((maxTokens, i) => ({
  tokens: Array.from({ length: 2 + 3 * i }, (_, j) => 7 * i + j + 1),
  maxTokens,
  ignoreEos: true,
  temperature: i % 2,
  seed: i,
}));

const together = (model: Model): Promise<number[][]> =>
  Promise.all(REQUESTS.map(async (request) => (await model.complete(request)).tokens));

Deno.test("encoding ahead changes no token, alone or in company", async () => {
  await using model = await loadModel(TINY, { kvDtype: "f32" });
  const ahead = await together(model);
  assertEquals(ahead.map(({ length }) => length), REQUESTS.map(({ maxTokens }) => maxTokens));
  for (const [i, request] of REQUESTS.entries()) assertEquals((await model.complete(request)).tokens, ahead[i]);
  const { encodeAhead } = Program.prototype;
  Program.prototype.encodeAhead = (): void => {};
  try {
    assertEquals(await together(model), ahead);
  } finally {
    Program.prototype.encodeAhead = encodeAhead;
  }
});
