/**
 * Joins shaders that run one after another into one, with a barrier over all workgroups between them ("persistent kernel",
 * "grid barrier"). A step of decoding is bound by what its dispatches cost, 4 us of the CPU and 2 us of the GPU each, not by
 * what they compute.
 *
 * Two things make it right. All workgroups have to be resident at once, or those that wait keep out those that are waited for:
 * a trial of the very pipeline proves it (`chains.ts`), and no wait is endless. And what one workgroup writes has to be seen
 * by the others: results are bound as `coherent`, past the caches of single processors, and are written before the workgroup
 * arrives at the barrier. Each stage does what its dispatch alone does, in the same order: results are equal bit for bit.
 *
 * @module
 */
import { type Assembled, type BoundVariable, MOST_SYMBOLS, SIZES_WORDS, sizeWord, variableWgsl } from "./assemble.ts";
import { type Caps, INPUTS_READY } from "./kernel.ts";

/** A dispatch that is to be a part of a joined one. */
export interface Stage {
  /** Its own shader. */
  readonly shader: Assembled;
  /** Body of its entry point. */
  readonly main: string;
  /** What each binding is bound to, and what tells it from others. */
  readonly entries: readonly GPUBufferBinding[];
  readonly keys: readonly string[];
  /** Workgroups, where no size is symbolic; else they are in two words of the sizes. */
  readonly grid: readonly [number, number] | number;
}

/** A binding of a joined shader. */
export interface JoinedBinding {
  readonly type: GPUBufferBindingType;
  readonly entry: GPUBufferBinding;
}

/** A joined shader. The last bindings are its own: arrivals at its barriers, those of the dispatch before, and health. */
export interface JoinedShader {
  readonly code: string;
  readonly bindings: readonly JoinedBinding[];
}

/** Most bytes that a stage may move, 3 us of an H100's memory: longer ones fill the device, and its own scheduler deals them out better. */
export const MOST_STAGE_BYTES = 8 << 20;

/** Invocations of a workgroup in every stage. */
export const JOINED_LANES = 256;

/** Words between the counters of two barriers: atomics of different barriers share no sector of the cache. */
export const COUNTER_WORDS = 8;

/** Barriers that a set of counters has room for. */
export const MOST_BARRIERS = 16;

/** Polls after which a wait is given up: about a second, and some ten milliseconds in a trial. */
const POLLS = 1 << 21, TRIAL_POLLS = 1 << 15;

/** A name that is bound, and what it is bound to. */
interface Bound extends JoinedBinding {
  readonly variable: BoundVariable;
  readonly key: string;
  readonly stages: Set<number>;
}

/** Replaces whole identifiers; members (`.name`) stay. */
function rename(code: string, names: ReadonlyMap<string, string>): string {
  return code.replace(/\.?\b[A-Za-z_]\w*/g, (word) => names.get(word) ?? word);
}

/** Name of the `at`-th array of a type in workgroup memory. */
const sharedName = (type: string, at: number): string => `shared_${type.replace(/\W/g, "")}_${at}`;

class Joiner {
  readonly bound: Bound[] = [];
  /** Workgroup memory: for each type of element the greatest sizes that stages ask for. */
  readonly #memory = new Map<string, number[]>();
  readonly #functions: string[] = [];

  constructor(readonly stages: readonly Stage[], readonly caps: Caps) {
    stages.forEach((stage, k) => this.#add(stage, k));
  }

  /** The joint name of a stage's binding. */
  #bind({ shader, entries, keys }: Stage, binding: number, stage: number): string {
    const variable = shader.variables[binding]!, { type, space } = variable;
    const key = `${keys[binding]} ${space} ${type}`;
    let at = this.bound.findIndex((other) => other.key === key);
    if (at < 0) {
      const entry = entries[binding]!, name = variable.name === "sizes" ? "sizes" : `bound_${this.bound.length}`;
      const stages = new Set<number>(), { type: kind } = shader.bindings[binding]!;
      at = this.bound.push({ key, entry, type: kind, variable: { name, space, type }, stages }) - 1;
    }
    this.bound[at]!.stages.add(stage);
    return this.bound[at]!.variable.name;
  }

