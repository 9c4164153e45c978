/**
 * Times every kernel of the table in the shapes of real models. `deno task bench` prints, on standard error, microseconds,
 * GB/s, GFLOP/s and percent of the device's measured ceiling for each; on standard output Deno's own table, whose times are
 * those of a whole run: upload, submission, dispatch and read-back. TINYLLM_BENCH chooses cases by a part of
 * their name.
 */
import { seededRandom } from "../kernels/random.ts";
import type { CaseCall, KernelCase } from "../kernels/spec.ts";
import { openDevice, type Program } from "../tensor/mod.ts";
import { compileKernel } from "../tensor/run_kernel.ts";
import { KERNEL_CASES } from "../tests/kernel_table.ts";
import { measureCeilings } from "./ceilings.ts";
import { finish, timeProgram } from "./timing.ts";

/** One shape of one case. */
interface Entry {
  readonly name: string;
  readonly kernelCase: KernelCase<unknown>;
  readonly make: (random: ReturnType<typeof seededRandom>) => CaseCall<unknown>;
}

const wanted = Deno.env.get("TINYLLM_BENCH") ?? "";
const device = await openDevice();
globalThis.addEventListener("unload", () => device.close());

const entries = KERNEL_CASES.flatMap((kernelCase) =>
  Object.entries(kernelCase.bench ?? {}).map(([label, make]): Entry => {
    return { name: `${kernelCase.name}: ${label}`, kernelCase, make };
  })
).filter(({ name }) => name.includes(wanted) && !(device.caps.cpu && name.includes(": 7B")));

const NAME_WIDTH = Math.max(...entries.map(({ name }) => name.length), 0);
const ceilings = await measureCeilings(device);

/** Deno collects what benches log; this goes past it. */
function print(line: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`${line}\n`));
}

function printHeader(): void {
  const { bytesPerSecond, flopsPerSecond } = ceilings;
  const how = device.caps.timestamps ? "the GPU's timestamps" : "the clock";
  print(
    `${device.info.description || device.info.device}: ${(bytesPerSecond / 1e9).toFixed(1)} GB/s copied, ` +
      `${(flopsPerSecond / 1e9).toFixed(1)} GFLOP/s of f32 multiply-adds; times by ${how}\n` +
      `${"".padEnd(NAME_WIDTH)} ${["us", "GB/s", "GFLOP/s", "ceiling"].map((head) => head.padStart(10)).join("")}`,
  );
}

function printRow(name: string, program: Program, microseconds: number): void {
  const { bytes, flops } = program.dispatches.map(({ cost }) => cost).reduce((a, b) => ({
    bytes: a.bytes + b.bytes,
    flops: a.flops + b.flops,
  }));
  const seconds = microseconds / 1e6;
  const least = Math.max(bytes / ceilings.bytesPerSecond, flops / ceilings.flopsPerSecond);
  const cells = [
    microseconds.toFixed(1),
    (bytes / seconds / 1e9).toFixed(2),
    (flops / seconds / 1e9).toFixed(2),
    `${(100 * least / seconds).toFixed(0)}%`,
  ];
  print(`${name.padEnd(NAME_WIDTH)} ${cells.map((cell) => cell.padStart(10)).join("")}`);
}

/** The program of the entry that is being timed; one at a time, since large weights do not all fit. */
let current: { readonly name: string; readonly program: Program; release(): void } | undefined;

/** Compiles an entry and prints its row when it is first asked for. */
async function programOf({ name, kernelCase, make }: Entry): Promise<Program> {
  if (current?.name === name) return current.program;
  current?.release();
  current = { name, ...compileKernel(device, kernelCase.kernel, make(seededRandom(1))) };
  printRow(name, current.program, (await timeProgram(device, current.program)).microseconds);
  return current.program;
}

printHeader();
for (const entry of entries) {
  Deno.bench({
    name: entry.name,
    n: 10,
    warmup: 1,
    async fn(bench) {
      const program = await programOf(entry);
      bench.start();
      program.run();
      await finish(device);
      bench.end();
    },
  });
}
