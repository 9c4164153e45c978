/**
 * How the text behind a flag becomes a value. A reader throws a message that completes the sentence `--flag …`.
 *
 * @module
 */

/** Reads one kind of value. */
export interface ValueReader<T> {
  /** What `--help` shows for the value, such as `N`. */
  readonly placeholder: string;
  /** The value that `text` says, after what earlier flags of the same name said. */
  read(text: string, previous: T | undefined): T;
}

/** Any text. */
export function text(placeholder: string): ValueReader<string> {
  return { placeholder, read: (value) => value };
}

/** Text, given any number of times. */
export function texts(placeholder: string): ValueReader<readonly string[]> {
  return {
    placeholder,
    read(value, previous = []) {
      if (value === "") throw new Error("needs text, and was given none");
      return [...previous, value];
    },
  };
}

/** One of a few words. */
export function choice<const T extends string>(...words: readonly T[]): ValueReader<T> {
  return {
    placeholder: words.join("|"),
    read(value) {
      const word = words.find((candidate) => candidate === value);
      if (word === undefined) throw new Error(`needs one of ${words.join(", ")}, and was given "${value}"`);
      return word;
    },
  };
}

/** A whole number. */
export function integer(least: number, most: number = Number.MAX_SAFE_INTEGER): ValueReader<number> {
  return { placeholder: "N", read: (value) => readNumber(value, least, most, "a whole number") };
}

/** A number. */
export function number(least: number, most: number = Infinity): ValueReader<number> {
  return { placeholder: "X", read: (value) => readNumber(value, least, most, "a number") };
}

/** A part of the whole: above 0, up to 1. */
export const share: ValueReader<number> = {
  placeholder: "X",
  read(value) {
    const part = toNumber(value);
    if (part > 0 && part <= 1) return part;
    throw new Error(`needs a number above 0, up to 1, and was given "${value}"`);
  },
};

/** Token ids, with commas or spaces between them. */
export const tokenIds: ValueReader<readonly number[]> = {
  placeholder: "IDS",
  read(value) {
    const list = value.replace(/^\s*\[|\]\s*$/g, "").trim();
    if (list === "") throw new Error(`needs token ids such as "1,2,3", and was given "${value}"`);
    const words = list.split(/\s*,\s*|\s+/);
    if (words.includes("")) {
      throw new Error(`needs an id on either side of each comma, as in "1,2,3", and was given "${value}"`);
    }
    return words.map((word) => readNumber(word, 0, 2 ** 31 - 1, "whole numbers"));
  },
};

/** What is added to logits by token id; as in llama.cpp, `15043+1` or `15043-1` too. */
export const logitBias: ValueReader<Readonly<Record<number, number>>> = {
  placeholder: "ID=X",
  read(value, previous = {}) {
    const match = /^(\d+)(?:=|(?=[+-]))(.+)$/.exec(value);
    const bias = Number(match?.[2]);
    if (!match || Number.isNaN(bias)) {
      throw new Error(`needs a token id and a number such as 42=-1.5, and was given "${value}"`);
    }
    return { ...previous, [Number(match[1])]: bias };
  },
};

const BYTE_UNITS: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
};

const EXAMPLES = "bytes such as 2GiB or 500MB";

/** Less than this is a slip: the smallest model takes more. */
const FEWEST_BYTES = 2 ** 10;

/** An amount of memory: bytes, with a unit or without. */
export const bytes: ValueReader<number> = {
  placeholder: "BYTES",
  read(value) {
    const amount = amountOf(value, EXAMPLES);
    if (amount < FEWEST_BYTES) throw tooSmall(value, EXAMPLES);
    return Math.floor(amount);
  },
};

/** An amount of memory, or up to 1 a share of what there is. */
export const memory: ValueReader<number> = {
  placeholder: "BYTES",
  read(value) {
    const examples = `${EXAMPLES}, or a share up to 1`, amount = amountOf(value, examples);
    if (amount > 0 && amount <= 1) return amount;
    if (amount < FEWEST_BYTES) throw tooSmall(value, examples);
    return Math.floor(amount);
  },
};

function tooSmall(value: string, examples: string): Error {
  return new Error(`needs ${examples}, and ${value} is too small: give ${FEWEST_BYTES} bytes or more`);
}

function amountOf(value: string, examples: string): number {
  const [, number, unit] = /^(\d+\.?\d*|\.\d+)\s*([a-z]*)$/i.exec(value.trim()) ?? [];
  const factor = BYTE_UNITS[unit?.toLowerCase() ?? "none"];
  if (factor !== undefined) return Number(number) * factor;
  throw new Error(`needs ${examples}, and was given "${value}": the units are B, KB, MB, GB, KiB, MiB and GiB`);
}

/** Whether a switch's variable in the environment is on. */
export function readSwitch(value: string): boolean {
  const word = value.toLowerCase();
  if (["1", "true", "yes", "on"].includes(word)) return true;
  if (["0", "false", "no", "off"].includes(word)) return false;
  throw new Error(`needs 1 or 0, and was given "${value}"`);
}

/** The number that a text is; NaN where it is none. */
function toNumber(text: string): number {
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text.trim()) ? Number(text) : NaN;
}

function readNumber(value: string, least: number, most: number, kind: string): number {
  const result = toNumber(value);
  const whole = kind.includes("whole");
  if (Number.isFinite(result) && result >= least && result <= most && (!whole || Number.isSafeInteger(result))) {
    return result;
  }
  // An upper limit that hardly anyone meets is named to those who do.
  const open = most >= Number.MAX_SAFE_INTEGER && !(result > Number.MAX_SAFE_INTEGER);
  const range = open ? `of at least ${least}` : `from ${least} to ${Math.min(most, Number.MAX_VALUE)}`;
  throw new Error(`needs ${kind} ${range}, and was given "${value}"`);
}