  /** Arrays of one element type in workgroup memory are the same for all stages: none reads what it has not written. */
  #shareMemory(code: string, names: Map<string, string>): string {
    const taken = new Map<string, number>(), arrays = /var<workgroup> (\w+): array<(f32|u32|vec[234]<?\w+>?), (\d+)>;/g;
    return code.replace(arrays, (_text, name: string, type: string, size: string) => {
      const at = taken.get(type) ?? 0, sizes = this.#memory.get(type) ?? [];
      taken.set(type, at + 1);
      sizes[at] = Math.max(sizes[at] ?? 0, Number(size));
      this.#memory.set(type, sizes);
      names.set(name, sharedName(type, at));
      return "";
    });
  }

  #add(stage: Stage, k: number): void {
    const names = new Map<string, string>();
    stage.shader.variables.forEach(({ name }, binding) => names.set(name, this.#bind(stage, binding, k)));
    const code = this.#shareMemory(stage.shader.declarations, names);
    for (const [, name] of code.matchAll(/\b(?:fn|const|struct|alias|var<workgroup>) (\w+)/g)) {
      names.set(name!, `${name}_of_${k}`);
    }
    const wait = k > 0 ? `wait(${k - 1}u, lane);` : "";
    const main = stage.main.includes(INPUTS_READY) ? stage.main : `${INPUTS_READY}\n${stage.main}`;
    const parameters = [
      "workgroup: vec3<u32>",
      "groups: vec3<u32>",
      "local: vec3<u32>",
      "lane: u32",
      "global: vec3<u32>",
    ];
    if (this.caps.subgroups) parameters.push("subgroupLane: u32", "subgroup: u32");
    this.#functions.push(
      `${rename(code, names)}\nfn stage_${k}(${parameters.join(", ")}) {\n` +
        `${rename(main, names).replaceAll(INPUTS_READY, wait)}\n}`,
    );
  }

  /** Whether several stages use what a binding is bound to, and some write it: then all have to see it at once. */
  #isCoherent({ type, entry: { buffer } }: Bound): boolean {
    const stages = this.bound.filter(({ entry }) => entry.buffer === buffer).map((bound) => bound.stages);
    return type === "storage" && stages.reduce((all, more) => all.union(more)).size > 1;
  }

  /** Module scope: joint bindings, workgroup memory, and the stages as functions. */
  get declarations(): string {
    const variables = this.bound.map((bound, i) =>
      `@group(0) @binding(${i}) ${this.#isCoherent(bound) ? "@coherent " : ""}${variableWgsl(bound.variable)}`
    );
    const memory = [...this.#memory].flatMap(([type, sizes]) =>
      sizes.map((size, at) => `var<workgroup> ${sharedName(type, at)}: array<${type}, ${size}>;`)
    );
    // A load whose place depends on what a wait has seen cannot be moved before it.
    const coherent = this.bound.filter((bound) => this.#isCoherent(bound)).map(({ variable }) => variable.name);
    const functions = coherent.reduce(
      (text, name) => text.replaceAll(`${name}[`, `${name}[late + `),
      this.#functions.join("\n"),
    );
    return [...variables, ...memory, functions].join("\n");
  }

  /** The call of a stage: each workgroup does one after another of the stage's workgroups. */
  call(k: number, workgroups: number): string {
    const { grid } = this.stages[k]!;
    const [x, y] = typeof grid === "number" ? [sizeWord(grid), sizeWord(grid + 1)] : grid.map((n) => `${n}u`);
    const rest = this.caps.subgroups ? `, subgroupLane, lane / ${this.caps.subgroupSize}u` : "";
    const one = `stage_${k}(place, size, local, lane, place * vec3u(${JOINED_LANES}u, 1u, 1u) + local${rest});`;
    const place = "let place = vec3u(at % size.x, at / size.x, 0u);";
    const waits = k > 0 ? `if (trial) { wait(${k - 1}u, lane); }` : "";
    const single = typeof grid !== "number" && grid[0] * grid[1] <= workgroups;
    const turns = single
      ? `let at = own;\n    if (at < size.x * size.y) { ${place} ${one} }`
      : `for (var at = own; at < size.x * size.y; at += ${workgroups}u) { ${place} ${one} workgroupBarrier(); }`;
    return `${waits}\n  if (!trial) {\n    let size = vec3u(${x}, ${y}, 1u);\n    ${turns}\n  }`;
  }
}

