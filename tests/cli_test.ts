import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { Library } from "../cli/library.ts";
import { showLate } from "../cli/progress.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { type FakeModel, type FakeOptions, fakeTerminal, runFake } from "./fake_terminal.ts";

const root = new URL("../", import.meta.url);
const stories = decodeURIComponent(new URL("../model/assets/stories", import.meta.url).pathname);

Deno.test("generate: a prompt goes through the chat template, the answer to standard output alone", async () => {
  const { code, stdout, stderr, requests, loads } = await runFake(
    ["generate", "Tell me", "a story", "-n", "5", "--temp", "0", "--system", "Rhyme", "-m", "some/model", "-c", "64"],
  );
  assertEquals([code, stdout, stderr], [0, "One mouse\n", ""]);
  assertEquals(requests[0]!.messages, [
    { role: "system", content: "Rhyme" },
    { role: "user", content: "Tell me a story" },
  ]);
  assertEquals([requests[0]!.maxTokens, requests[0]!.temperature], [5, 0]);
  assertEquals([loads[0]!.source, loads[0]!.options!.contextLength], ["some/model", 64]);
});

Deno.test("generate: --raw, and models without a template, take the prompt as it is", async () => {
  assertEquals((await runFake(["generate", "--raw", "Once"])).requests[0]!.prompt, "Once");
  const base: FakeOptions = { model: { chatTemplate: undefined } };
  assertEquals((await runFake(["generate", "-p", "Once"], base)).requests[0]!.prompt, "Once");
  const { code, stderr } = await runFake(["generate", "Once", "--system", "x"], base);
  assertEquals(code, 2);
  assertStringIncludes(stderr, '--system has no place since "fake" has no chat template');
});

Deno.test("generate: the prompt comes from standard input where it is piped, or named by a dash", async () => {
  const stdin = ["Tell m", "e é".slice(0, 2), "\n"];
  for (const args of [["generate"], ["generate", "-"], ["generate", "-p", "-"]]) {
    const { requests } = await runFake(args, { stdin });
    assertEquals(requests[0]!.messages, [{ role: "user", content: "Tell me " }]);
  }
  const { code, stderr } = await runFake(["generate"], { tty: true });
  assertEquals(code, 2);
  assertStringIncludes(stderr, "generate needs a prompt");
});

Deno.test("generate: ids in, ids out, for models without a tokenizer", async () => {
  const model = { tokenizer: undefined, chatTemplate: undefined };
  const { stdout, requests } = await runFake(["generate", "--token-ids", "1, 2,3"], { model });
  assertEquals([stdout, requests[0]!.tokens], ["7,8\n", [1, 2, 3]]);
  const { code, stderr } = await runFake(["generate", "Hi"], { model });
  assertEquals([code, stderr], [1, 'error: "fake" has no tokenizer: give token ids, as in --token-ids "1,2,3"\n']);
});

Deno.test("generate --json prints what complete returns, as one object", async () => {
  const { code, stdout } = await runFake(["generate", "Hi", "--json"]);
  assertEquals(code, 0);
  assertEquals(stdout.trimEnd().split("\n").length, 1);
  assertEquals(Object.keys(JSON.parse(stdout)), ["text", "tokens", "finishReason", "usage", "timings"]);
});

Deno.test("generate: on a terminal, progress and a dim line of statistics on standard error", async () => {
  const { stdout, stderr } = await runFake(["generate", "Hi"], { tty: true });
  assertEquals(stdout, "One mouse\n");
  assertStringIncludes(stderr, "Loading ████████████");
  assertStringIncludes(stderr, "50%  5.00 MB of 10.0 MB");
  const line =
    "prompt 3 tokens at 340 tok/s · answer 2 tokens at 52.1 tok/s · first token 0.31 s · peak GPU memory 24.1 MB";
  assertStringIncludes(stderr, `\x1b[2m${line}\x1b[22m\n`);
  const plain = await runFake(["generate", "Hi"], { tty: true, env: { NO_COLOR: "1" } });
  assertStringIncludes(plain.stderr, `\r\x1b[K${line}\n`);
});

