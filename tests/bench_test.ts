import { assert, assertEquals, assertThrows } from "@std/assert";
import configuration from "../deno.json" with { type: "json" };
import { BenchArguments, UsageError } from "../bench/arguments.ts";
import { compareResults, comparisonHead, comparisonTable } from "../bench/compare.ts";
import { report } from "../bench/eval_precision.ts";
import { roleOf } from "../bench/roles.ts";
import { openBenchEngine } from "../bench/serve_engine.ts";
import { latencies, replay, steadyRate, submit } from "../bench/serve_replay.ts";
import { compareWaits } from "../bench/serve_timing.ts";
import { shapeConfig } from "../bench/shapes.ts";
import { cumulative, summarise } from "../bench/statistics.ts";
import { stepOf } from "../bench/step.ts";
import { barChart, lineChart } from "../bench/svg.ts";
import { formatNumber, formatTable } from "../bench/table.ts";
import { longestRequest, makeWorkload, workloadNames } from "../bench/workload.ts";
import { seededRandom } from "../kernels/random.ts";
import type { EngineClient, EngineStats } from "../serving/engine_types.ts";
import { openDevice } from "../tensor/mod.ts";

Deno.test("bench: each says how it is called, by the name of its task", async () => {
  const scripts = Object.entries(configuration.tasks).flatMap(([task, { command }]) => {
    const [, ...args] = /deno ((?:run|bench) .*(?:bench\/|scripts\/demo_)\w+\.ts.*)$/.exec(command) ?? [];
    return args.map((text) => ({ task, args: text.split(" ") }));
  });
  assert(scripts.length > 10, `${scripts.length} benches`);
  for (const { task, args } of scripts) {
    const cwd = new URL("../", import.meta.url),
      command = new Deno.Command(Deno.execPath(), { args: [...args, "--help"], cwd });
    const { code, stdout } = await command.output(), text = new TextDecoder().decode(stdout);
    assertEquals([code, text.split(" ").slice(0, 4).join(" ").trim()], [0, `Usage: deno task ${task}`], text);
  }
});

Deno.test("bench: workloads are the same for the same seed, and as their names say", () => {
  const options = { seed: 3, vocabSize: 1000, scale: 1, rate: Infinity };
  for (const name of workloadNames) {
    const workload = makeWorkload(name, options);
    assertEquals(makeWorkload(name, options), workload);
    assert(JSON.stringify(makeWorkload(name, { ...options, seed: 4 })) !== JSON.stringify(workload));
    assert(workload.requests.every(({ prompt }) => prompt.every((id) => id >= 0 && id < 1000)));
    assert(workload.requests.every(({ arrivalMs }) => arrivalMs === 0));
  }
  const nano = makeWorkload("nano", options);
  assertEquals(nano.requests.length, 256);
  const lengths = nano.requests.flatMap(({ prompt, maxTokens }) => [prompt.length, maxTokens]);
  assert(Math.min(...lengths) >= 100 && Math.max(...lengths) <= 1024 && longestRequest(nano) <= 2048);
  const shared = makeWorkload("shared-prefix", options).requests.map(({ prompt }) => prompt.slice(0, 2000).join());
  assertEquals(new Set(shared).size, 1);
  const spread = makeWorkload("random", { ...options, rate: 10, requests: 500 }).requests;
  const mean = spread.at(-1)!.arrivalMs / spread.length;
  assert(mean > 80 && mean < 120, `a mean of ${mean} ms between arrivals, and 100 were asked for`);
});

const STATS: EngineStats = {
  ...{ waiting: 0, running: 1, blocks: 10, usedBlocks: 5, blockSize: 16, prefixHits: 0, prefixMisses: 0 },
  ...{ preemptions: 0, steps: 0, promptTokens: 0, generatedTokens: 0, schedulingMs: 0, peakBytes: 0 },
  ...{ promptTokensPerSecond: 0, generatedTokensPerSecond: 0 },
};

Deno.test("bench: a replay takes down every output of every request", async () => {
  const engine: Pick<EngineClient, "addRequest" | "stats"> = {
    stats: () => STATS,
    addRequest({ id, maxTokens }, sink) {
      queueMicrotask(() => {
        for (let token = 1; token <= maxTokens; token++) {
          sink.output({
            id,
            index: 0,
            tokens: [token],
            ...(token === maxTokens && { finishReason: "length" as const }),
          });
        }
      });
    },
  };
  const requests = [3, 1, 5].map((maxTokens, i) => ({ arrivalMs: i, prompt: [1], maxTokens }));
  const replayed = await replay(engine as EngineClient, requests);
  assertEquals(replayed.traces.map(({ outputs }) => outputs.length), [3, 1, 5]);
  const { ttft, tpot, itl } = latencies(replayed);
  assertEquals([ttft.length, tpot.length, itl.length], [3, 2, 6]);
  assertEquals(replayed.samples[0], { running: 1, waiting: 0, kv: 0.5 });
});

