/** Runs that are submitted together compute what they compute one by one, and cost a submission. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { seededRandom } from "../kernels/random.ts";
import { deviceTests } from "../tensor/device_testing.ts";
import {
  assign,
  buffer,
  compile,
  constant,
  type Device,
  DeviceLostError,
  input,
  map,
  type Program,
  reduceLast,
  reshape,
  type RunValues,
  Storage,
  Submission,
  Sym,
} from "../tensor/mod.ts";

const deviceTest = deviceTests("submission");

/**
 * Makes `log = scale * log + sum(x)`, which tells the values of all runs and their order, and `2 * y` of a size that changes.
 *
 * @param width Elements of `x`.
 */
function logger(device: Device, log: Storage, scale: number, width = 1): Program {
  return compile(device, () => {
    const before = map("mul", buffer(log), constant(scale, "f32"));
    const sum = reshape(reduceLast(input("x", "f32", [1, width]), "sum"), [1]);
    const doubled = map("mul", input("y", "f32", [new Sym("rows", ROWS)]), constant(2, "f32"));
    return [assign(buffer(log), map("add", before, sum)), doubled];
  });
}

const ROWS = 50;

const values = (x: readonly number[], y: readonly number[] = [1]): RunValues => ({
  inputs: { x, y },
  sizes: { rows: y.length },
});

/** What a queue is given from now on: the number of command buffers of each submission. */
function watchSubmissions({ gpu: { queue } }: Device): number[] {
  const submissions: number[] = [], submit = queue.submit.bind(queue);
  queue.submit = (commands) => {
    submissions.push([...commands].length);
    return submit(commands);
  };
  return submissions;
}

deviceTest("runs of some programs in groups of any size, with others alone in between", async (device) => {
  const random = seededRandom(7), below = (count: number): number => random.integer(0, count - 1);
  const log = device.storage("f32", [1], "log"), scales = [-1, 0.5, -0.25];
  const programs = scales.map((scale, i) => logger(device, log, scale, 1 + 90 * i));
  using submission = new Submission(device), other = new Submission(device);
  const submissions = watchSubmissions(device);
  let expected = 0;
  for (let group = 0; group < 60; group++) {
    const count = below(9);
    for (let run = 0; run < count; run++) {
      const at = below(3), program = programs[at]!;
      const x = Array.from({ length: 1 + 90 * at }, () => below(16)), y = Array.from({ length: below(ROWS) }, Number);
      if (below(3) === 0) program.encodeAhead({ rows: below(2) === 0 ? y.length : 1 });
      program.run(values(x, y), submission);
      expected = Math.fround(scales[at]! * expected + x.reduce((a, b) => a + b));
    }
    submission.flush();
    submission.flush();
    assertEquals([submissions.splice(0), submission.size], [count > 0 ? [count] : [], 0]);
    const alone = below(3), y = Array.from({ length: below(ROWS) }, () => below(100));
    if (alone < 2) {
      programs[0]!.run(values([group], y), alone === 0 ? undefined : other);
      other.flush();
      expected = Math.fround(group - expected);
      assertEquals([...await programs[0]!.read(1, { rows: y.length })], y.map((value) => 2 * value));
    }
    if (below(2) === 0) assertEquals([...await device.readStorage(log)], [expected]);
    submissions.length = 0;
  }
  programs.forEach((program) => program.dispose());
});

deviceTest("a run that is given elsewhere comes after those of its program that wait", async (device) => {
  const log = device.storage("f32", [1], "log"), program = logger(device, log, 10);
  using first = new Submission(device), second = new Submission(device);
  program.run(values([1]), first);
  program.run(values([2]), first);
  program.run(values([3]), second);
  assertEquals([first.size, second.size], [0, 1]);
  program.run(values([4]));
  assertEquals(second.size, 0);
  program.run(values([5]), first);
  if (device.caps.timestamps) await program.profile(values([6]));
  else program.run(values([6]));
  assertEquals([...await program.read(0)], [123456]);
  program.dispose();
});

deviceTest("the first dispatches of a long run begin before the others are encoded", async (device) => {
  const log = device.storage("f32", [1], "log"), short = logger(device, log, 10);
  const sums = Array.from({ length: 100 }, (_, i) => device.storage("f32", [1], `sum ${i}`));
  const long = compile(device, () => {
    const x = input("x", "f32", [1]);
    return sums.map((sum) => assign(buffer(sum), map("add", buffer(sum), x)));
  });
  const x = (value: number): RunValues => ({ inputs: { x: [value] } });
  const firstAndLast = async () => [...await long.read(0), ...await long.read(sums.length - 1)];
  using submission = new Submission(device);
  const submissions = watchSubmissions(device);
  short.run(values([1]), submission, true);
  long.run(x(1), submission, true);
  assertEquals([submissions.splice(0), submission.size], [[2], 1], "a short run waits, and goes along");
  // The values of a run that has begun stay until all of it is submitted.
  long.run(x(10), submission, true);
  long.run(x(100), submission);
  submission.flush();
  assertEquals(await firstAndLast(), [111, 111]);
  long.run(x(1000), submission, true);
  long.run(x(2000));
  assertEquals(await firstAndLast(), [3111, 3111]);
  submissions.length = 0;
  long.encodeAhead();
  long.run(x(1), submission, true);
  assertEquals([submissions.splice(0), submission.size], [[], 1], "what is encoded already is not divided");
  submission.flush();
  assertEquals([...await firstAndLast(), ...await device.readStorage(log)], [3112, 3112, 1]);
  [short, long].forEach((program) => program.dispose());
});

