/**
 * A Jinja template with Python's meaning of values: `@huggingface/jinja` parses and runs it, and the few operations in
 * which JavaScript shows through (stripping, joining a string to something else, printing an object) are done here.
 *
 * @module
 */
import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { pythonStrip, pythonText, type StripMethod, type TemplateValue } from "./python_text.ts";

type Program = ReturnType<typeof parse>;
type Statement = Exclude<Parameters<Interpreter["evaluate"]>[0], undefined>;
type Value = ReturnType<Interpreter["evaluate"]>;

/** The fields, of all nodes that are looked into here. */
interface Node {
  type: string;
  operator?: { value: string };
  left?: Statement;
  right?: Statement;
  operand?: Statement;
  filter?: Node;
  callee?: Node;
  args?: Statement[];
  object?: Statement;
  property?: { type: string; value?: unknown };
  computed?: boolean;
  value?: unknown;
}

/** Stands for a value that has been computed. */
interface EvaluatedNode extends Node {
  type: "Evaluated";
  result: Value;
}

/** Nodes that print nothing themselves. */
const STATEMENTS = new Set([
  "Program",
  "If",
  "For",
  "Break",
  "Continue",
  "Set",
  "Macro",
  "CallStatement",
  "FilterStatement",
  "Comment",
]);

/** The lists of nodes that a template prints one after the other. */
const BLOCKS = ["body", "alternate", "defaultBlock"] as const;

/** A template, parsed once. */
export interface JinjaTemplate {
  program: Program;
  /** The expressions that are printed, as `{{ … }}` are. */
  printed: WeakSet<object>;
}

/** Parses a template, with `trim_blocks` and `lstrip_blocks` on, as transformers has them. */
export function parseTemplate(source: string): JinjaTemplate {
  const program = parse(tokenize(source, { trim_blocks: true, lstrip_blocks: true }));
  const printed = new WeakSet<object>();
  collectPrinted(program, printed);
  return { program, printed };
}

/** Renders a template. Names without a value are undefined in it. */
export function renderTemplate(template: JinjaTemplate, variables: Record<string, unknown>): string {
  const environment = new Environment();
  for (const [name, value] of Object.entries({ ...GLOBALS, ...variables })) environment.set(name, value);
  const result = new PythonInterpreter(environment, template.printed).run(template.program);
  return (result as TemplateValue).value as string;
}

const GLOBALS: Record<string, unknown> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  range: pythonRange,
  strftime_now: (format: string) => formatTime(new Date(), format),
  raise_exception: (message: string) => {
    throw new Error(`The chat template refuses this conversation: ${message}`);
  },
};

function collectPrinted(node: object, printed: WeakSet<object>): void {
  const fields = node as Record<string, unknown>;
  for (const block of BLOCKS) {
    const statements = fields[block];
    if (!Array.isArray(statements)) continue;
    for (const statement of statements as Node[]) {
      if (!STATEMENTS.has(statement.type)) printed.add(statement);
      else collectPrinted(statement, printed);
    }
  }
}

class PythonInterpreter extends Interpreter {
  constructor(environment: Environment, readonly printed: WeakSet<object>) {
    super(environment);
  }

  override evaluate(statement: Statement | undefined, environment: Environment): Value {
    if (statement === undefined) return super.evaluate(statement, environment);
    const value = this.#evaluate(statement, environment);
    if (!this.printed.has(statement) || value.type === "StringValue") return value;
    return text(pythonText(value));
  }

