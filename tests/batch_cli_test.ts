import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import { answerLine, type BatchLine, BatchOutput } from "../cli/batch_output.ts";
import { panelLines, statusText } from "../cli/batch_progress.ts";
import { denoTerminal } from "../cli/terminal.ts";
import type { ChatChoice, OpenAiResponse, TextChoice } from "../serving/openai_response.ts";
import type { Chunk, GenerateOptions } from "../serving/request.ts";
import { RequestError } from "../serving/request_error.ts";
import { DeviceLostError } from "../tensor/device_errors.ts";
import { type FakeOptions, type FakeResult, fakeTerminal, runFake } from "./fake_terminal.ts";

const ARGS = ["batch", "--input", "in.jsonl", "--output", "out.jsonl"];

/** A line of the input. */
function line(custom_id: unknown, body: object, url = "/v1/completions", method = "POST"): string {
  return JSON.stringify({ custom_id, method, url, body }) + "\n";
}

const chat = (custom_id: string, more: object = {}): string =>
  line(
    custom_id,
    { model: "default", messages: [{ role: "user", content: custom_id }], ...more },
    "/v1/chat/completions",
  );
const plain = (custom_id: string, more: object = {}): string => line(custom_id, { prompt: custom_id, ...more });

function runBatch(
  input: string,
  options: FakeOptions & { args?: string[] } = {},
  prepare?: (press: () => void) => void,
) {
  const files = { "in.jsonl": input, ...options.files };
  return runFake([...ARGS, ...options.args ?? []], { ...options, files }, prepare);
}

function linesOf({ files }: FakeResult): BatchLine[] {
  const text = files["out.jsonl"]!;
  assert(text === "" || text.endsWith("\n"), "the output ends within a line");
  return text.split("\n").filter((row) => row !== "").map((row) => JSON.parse(row));
}

const byId = (result: FakeResult, id: string | null): BatchLine => linesOf(result).find((row) => row.custom_id === id)!;
const bodyOf = (row: BatchLine): OpenAiResponse => row.response!.body as OpenAiResponse;

Deno.test("batch: conversations and plain texts, answered in OpenAI's form", async () => {
  const result = await runBatch(chat("a") + plain("b"));
  assertEquals(result.code, 0);
  assertEquals(linesOf(result).length, 2);
  const a = byId(result, "a"), b = byId(result, "b");
  assertEquals([a.error, a.response!.status_code], [null, 200]);
  assertMatch(a.id, /^batch_req_\w+$/);
  assertMatch(a.response!.request_id, /^req_\w+$/);
  const { id, created, ...body } = bodyOf(a);
  assertMatch(id, /^chatcmpl-\w+$/);
  assert(Math.abs(created - Date.now() / 1000) < 100);
  assertEquals(body, {
    object: "chat.completion",
    model: "fake",
    choices: [{
      index: 0,
      message: { role: "assistant", content: "One mouse" },
      logprobs: null,
      finish_reason: "stop",
    }],
    usage: {
      prompt_tokens: 3,
      completion_tokens: 2,
      total_tokens: 5,
      prompt_tokens_details: { cached_tokens: 0 },
    },
  });
  assertEquals([bodyOf(b).object, (bodyOf(b).choices[0] as TextChoice).text], ["text_completion", "One mouse"]);
  assertMatch(result.stderr, /^2 of 2 requests done; 6 prompt and 4 answer tokens in /);
});

Deno.test("batch: the body's sampling goes before the flags', plain texts end at 16 tokens unless told", async () => {
  const body = { max_completion_tokens: 5, top_p: 0.5, stop: "x", seed: 3, logit_bias: { 7: -1 }, n: null };
  const args = ["--temp", "0.5", "--top-p", "0.9", "--system", "Rhyme"];
  const { requests } = await runBatch(chat("a", { ...body, temperature: 0 }) + plain("b", { user: "me" }), { args });
  assertEquals(requests[0], {
    messages: [{ role: "system", content: "Rhyme" }, { role: "user", content: "a" }],
    ...{ maxTokens: 5, temperature: 0, topP: 0.5, stop: "x", seed: 3, logitBias: { 7: -1 } },
  });
  assertEquals(requests[1], { prompt: "b", maxTokens: 16, temperature: 0.5, topP: 0.9 });
  assertEquals((await runBatch(plain("b"), { args: ["-n", "9"] })).requests[0]!.maxTokens, 9);
});