Deno.test("progress: a long wait shows a line, wiped by its end; a short one and no terminal show none", async () => {
  const wait = async (tty: boolean, afterMs: number): Promise<string> => {
    const { terminal, output } = fakeTerminal({ tty });
    await using late = showLate(terminal, "Reading …", afterMs);
    await new Promise((resolve) => setTimeout(resolve, 20));
    await late[Symbol.asyncDispose]();
    return output.stderr;
  };
  assertEquals(await wait(true, 1), "\r\x1b[K\x1b[2mReading …\x1b[22m\r\x1b[K");
  assertEquals(await wait(true, 1000), "");
  assertEquals(await wait(false, 1), "");
});

Deno.test("generate: the environment stands in for flags, and the command line goes before it", async () => {
  const env = {
    TINYLLM_MODEL: "env/model",
    TINYLLM_MAX_TOKENS: "9",
    TINYLLM_TOP_K: "3",
    TINYLLM_RAW: "1",
    TINYLLM_PROMPT: "no",
  };
  const { loads, requests } = await runFake(["generate", "Hi", "--top-k", "4", "--no-raw"], { env });
  assertEquals([loads[0]!.source, requests[0]!.maxTokens, requests[0]!.topK], ["env/model", 9, 4]);
  assertEquals(requests[0]!.messages, [{ role: "user", content: "Hi" }]);
});

Deno.test("exit codes: 1 with one line for what fails, its stack with TINYLLM_DEBUG", async () => {
  const library = { loadModel: () => Promise.reject(new Error("Cannot load it:\n  broken")) };
  const { code, stderr } = await runFake(["generate", "Hi"], { library });
  assertEquals([code, stderr], [1, "error: Cannot load it: broken\n"]);
  const debug = await runFake(["generate", "Hi"], { library, env: { TINYLLM_DEBUG: "1" } });
  assertMatch(debug.stderr, /\n {4}at /);
});

Deno.test("a context that memory made shorter is said on standard error", async () => {
  const { code, stderr } = await runFake(["generate", "Hi"], { model: { contextShortage: "kvMemory is 3 bytes" } });
  assertEquals([code, stderr.includes("The context is 8 tokens: --kv-memory is 3 bytes\n")], [0, true]);
});

Deno.test("what the library says of its options names the flags, and those apply", async () => {
  const library = await import("../mod.ts");
  const cases: [string[], string][] = [
    [["--kv-memory", "0.5"], "--kv-memory is 0.5, a fraction, and drivers do not say of what: give --memory-limit too"],
    [["--kv-memory", "10kB"], "--kv-memory is 10000 bytes, and 16 tokens take"],
    [
      ["--memory-limit", "16MB"],
      "Raise --memory-limit, or lower --max-num-batched-tokens, --max-num-seqs or --context.",
    ],
    [["--memory-limit", "16MB", "--kv-memory", "1MB"], "--max-num-seqs or --kv-memory."],
    [["--memory-limit", "10MB"], "for weights alone. Raise --memory-limit to"],
    [["-c", "5000"], "--context is 5000, and it was made for 1024: give that or less"],
    [["--max-num-seqs", "4", "--max-num-batched-tokens", "2"], "--max-num-batched-tokens is 2, and a step has"],
    [["-c", "16", "-p", "mouse ".repeat(40)], "or load the model with a --context of up to 1024."],
    [["--kv-memory", "66kB", "-p", "mouse ".repeat(40)], "more memory: --kv-memory is 66000 bytes, and a context of"],
  ];
  for (const [args, message] of cases) {
    const { code, stderr } = await runFake(["generate", ...args.includes("-p") ? [] : ["Hi"], ...args], { library });
    assertEquals(code, 1, args.join(" "));
    assertStringIncludes(stderr, message);
  }
});

Deno.test("TINYLLM_DEBUG=2 writes what the GPU runs to standard error", async () => {
  const library: Partial<Library> = {
    loadModel(_source, options) {
      options?.debug?.("decode: 1 dispatch");
      return Promise.reject(new Error("broken"));
    },
  };
  for (const level of ["1", "2"]) {
    const { stderr } = await runFake(["generate", "Hi"], { library, env: { TINYLLM_DEBUG: level } });
    assertEquals(stderr.startsWith("decode: 1 dispatch\n"), level === "2");
  }
});