deviceTest("a read goes along with what waits, and something is done meanwhile", async (device) => {
  const log = device.storage("f32", [1], "log"), program = logger(device, log, 10);
  using submission = new Submission(device);
  await device.readStorage(log);
  const submissions = watchSubmissions(device);
  for (const x of [1, 2, 3]) program.run(values([x]), submission);
  // What is encoded meanwhile is for later, though its values are uploaded at once.
  const meanwhile = (): void => {
    assertEquals(submissions, [4]);
    for (const x of [4, 5]) program.run(values([x]), submission);
  };
  const arrived = (): void => assertEquals(submissions, [4]);
  assertEquals([...await program.read(0, {}, { behind: submission, meanwhile, arrived })], [123]);
  assertEquals([...await program.read(0)], [123], "the last run that was submitted");
  assertEquals([submission.size, submissions.length], [2, 2]);
  submission.flush();
  assertEquals([...await program.read(0)], [12345]);
  const { buffer: from } = device.resident(log);
  let called = 0;
  program.run(values([6]), submission);
  assertEquals((await device.read(from, "f32", 0, 0, { behind: submission, meanwhile: () => called++ })).length, 0);
  assertEquals([submission.size, called], [0, 1], "also where nothing is read");
  program.dispose();
});

deviceTest("places for values are made when they are needed, counted, and given back", async (device) => {
  const log = device.storage("f32", [1], "log"), small = logger(device, log, 1), large = logger(device, log, 1, 4000);
  const submission = new Submission(device);
  await device.readStorage(log);
  const before = device.allocated;
  for (let round = 0; round < 4; round++) {
    small.run(values([1]), submission);
    large.run(values([1]), submission);
    submission.flush();
  }
  assertEquals([submission.bytes, device.allocated], [0, before], "nothing where each program runs once");
  const group = (program: Program, count: number): number => {
    for (let run = 0; run < count; run++) program.run(values([1]), submission);
    submission.flush();
    assertEquals(device.allocated, before + submission.bytes);
    return submission.bytes;
  };
  const bytes = group(small, 3);
  assert(bytes > 0);
  assertEquals(group(small, 3), bytes, "they are used again");
  const grown = group(large, 3);
  assert(grown > bytes);
  assertEquals(group(small, 3), grown);
  assertEquals((await device.readStorage(log))[0], 8 + 12);
  for (let run = 0; run < 3; run++) small.run(values([1]), submission);
  submission.dispose();
  assertEquals([submission.size, submission.bytes], [0, 0]);
  submission.flush();
  assertEquals((await device.readStorage(log))[0], 8 + 12, "what waited is dropped");
  assertEquals(device.allocated, before);
  small.dispose();
  large.dispose();
});

deviceTest("where memory has no room for places, what waits is submitted", async (device) => {
  const log = device.storage("f32", [1], "log"), program = logger(device, log, 10, 4000);
  using submission = new Submission(device);
  await device.readStorage(log);
  device.storage("u32", [(device.memoryLimit - device.allocated - 12_000) >> 2], "all but 12,000 bytes");
  const submissions = watchSubmissions(device);
  for (const x of [1, 2, 3, 4]) program.run(values([x]), submission);
  assert(submissions.length > 0, `${submissions}`);
  submission.flush();
  assertEquals(submissions.reduce((a, b) => a + b), 4);
  assertEquals([...await program.read(0)], [1234]);
  program.dispose();
}, { memoryLimit: 2 ** 20 });

deviceTest("what is gone when it is to be submitted fails that alone", async (device) => {
  const log = device.storage("f32", [1], "log"), scale = new Storage("f32", [1], new Float32Array([2]), "scale");
  const disposed = logger(device, log, 10, 4), program = logger(device, log, 10);
  using released = compile(device, () => map("mul", buffer(scale), input("x", "f32", [1])));
  using submission = new Submission(device);
  const submissions = watchSubmissions(device);
  program.run(values([1]), submission);
  disposed.run(values([2]), submission);
  disposed.run(values([3]), submission);
  disposed.dispose();
  assertThrows(() => submission.flush(), Error, "Cannot run: the program was disposed");
  released.run({ inputs: { x: [1] } }, submission);
  scale.release();
  assertThrows(() => submission.flush(), Error, 'Cannot run: "scale" was released');
  assertEquals([submission.size, submissions], [0, []]);
  program.run(values([4]), submission);
  submission.discard();
  program.run(values([5]), submission);
  submission.flush();
  assertEquals([...await program.read(0)], [5]);
  program.dispose();
});

deviceTest("a device that is lost meanwhile says so", async (device) => {
  const log = device.storage("f32", [1], "log"), program = logger(device, log, 10);
  const submission = new Submission(device);
  program.run(values([1]), submission);
  program.run(values([2]), submission);
  device.gpu.destroy();
  await device.gpu.lost;
  await Promise.resolve();
  assertThrows(() => submission.flush(), DeviceLostError, "The GPU device was lost");
  assertThrows(() => program.run(values([3]), submission), DeviceLostError);
  assertEquals(submission.size, 0);
  submission.dispose();
  program.dispose();
});