Deno.test("batch: flags of model and engine reach the loader", async () => {
  const engine = [
    "--max-num-seqs",
    "4",
    "--max-num-batched-tokens",
    "64",
    "--kv-memory",
    "1.5GiB",
    "--memory-limit",
    "8gib",
    "--no-prefix-cache",
  ];
  const args = ["-m", "some/model", "--precision", "fast", "--kv-dtype", "f32", "--policy", "priority", ...engine];
  const { loads, code } = await runBatch(line("a", { model: "some/model", prompt: "x", priority: 2 }), { args });
  const { onProgress: _, signal: __, ...options } = loads[0]!.options!;
  assertEquals(code, 0);
  assertEquals(options, {
    precision: "fast",
    ...{ kvDtype: "f32", kvMemory: 1.5 * 2 ** 30, memoryLimit: 2 ** 33, maxNumSeqs: 4, maxNumBatchedTokens: 64 },
    ...{ prefixCache: false, policy: "priority" },
  });
});

Deno.test("batch: programs are compiled before the first of many requests, and as they are needed for a few", async () => {
  const input = (count: number, more: object = {}): string =>
    Array.from({ length: count }, (_, i) => plain(`r${i}`, more)).join("");
  const warmUp = async (text: string, args: string[] = []): Promise<boolean | undefined> =>
    (await runBatch(text, { args })).loads[0]!.options!.warmUp;
  assertEquals([await warmUp(input(31)), await warmUp(input(32))], [undefined, true]);
  // Warming up would compile programs that none of these runs.
  assertEquals(await warmUp(input(32), ["--repeat-penalty", "1.2"]), undefined);
  for (
    const more of [{ logprobs: 2 }, { presence_penalty: 0.5 }, { frequency_penalty: 0.5 }, { logit_bias: { 7: 1 } }]
  ) {
    assertEquals(await warmUp(input(32, more)), undefined);
  }
  assertEquals(await warmUp(input(32, { repetition_penalty: 1, logit_bias: {}, top_k: 5 }), ["--temp", "0"]), true);
});

Deno.test("batch: a line that cannot be run becomes an error, names itself, and stops nothing", async () => {
  const cases: [string, string | null, string, string][] = [
    ["{nonsense\n", null, "invalid_json_line", "it is no JSON"],
    ["[1]\n", null, "invalid_json_line", "it is no JSON object"],
    [
      line(7, { prompt: "x" }),
      null,
      "missing_required_parameter",
      "custom_id is 7: give each request a text of its own",
    ],
    [plain("ok"), null, "duplicate_custom_id", 'custom_id "ok" is that of line 1 too'],
    [line("get", {}, undefined, "GET"), "get", "invalid_method", 'method is "GET": give "POST"'],
    [line("url", {}, "/v1/embeddings"), "url", "invalid_url", 'url is "/v1/embeddings"'],
    [line("none", {}), "none", "invalid_request", "prompt is missing"],
    [plain("model", { model: "gpt-4" }), "model", "model_not_found", 'give "default"'],
    [plain("hot", { temperature: "hot" }), "hot", "invalid_request", 'temperature is "hot": give a number'],
    [
      plain("typo", { temprature: 1 }),
      "typo",
      "invalid_request",
      "temprature is not supported: did you mean temperature?",
    ],
    [plain("suffix", { suffix: "." }), "suffix", "invalid_request", "suffix is not supported: leave it out"],
    [plain("stream", { stream: true }), "stream", "invalid_request", "stream is true"],
    [chat("role", { messages: [{ role: "robot" }] }), "role", "invalid_request", 'role is "robot": give one of'],
    [chat("top", { top_logprobs: 2 }), "top", "invalid_request", 'it needs "logprobs": true'],
    [
      chat("parts", { messages: [{ role: "user", content: [{ type: "image_url" }] }] }),
      "parts",
      "invalid_request",
      "text",
    ],
  ];
  const result = await runBatch(plain("ok") + "\n" + cases.map(([text]) => text).join("") + plain("last"));
  assertEquals(result.code, 1);
  const rows = linesOf(result);
  assertEquals(rows.length, cases.length + 2);
  cases.forEach(([_, customId, code, message], index) => {
    const { custom_id, error } = rows[index]!;
    assertEquals([custom_id, error!.code], [customId, code]);
    assertStringIncludes(error!.message, `Line ${index + 3}: `);
    assertStringIncludes(error!.message, message);
  });
  const { response } = byId(result, "model");
  assertEquals(response!.status_code, 404);
  assertEquals((response!.body as { error: object }).error, {
    message: 'Line 10: the model "gpt-4" is not the one that is loaded: give "default"',
    type: "invalid_request_error",
    param: "model",
    code: "model_not_found",
  });
  assertStringIncludes(result.stderr, "… and 10 more; each has its line in the output\n");
  assertStringIncludes(result.stderr, `2 of 17 requests done, 15 failed`);
});