/** Arriving at a barrier, and waiting until all have; `late`, always 0, is how many more than all then had. */
const barrierWgsl = (workgroups: number): string =>
  `var<private> most_polls: u32;
var<private> verdict: u32;
var<private> late: u32;
var<workgroup> beyond: u32;
fn arrive(barrier: u32, lane: u32) {
  storageBarrier();
  if (lane == 0u) { atomicAdd(&arrivals[barrier * ${COUNTER_WORDS}u], 1u); }
}
fn wait(barrier: u32, lane: u32) {
  if (lane == 0u) {
    var polls = 0u;
    var arrived = atomicLoad(&arrivals[barrier * ${COUNTER_WORDS}u]);
    while (arrived < ${workgroups}u && polls < most_polls) {
      arrived = atomicLoad(&arrivals[barrier * ${COUNTER_WORDS}u]);
      polls++;
    }
    beyond = arrived - ${workgroups}u;
    if (arrived < ${workgroups}u) {
      most_polls = 0u;
      atomicStore(&health[verdict], 1u);
    }
  }
  workgroupBarrier();
  late = beyond;
}`;

/**
 * The joint shader of stages. Dispatched as [workgroups, 1, 1] it runs them; as [1, workgroups, 1] it tries its barriers alone.
 *
 * @param workgroups Workgroups that are resident at once.
 */
export function joinShaders(stages: readonly Stage[], workgroups: number, caps: Caps): JoinedShader {
  const joiner = new Joiner(stages, caps), { bound } = joiner;
  if (!bound.some(({ variable }) => variable.name === "sizes")) {
    if (stages.some(({ grid }) => typeof grid === "number")) throw new Error("Cannot join: no stage binds the sizes");
  }
  const barriers = stages.length - 1;
  const own = ["arrivals", "previous", "health"].map((name, i) =>
    `@group(0) @binding(${bound.length + i}) var<storage, read_write> ${name}: array<atomic<u32>>;`
  );
  const builtins = [
    "@builtin(workgroup_id) id: vec3<u32>",
    "@builtin(num_workgroups) shape: vec3<u32>",
    "@builtin(local_invocation_id) local: vec3<u32>",
    "@builtin(local_invocation_index) lane: u32",
  ];
  if (caps.subgroups) builtins.push("@builtin(subgroup_invocation_id) subgroupLane: u32");
  const calls = stages.map((_, k) => joiner.call(k, workgroups) + (k < barriers ? `\n  arrive(${k}u, lane);` : ""));
  const main = `@compute @workgroup_size(${JOINED_LANES}) fn main(${builtins.join(", ")}) {
  let trial = shape.y > 1u;
  let own = id.x + id.y;
  most_polls = select(${POLLS}u, ${TRIAL_POLLS}u, trial);
  verdict = u32(trial);
  if (own == 0u && lane < ${MOST_BARRIERS}u) { atomicStore(&previous[lane * ${COUNTER_WORDS}u], 0u); }
  ${calls.join("\n  ")}
}`;
  const f16 = stages.some(({ shader }) => shader.f16) ? "enable f16;\n" : "";
  const code = [f16 + joiner.declarations, ...own, barrierWgsl(workgroups), main].join("\n");
  return { code, bindings: bound };
}

/** Words of the sizes that joined dispatches have for grids that change from run to run. */
export const GRID_WORDS = { first: MOST_SYMBOLS, end: SIZES_WORDS } as const;
