/**
 * Times what a person waits for: from starting `tinyllm generate` to the first byte of its answer.
 *
 * A warm run finds its modules and shaders in the caches that the run before it left. With `--cold`, each run gets a new
 * `DENO_DIR`, and so compiles every module again, and a new cache of Mesa's shaders; npm packages stay where they are, for
 * downloading them would time the network. The system's own cache of files is warm in both.
 *
 * @module
 */
import { BenchArguments, runBench } from "./arguments.ts";

const USAGE = "deno task bench:first-token [--cold] [--runs=5] [model]";

/** Starts the program, and waits for the first byte. */
async function firstByteMilliseconds(model: readonly string[], environment: Record<string, string>): Promise<number> {
  const start = performance.now();
  await using child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "cli.ts", "generate", "-n", "1", ...model, "Once upon a time"],
    cwd: new URL("../", import.meta.url),
    env: environment,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  const first = await reader.read();
  const elapsed = performance.now() - start;
  while (!(await reader.read()).done);
  const errors = await child.stderr.text();
  const { code } = await child.status;
  if (code !== 0 || first.done) {
    throw new Error(`Cannot time the first token: generate ended with ${code}: ${errors.replace(/^error: /, "")}`);
  }
  return elapsed;
}

/** Times a run that finds nothing compiled. */
async function coldMilliseconds(model: readonly string[], denoDir: string): Promise<number> {
  const folder = await Deno.makeTempDir({ prefix: "tinyllm-cold-" });
  try {
    await Deno.mkdir(`${folder}/deno`);
    await Deno.symlink(`${denoDir}/npm`, `${folder}/deno/npm`);
    return await firstByteMilliseconds(model, {
      DENO_DIR: `${folder}/deno`,
      MESA_SHADER_CACHE_DIR: `${folder}/mesa`,
      XDG_CACHE_HOME: `${folder}/cache`,
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Where this Deno keeps what it downloaded and compiled. */
async function findDenoDir(): Promise<string> {
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["info", "--json"] }).output();
  return JSON.parse(new TextDecoder().decode(stdout)).denoDir;
}

async function main(args: readonly string[]): Promise<void> {
  const flags = new BenchArguments(args), cold = flags.on("cold"), runs = flags.number("runs", 5), [name] = flags.words;
  flags.check(1);
  const model = name === undefined ? [] : ["-m", name];
  const denoDir = cold ? await findDenoDir() : "";
  if (!cold) await firstByteMilliseconds(model, {}); // leaves the caches warm
  const times: number[] = [];
  for (let run = 0; run < runs; run++) {
    times.push(cold ? await coldMilliseconds(model, denoDir) : await firstByteMilliseconds(model, {}));
  }
  times.sort((a, b) => a - b);
  const [median, min, max] = [times[times.length >> 1]!, times[0]!, times.at(-1)!].map(Math.round);
  console.log(
    JSON.stringify({ bench: "first-token", model: name ?? "stories", cold, runs: times.length, median, min, max }),
  );
  console.error(
    `First byte after ${median} ms, from ${min} to ${max}, over ${times.length} ${cold ? "cold" : "warm"} runs`,
  );
}

if (import.meta.main) await runBench(USAGE, main);