Deno.test("batch: no error line bears the custom_id of another line", async () => {
  const result = await runBatch(
    plain("a") + line("a", {}, "/nowhere") + plain("a") + line("b", {}, "/nowhere") + plain("b"),
  );
  assertEquals(linesOf(result).map(({ custom_id, error }) => [custom_id, error?.code ?? null]), [
    [null, "duplicate_custom_id"],
    [null, "duplicate_custom_id"],
    ["b", "invalid_url"],
    [null, "duplicate_custom_id"],
    ["a", null],
  ]);
});

Deno.test("batch: what the model refuses becomes an error too", async () => {
  const answer = ({ prompt }: GenerateOptions): string[] => {
    if (prompt === "bad") throw new RequestError("Cannot generate: too long");
    return ["fine"];
  };
  const result = await runBatch(plain("good") + plain("bad") + plain("more"), { model: { answer } });
  assertEquals([result.code, linesOf(result).length], [1, 3]);
  assertEquals(byId(result, "bad").response!.status_code, 400);
  const message = "Line 2: Cannot generate: too long";
  assertEquals(byId(result, "bad").error, { code: "invalid_request", message });
  assertStringIncludes(result.stderr, `${message}\n2 of 3 requests done, 1 failed`);
});

Deno.test("batch: a model that breaks ends the batch, and what is open is for another run", async () => {
  const ids = Array.from({ length: 30 }, (_, i) => `r${i}`), input = ids.map((id) => plain(id)).join("");
  // Whatever its class, and before a first token too: only what refuses the request itself is its own fault.
  for (const cause of [new Error("The engine's thread ended."), new RangeError("no"), new DeviceLostError("gone")]) {
    let answered = 0;
    const answer = (): string[] => {
      if (answered >= 12) throw cause;
      answered++;
      return ["fine"];
    };
    const broken = await runBatch(input, { model: { answer }, args: ["--max-num-seqs", "3"] });
    const done = linesOf(broken);
    assertEquals([broken.code, done.every(({ error }) => error === null), done.length <= 12], [1, true, true]);
    const message = cause.message.replace(".", "");
    assertStringIncludes(broken.stderr, `error: The model failed: ${message}. What is done is in the output: run it`);
    const again = await runBatch(input, { files: broken.files });
    assertEquals([again.code, again.requests.length], [0, 30 - done.length]);
    assertEquals(linesOf(again).map(({ custom_id }) => custom_id).sort(), ids.toSorted());
  }
});

Deno.test("batch: goes on where it was: answers stay, errors are tried again, a torn line is dropped", async () => {
  const first = await runBatch(plain("a") + plain("b", { temperature: -1 }));
  const answered = first.files["out.jsonl"]!.split("\n").find((row) => row.includes('"custom_id":"a"'))! + "\n";
  const input = plain("a") + plain("b") + plain("c") + plain("d");
  const torn = first.files["out.jsonl"]! + '{"id":"batch_req_1","custom_id":"c","response":{"stat';
  const second = await runBatch(input, { files: { "out.jsonl": torn } });
  assertEquals([second.code, second.requests.map(({ prompt }) => prompt)], [0, ["b", "c", "d"]]);
  assert(second.files["out.jsonl"]!.startsWith(answered));
  assertEquals(linesOf(second).map(({ custom_id }) => custom_id).sort(), ["a", "b", "c", "d"]);
  assertEquals(Object.keys(second.files).sort(), ["in.jsonl", "out.jsonl"]);
  assertStringIncludes(second.stderr, "1 of 4 requests are done already\n3 of 3 requests done");
  // A last line that is whole but for its line break is an answer like the others.
  const unbroken = await runBatch(plain("a"), { files: { "out.jsonl": answered.trimEnd() } });
  assertEquals([unbroken.code, unbroken.loads.length, unbroken.files["out.jsonl"]], [0, 0, answered]);
  assertEquals(unbroken.stderr, "1 of 1 requests are done already\n");
});

