/** The engine in a thread of its own: same answers, a free caller's thread, errors that reach everyone, nothing left behind. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { fileSource } from "../model/deno/file_source.ts";
import type { Source } from "../model/source.ts";
import { loadModel } from "../mod.ts";
import type { EngineRequest } from "../serving/engine_types.ts";
import { load } from "../serving/load_model.ts";
import type { LoadedModel } from "../serving/loaded_model.ts";
import { openNamed } from "../serving/model_source.ts";
import { RequestError } from "../serving/request_error.ts";
import { loadWorkerEngine, startEngineThread } from "../serving/worker_engine.ts";
import { OutOfMemoryError } from "../tensor/device.ts";

const TINY = `${import.meta.dirname}/fixtures/models/qwen3-tiny`;
const REQUEST = { tokens: [1, 2, 3], temperature: 1, seed: 3, maxTokens: 20, ignoreEos: true, logprobs: 2 };

Deno.test("an engine in a thread of its own answers as one in this thread", async () => {
  await using here = await load(await openNamed(TINY, {}), {});
  await using there = await loadModel(TINY);
  const [a, b] = await Promise.all([here.complete(REQUEST), there.complete(REQUEST)]);
  assertEquals([b.tokens, b.logprobs, b.topLogprobs], [a.tokens, a.logprobs, a.topLogprobs]);
  assertEquals(await there.nll([1, 2, 3, 4]), await here.nll([1, 2, 3, 4]));
  assertEquals(there.memory.weights, here.memory.weights);
  assert((await there.explain()).includes("attention"));
  assertEquals(there.stats().generatedTokens, 20);
  await assertRejects(() => there.complete({ tokens: [1], topP: 2 }), RangeError, "topP is 2");
});

Deno.test("what is aborted before it is asked for is not computed in the other thread either", async () => {
  await using model = await loadModel(TINY);
  const aborted = await model.complete({ ...REQUEST, signal: AbortSignal.abort() });
  assertEquals([aborted.tokens, aborted.finishReason], [[], "abort"]);
  await model.complete({ ...REQUEST, maxTokens: 1 });
  assertEquals(model.stats().promptTokens, 3);
});

Deno.test("a disposed model says so in the other thread too, to what is aborted already as well", async () => {
  const model = await loadModel(TINY);
  await model.dispose();
  for (const signal of [{}, { signal: AbortSignal.abort() }]) {
    await assertRejects(() => model.complete({ ...REQUEST, ...signal }), Error, "it was disposed");
  }
});

Deno.test("the caller's thread is free while the engine works", async () => {
  await using model = await loadModel(TINY);
  let turns = 0;
  const timer = setInterval(() => turns++, 0);
  const { steps } = model.stats();
  await model.complete({ ...REQUEST, maxTokens: 100 });
  clearInterval(timer);
  assert(turns > 0, `no turn in ${model.stats().steps - steps} steps`);
});

Deno.test("a source that only the caller can read is read by the caller, and its errors come through", async () => {
  const files = fileSource(TINY), reads: string[] = [];
  const source: Source = {
    name: "a watched source",
    list: () => files.list(),
    size: (path) => files.size(path),
    readText: (path) => files.readText(path),
    read: (path, offset, length) => {
      reads.push(path);
      return files.read(path, offset, length);
    },
  };
  {
    await using model = await loadModel(source);
    assertEquals((await model.complete({ ...REQUEST, maxTokens: 2 })).tokens.length, 2);
  }
  assert(reads.includes("model.safetensors"));
  const broken: Source = { ...source, read: () => Promise.reject(new RangeError("the disk is gone")) };
  await assertRejects(() => loadModel(broken), RangeError, "the disk is gone");
});

Deno.test("what loading is refused for is an error of its class, and the thread ends", async () => {
  await assertRejects(() => loadModel(TINY, { memoryLimit: 1e5 }), OutOfMemoryError, "Raise memoryLimit");
  const controller = new AbortController();
  const loading = loadModel(TINY, {
    signal: controller.signal,
    onProgress: () => controller.abort(new Error("enough")),
  });
  await assertRejects(() => loading, Error, "enough");
});

Deno.test("a request that no engine can compute is refused, and those beside it go on", async () => {
  await using model = await loadModel(TINY);
  const { engine } = model as LoadedModel;
  const beside = model.complete(REQUEST);
  const good = { sampling: {}, maxTokens: 5, stopTokenIds: new Set<number>(), n: 1, priority: 0, prompt: [1] };
  const refused = (id: number, wrong: Partial<EngineRequest>): Promise<Error> =>
    new Promise((fail) => engine.addRequest({ ...good, ...wrong, id }, { output: () => {}, fail }));
  const errors = await Promise.all([
    refused(1001, { prompt: [] }),
    refused(1002, { sampling: { topP: 7 } }),
    refused(1003, { n: 0 }),
    refused(1004, { prompt: Array(5000).fill(1) }),
  ]);
  assertEquals(errors.map((error) => error instanceof RequestError), [true, true, true, true]);
  assert(errors[0]!.message.includes("sequence of no tokens"), errors[0]!.message);
  assertEquals((await beside).tokens.length, 20);
});

Deno.test("a crash of the thread rejects everyone who waits, with the cause", async () => {
  const thread = startEngineThread()!;
  thread.keepAlive(true);
  assertEquals(await thread.ready, true);
  const { engine } = await loadWorkerEngine(thread, await openNamed(TINY, {}), {});
  const failures: Error[] = [];
  const request = { sampling: {}, maxTokens: Infinity, stopTokenIds: new Set<number>(), n: 1, priority: 0 };
  const ended = Promise.all([1, 2].map((id) =>
    new Promise<void>((resolve) => {
      const fail = (cause: Error): void => {
        failures.push(cause);
        resolve();
      };
      engine.addRequest({ ...request, id, prompt: [id] }, { output: () => {}, fail });
    })
  ));
  const logits = assertRejects(() => engine.logits([1, 2, 3], () => {}), Error, "The engine's thread ended");
  // A message that nobody sends: something that nobody expected, inside the thread.
  thread.worker.postMessage({ type: "add" });
  await ended;
  await logits;
  assertEquals(failures.map(({ message }) => message.startsWith("The engine's thread ended")), [true, true]);
  assertEquals(failures.map(({ message }) => message.includes("Cannot read properties of undefined")), [true, true]);
  await assertRejects(() => engine.logits([1], () => {}), Error, "The engine's thread ended");
  await engine.close(new Error("closed"));
});

const ENDINGS = {
  "that does not dispose of its model": "",
  "that disposes of its model": "await model[Symbol.asyncDispose]();",
  "that disposes of its model and exits": "await model[Symbol.asyncDispose](); Deno.exit();",
  "that exits": "Deno.exit();",
};

for (const [which, ending] of Object.entries(ENDINGS)) {
  Deno.test(`a program ${which} ends well`, async () => {
    const script = `
      import { loadModel } from "${new URL("../mod.ts", import.meta.url)}";
      const model = await loadModel("${TINY}");
      console.log((await model.complete({ tokens: [1], maxTokens: 2, ignoreEos: true })).tokens.length);
      ${ending}`;
    const config = new URL("../deno.json", import.meta.url).pathname;
    const { stdout, code } = await new Deno.Command(Deno.execPath(), {
      args: ["eval", `--config=${config}`, script],
      stderr: "null",
    }).output();
    assertEquals([new TextDecoder().decode(stdout), code], ["2\n", 0]);
  });
}

Deno.test("a process that may read a part of the thread's modules alone says nothing about it", async () => {
  const { stdout, stderr, code } = await new Deno.Command(Deno.execPath(), {
    cwd: new URL("..", import.meta.url),
    args: ["run", "--allow-read=model/assets,serving", "cli.ts", "generate", "-n", "2", "--seed", "1", "Hi"],
  }).output();
  assertEquals([new TextDecoder().decode(stderr).includes("Uncaught"), code], [false, 0]);
  assert(stdout.length > 1);
});
