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
import { openDevice } from "../tensor/mod.ts";
import { BenchArguments, printHelp } from "./arguments.ts";
import { leastSeconds, measureCeilings } from "./ceilings.ts";
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

if (printHelp(USAGE, Deno.args)) Deno.exit();
const flags = new BenchArguments(Deno.args), only = flags.text("only", ""), out = flags.text("out");
flags.check([]);
const device = await openDevice();
globalThis.addEventListener("unload", () => device.close());
const entries = kernelEntries(device.caps.cpu).filter(({ name }) => name.includes(only));
if (entries.length === 0) throw new Error(`--only=${only}: no kernel's name has that part`);
const ceilings = await measureCeilings(device);
const results = new Results<KernelResult>("kernels", device.info.description, Deno.args, out, () => {});

const NAME_WIDTH = Math.max(...entries.map(({ name }) => name.length));

/** Deno collects what benches log; this goes past it. */
function print(name: string, cells: readonly string[]): void {
  const line = `${name.padEnd(NAME_WIDTH)} ${cells.map((cell) => cell.padStart(11)).join("")}\n`;
  Deno.stderr.writeSync(new TextEncoder().encode(line));
}

/** The least seconds of one of an entry's copies. */
function leastOf({ program, copies }: OpenEntry): number {
  return program.dispatches.reduce((sum, dispatch) => sum + leastSeconds(dispatch, ceilings), 0) / copies;
}

function measured(name: string, entry: OpenEntry, timing: Timing): Omit<KernelResult, keyof Result> {
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
    roofline: leastOf(entry) / seconds,
  };
}

/** The entry that is being timed. */
let current: { readonly name: string; readonly entry: OpenEntry } | undefined;

/** Opens an entry, and times it when it is first asked for. */
async function openEntry({ name, open }: Entry): Promise<OpenEntry> {
  if (current?.name === name) return current.entry;
  current?.entry.release();
  const entry = open(device);
  current = { name, entry };
  const { microseconds, bytesPerSecond, memoryShare, flopsPerSecond, roofline } = results.add(
    measured(name, entry, await timeProgram(device, entry.program)),
  );
  const percent = (share: number): string => `${(100 * share).toFixed(0)}%`;
  const rates = [show(bytesPerSecond / 1e9), percent(memoryShare), show(flopsPerSecond / 1e9), percent(roofline)];
  print(name, [show(microseconds), ...rates]);
  return entry;
}

print(`${device.info.description}: ${show(ceilings.bytesPerSecond / 1e9)} GB/s copied`, []);
print("", ["us", "GB/s", "of copying", "Gop/s", "roofline"]);
for (const entry of entries) {
  Deno.bench({
    name: entry.name,
    n: 10,
    warmup: 1,
    async fn(bench) {
      const { program } = await openEntry(entry);
      bench.start();
      program.run();
      await finish(device);
      bench.end();
    },
  });
}
