/**
 * Times what everything else is held against: how fast the device copies memory, reads it and computes, and how long the host waits
 * for a token id.
 *
 * @module
 */
import { assign, buffer, compile, constant, type Device, map, openDevice, Storage } from "../tensor/mod.ts";
import { BenchArguments, runBench } from "./arguments.ts";
import { type Ceilings, measureCeilings } from "./ceilings.ts";
import { type ReadTiming, timeReadDispatches } from "./reads.ts";
import { type Result, Results } from "./result.ts";
import { summarise, type Summary } from "./statistics.ts";
import { formatNumber as show, formatTable } from "./table.ts";

const USAGE = "deno task bench:device [--reads=200] [--out=bench/results/FILE.jsonl]";

/** A line of results. */
interface DeviceResult extends Result, Ceilings {
  /** Milliseconds from asking for a token id until it is there, a dispatch that writes it having been submitted just before. */
  readonly readback: Summary;
  /** Dispatches that only read, of the sizes of 7B's larger weights. */
  readonly reads: readonly ReadTiming[];
}

/** Milliseconds of each of `reads` reads of 4 bytes; a quarter as many come before. */
async function timeReads(device: Device, reads: number): Promise<number[]> {
  const token = new Storage("i32", [1], new Int32Array(1), "a token id"), times: number[] = [];
  using program = compile(device, () => assign(buffer(token), map("add", buffer(token), constant(1, "i32"))));
  for (let read = -Math.ceil(reads / 4); read < reads; read++) {
    program.run();
    const start = performance.now();
    const { buffer: from, offset } = device.resident(token);
    await device.read(from, "i32", 1, offset);
    if (read >= 0) times.push(performance.now() - start);
  }
  token.release();
  return times;
}

async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args), readbacks = flags.number("reads", 200), out = flags.text("out");
  flags.check([]);
  const device = await openDevice();
  const results = new Results<DeviceResult>("device", device.info.description, args, out);
  const readback = summarise(await timeReads(device, readbacks));
  const { bytesPerSecond, flopsPerSecond, integerOpsPerSecond, reads } = results.add({
    ...await measureCeilings(device),
    readback,
    reads: await timeReadDispatches(device),
  });
  device.close();
  console.error(formatTable(["", "", "min", "max"], [
    ["GB/s copied, read and written", show(bytesPerSecond / 1e9)],
    ["billions of f32 operations a second", show(flopsPerSecond / 1e9)],
    ["billions of operations a second on packed 8-bit integers", show(integerOpsPerSecond / 1e9)],
    ...reads.map(({ bytes, microseconds, bytesPerSecond }) => [
      `GB/s read by a dispatch of ${show(bytes / 1e6)} MB (${show(microseconds)} us)`,
      show(bytesPerSecond / 1e9),
    ]),
    [`ms to read a token id, median of ${readbacks}`, ...[readback.p50, readback.min, readback.max].map(show)],
  ]));
}

if (import.meta.main) await runBench(USAGE, main);
