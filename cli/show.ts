/**
 * `tinyllm show`: what a model is and what it needs, from its headers alone; no weight is read.
 *
 * @module
 */
import { type Checkpoint, openCheckpoint } from "../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../model/config.ts";
import { type GenerationConfig, readGenerationConfig } from "../model/generation_config.ts";
import { readJson, type Source } from "../model/source.ts";
import type { CommandContext } from "./context.ts";
import { EXIT, UsageError } from "./errors.ts";
import type { Library, LoadedBytes, LoadEstimate } from "./library.ts";
import { loadOptions } from "./load.ts";
import type { Options } from "./options.ts";
import { ProgressLine } from "./progress.ts";
import { formatBytes, formatInteger, formatMillions, type Style, styleOf } from "./style.ts";

/** What is printed. */
export interface ModelReport {
  model: string;
  config: DecoderConfig;
  parameters: number;
  /** Bytes of the checkpoint's tensors. */
  checkpointBytes: number;
  /** How the weights are stored, such as `4-bit affine, groups of 64` or `BF16`. */
  storage: string;
  tokenizer: boolean;
  chatTemplate: boolean;
  generationConfig: GenerationConfig;
  /** Bytes on the GPU, for a context and as loaded. */
  memory: LoadEstimate;
}

/** Runs the command. */
export async function show(context: CommandContext): Promise<number> {
  const { given, operands, options, terminal } = context;
  if (operands.length > 1) throw new UsageError(`show takes one MODEL, and was given ${operands.length}`);
  if (operands.length > 0 && given.has("model")) throw new UsageError("MODEL and --model exclude each other: give one");
  const library = await context.library();
  const source = await open(context, library, operands[0] ?? options.model);
  const report = await reportOf(library, source, options);
  const text = options.json ? JSON.stringify(report) : describe(report, styleOf(terminal, terminal.stdout));
  await terminal.stdout.write(text + "\n");
  return EXIT.ok;
}

async function open(
  { interrupts, options, terminal }: CommandContext,
  library: Library,
  name?: string,
): Promise<Source> {
  const signal = interrupts.begin();
  await using progress = new ProgressLine(terminal);
  if (name !== undefined) progress.show(`Looking for ${name}`);
  return await library.openSource(name, {
    ...(options.revision !== undefined && { revision: options.revision }),
    onProgress: progress.update.bind(progress),
    signal,
  });
}

async function reportOf(library: Library, source: Source, options: Options): Promise<ModelReport> {
  const config = await readConfig(source);
  const { contextLength = 0 } = options;
  if (contextLength > config.contextLength) {
    throw new Error(
      `Cannot show a context of ${contextLength}: "${source.name}" was made for ${config.contextLength}, give that or less`,
    );
  }
  const checkpoint = await openCheckpoint(source);
  const tokenizerConfig = await readJson(source, "tokenizer_config.json") as { chat_template?: unknown } | undefined;
  return {
    model: source.name,
    config,
    parameters: countParameters(checkpoint, config),
    checkpointBytes: checkpoint.totalBytes,
    storage: storageOf(checkpoint, config),
    tokenizer: await source.size("tokenizer.json") !== undefined,
    chatTemplate: tokenizerConfig?.chat_template != null || await source.size("chat_template.jinja") !== undefined,
    generationConfig: await readGenerationConfig(source),
    memory: await library.estimateMemory(source, loadOptions(options)),
  };
}

/** The numbers that were trained: codes are unpacked, scales and their biases are no parameters of their own. */
function countParameters({ tensors }: Checkpoint, config: DecoderConfig): number {
  let count = 0;
  for (const { name, shape } of tensors.values()) {
    const module = name.replace(/\.[^.]*$/, "");
    const scales = tensors.get(`${module}.scales`);
    const elements = shape.reduce((product, size) => product * size, 1);
    // A tied head is the embedding again, whether or not the file repeats it.
    if (config.tieWordEmbeddings && module === "lm_head") continue;
    if (!scales) count += elements;
    else if (name.endsWith(".weight")) count += unpacked(elements, scales.shape, module, config);
  }
  return count;
}

function unpacked(words: number, scales: readonly number[], module: string, config: DecoderConfig): number {
  const entry = config.quantization?.overrides.get(module) || config.quantization;
  if (!entry) return words;
  return scales.reduce((product, size) => product * size, 1) * entry.groupSize;
}

function storageOf({ tensors }: Checkpoint, config: DecoderConfig): string {
  const { quantization } = config;
  if (quantization) {
    const exceptions = quantization.overrides.size > 0 ? `, ${quantization.overrides.size} modules otherwise` : "";
    return `${quantization.bits}-bit affine, groups of ${quantization.groupSize}${exceptions}`;
  }
  return [...new Set([...tensors.values()].map((tensor) => tensor.dtype))].join(", ");
}

function describe(report: ModelReport, { bold, dim }: Style): string {
  const { config, memory } = report;
  const row = (name: string, value: string): string => `  ${dim(name.padEnd(14))}  ${value}`;
  const heads = `${config.numHeads} query and ${config.numKvHeads} key-value heads of ${config.headDim}`;
  return [
    bold(report.model),
    row(
      "architecture",
      `${config.modelType}, ${config.numLayers} layers, hidden size ${formatInteger(config.hiddenSize)}`,
    ),
    row("", `${heads}, feed-forward ${formatInteger(config.intermediateSize)}`),
    row(
      "parameters",
      `${formatMillions(report.parameters)}${config.tieWordEmbeddings ? ", head tied to the embedding" : ""}`,
    ),
    row("storage", `${report.storage}: ${formatBytes(report.checkpointBytes)}`),
    row("context", `${formatInteger(config.contextLength)} tokens${ropeText(config)}`),
    row("vocabulary", `${formatInteger(config.vocabSize)} tokens${report.tokenizer ? "" : ", no tokenizer"}`),
    row("chat template", report.chatTemplate ? "yes" : "no"),
    row("sampling", samplingText(report.generationConfig)),
    row("GPU memory", `${formatBytes(memory.total)} at a context of ${formatInteger(memory.contextLength)}`),
    row(
      "",
      `weights ${formatBytes(memory.weights)}, keys and values ${formatBytes(memory.kvCache)}, ` +
        `activations ${formatBytes(memory.activations)}`,
    ),
    ...(memory.loaded ? [row("", loadedText(memory.loaded))] : []),
  ].join("\n");
}

function loadedText({ cpu, gpu }: LoadedBytes): string {
  return `loaded for many sequences ${formatBytes(gpu)}, on the CPU ${formatBytes(cpu)} (--kv-memory)`;
}

function ropeText({ rope }: DecoderConfig): string {
  return rope.kind === "default" ? "" : `, positions scaled by ${rope.kind}`;
}

function samplingText(config: GenerationConfig): string {
  if (config.doSample === false) return "greedy";
  const parts = [
    ["temperature", config.temperature],
    ["top-k", config.topK],
    ["top-p", config.topP],
    ["min-p", config.minP],
    ["repetition penalty", config.repetitionPenalty],
  ].filter(([, value]) => value !== undefined);
  return parts.map((part) => part.join(" ")).join(", ") || "the checkpoint wishes nothing";
}
