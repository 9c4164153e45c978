import { assertEquals } from "@std/assert";
import { type Key, KeyDecoder } from "./keys.ts";
import { LineBuffer } from "./line_editor.ts";

const keys = (...chunks: string[]): Key[] => {
  const decoder = new KeyDecoder();
  return chunks.flatMap((chunk) => decoder.decode(new TextEncoder().encode(chunk)));
};

Deno.test("keys: sequences and characters may be cut anywhere, and unknown ones mean nothing", () => {
  assertEquals(keys("a\x1b", "[", "A\x1b[1;5D", "\x1b[24~b"), [
    { name: "text", text: "a" },
    { name: "up" },
    { name: "wordLeft" },
    { name: "text", text: "b" },
  ]);
  const decoder = new KeyDecoder();
  const [first, second] = [new Uint8Array([0xc3]), new Uint8Array([0xa9])];
  assertEquals([...decoder.decode(first), ...decoder.decode(second)], [{ name: "text", text: "é" }]);
});

Deno.test("keys: a paste is text, its line breaks too", () => {
  assertEquals(keys("\x1b[200~one\r", "two\x1b[201~\r"), [{ name: "text", text: "one\ntwo" }, { name: "enter" }]);
});

Deno.test("line: editing counts characters as people do", () => {
  const line = new LineBuffer([]);
  for (const key of keys("one 👩‍👩‍👧 two\x7f\x1b[D\x1b[D\x1b[D\x7f")) line.apply(key);
  assertEquals(line.text, "one  tw");
  for (const key of keys("\x01>\x05<\x17")) line.apply(key);
  assertEquals(line.text, ">one  ");
  for (const key of keys("\x15end\x1b[H\x1b[3~\x06\x0b")) line.apply(key);
  assertEquals(line.text, "n");
});

Deno.test("line: history goes back and forth, and keeps what was being typed", () => {
  const line = new LineBuffer(["one", "two"]);
  const seen = ["draft", "\x1b[A", "\x1b[A", "\x1b[A", "\x1b[B", "\x1b[B", "\x1b[B"].map((input) => {
    for (const key of keys(input)) line.apply(key);
    return line.text;
  });
  assertEquals(seen, ["draft", "two", "one", "one", "two", "draft", "draft"]);
});
