/**
 * Puts a kernel's WGSL together: bindings, the accessors through which its body reads and writes, sizes, and the entry
 * point. Generated and hand-written kernels both pass through here, so storage types, split tables and symbolic sizes are
 * known in this one place.
 *
 * @module
 */
import { type Dim, maxOf, Sym } from "./dim.ts";
import { bytesPerElement, type DType, wgslStorageType, wgslValueType } from "./dtype.ts";
import { type Caps, INPUTS_READY, type Port, type TensorType } from "./kernel.ts";

/** One tensor of a dispatch, as WGSL sees it. */
export interface BoundTensor {
  /** Its accessor. */
  readonly port: Port;
  /** Its type. */
  readonly type: TensorType;
  /**
   * `read`, `write` (also readable), `shared`: read from a buffer of which the dispatch writes another part (WebGPU allows no
   * other use of it then), or `alias`: read through the output of that name.
   */
  readonly access: "read" | "shared" | "write" | { readonly alias: string };
  /** Bytes of each part where the tensor exceeds one binding; undefined for one binding. */
  readonly split?: { readonly partBytes: number; readonly parts: number } | undefined;
  /** An output's own store function; the plain one unless given. */
  readonly store?: string | undefined;
}

/** What a binding of the assembled shader is. */
export interface Binding {
  /** Which tensor, by position in the list given, or the run's sizes. */
  readonly tensor: number | "sizes";
  /** Which part of a split tensor. */
  readonly part: number;
  /** Buffer type of the layout entry. */
  readonly type: GPUBufferBindingType;
}

/** A module-scope variable that is bound. */
export interface BoundVariable {
  /** Its name in the shader. */
  readonly name: string;
  /** Address space with access: `storage, read`. */
  readonly space: string;
  /** Its WGSL type. */
  readonly type: string;
}

/** A shader with its bindings in order. */
export interface Assembled {
  /** Complete WGSL. */
  readonly code: string;
  /** Binding `i` of group 0. */
  readonly bindings: readonly Binding[];
  /** The variable of each binding. */
  readonly variables: readonly BoundVariable[];
  /** Module scope without the bound variables: accessors, functions, workgroup memory. */
  readonly declarations: string;
  /** Whether it reads 16-bit floats. */
  readonly f16: boolean;
}

/** Parts of a shader that are not tensors. */
export interface ShaderParts {
  readonly workgroupSize: readonly [number, number, number];
  readonly declarations: string;
  readonly main: string;
  readonly subgroups: boolean;
}

/** Most symbols of a program. */
export const MOST_SYMBOLS = 16;

/** Words of a run's sizes: those of symbols, then what joined dispatches have of their own. */
export const SIZES_WORDS = 64;

/** WGSL of a word of a run's sizes. */
export const sizeWord = (at: number): string => `sizes[${at >> 2}].${"xyzw"[at & 3]}`;

const vector = (width: number, scalar: string): string => width === 1 ? scalar : `vec${width}<${scalar}>`;

/** How two 64-bit words become four 32-bit ones. */
const unpack64 =
  "fn unpack64(p: vec2<u64>) -> vec4<u32> { return vec4<u32>(u32(p.x), u32(p.x >> 32u), u32(p.y), u32(p.y >> 32u)); }";

/**
 * Whether a tensor is read as 64-bit words: llvmpipe loads lane by lane and component by component, so that a vec4 in two
 * halves costs half (1.4 times the speed of a 4-bit matrix-vector product, twice that of an f32 one).
 */
function readsWide(tensor: BoundTensor, caps: Caps): boolean {
  const { port, type, access } = tensor;
  return caps.int64 && access === "read" && port.width === 4 && !port.uniform &&
    elementBytes(port, type.dtype, caps) === 16;
}

function elementTypes(port: Port, dtype: DType, f16: boolean): { stored: string; value: string } {
  const scalar = port.raw ? "u32" : wgslStorageType(dtype, f16);
  const value = port.raw ? "u32" : wgslValueType(dtype);
  const width = port.width ?? 1;
  return { stored: vector(width, scalar), value: vector(width, value) };
}

/** Converts between the stored and the value form of an element. */
function convert(expression: string, from: string, to: string): string {
  if (from === to) return expression;
  if (to === "bool") return `(${expression} != 0u)`;
  return `${to}(${expression})`;
}

/** Reads element `i` of a tensor that lies in several bindings. */
function splitRead(name: string, parts: number, perPart: number): string {
  const cases = Array.from({ length: parts - 1 }, (_, part) => {
    const start = part * perPart;
    return `  if (i < ${start + perPart}u) { return ${name}_${part}[i - ${start}u]; }`;
  });
  return [...cases, `  return ${name}_${parts - 1}[i - ${(parts - 1) * perPart}u];`].join("\n");
}

function plainStore(name: string, value: string): string {
  return `fn finished_${name}(i: u32, value: ${value}) -> ${value} { return value; }\n` +
    `fn store_${name}(i: u32, value: ${value}) { write_${name}(i, value); }`;
}