Deno.test("bench: the steady rate counts from the last first token to the first last one", () => {
  const trace = (...times: number[]) => ({ arrived: 0, outputs: times.map((at) => [at, 2] as const) });
  // From 20 to 50 there are outputs at 30, 40, 50 and 30, 50: ten tokens in 30 ms.
  const { tokensPerSecond, milliseconds } = steadyRate([trace(10, 20, 30, 40, 50), trace(20, 30, 50, 60)]);
  assertEquals([Math.round(tokensPerSecond), milliseconds], [333, 30]);
  for (const few of [[trace(10), trace(20)], [trace(0, 10, 20, 30), trace(11, 19)], [trace(5, 5), trace(5, 5)]]) {
    assertEquals(steadyRate(few).tokensPerSecond, 0, "a request has too few outputs in between");
  }
});

Deno.test("bench: what is timed on its own is the program that the engine ran", async () => {
  const device = await openDevice(),
    limits = { maxNumSeqs: 2, maxNumBatchedTokens: 8, poolTokens: 64, contextLength: 32 };
  const bench = openBenchEngine(device, { shape: "stories", precision: "exact", prefixCache: false, ...limits });
  await submit(bench.engine, { prompt: [1, 2, 3, 4, 5, 6, 7, 8], maxTokens: 3 }).done;
  const compiled = device.pipelineCount, context = 20, chunk = 8;
  const decode = bench.programOf(stepOf({ batch: 1, tokens: 1, context, chunk })).program;
  const prefill = bench.programOf(stepOf({ batch: 2, tokens: 12, context, chunk })).program;
  assertEquals([device.pipelineCount, decode === prefill], [compiled, false]);
  await bench.engine.close(new Error("The test is over"));
  device.close();
});

Deno.test("bench: a step is what an engine would make of so many sequences", () => {
  const options = { context: 20, chunk: 8 };
  const sizes = (batch: number, tokens: number): number[] => {
    return stepOf({ batch, tokens, ...options }).scheduled.map(({ numTokens }) => numTokens);
  };
  assertEquals([sizes(3, 1), sizes(12, 1).length, sizes(3, 4), sizes(2, 12)], [[1, 1, 1], 12, [4, 4], [8]]);
  const [first, second] = stepOf({ batch: 2, tokens: 1, ...options }).scheduled;
  assertEquals([first!.start, first!.sequence.blockTable, second!.sequence.blockTable], [19, [0, 1], [2, 3]]);
});

Deno.test("bench: waits are compared by output and by token", () => {
  const quiet = [{ milliseconds: 8, tokens: 8 }, { milliseconds: 8, tokens: 8 }];
  const { outputRatio, tokenRatio, busyToken, quietToken } = compareWaits(quiet, [{ milliseconds: 16, tokens: 1 }]);
  assertEquals([outputRatio, tokenRatio], [2, 16]);
  assertEquals([quietToken.count, quietToken.p50, busyToken.p50], [16, 1, 16]);
});

Deno.test("bench: summaries and distributions", () => {
  const random = seededRandom(1), values = Array.from({ length: 1001 }, () => random.uniform());
  const { p50, p99, min, max, mean, count } = summarise(values);
  const sorted = values.toSorted((a, b) => a - b);
  assertEquals([count, min, p50, p99, max], [1001, sorted[0], sorted[500], sorted[990], sorted[1000]]);
  assert(Math.abs(mean - 0.5) < 0.05);
  assertEquals(cumulative([4, 2], 2), [[2, 0], [3, 0.5], [4, 1]]);
  assertEquals(cumulative([]), []);
});

