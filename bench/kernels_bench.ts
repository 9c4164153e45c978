/**
 * Times kernels in the shapes of real models.
 *
 * Every case of the table of kernels, and every 4-bit matrix-vector product of the shapes that benches know. On standard error
 * microseconds, GB/s, percent of the device's measured copy bandwidth, billions of operations a second and percent of the
 * roofline; in `--out` a line of JSON each; on standard output Deno's own table, whose times are those of a whole run: upload,
 * submission, dispatches and read-back. `--only` chooses entries by a part of their name.
 *
 * @module
 */
import { type Device, openDevice } from "../tensor/mod.ts";
import { BenchArguments, runBench, UsageError } from "./arguments.ts";
import { type Ceilings, leastSeconds, measureCeilings } from "./ceilings.ts";
import { costOf, type Entry, kernelEntries, type OpenEntry } from "./kernel_entries.ts";
import { type Result, Results } from "./result.ts";
import { formatNumber as show } from "./table.ts";
import { finish, timeProgram, type Timing } from "./timing.ts";

/** What was measured of an entry. */
interface KernelResult extends Result {
  readonly kernel: string;
  readonly microseconds: number;
  /** Runs that they are the time of. */
  readonly runs: number;
  /** Bytes that have to move. */
  readonly bytes: number;
  readonly flops: number;
  readonly bytesPerSecond: number;
  readonly flopsPerSecond: number;
  /** Bytes a second that the device copies. */
  readonly copyBytesPerSecond: number;
  /** Bytes a second, as a share of that. */
  readonly memoryShare: number;
  /** The least time that bytes and operations take at the device's measured rates, as a share of the time taken. */
  readonly roofline: number;
}

const USAGE = "deno task bench:kernels [--only=matrix-vector] [--out=bench/results/FILE.jsonl]";

/** Deno collects what benches log; this goes past it. */
function print(name: string, cells: readonly string[]): void {
  const line = `${name} ${cells.map((cell) => cell.padStart(11)).join("")}\n`;
  Deno.stderr.writeSync(new TextEncoder().encode(line));
}

/** The least seconds of one of an entry's copies. */
function leastOf({ program, copies }: OpenEntry, ceilings: Ceilings): number {
  return program.dispatches.reduce((sum, dispatch) => sum + leastSeconds(dispatch, ceilings), 0) / copies;
}

function measured(
  name: string,
  entry: OpenEntry,
  timing: Timing,
  ceilings: Ceilings,
): Omit<KernelResult, keyof Result> {
  const { runs } = timing, microseconds = timing.microseconds / entry.copies;
  const { bytes, flops } = costOf(entry), seconds = microseconds / 1e6;
  return {
    ...{
      kernel: name,
      microseconds,
      runs,
      bytes,
      flops,
      bytesPerSecond: bytes / seconds,
      flopsPerSecond: flops / seconds,
    },
    ...{ copyBytesPerSecond: ceilings.bytesPerSecond, memoryShare: bytes / seconds / ceilings.bytesPerSecond },
    roofline: leastOf(entry, ceilings) / seconds,
  };
}

/** Times entries when they are first asked for, and prints a line of each. */
class KernelTimer {
  /** The entry that is being timed. */
  #current: { readonly name: string; readonly entry: OpenEntry } | undefined;

  constructor(
    readonly device: Device,
    readonly ceilings: Ceilings,
    readonly results: Results<KernelResult>,
    readonly nameWidth: number,
  ) {}

  /** Opens an entry, once while no other is asked for. */
  async open({ name, open }: Entry): Promise<OpenEntry> {
    if (this.#current?.name === name) return this.#current.entry;
    this.#current?.entry.release();
    const entry = open(this.device);
    this.#current = { name, entry };
    const { microseconds, bytesPerSecond, memoryShare, flopsPerSecond, roofline } = this.results.add(
      measured(name, entry, await timeProgram(this.device, entry.program), this.ceilings),
    );
    const percent = (share: number): string => `${(100 * share).toFixed(0)}%`;
    const rates = [show(bytesPerSecond / 1e9), percent(memoryShare), show(flopsPerSecond / 1e9), percent(roofline)];
    print(name.padEnd(this.nameWidth), [show(microseconds), ...rates]);
    return entry;
  }
}

/** Tells Deno what to time. */
async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args), only = flags.text("only", ""), out = flags.text("out");
  flags.check([]);
  const device = await openDevice();
  globalThis.addEventListener("unload", () => device.close());
  const all = kernelEntries(device.caps.cpu), entries = all.filter(({ name }) => name.includes(only));
  if (entries.length === 0) {
    throw new UsageError(
      `--only=${only}: no kernel's name has that part; give a part of one such as "${all.at(-1)!.name}"`,
    );
  }
  const ceilings = await measureCeilings(device), nameWidth = Math.max(...entries.map(({ name }) => name.length));
  const results = new Results<KernelResult>("kernels", device.info.description, args, out, () => {});
  const timer = new KernelTimer(device, ceilings, results, nameWidth);
  print(`${device.info.description}: ${show(ceilings.bytesPerSecond / 1e9)} GB/s copied`.padEnd(nameWidth), []);
  print("".padEnd(nameWidth), ["us", "GB/s", "of copying", "Gop/s", "roofline"]);
  for (const entry of entries) {
    Deno.bench({
      name: entry.name,
      n: 10,
      warmup: 1,
      async fn(bench) {
        const { program } = await timer.open(entry);
        bench.start();
        program.run();
        await finish(device);
        bench.end();
      },
    });
  }
}

await runBench(USAGE, main);
