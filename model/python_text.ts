/**
 * How Python trims and prints values: chat templates are written against it.
 *
 * @module
 */

/** A value as the template engine holds it. */
export interface TemplateValue {
  type: string;
  value: unknown;
  toString(): string;
}

/** What Python's `str.strip()` removes: not JavaScript's white space (it has U+001C to U+001F and U+0085, not U+FEFF). */
const WHITESPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008" +
  "\u2009\u200a\u2028\u2029\u202f\u205f\u3000";

/** Which ends of a text are stripped. */
export type StripMethod = "strip" | "lstrip" | "rstrip";

/** Python's `text.strip(characters)`, `lstrip` and `rstrip`; white space where no characters are given. */
export function pythonStrip(text: string, method: StripMethod = "strip", characters: string = WHITESPACE): string {
  const set = new Set(characters);
  const points = Array.from(text);
  let start = 0;
  let end = points.length;
  if (method !== "rstrip") { while (start < end && set.has(points[start]!)) start++; }
  if (method !== "lstrip") { while (end > start && set.has(points[end - 1]!)) end--; }
  return points.slice(start, end).join("");
}

/** Python's `str(value)`. Undefined prints as nothing (jinja2's `Undefined`). */
export function pythonText(value: TemplateValue): string {
  switch (value.type) {
    case "StringValue":
      return value.value as string;
    case "UndefinedValue":
      return "";
    default:
      return pythonRepr(value);
  }
}

/** Python's `repr(value)`. */
function pythonRepr(value: TemplateValue): string {
  switch (value.type) {
    case "StringValue":
      return quote(value.value as string);
    case "NullValue":
      return "None";
    case "BooleanValue":
      return value.value ? "True" : "False";
    case "ArrayValue":
      return `[${(value.value as TemplateValue[]).map(pythonRepr).join(", ")}]`;
    case "ObjectValue": {
      const entries = Array.from(value.value as Map<string, TemplateValue>);
      return `{${entries.map(([key, item]) => `${quote(key)}: ${pythonRepr(item)}`).join(", ")}}`;
    }
    default:
      return value.toString();
  }
}

const ESCAPES: Record<string, string> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\" };

function quote(text: string): string {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = Array.from(text, (character) => {
    if (character === mark) return `\\${character}`;
    if (ESCAPES[character] !== undefined) return ESCAPES[character];
    return character === " " || !/[\p{C}\p{Z}]/u.test(character) ? character : escapeCodePoint(character);
  });
  return mark + escaped.join("") + mark;
}

function escapeCodePoint(character: string): string {
  const code = character.codePointAt(0)!;
  const hex = code.toString(16);
  if (code <= 0xff) return `\\x${hex.padStart(2, "0")}`;
  return code <= 0xffff ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
}