function accessor(tensor: BoundTensor, caps: Caps): string {
  const { port: { name }, type } = tensor;
  const { stored, value } = elementTypes(tensor.port, type.dtype, caps.f16);
  if (tensor.access === "write") {
    const plain = `fn write_${name}(i: u32, value: ${value}) { ${name}_data[i] = ${convert("value", value, stored)}; }`;
    return `${plain}\n${tensor.store ?? plainStore(name, value)}`;
  }
  const read = (data: string): string => {
    if (!readsWide(tensor, caps)) return convert(data, stored, value);
    return convert(
      stored === "vec4<u32>" ? `unpack64(${data})` : `bitcast<${stored}>(unpack64(${data}))`,
      stored,
      value,
    );
  };
  const loaded = readsWide(tensor, caps) ? "vec2<u64>" : stored;
  if (tensor.split) {
    const perPart = tensor.split.partBytes / elementBytes(tensor.port, type.dtype, caps);
    return `fn stored_${name}(i: u32) -> ${loaded} {\n${splitRead(`${name}_data`, tensor.split.parts, perPart)}\n}\n` +
      `fn ${name}(i: u32) -> ${value} { return ${read(`stored_${name}(i)`)}; }`;
  }
  const data = typeof tensor.access === "object" ? `${tensor.access.alias}_data` : `${name}_data`;
  return `fn ${name}(i: u32) -> ${value} { return ${read(`${data}[i]`)}; }`;
}

/** Bytes that one index step of a port covers. */
export function elementBytes(port: Port, dtype: DType, caps: Caps): number {
  return (port.raw ? 4 : bytesPerElement(dtype, caps.f16)) * (port.width ?? 1);
}

/** The symbols among the sizes, in order of first use. */
export function symbolsOf(tensors: readonly TensorType[]): Sym[] {
  const symbols = new Map<string, Sym>();
  const add = (dim: Dim): void => void (dim instanceof Sym && symbols.set(dim.name, dim));
  tensors.forEach((tensor) => tensor.shape.forEach(add));
  return [...symbols.values()];
}

/**
 * The whole shader.
 *
 * @param sizeSlots Position of each symbol's value in the run's sizes.
 */
export function assemble(
  tensors: readonly BoundTensor[],
  parts: ShaderParts,
  caps: Caps,
  sizeSlots: ReadonlyMap<string, number>,
): Assembled {
  const bindings: Binding[] = [], variables: BoundVariable[] = [];
  const lines: string[] = [];
  const bind = (variable: BoundVariable, binding: Binding): void => {
    variables.push(variable);
    bindings.push(binding);
  };
  const symbols = symbolsOf(tensors.map((tensor) => tensor.type));
  if (symbols.length > 0) {
    bind({ name: "sizes", space: "uniform", type: `array<vec4<u32>, ${SIZES_WORDS / 4}>` }, {
      tensor: "sizes",
      part: 0,
      type: "uniform",
    });
    for (const { name } of symbols) {
      lines.push(`fn size_${name}() -> u32 { return ${sizeWord(sizeSlots.get(name)!)}; }`);
    }
  }
  tensors.forEach((tensor, index) => {
    if (typeof tensor.access === "object") return;
    const stored = readsWide(tensor, caps)
      ? "vec2<u64>"
      : elementTypes(tensor.port, tensor.type.dtype, caps.f16).stored;
    const type = tensor.access !== "read" ? "storage" : tensor.port.uniform ? "uniform" : "read-only-storage";
    const space = { storage: "storage, read_write", uniform: "uniform", "read-only-storage": "storage, read" }[type];
    for (let part = 0; part < (tensor.split?.parts ?? 1); part++) {
      const name = `${tensor.port.name}_data${tensor.split ? `_${part}` : ""}`;
      const count = type === "uniform" ? `, ${uniformCount(tensor, caps)}` : "";
      bind({ name, space, type: `array<${stored}${count}>` }, { tensor: index, part, type });
    }
  });
  if (tensors.some((tensor) => readsWide(tensor, caps))) lines.push(unpack64);
  lines.push(...tensors.map((tensor) => accessor(tensor, caps)));
  const f16 = caps.f16 &&
    (tensors.some((t) => t.type.dtype === "f16" && !t.port.raw) || /\bf16\b/.test(parts.main + parts.declarations));
  const declarations = `${lines.join("\n")}\n${parts.declarations}`;
  const bound = variables.map((variable, i) => `@group(0) @binding(${i}) ${variableWgsl(variable)}`).join("\n");
  const code = `${f16 ? "enable f16;\n" : ""}${bound}\n${declarations}\n${entryPoint(parts, caps)}`;
  return { code, bindings, variables, declarations, f16 };
}

/** The declaration of a bound variable, without its binding. */
export function variableWgsl({ name, space, type }: BoundVariable): string {
  return `var<${space}> ${name}: ${type};`;
}

function uniformCount(tensor: BoundTensor, caps: Caps): number {
  const elements = tensor.type.shape.reduce<number>((n, dim) => n * maxOf(dim), 1);
  return elements * (tensor.port.raw ? 4 : bytesPerElement(tensor.type.dtype, caps.f16)) /
    elementBytes(tensor.port, tensor.type.dtype, caps);
}

function entryPoint(parts: ShaderParts, caps: Caps): string {
  const builtins = [
    "@builtin(workgroup_id) workgroup: vec3<u32>",
    "@builtin(num_workgroups) groups: vec3<u32>",
    "@builtin(local_invocation_id) local: vec3<u32>",
    "@builtin(local_invocation_index) lane: u32",
    "@builtin(global_invocation_id) global: vec3<u32>",
  ];
  if (parts.subgroups) builtins.push("@builtin(subgroup_invocation_id) subgroupLane: u32");
  const subgroup = parts.subgroups ? `  let subgroup = lane / ${caps.subgroupSize}u;\n` : "";
  return `@compute @workgroup_size(${parts.workgroupSize.join(", ")})\nfn main(\n  ${builtins.join(",\n  ")}\n) {\n` +
    `${subgroup}${parts.main.replaceAll(INPUTS_READY, "")}\n}\n`;
}