Deno.test("bench: flags, and what is none", () => {
  const flags = new BenchArguments(["0.5b", "--context=512,8192", "--profile", "--steps=20"]);
  assertEquals(flags.numbers("context", [1]), [512, 8192]);
  assertEquals([flags.number("steps", 1), flags.number("batch", 7), flags.has("profile")], [20, 7, true]);
  assertEquals([flags.choice("precision", ["exact", "fast"]), flags.words], ["exact", ["0.5b"]]);
  flags.check(["0.5b"]);
  assertThrows(() => flags.check(["7b"]), Error, 'Unknown "0.5b": give 7b');
  assertEquals(new BenchArguments(["--rate=inf"]).number("rate", 1, "number above 0"), Infinity);
  assertEquals([new BenchArguments(["--batch"]).numbers("batch", [7]), new BenchArguments([]).number("batch")], [
    [7],
    undefined,
  ]);
  const steps = (flags: BenchArguments): unknown => flags.number("steps", 1);
  const cases: [string[], (flags: BenchArguments) => unknown, string][] = [
    [["--stpes=2"], (flags) => flags.check(), "Unknown flag --stpes: there are none"],
    [["--stpes=2"], (flags) => [steps(flags), flags.check()], "Unknown flag --stpes: did you mean --steps?"],
    [["-x"], (flags) => flags.check(), "Unknown flag -x"],
    [["-", "b"], (flags) => flags.check(1), 'Unknown "b": leave it out'],
    [["--steps=many"], steps, '--steps needs a whole number of at least 1, and was given "many"'],
    [["--steps=0"], steps, '--steps needs a whole number of at least 1, and was given "0"'],
    [["--steps=inf"], steps, '--steps needs a whole number of at least 1, and was given "inf"'],
    [["--steps"], steps, "--steps needs a value: write --steps=VALUE"],
    [["--steps=8,-1"], (flags) => flags.numbers("steps", [1]), 'and was given "-1"'],
    [["--steps=8,"], (flags) => flags.numbers("steps", [1]), 'and was given ""'],
    [["--cold=yes"], (flags) => flags.on("cold"), '--cold takes no value, and was given "yes": write --cold alone'],
    [["--precision=half"], (flags) => flags.choice("precision", ["exact"]), 'one of exact, and was given "half"'],
  ];
  for (const [args, read, message] of cases) assertThrows(() => read(new BenchArguments(args)), UsageError, message);
});

Deno.test("bench: what was called wrongly and what failed is one line, and ends with 2 or 1", async () => {
  const cwd = new URL("../", import.meta.url), run = ["run", "-A"];
  const cases: [string[], number, string][] = [
    [["bench", "-A", "bench/kernels_bench.ts", "--", "--bogus=1"], 2, "Unknown flag --bogus: there are --only, --out"],
    [[...run, "scripts/demo_batch.ts", "--bogus=1"], 2, "Unknown flag --bogus: there are none"],
    [
      [...run, "bench/scheduler.ts", "--sequences=0"],
      2,
      '--sequences needs a whole number of at least 1, and was given "0"',
    ],
    [[...run, "bench/first_token.ts", "--bogus=1"], 2, "Unknown flag --bogus: there are --cold, --runs"],
    [
      [...run, "bench/decode.ts", "--tokens=5"],
      2,
      "Unknown flag --tokens: there are --precision, --profile, --context, --steps, --batch, --out",
    ],
    [
      [...run, "bench/decode.ts", "--context=-1"],
      2,
      '--context needs a whole number of at least 1, and was given "-1"',
    ],
    [
      [...run, "bench/decode.ts", "--context=32768", "--steps=8"],
      2,
      "A sequence takes 32804 positions with what is timed of it, and stories has 32768: ask for 36 tokens less",
    ],
    [
      [...run, "bench/prefill.ts", "0.5b", "--tokens=512,40000"],
      2,
      "A sequence takes 40001 positions with what is timed of it, and 0.5b has 32768: ask for 7233 tokens less",
    ],
    [
      [...run, "bench/decode.ts", "--out=no/such/folder"],
      1,
      'Cannot write "no/such/folder": there is no such file or folder',
    ],
    [["run", "--allow-read", "bench/compare.ts", "no"], 2, "Give two files of results: bench:compare A B"],
    [["run", "--allow-read", "bench/compare.ts", "no", "b"], 1, 'Cannot read "no": there is no such file or folder'],
  ];
  for (const [args, status, message] of cases) {
    const { code, stderr } = await new Deno.Command(Deno.execPath(), { args: [args[0]!, "-q", ...args.slice(1)], cwd })
      .output();
    assertEquals([code, new TextDecoder().decode(stderr)], [status, `error: ${message}\n`], args.join(" "));
  }
});

