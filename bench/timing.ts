/**
 * Times programs: by the clock over many runs and one read-back, and by the GPU's timestamps where it has them.
 *
 * @module
 */
import type { Device, Program, Storage } from "../tensor/mod.ts";
import { median } from "./statistics.ts";

/** Time of a run. */
export interface Timing {
  /** Microseconds of a run's dispatches. */
  readonly microseconds: number;
  /** Runs that were timed by the clock. */
  readonly runs: number;
}

/** Microseconds spent on one program. */
const BUDGET = 100_000;
const MOST_RUNS = 200;

/** Milliseconds of work in which a GPU that was idle reaches its clock: until then it took five times as long. */
const WARM_MS = 400;

/** Waits until everything submitted so far has run. */
export async function finish(device: Device): Promise<void> {
  let fence = fences.get(device);
  if (!fence) fences.set(device, fence = device.storage("u32", [4], "fence"));
  await device.readStorage(fence);
}

const fences = new WeakMap<Device, Storage>();

/** Microseconds of each of `runs` runs by the clock, after one that warms up, everything included. */
export async function wallMicroseconds(device: Device, runs: number, run: () => void): Promise<number> {
  run();
  await finish(device);
  const start = performance.now();
  for (let i = 0; i < runs; i++) run();
  await finish(device);
  return (performance.now() - start) * 1000 / runs;
}

/** Runs a program until a GPU's clock is what it is under load. */
async function warmUp(device: Device, program: Program): Promise<void> {
  const end = performance.now() + (device.caps.cpu ? 0 : WARM_MS);
  while (performance.now() < end) {
    for (let i = 0; i < 8; i++) program.run();
    await finish(device);
  }
}

/**
 * Times a program without inputs. The first runs warm it up and decide how many follow. The lesser of two measures counts, since
 * each has a cost of its own: runs by the clock wait for the CPU where dispatches are short, and timestamps take a pass a dispatch.
 */
export async function timeProgram(device: Device, program: Program): Promise<Timing> {
  await warmUp(device, program);
  const once = await wallMicroseconds(device, 2, () => program.run());
  const runs = Math.max(3, Math.min(MOST_RUNS, Math.round(BUDGET / once)));
  const wall = await wallMicroseconds(device, runs, () => program.run());
  if (!device.caps.timestamps) return { microseconds: wall, runs };
  const times: number[] = [];
  for (let run = 0; run < Math.min(runs, 20); run++) {
    times.push((await program.profile()).reduce((sum, time) => sum + time, 0));
  }
  return { microseconds: Math.min(wall, median(times)), runs };
}