Deno.test("exit code 2: usage errors name the flag and the remedy", async () => {
  const cases: [string[], string][] = [
    [["generate", "--tmep", "1"], "Unknown flag --tmep: did you mean --temp?"],
    [["generate", "--max-token", "1"], "Unknown flag --max-token: did you mean --max-tokens?"],
    [["generate", "--logprobs", "3"], 'Unknown flag --logprobs: write "logprobs" into the body of a request'],
    [["generate", "--n", "3"], 'Unknown flag --n: write "n" into the body of a request, and run tinyllm batch'],
    [["chat", "--cache-salt=a"], 'Unknown flag --cache-salt: write "cache_salt" into the body of a request'],
    [["generate", "--dragons"], "Unknown flag --dragons: text that begins with a dash goes behind --"],
    [["generat", "Hi"], 'Unknown command "generat": did you mean generate?'],
    [["generate", "-n"], "-n needs a value: write -n N"],
    [["generate", "-n", "--raw"], "-n needs a value: write -n N"],
    [["generate", "-n", "many"], 'needs a whole number of at least 1, and was given "many"'],
    [["generate", "--top-p", "1.5"], 'needs a number above 0, up to 1, and was given "1.5"'],
    [["generate", "--precision=half"], '--precision needs one of exact, fast, and was given "half"'],
    [["generate", "--raw=yes"], "--raw takes no value"],
    [["generate", "Hi", "-p", "Ho"], "PROMPT and --prompt exclude each other"],
    [["devices", "--temp", "1"], "--temp does not apply to devices"],
    [["chat", "Hi"], 'chat takes flags alone, and was given "Hi"'],
    [["--temp", "1"], "A command goes before --temp"],
    [["perplexity", "a", "b"], "perplexity takes one FILE"],
  ];
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await runFake(args);
    assertEquals([code, stdout], [2, ""], args.join(" "));
    assertStringIncludes(stderr, message);
  }
  const { stderr } = await runFake(["generate"], { stdin: ["Hi"], env: { TINYLLM_SEED: "x" } });
  assertStringIncludes(stderr, "TINYLLM_SEED in the environment needs a whole number");
});

Deno.test("help: on request to standard output, without a command to standard error", async () => {
  for (const args of [["--help"], ["help"], ["generate", "-h"], ["help", "chat"]]) {
    const { code, stdout, stderr } = await runFake(args);
    assertEquals([code, stderr], [0, ""]);
    assertStringIncludes(stdout, "TINYLLM_MODEL");
    assert(stdout.split("\n").every((line) => line.length <= 80), "a line is wider than the terminal");
  }
  const { code, stdout, stderr } = await runFake([]);
  assertEquals([code, stdout], [2, ""]);
  assertStringIncludes(stderr, "Usage");
  assertMatch((await runFake(["--version"])).stdout, /^tinyllm \d+\.\d+\.\d+\n$/);
});

Deno.test("Ctrl-C stops generate with 130, what was written stays", async () => {
  let interrupt = (): void => {};
  const onPiece = (index: number) => index === 1 && interrupt();
  const { code, stdout } = await runFake(["generate", "Hi"], { model: { onPiece } }, (press) => interrupt = press);
  assertEquals([code, stdout], [130, "One \n"]);
});

Deno.test("a second Ctrl-C ends at once, even if nothing answers to the first", async () => {
  let interrupt = (): void => {};
  const loadModel = (): Promise<never> => {
    setTimeout(() => (interrupt(), interrupt()));
    return new Promise(() => {});
  };
  const { code } = await runFake(["generate", "Hi"], { library: { loadModel } }, (press) => interrupt = press);
  assertEquals(code, 130);
});

Deno.test("a reader that is gone ends the program quietly", async () => {
  const { code, stderr } = await runFake(["generate", "Hi"], { closeAfter: 1 });
  assertEquals([code, stderr], [0, ""]);
});

