/**
 * The table of flags. Parsing, `--help`, the variables of the environment, `/set` in a chat and the documentation all
 * iterate over it: a new flag is a field of {@link Options} and a row here.
 *
 * Names follow llama.cpp, with mlx_lm's where they differ as aliases.
 *
 * @module
 */
import {
  bytes,
  choice,
  integer,
  logitBias,
  memory,
  number,
  share,
  text,
  texts,
  tokenIds,
  type ValueReader,
} from "./values.ts";

/** The commands. */
export type CommandName = "generate" | "chat" | "batch" | "perplexity" | "show" | "devices";

/** What the flags of a command line come to; what was not said is absent. */
export interface Options {
  model?: string;
  revision?: string;
  input?: string;
  output?: string;
  prompt?: string;
  system?: string;
  raw?: boolean;
  tokenIds?: readonly number[];
  maxTokens?: number;
  stop?: readonly string[];
  ignoreEos?: boolean;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  logitBias?: Readonly<Record<number, number>>;
  seed?: number;
  contextLength?: number;
  precision?: "exact" | "fast";
  kvDtype?: "f32" | "f16";
  kvMemory?: number;
  memoryLimit?: number;
  maxNumSeqs?: number;
  maxNumBatchedTokens?: number;
  prefixCache?: boolean;
  policy?: "fcfs" | "priority";
  device?: "high-performance" | "low-power" | "fallback";
  json?: boolean;
  help?: boolean;
  version?: boolean;
}

/** Headings of `--help`. */
export type OptionGroup = "Model" | "Batch" | "Prompt" | "Sampling" | "Engine" | "Output";

/** A flag. */
export interface OptionRow<T> {
  /** Its long name, without dashes; `TINYLLM_` and the name in capitals is its variable. */
  readonly flag: string;
  /** Its letter. */
  readonly short?: string;
  /** Other long names that are understood. */
  readonly aliases?: readonly string[];
  /** How its value is read; a flag without one is a switch. */
  readonly value?: ValueReader<T>;
  readonly group: OptionGroup;
  readonly commands: readonly CommandName[];
  /** What it does, as a phrase. */
  readonly help: string;
  /** What holds where it is not given. */
  readonly default?: string;
  /** Whether several may be given. */
  readonly repeatable?: boolean;
  /** Whether it asks for something else than a run, and so has no variable. */
  readonly action?: boolean;
}

/** A row of every option. */
export type OptionTable = { readonly [Key in keyof Options]-?: OptionRow<NonNullable<Options[Key]>> };

const TEXT: readonly CommandName[] = ["generate", "chat", "batch"];
const MODEL: readonly CommandName[] = ["generate", "chat", "batch", "perplexity", "show"];
const RUN: readonly CommandName[] = ["generate", "chat", "batch", "perplexity"];
const REPORT: readonly CommandName[] = ["generate", "perplexity", "show", "devices"];
const ALL: readonly CommandName[] = ["generate", "chat", "batch", "perplexity", "show", "devices"];
const CHECKPOINT = "the checkpoint's";