Deno.test("bench: results are compared where they measured the same, noise is no change", () => {
  const line = (shape: string, tokensPerSecond: number, half = 0, count = 8) => {
    return { shape, precision: "fast", tokensPerSecond, step: { count, p25: 1 - half, p50: 1, p75: 1 + half } };
  };
  const before = [line("0.5b", 100), line("7b", 100), line("stories", 100, 0.1)];
  const after = [line("0.5b", 90), line("7b", 102), line("stories", 110, 0.1), line("1.5b", 5)];
  const compared = compareResults(before, after);
  assertEquals(compared.map(({ verdict }) => verdict), ["worse", "same", "noise"]);
  assert(comparisonTable(compared).includes("-10.0%  worse"));
  assert(comparisonTable(compared).includes("+10.0%  spreads overlap"));
  const [scheduling] = compareResults([{ schedulingMs: 0.009 }], [{ schedulingMs: 0.013 }]);
  assertEquals(scheduling?.verdict, "same");
  const verdictOf = (before: Record<string, unknown>, after: Record<string, unknown>): string => {
    return comparisonTable(compareResults([before], [after])).split("\n").at(-1)!.trimEnd().replace(/.*%\s*/, "");
  };
  const few = line("7b", 90, 0, 3), p99 = (p99: number, count: number) => ({ itl: { count, p99 } });
  assertEquals(verdictOf(line("7b", 100), few), "3 measurements: not judged");
  assertEquals(verdictOf({ requestsPerSecond: 20 }, { requestsPerSecond: 30 }), "one run: not judged");
  assertEquals(verdictOf({ requestsPerSecond: 20 }, { requestsPerSecond: 20.1 }), "");
  assertEquals(verdictOf({ dispatches: 30 }, { dispatches: 29 }), "better");
  assertEquals(verdictOf(p99(10, 900), p99(20, 256)), "256 measurements: not judged");
  assertEquals(verdictOf(p99(10, 900), p99(20, 900)), "worse");
  const from = (device: string, day: number) => ({ device, date: `2026-11-0${day}` });
  assertEquals(
    comparisonHead([from("A", 2), from("A", 1)], [from("A", 3)]),
    "before  A  2026-11-01 to 2026-11-02\nafter   A  2026-11-03",
  );
  assert(comparisonHead([from("A", 1)], [from("B", 1)]).includes("The devices differ"));
});

Deno.test("bench: an evaluation of fast precision fails where a figure misses its target", () => {
  const good = {
    positions: 100,
    predicted: 99,
    agree: 99,
    clear: 0,
    clearAgree: 0,
    kl: 0.1,
    exactNll: 50,
    fastNll: 50,
  };
  const lines: string[] = [], print = (line: string): void => void lines.push(line);
  report(good, print);
  assertEquals([lines.length, lines.every((line) => line.startsWith("ok"))], [4, true]);
  lines.length = 0;
  assertThrows(() => report({ ...good, agree: 97, kl: 0.3 }, print), Error, "Fast precision misses 2 of 4 targets");
  assertEquals(lines.map((line) => line.slice(0, 4)), ["FAIL", "ok  ", "FAIL", "ok  "]);
});

Deno.test("bench: a product's role is told by its size", () => {
  const config = shapeConfig("7b"), { hiddenSize: hidden, intermediateSize: inner, vocabSize } = config;
  const role = (name: string, flops = 0): string =>
    roleOf({ name, fused: [], shape: [], cost: { flops, bytes: 0 }, wgsl: "" }, config, 64, 4);
  assertEquals(role("int8_matmul", 2 * 64 * hidden * (hidden + 2 * 512)), "QKV");
  assertEquals(role("int8_matmul", 2 * 64 * hidden * hidden), "attention's output");
  assertEquals(role("quantised_matmul + epilogue", 2 * 64 * hidden * 2 * inner), "gate and up");
  assertEquals(role("quantised_matmul", 2 * 64 * hidden * inner), "down");
  assertEquals(role("quantised_matmul", 2 * 4 * hidden * vocabSize), "LM head");
  assertEquals([role("paged_attention"), role("rms_norm_quantise32"), role("other")], ["attention", "norms", "other"]);
});

Deno.test("bench: tables and plots", () => {
  assertEquals(formatTable(["a", "b"], [["long", 1], ["x", "20"]]), "a      b\nlong   1\nx     20");
  assertEquals([1234.5, 56, 56.78, 1.234, 0.1234, NaN].map(formatNumber), [
    "1,235",
    "56",
    "56.8",
    "1.23",
    "0.123",
    "–",
  ]);
  const line = lineChart({
    title: "<Rates>",
    x: { label: "batch", log: true, ticks: [1, 8] },
    y: { label: "tok/s" },
    series: [{ name: "a", points: [[1, 10], [8, 40]], marked: true }, { name: "none", points: [] }],
  });
  assert(line.startsWith("<svg ") && line.includes("&lt;Rates&gt;") && !line.includes("NaN"));
  assertEquals([line.match(/<path /g)?.length, line.match(/<circle /g)?.length], [1, 2]);
  const bars = barChart({
    title: "Time",
    unit: "us",
    bars: [{ label: "exact", parts: [{ name: "a", value: 1 }, { name: "b", value: 3 }] }],
  });
  assert(bars.includes("<title>b: 3 us</title>") && !bars.includes("NaN"));
});