Deno.test("perplexity: windows of the context's length, weighted by their tokens", async () => {
  const files = { "book.txt": Array(12).fill("word").join(" ") };
  const { code, stdout, stderr } = await runFake(["perplexity", "book.txt", "--json"], { files });
  const nll = (8 * 7 + 4 * 3) / 10;
  assertEquals([code, stderr], [0, ""]);
  assertEquals(JSON.parse(stdout), {
    nll,
    perplexity: Math.exp(nll),
    tokens: 12,
    predictedTokens: 10,
    contextLength: 8,
  });
  const shown = await runFake(["perplexity", "book.txt"], { files, tty: true, env: { NO_COLOR: "1" } });
  assertStringIncludes(shown.stderr, "\r\x1b[KMeasuring: 0 of 12 tokens\r\x1b[KMeasuring: 8 of 12 tokens\r\x1b[K");
  const logged = await runFake(["perplexity", "book.txt"], { files: { "book.txt": Array(96).fill("word").join(" ") } });
  assertEquals(logged.stderr, "Measuring: 80 of 96 tokens\n"); // the clock goes on by a second a window
  const short = [[["book.txt"], '"book.txt"'], [[], "standard input"], [["--token-ids", "7"], "--token-ids"]] as const;
  for (const [args, name] of short) {
    const { code, stderr } = await runFake(["perplexity", ...args], { files: { "book.txt": "word" }, stdin: ["word"] });
    assertEquals([code, stderr], [
      1,
      `error: Cannot measure ${name}: perplexity needs 2 tokens or more, and it has 1\n`,
    ]);
  }
  const missing = await runFake(["perplexity", "none.txt"]);
  assertEquals([missing.code, missing.stderr], [1, 'error: Cannot read "none.txt": there is no such file or folder\n']);
});

Deno.test("perplexity: Ctrl-C waits for no window, and says what was measured", async () => {
  const files = { "book.txt": Array(20).fill("word").join(" ") };
  for (const windows of [0, 1]) {
    let interrupt = (): void => {}, measured = 0;
    const nll: FakeModel["nll"] = (ids) => {
      if (measured++ < windows) return Promise.resolve({ mean: 2, count: ids.length - 1 });
      setTimeout(() => interrupt());
      return new Promise(() => {});
    };
    const run = await runFake(["perplexity", "book.txt"], { files, model: { nll } }, (press) => interrupt = press);
    const said = "Stopped after 8 of 20 tokens: mean NLL 2.000000, perplexity 7.3891\n";
    assertEquals([run.code, run.stdout, run.stderr], [130, "", windows === 0 ? "" : said]);
  }
});

Deno.test("show: from the headers alone", async () => {
  const library = { openSource: () => Promise.resolve(fileSource(stories)) };
  const { code, stdout, stderr, loads } = await runFake(["show", "stories"], { library });
  assertEquals([code, stderr, loads], [0, "", []]);
  for (
    const part of [
      "qwen2, 8 layers",
      "26.7 million",
      "4-bit affine, groups of 64",
      "1,024 tokens",
      "min-p 0.05",
      "6.00 MB",
    ]
  ) {
    assertStringIncludes(stdout, part);
  }
  const { parameters, chatTemplate } = JSON.parse((await runFake(["show", "--json"], { library })).stdout);
  assertEquals([Math.round(parameters / 1e5), chatTemplate], [267, true]);
});

Deno.test("devices: without an adapter, what to install", async () => {
  const { code, stderr } = await runFake(["devices"]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "install a Vulkan driver");
});

Deno.test("chat: a script's lines are messages, and each answer is part of the next", async () => {
  const stdin = ['Hi\n/set temp 0.5\n"""\ntwo\nlines\n"""\nlong \\\nline\n/regen\n/save talk.json\n/bye\nnot read\n'];
  const { code, stdout, requests, files } = await runFake(["chat", "--system", "Rhyme"], { stdin });
  assertEquals([code, stdout], [0, "One mouse\n".repeat(4)]);
  assertEquals(requests.map((request) => request.messages!.length), [2, 4, 6, 6]);
  assertEquals(requests[1]!.messages!.at(-1), { role: "user", content: "two\nlines" });
  assertEquals(requests[3]!.messages!.at(-1), { role: "user", content: "long \nline" });
  assertEquals(requests.map((request) => request.temperature), [undefined, 0.5, 0.5, 0.5]);
  const saved = JSON.parse(files["talk.json"]!);
  assertEquals([saved.model, saved.system, saved.messages.length], ["fake", "Rhyme", 6]);
  const loaded = await runFake(["chat"], { stdin: ["/load talk.json\n/system\nGo on\n"], files });
  assertEquals(loaded.requests[0]!.messages!.length, 8);
  assertStringIncludes(loaded.stderr, "Loaded 6 messages from talk.json\nSystem message: Rhyme\n");
});