Deno.test("batch: leaves a file alone that is no batch's output", async () => {
  const foreign = [
    "Dear diary\nToday\n",
    "no newline at the end",
    '{"precious":"notes"}',
    '{"precious":"notes"}\n',
    '{"id":"mine","custom_id":"a","response":null,"error":"precious"}',
  ];
  for (const text of foreign) {
    const { code, stderr, files } = await runBatch(plain("a"), { files: { "out.jsonl": text } });
    assertEquals([code, files["out.jsonl"], Object.keys(files).length], [1, text, 2]);
    assertStringIncludes(stderr, 'Cannot go on with "out.jsonl": its line 1 is no line of a batch\'s output');
  }
});

Deno.test("batch: a first line that was cut off anywhere does not stop the next run", async () => {
  const whole = (await runBatch(plain("a"))).files["out.jsonl"]!;
  for (const length of [1, 7, 17, 30, whole.length - 2]) {
    const { code, files } = await runBatch(plain("a"), { files: { "out.jsonl": whole.slice(0, length) } });
    assertEquals([code, JSON.parse(files["out.jsonl"]!).custom_id], [0, "a"]);
  }
});

Deno.test("batch: of two runs on one output the second is refused, until the first has ended", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/out.jsonl`, terminal = denoTerminal();
    await Deno.writeTextFile(path, '{"id":"batch_req_'); // torn: the file is replaced while it is locked
    for (let run = 0; run < 2; run++) {
      using _first = await BatchOutput.open(terminal, path);
      await assertRejects(() => BatchOutput.open(terminal, path), Error, "another run is writing it");
    }
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["out.jsonl"]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("batch: devices and pipes are written to and never read back", async () => {
  const run = (output: string) =>
    runFake(["batch", "-i", "in.jsonl", "-o", output], {
      files: { "in.jsonl": plain("a") + plain("b"), "/dev/tty": "typed by somebody" },
    });
  const tty = await run("/dev/tty");
  assertEquals([tty.code, tty.files["/dev/tty"]!.split("\n").length], [0, 3]);
  const full = await run("/dev/full");
  const lost = "Give --output a file: what it holds is not done again";
  assertEquals([full.code, full.stderr], [1, `error: Cannot write "/dev/full": No space left on device. ${lost}\n`]);
  // Whoever reads is gone before all is done, which the exit code has to say.
  const closed = await runFake(["batch", "-i", "-", "-o", "-"], { stdin: [plain("a") + plain("b")], closeAfter: 1 });
  assertEquals([closed.code, closed.stderr], [1, `error: Nobody reads the output. ${lost}\n`]);
  assertEquals(JSON.parse(closed.stdout).custom_id, "a");
});

Deno.test("batch: an output that takes no more is named, without the system's number", {
  ignore: Deno.build.os !== "linux",
}, async () => {
  using full = await denoTerminal().openStream("/dev/full");
  const error = await assertRejects(() => full.write("line"), Error);
  assertEquals(error.message, 'Cannot write "/dev/full": No space left on device');
  const { terminal } = fakeTerminal({});
  terminal.appendTextFile = () => Promise.reject(new Error("No space left on device (os error 28)"));
  using file = await BatchOutput.open(terminal, "out.jsonl");
  const again = "Run it again to go on: what is written is not done again";
  const refused = await assertRejects(() => file.write(answerLine("a", {} as OpenAiResponse)), Error);
  assertEquals(refused.message, `Cannot write "out.jsonl": No space left on device. ${again}`);
});

Deno.test("batch: Ctrl-C keeps what is done and leaves nothing half done", async () => {
  let interrupt = (): void => {};
  let pieces = 0;
  const model = { onPiece: () => void (++pieces === 6 && interrupt()) };
  const input = ["a", "b", "c", "d", "e"].map((id) => plain(id)).join("");
  const options = { model, args: ["--max-num-seqs", "1"] };
  const result = await runBatch(input, options, (press) => interrupt = press);
  assertEquals(result.code, 130);
  const done = linesOf(result);
  assert(done.length > 0 && done.length < 5);
  assert(done.every(({ error }) => error === null));
  assertStringIncludes(result.stderr, `${done.length} of 5 requests done`);
  assertStringIncludes(result.stderr, "Run it again to go on");
  const { requests } = await runBatch(input, { files: result.files });
  assertEquals(requests.length, 5 - done.length);
});

/** Two samples, drawn in turn. */
async function* samples(): AsyncGenerator<Chunk> {
  const top = [{ token: 9, logprob: -0.1 }, { token: 7, logprob: -2 }];
  for (const [index, token] of [[1, 7], [0, 8], [1, 9]] as const) {
    await Promise.resolve();
    yield { index, text: `${token}`, tokens: [token], logprobs: [-1], topLogprobs: [top] };
  }
  const usage = { promptTokens: 3, completionTokens: 3, cachedTokens: 2 };
  yield { index: 1, text: "", tokens: [], logprobs: [], topLogprobs: [], finishReason: "stop" };
  yield { index: 0, text: "!", tokens: [], logprobs: [], topLogprobs: [], finishReason: "length", usage };
}

Deno.test("batch: several prompts, samples and log-probabilities", async () => {
  const model = { generate: samples };
  const asked = { n: 2, logprobs: true, top_logprobs: 2 };
  const result = await runBatch(chat("a", asked) + line("b", { prompt: ["x", "y"], n: 2, logprobs: 2 }), { model });
  const { choices, usage } = bodyOf(byId(result, "a"));
  const [first, second] = choices as ChatChoice[];
  assertEquals([first!.message.content, first!.finish_reason], ["8!", "length"]);
  assertEquals([second!.index, second!.message.content, second!.finish_reason], [1, "79", "stop"]);
  const spelt = (token: number, logprob: number) => {
    return { token: `<${token}>`, logprob, bytes: [60, 48 + token, 62] };
  };
  const top_logprobs = [spelt(9, -0.1), spelt(7, -2)];
  assertEquals(second!.logprobs!.content, [{ ...spelt(7, -1), top_logprobs }, { ...spelt(9, -1), top_logprobs }]);
  assertEquals(usage.prompt_tokens_details.cached_tokens, 2);
  const texts = bodyOf(byId(result, "b"));
  assertEquals((texts.choices as TextChoice[]).map(({ index, text }) => [index, text]), [
    ...[[0, "8!"], [1, "79"], [2, "8!"], [3, "79"]],
  ]);
  assertEquals([texts.usage.prompt_tokens, texts.usage.total_tokens], [6, 12]);
  assertEquals((texts.choices[1] as TextChoice).logprobs, {
    tokens: ["<7>", "<9>"],
    token_logprobs: [-1, -1],
    top_logprobs: [{ "<9>": -0.1, "<7>": -2 }, { "<9>": -0.1, "<7>": -2 }],
    text_offset: [0, 3],
  });
});

Deno.test("batch: a terminal shows the engine at work, and is wiped", async () => {
  const { stderr, code } = await runBatch(plain("a") + plain("b"), { tty: true, env: { NO_COLOR: "1" } });
  assertEquals(code, 0);
  assertStringIncludes(stderr, "8 running · 3 waiting · KV ██▌");
  assertStringIncludes(stderr, "\x1b[1A\r\x1b[K\x1b[J2 of 2 requests done");
  const counts = { done: 4, failed: 1, promptTokens: 0, completionTokens: 9 };
  const engine = { running: 8, waiting: 3, blocks: 100, usedBlocks: 31 };
  const rates = { promptTokensPerSecond: 1200, generatedTokensPerSecond: 212 };
  const status = { ...counts, total: 16, elapsedMs: 5000, engine: { ...engine, ...rates } };
  assertEquals(panelLines(status), [
    "Batch   ███████▌                  31%  5 of 16 · 1 failed · 0:11 left",
    "Engine  8 running · 3 waiting · KV ██▌       31% · 212 tok/s and prompts at 1,200",
  ]);
  const text = "5 of 16 requests, 1 failed, 8 running, 3 waiting, KV 31%, 212 tok/s and prompts at 1,200, 0:11 left";
  assertEquals(statusText(status), text);
});

Deno.test("batch: standard input and output, and wrong calls", async () => {
  const piped = await runFake(["batch", "-i", "-", "-o", "-"], { stdin: ["\uFEFF" + plain("a")] });
  assertEquals([piped.code, JSON.parse(piped.stdout).custom_id], [0, "a"]);
  const cases: [string[], number, string][] = [
    [["batch", "-i", "in.jsonl"], 2, "batch needs --output"],
    [["batch", "-o", "in.jsonl"], 2, "batch needs --input"],
    [["batch", "in.jsonl"], 2, 'batch takes flags alone, and was given "in.jsonl"'],
    [["batch", "-i", "in.jsonl", "-o", "in.jsonl"], 2, "--output is the input itself"],
    [["batch", "-i", "no.jsonl", "-o", "out.jsonl"], 1, 'Cannot read "no.jsonl": there is no such file or folder'],
    [["batch", "-i", "empty", "-o", "out.jsonl"], 1, 'Cannot run "empty": it has no line'],
    [["batch", "-i", "a", "-o", "b", "--kv-memory", "12"], 2, "needs bytes such as 2GiB or 500MB, or a share up to 1"],
  ];
  for (const [args, code, message] of cases) {
    const result = await runFake(args, { files: { empty: "\n" } });
    assertEquals(result.code, code, args.join(" "));
    assertStringIncludes(result.stderr, message);
  }
  const nothing = await runFake(["batch", "-i", "-", "-o", "-"], { stdin: [] });
  assertEquals([nothing.code, nothing.stdout], [1, ""]);
  assertStringIncludes(nothing.stderr, "Cannot run standard input: it has no line");
});

Deno.test("batch: the story model, requests of all kinds at once, each as if it were alone", async () => {
  const { runCli } = await import("../cli/run.ts");
  const folder = await Deno.makeTempDir();
  try {
    const input = chat("chat", { max_tokens: 12, seed: 1 }) +
      plain("Once upon a time", { max_tokens: 8, temperature: 0 }) +
      line("two", { prompt: ["Once upon a time", "There was"], max_tokens: 4, temperature: 0, logprobs: 0 }) +
      line("far", { prompt: "Once", max_tokens: 4, stop_token_ids: [99_999] });
    await Deno.writeTextFile(`${folder}/in.jsonl`, input);
    let stderr = "";
    const write = (text: string): Promise<void> => (stderr += text, Promise.resolve());
    const terminal = { ...denoTerminal(), stderr: { isTerminal: false, write } };
    const memory = ["--kv-memory", "0.5", "--memory-limit", "400MB"];
    const args = ["batch", "-i", `${folder}/in.jsonl`, "-o", `${folder}/out.jsonl`, ...memory];
    const surroundings = { library: () => import("../mod.ts"), gpu: () => navigator.gpu };
    assertEquals(await runCli(args, terminal, surroundings), 1, stderr);
    const files = { "out.jsonl": await Deno.readTextFile(`${folder}/out.jsonl`) };
    const result = { code: 1, stdout: "", stderr, requests: [], loads: [], files };
    const text = (id: string, index = 0): string => (bodyOf(byId(result, id)).choices[index] as TextChoice).text;
    assertEquals(text("Once upon a time"), ", there was a little girl named Lily");
    assertEquals(text("two"), ", there was a");
    assertEquals((bodyOf(byId(result, "two")).choices[0] as TextChoice).logprobs!.tokens.join(""), text("two"));
    assertEquals(bodyOf(byId(result, "chat")).usage.completion_tokens, 12);
    assertStringIncludes(byId(result, "far").error!.message, "99999");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