/** All flags, in the order of `--help`. */
export const OPTIONS: OptionTable = {
  model: {
    flag: "model",
    short: "m",
    value: text("MODEL"),
    group: "Model",
    commands: MODEL,
    help: "a folder, or a model on Hugging Face such as Qwen/Qwen2.5-0.5B-Instruct",
    default: "the story model that comes along",
  },
  revision: {
    flag: "revision",
    value: text("REV"),
    group: "Model",
    commands: MODEL,
    help: "branch, tag or commit of a model on Hugging Face",
    default: "main",
  },
  input: {
    flag: "input",
    short: "i",
    aliases: ["input-file"],
    value: text("FILE"),
    group: "Batch",
    commands: ["batch"],
    help: "requests, one JSON object a line; - reads standard input",
    default: "none, it has to be given",
  },
  output: {
    flag: "output",
    short: "o",
    aliases: ["output-file"],
    value: text("FILE"),
    group: "Batch",
    commands: ["batch"],
    help: "where answers go, a line each as it is done; what is there already is not done again; - is standard output",
    default: "none, it has to be given",
  },
  prompt: {
    flag: "prompt",
    short: "p",
    value: text("TEXT"),
    group: "Prompt",
    commands: ["generate"],
    help: "the prompt, like PROMPT itself; - reads standard input",
    default: "standard input",
  },
  system: {
    flag: "system",
    aliases: ["system-prompt"],
    value: text("TEXT"),
    group: "Prompt",
    commands: TEXT,
    help: "system message before the conversation, unless it has one",
    default: "none",
  },
  raw: {
    flag: "raw",
    aliases: ["ignore-chat-template"],
    group: "Prompt",
    commands: ["generate"],
    help: "continue the prompt as it is, without the chat template",
    default: "off",
  },
  tokenIds: {
    flag: "token-ids",
    value: tokenIds,
    group: "Prompt",
    commands: ["generate", "perplexity"],
    help: 'ids such as "1,2,3" in place of text; the answer is ids too',
    default: "none",
  },
  maxTokens: {
    flag: "max-tokens",
    short: "n",
    aliases: ["predict", "n-predict"],
    value: integer(1),
    group: "Sampling",
    commands: TEXT,
    help: "most tokens to generate",
    default: "the checkpoint's, else the rest of the context",
  },
  temperature: {
    flag: "temp",
    aliases: ["temperature"],
    value: number(0),
    group: "Sampling",
    commands: TEXT,
    help: "divides the logits; 0 always takes the likeliest token",
    default: CHECKPOINT,
  },
  topK: {
    flag: "top-k",
    value: integer(0, 2 ** 31 - 1),
    group: "Sampling",
    commands: TEXT,
    help: "draw from the N likeliest tokens; 0 keeps all",
    default: CHECKPOINT,
  },
  topP: {
    flag: "top-p",
    value: share,
    group: "Sampling",
    commands: TEXT,
    help: "draw from the fewest tokens that are X likely together; 1 keeps all",
    default: CHECKPOINT,
  },
  minP: {
    flag: "min-p",
    value: number(0, 1),
    group: "Sampling",
    commands: TEXT,
    help: "drop tokens less than X times as likely as the likeliest; 0 drops none",
    default: CHECKPOINT,
  },
  repetitionPenalty: {
    flag: "repeat-penalty",
    aliases: ["repetition-penalty"],
    value: number(1e-3, 1e3),
    group: "Sampling",
    commands: TEXT,
    help: "makes tokens already in prompt or answer less likely; 1 is none",
    default: CHECKPOINT,
  },
  presencePenalty: {
    flag: "presence-penalty",
    value: number(-1e3, 1e3),
    group: "Sampling",
    commands: TEXT,
    help: "subtracted from the logits of tokens already in the answer",
    default: "0",
  },
  frequencyPenalty: {
    flag: "frequency-penalty",
    value: number(-1e3, 1e3),
    group: "Sampling",
    commands: TEXT,
    help: "the same, for each time they occur",
    default: "0",
  },
  logitBias: {
    flag: "logit-bias",
    value: logitBias,
    group: "Sampling",
    commands: TEXT,
    help: "added to the logit of token ID",
    default: "none",
    repeatable: true,
  },
  seed: {
    flag: "seed",
    value: integer(0),
    group: "Sampling",
    commands: TEXT,
    help: "same seed, same text, on one device",
    default: "drawn at random",
  },
  stop: {
    flag: "stop",
    aliases: ["reverse-prompt"],
    value: texts("TEXT"),
    group: "Sampling",
    commands: TEXT,
    help: "end before this text",
    default: "none",
    repeatable: true,
  },
  ignoreEos: {
    flag: "ignore-eos",
    group: "Sampling",
    commands: TEXT,
    help: "go on where the model would end",
    default: "off",
  },
  contextLength: {
    flag: "context",
    short: "c",
    aliases: ["ctx-size"],
    value: integer(2),
    group: "Engine",
    commands: MODEL,
    help: "longest context, prompt and answer, in tokens",
    default: "the model's own or 4096, whichever is less",
  },
  precision: {
    flag: "precision",
    value: choice("exact", "fast"),
    group: "Engine",
    commands: RUN,
    help: "exact computes in 32-bit floats; fast takes activations in 8 bits",
    default: "fast on GPUs, exact on CPUs",
  },
  kvDtype: {
    flag: "kv-dtype",
    value: choice("f16", "f32"),
    group: "Engine",
    commands: MODEL,
    help: "how keys and values are kept",
    default: "f16",
  },
  kvMemory: {
    flag: "kv-memory",
    value: memory,
    group: "Engine",
    commands: RUN,
    help: "memory of keys and values: bytes such as 2GiB, or a share such as 0.5 of what --memory-limit leaves; " +
      "never more than the device can bind at once",
    default: "what the sequences need, a few GiB at most",
  },
  memoryLimit: {
    flag: "memory-limit",
    value: bytes,
    group: "Engine",
    commands: RUN,
    help: "most GPU memory to use, weights and all, in bytes such as 8GiB: drivers do not say what they have",
    default: "none",
  },
  maxNumSeqs: {
    flag: "max-num-seqs",
    value: integer(1),
    group: "Engine",
    commands: RUN,
    help: "most sequences that are computed together",
    default: "256, on a CPU 16",
  },
  maxNumBatchedTokens: {
    flag: "max-num-batched-tokens",
    value: integer(1),
    group: "Engine",
    commands: RUN,
    help: "most tokens of a step, of all sequences; longer prompts are cut to fit",
    default: "512, on a GPU up to 2048 of prompts alone",
  },
  prefixCache: {
    flag: "prefix-cache",
    aliases: ["enable-prefix-caching"],
    group: "Engine",
    commands: ["batch"],
    help: "compute what prompts begin with alike once; --no-prefix-cache turns it off",
    default: "on",
  },
  policy: {
    flag: "policy",
    aliases: ["scheduling-policy"],
    value: choice("fcfs", "priority"),
    group: "Engine",
    commands: ["batch"],
    help: "who goes first: who came first, or the smallest priority in a request's body",
    default: "fcfs",
  },
  device: {
    flag: "device",
    value: choice("high-performance", "low-power", "fallback"),
    group: "Engine",
    commands: RUN,
    help: "which GPU; fallback is the CPU",
    default: "high-performance",
  },
  json: {
    flag: "json",
    group: "Output",
    commands: REPORT,
    help: "print one JSON object",
    default: "off",
  },
  help: { flag: "help", short: "h", group: "Output", commands: ALL, help: "print this and end", action: true },
  version: {
    flag: "version",
    short: "V",
    group: "Output",
    commands: ALL,
    help: "print the version and end",
    action: true,
  },
};

/** A row with its key, for those who iterate. */
export interface NamedOption extends OptionRow<unknown> {
  readonly key: keyof Options;
}

/** The table as a list. */
export const OPTION_ROWS: readonly NamedOption[] = Object.entries(OPTIONS).map(
  ([key, row]) => ({ key: key as keyof Options, ...row as OptionRow<unknown> }),
);

/** The variable of the environment that stands for a flag. */
export function variableOf(row: OptionRow<unknown>): string {
  return `TINYLLM_${row.flag.toUpperCase().replaceAll("-", "_")}`;
}