  #evaluate(statement: Statement, environment: Environment): Value {
    const node = statement as unknown as Node;
    switch (node.type) {
      case "Evaluated":
        return (node as EvaluatedNode).result;
      case "BinaryExpression":
        if (node.operator?.value === "+") return this.#add(node, environment);
        break;
      case "FilterExpression":
        return this.#filter(node, environment);
      case "CallExpression":
        if (isStrip(node.callee)) return this.#strip(node, environment);
        break;
      case "MemberExpression": {
        const object = this.evaluate(node.object, environment);
        if (object.type === "UndefinedValue") {
          throw new Error(`The chat template reads "${node.property?.value}" of something that is undefined`);
        }
        return super.evaluate({ ...node, object: evaluated(object) } as Statement, environment);
      }
    }
    return super.evaluate(statement, environment);
  }

  /** A string joins to a string alone: `"…" + message.content` refuses content that is a list, a number or missing. */
  #add(node: Node, environment: Environment): Value {
    const left = this.evaluate(node.left, environment);
    const right = this.evaluate(node.right, environment);
    if ((left.type === "StringValue") !== (right.type === "StringValue")) {
      const other = left.type === "StringValue" ? right : left;
      throw new Error(`The chat template joins text to ${describe(other)}; is a message's role or content not text?`);
    }
    return super.evaluate({ ...node, left: evaluated(left), right: evaluated(right) } as Statement, environment);
  }

  /** `trim` prints whatever it is given, and strips Python's white space; `string` prints in Python's way. */
  #filter(node: Node, environment: Environment): Value {
    const operand = this.evaluate(node.operand, environment);
    const name = node.filter?.type === "CallExpression" ? node.filter.callee?.value : node.filter?.value;
    if (name === "string") return text(pythonText(operand));
    if (name === "trim") {
      const first = node.filter?.args?.[0];
      const characters = first === undefined ? undefined : pythonText(this.evaluate(first, environment));
      return text(pythonStrip(pythonText(operand), "strip", characters));
    }
    return super.evaluate({ ...node, operand: evaluated(operand) } as Statement, environment);
  }

  /** `strip`, `lstrip` and `rstrip` with the characters to strip, which the library ignores. */
  #strip(node: Node, environment: Environment): Value {
    const callee = node.callee!;
    const object = this.evaluate(callee.object, environment);
    if (object.type !== "StringValue") {
      throw new Error(`The chat template strips ${describe(object)}; is a message's content not text?`);
    }
    const [first] = (node.args ?? []).map((argument) => this.evaluate(argument, environment));
    const characters = first === undefined || first.type === "NullValue" ? undefined : pythonText(first);
    return text(pythonStrip(pythonText(object), callee.property!.value as StripMethod, characters));
  }
}

function isStrip(callee: Node | undefined): boolean {
  if (callee?.type !== "MemberExpression" || callee.computed) return false;
  return ["strip", "lstrip", "rstrip"].includes(String(callee.property?.value));
}

function evaluated(result: Value): Statement {
  return { type: "Evaluated", result } as unknown as Statement;
}

/** The engine exports no constructor of its values; an environment makes them. */
function text(value: string): Value {
  return new Environment().set("text", value);
}

function describe(value: TemplateValue): string {
  const kinds: Record<string, string> = {
    UndefinedValue: "something that is undefined",
    NullValue: "null",
    ArrayValue: "a list",
    ObjectValue: "an object",
    BooleanValue: "a boolean",
    StringValue: "text",
  };
  return kinds[value.type] ?? `the number ${value}`;
}

function pythonRange(first: number, last?: number, step = 1): number[] {
  const [start, stop] = last === undefined ? [0, first] : [first, last];
  if (step === 0) throw new Error("The chat template calls range() with a step of 0");
  return Array.from({ length: Math.max(0, Math.ceil((stop - start) / step)) }, (_, index) => start + index * step);
}

/** Python's `strftime`, as far as templates use it, in English. */
function formatTime(date: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const name = (options: Intl.DateTimeFormatOptions) => new Intl.DateTimeFormat("en-US", options).format(date);
  const fields: Record<string, () => string> = {
    "%Y": () => String(date.getFullYear()),
    "%m": () => two(date.getMonth() + 1),
    "%d": () => two(date.getDate()),
    "%b": () => name({ month: "short" }),
    "%B": () => name({ month: "long" }),
    "%a": () => name({ weekday: "short" }),
    "%A": () => name({ weekday: "long" }),
    "%H": () => two(date.getHours()),
    "%M": () => two(date.getMinutes()),
    "%S": () => two(date.getSeconds()),
    "%%": () => "%",
  };
  return format.replace(/%[A-Za-z%]/g, (field) => fields[field]?.() ?? field);
}
