import { assertEquals } from "@std/assert";
import { byteToCharacter } from "./byte_level.ts";
import { StreamingDetokenizer } from "./detokenizer.ts";
import { Tokenizer } from "./tokenizer.ts";

/** One token for each byte, id = byte, and a special token 256. */
const bytes = Tokenizer.fromJson({
  model: { type: "BPE", vocab: Object.fromEntries(byteToCharacter.map((c, byte) => [c, byte])), merges: [] },
  added_tokens: [{ id: 256, content: "<|é|>", special: true, normalized: false }],
  decoder: { type: "ByteLevel" },
});

function stream(ids: number[], skipSpecialTokens = true): string[] {
  const detokenizer = new StreamingDetokenizer(bytes, { skipSpecialTokens });
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
}

Deno.test("StreamingDetokenizer: a character comes with its last byte", () => {
  assertEquals(stream([0xf0, 0x9f, 0x8e, 0x89, 0x61]), ["", "", "", "🎉", "a", ""]);
});

Deno.test("StreamingDetokenizer: ill-formed bytes are replaced as soon as they are known", () => {
  assertEquals(stream([0xff, 0x61]), ["\ufffd", "a", ""]);
  assertEquals(stream([0xe2, 0x82, 0x61]), ["", "", "\ufffda", ""]);
  assertEquals(stream([0xe2, 0x82]), ["", "", "\ufffd"]);
});

Deno.test("StreamingDetokenizer: a skipped special token joins what is around it", () => {
  assertEquals(stream([0xc3, 256, 0xa9]), ["", "", "é", ""]);
  assertEquals(stream([0xc3, 256, 0xa9], false), ["", "\ufffd<|é|>", "\ufffd", ""]);
});

Deno.test("StreamingDetokenizer: a byte order mark is text", () => {
  assertEquals(stream([0xef, 0xbb, 0xbf]), ["", "", "\ufeff", ""]);
});

Deno.test("StreamingDetokenizer: is as new after the flush", () => {
  const detokenizer = new StreamingDetokenizer(bytes);
  assertEquals([detokenizer.push(0xc3), detokenizer.flush(), detokenizer.push(0x61)], ["", "\ufffd", "a"]);
});
