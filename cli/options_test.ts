import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseArguments } from "./arguments.ts";
import { UsageError } from "./errors.ts";
import { COMMAND_NAMES, helpText } from "./help.ts";
import { OPTION_ROWS, variableOf } from "./options.ts";

const plain = { bold: String, dim: String, red: String, cyan: String };
const none = (): undefined => undefined;
const parse = (...words: string[]) => parseArguments("generate", words, none);

Deno.test("options: names, letters and aliases are unique", () => {
  const names = OPTION_ROWS.flatMap((row) => [row.flag, ...row.aliases ?? [], ...row.short ? [row.short] : []]);
  assertEquals(new Set(names).size, names.length);
});

Deno.test("options: help shows every flag with its default and its variable", () => {
  const help = helpText(undefined, "1.2.3", 100, plain);
  for (const row of OPTION_ROWS) {
    assert(help.includes(`--${row.flag}`), row.flag);
    if (row.action) continue;
    assert(row.default !== undefined, `--${row.flag} states no default`);
    assert(help.includes(variableOf(row)), variableOf(row));
  }
  for (const name of COMMAND_NAMES) assert(helpText(name, "1.2.3", 60, plain).includes(`tinyllm ${name}`));
});

Deno.test("options: every spelling of a flag", () => {
  assertEquals(parse("-n", "5").options, { maxTokens: 5 });
  assertEquals(parse("--n-predict=5").options, { maxTokens: 5 });
  assertEquals(parse("--temperature", ".5", "--repetition-penalty=1.1").options, {
    temperature: .5,
    repetitionPenalty: 1.1,
  });
  assertEquals(parse("--stop", "a", "--stop=b=c", "--json").options, { stop: ["a", "b=c"], json: true });
  assertEquals(parse("--logit-bias", "5=-1.5", "--logit-bias=6+2").options, { logitBias: { 5: -1.5, 6: 2 } });
  for (const text of ["[1, 2]", "1,2", " 1 2 ", "1 , 2"]) {
    assertEquals(parse("--token-ids", text).options, { tokenIds: [1, 2] });
  }
  for (const wrong of ["1,,2", ",1", "1,2,", "[1,]", "1, ,2", ","]) {
    const message = `--token-ids needs an id on either side of each comma, as in "1,2,3", and was given "${wrong}"`;
    assertThrows(() => parse("--token-ids", wrong), UsageError, message);
  }
  for (const none of ["", " ", "[]"]) {
    assertThrows(
      () => parse("--token-ids", none),
      UsageError,
      `needs token ids such as "1,2,3", and was given "${none}"`,
    );
  }
  assertEquals(parse("--presence-penalty", "-1").options, { presencePenalty: -1 });
  for (const [text, bytes] of [["0.5", 0.5], ["1.5gib", 1.5 * 2 ** 30], ["500 MB", 5e8], ["4096", 4096]] as const) {
    assertEquals(parse("--kv-memory", text).options, { kvMemory: bytes });
  }
  for (const wrong of ["0", "2", "-1", "1XB", "2 Gi", "1e9"]) {
    assertThrows(() => parse("--kv-memory", wrong), UsageError, "--kv-memory needs bytes");
  }
  for (const size of ["1TB", "1M", "900K", "1e6", ""]) {
    for (const flag of ["--memory-limit", "--kv-memory"]) {
      assertThrows(
        () => parse(flag, size),
        UsageError,
        `given "${size}": the units are B, KB, MB, GB, KiB, MiB and GiB`,
      );
    }
  }
  assertThrows(() => parse("--memory-limit", "1KB"), UsageError, "and 1KB is too small: give 1024 bytes or more");
  assertEquals(parse("--memory-limit=8GiB").options, { memoryLimit: 2 ** 33 });
  assertThrows(
    () => parse("--memory-limit", "0.5"),
    UsageError,
    "--memory-limit needs bytes such as 2GiB or 500MB, and",
  );
  assertEquals(parse("-p", "- a list").options, { prompt: "- a list" });
  assertEquals(parse("a", "--", "--raw").operands, ["a", "--raw"]);
});

Deno.test("options: every numeric flag refuses what is no number", () => {
  for (const row of OPTION_ROWS.filter(({ value }) => value?.placeholder === "N" || value?.placeholder === "X")) {
    for (const wrong of ["", "abc", "1x", "NaN", "1e999", "0x10"]) {
      const command = row.commands[0]!;
      const error = assertThrows(() => parseArguments(command, [`--${row.flag}=${wrong}`], none), UsageError);
      assert(error.message.startsWith(`--${row.flag} needs`), error.message);
    }
  }
});

Deno.test("options: every variable is read, and a wrong value names it", () => {
  for (const row of OPTION_ROWS.filter(({ action }) => !action)) {
    const value = row.value?.placeholder === "ID=X" ? "1=2" : row.value?.placeholder.split("|")[0] ?? "on";
    const text = { N: "2", X: "1", IDS: "1,2", BYTES: "1GB" }[value] ?? value;
    const env = (name: string) => name === variableOf(row) ? text : undefined;
    assert(parseArguments(row.commands[0], [], env).options[row.key] !== undefined, row.flag);
  }
  const env = (name: string) => name === "TINYLLM_JSON" ? "maybe" : undefined;
  assertThrows(() => parseArguments("generate", [], env), UsageError, "TINYLLM_JSON in the environment needs 1 or 0");
  assertEquals(parseArguments("chat", [], env).options, {}, "a variable of another command's flag does not matter");
});