Deno.test("chat: commands that are not there or cannot be done say so, and the chat goes on", async () => {
  const stdin = ["/hlep\n/set tmp 1\n/set temp -1\n/load none\n/clear\n/regen\n/show\n/help\n/set seed 7\nHi"];
  const { code, stderr, requests } = await runFake(["chat"], { stdin });
  assertEquals([code, requests.length, requests[0]!.seed], [1, 1, 7]);
  const parts = [
    "did you mean /help?",
    'Unknown setting "tmp": did you mean temp?',
    'given "-1"',
    "there is no such file",
    "starts afresh",
    "no message to answer",
  ];
  for (const part of [...parts, "0 of 8 tokens taken", "/save FILE"]) assertStringIncludes(stderr, part);
});

Deno.test("chat: a model without a template says what to do instead", async () => {
  const { code, stderr } = await runFake(["chat"], { model: { chatTemplate: undefined }, stdin: ["Hi\n"] });
  assertEquals(code, 1);
  assertStringIncludes(stderr, "tinyllm generate --raw");
});

Deno.test("chat on a terminal: editing keys, history, Ctrl-C", async () => {
  const up = "\x1b[A";
  const { code, requests } = await runFake(["chat"], {
    tty: true,
    stdin: ["Hullo", "\x1b[D\x1b[D\x1b[D\x7fe\r", `${up}!\r`, "\x1b[200~pas\rted\x1b[201~\r", "gone\x03", "\x04"],
  });
  assertEquals(code, 0);
  const asked = requests.map((request) => request.messages!.at(-1)!.content);
  assertEquals(asked, ["Hello", "Hello!", "pas\nted"]);
  const twice = await runFake(["chat"], { tty: true, stdin: ["\x03", "\x03", "Hi\r"] });
  assertEquals([twice.code, twice.requests.length], [130, 0]);
  assertStringIncludes(twice.stderr, "Ctrl-C again ends the chat");
});

Deno.test("chat: Ctrl-C stops the answer, a second one ends, a new message starts over", async () => {
  let interrupt = (): void => {};
  const model = { onPiece: (index: number) => index === 1 && interrupt() };
  const go = (stdin: string[]) => runFake(["chat"], { tty: true, model, stdin }, (press) => interrupt = press);
  const once = await go(["Hi\r", "And\r", "/bye\r"]);
  assertEquals([once.code, once.requests.length], [0, 2]);
  assertEquals((await go(["Hi\r", "\x03", "more\r"])).code, 130);
});

async function spawn(
  args: string[],
  flags: string[] = ["-A"],
): Promise<{ code: number; stdout: string; stderr: string }> {
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", ...flags, "cli.ts", ...args],
    cwd: root,
    stdin: "null",
    env: { NO_COLOR: "1" },
  });
  const { code, stdout, stderr } = await command.output();
  const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
  return { code, stdout: decode(stdout), stderr: decode(stderr) };
}

Deno.test("process: help and usage errors need no permission", async () => {
  const help = await spawn(["--help"], []);
  assertEquals([help.code, help.stderr], [0, ""]);
  const wrong = await spawn(["generate", "--nonsense"], []);
  assertEquals(wrong.code, 2);
  assertStringIncludes(wrong.stderr, "Unknown flag --nonsense");
});

Deno.test("process: devices on a real adapter, nothing but the answer on its streams", async () => {
  const { code, stdout, stderr } = await spawn(["devices", "--json"]);
  assertEquals([code, stderr], [0, ""]);
  assert(JSON.parse(stdout).devices.length > 0);
});
