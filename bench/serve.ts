/**
 * Times serving: a real engine over random 4-bit weights replays seeded traffic.
 *
 * `--decode` times decoding alone, that many sequences at once; `--interference` times how long running sequences wait for
 * their tokens while a long prompt is read. What is not asked for is not run; without any of the three all are. A line of JSON for
 * each on standard output and in `--out`, tables on standard error, and beside `--out` plots.
 *
 * @module
 */
import { openDevice } from "../tensor/mod.ts";
import { BenchArguments, runBench, UsageError } from "./arguments.ts";
import { Results } from "./result.ts";
import { plotServing } from "./serve_plot.ts";
import { decodeTable, interferenceTable, trafficTable } from "./serve_report.ts";
import { type ServeOptions, type ServeResult, timeDecode, timeInterference, timeTraffic } from "./serve_timing.ts";
import { shapeNames } from "./shapes.ts";
import { type WorkloadName, workloadNames } from "./workload.ts";

const USAGE =
  `deno task bench:serve [0.5b] [--precision=fast] [--workload=nano,random,shared-prefix] [--rate=inf] [--requests=256]
    [--decode=1,8,32,64,256 --context=512 --steps=128] [--interference=16,8192]
    [--scale=1] [--max-num-seqs=256] [--max-num-batched-tokens=512] [--pool=TOKENS] [--no-prefix-cache]
    [--seconds=300] [--seed=0] [--out=bench/results/FILE.jsonl]`;

/** What is run. */
interface Plan {
  readonly workloads: readonly WorkloadName[];
  readonly batches: readonly number[];
  /** Sequences that run, and tokens of the prompt that comes. */
  readonly interference: readonly number[];
}

function planOf(flags: BenchArguments, cpu: boolean): Plan {
  const all = !["workload", "decode", "interference"].some((name) => flags.has(name));
  const defaults = cpu ? { batches: [1, 8], interference: [8, 512] } : {
    batches: [1, 8, 32, 64, 256],
    interference: [16, 8192],
  };
  const names = flags.text("workload", all ? workloadNames.join(",") : "").split(",").filter((name) => name !== "");
  const workloads = names.map((name) => {
    const workload = workloadNames.find((known) => known === name);
    if (workload === undefined) throw new UsageError(`--workload=${name}: give ${workloadNames.join(", ")}`);
    return workload;
  });
  return {
    workloads,
    batches: flags.numbers("decode", all || flags.has("decode") ? defaults.batches : []),
    interference: flags.numbers("interference", all || flags.has("interference") ? defaults.interference : []),
  };
}

function optionsOf(flags: BenchArguments, cpu: boolean): ServeOptions {
  const maxNumSeqs = flags.number("max-num-seqs", cpu ? 16 : 256);
  const shape = shapeNames.find((name) => flags.words.includes(name)) ?? (cpu ? "stories" : "0.5b");
  return {
    shape,
    precision: flags.choice("precision", cpu ? ["exact", "fast"] : ["fast", "exact"]),
    context: flags.number("context", cpu ? 64 : 512),
    steps: flags.number("steps", cpu ? 16 : 128),
    scale: flags.number("scale", cpu ? 1 / 16 : 1, "number above 0"),
    requests: flags.number("requests", cpu ? 16 : undefined),
    rate: flags.number("rate", Infinity, "number above 0"),
    seed: flags.number("seed", 0, "whole number of at least 0"),
    maxNumSeqs,
    maxNumBatchedTokens: flags.number("max-num-batched-tokens", 512),
    poolTokens: flags.number("pool"),
    prefixCache: !flags.on("no-prefix-cache"),
  };
}

async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args);
  const device = await openDevice();
  const options = optionsOf(flags, device.caps.cpu), plan = planOf(flags, device.caps.cpu);
  const out = flags.text("out"), seconds = flags.number("seconds", 300, "number above 0");
  flags.check(shapeNames);
  const results = new Results<ServeResult>("serve", device.info.description, args, out);
  const end = performance.now() + 1000 * seconds;
  const late = (): boolean => performance.now() > end;
  const work = [
    ...plan.batches.map((batch) => () => timeDecode(device, options, batch)),
    ...(plan.interference.length > 0 ? [() => timeInterference(device, options, plan.interference)] : []),
  ];
  for (const measure of work) if (!late()) results.add(await measure());
  if (plan.workloads.length > 0 && !late()) {
    for await (const result of timeTraffic(device, options, plan.workloads)) {
      results.add(result);
      if (late()) break;
    }
  }
  const left = work.length + plan.workloads.length - results.all.length;
  if (left > 0) console.error(`${left} measurements were left out: ${seconds} seconds are over (--seconds)`);
  device.close();
  const tables = [decodeTable(results.all), interferenceTable(results.all), trafficTable(results.all)];
  console.error(tables.filter((table) => table !== "").join("\n\n"));
  if (out !== undefined) await plotServing(out.replace(/\.jsonl$/, ""), results.all);
}

if (import.meta.main) await runBench(USAGE, main);
