import { assertEquals } from "@std/assert";
import { floorOf, floorViolation, mustRunInBrowser, resolveSpecifier } from "./floors.ts";
import plugin from "./lint_floors.ts";

const root = decodeURIComponent(new URL("../", import.meta.url).pathname);
const lint = (file: string, source: string): string[] =>
  Deno.lint.runPlugin(plugin, root + file, source).map((diagnostic) => diagnostic.message);

Deno.test("floors: an import down, or on the same floor, passes", () => {
  assertEquals(floorViolation("model/qwen2.ts", "tensor/mod.ts"), undefined);
  assertEquals(floorViolation("tensor/node.ts", "tensor/dim.ts"), undefined);
  assertEquals(floorViolation("cli.ts", "mod.ts"), undefined);
  assertEquals(floorViolation("tests/x_test.ts", "serving/engine.ts"), undefined);
});

Deno.test("floors: an import up fails, naming both files", () => {
  assertEquals(lint("kernels/norm.ts", `import { a } from "../model/qwen2.ts";`), [
    "kernels/norm.ts imports model/qwen2.ts: imports point down, and model/ is above it",
  ]);
  const ways = [
    `import type { A } from "../kernels/mod.ts";`,
    `export * from "../kernels/mod.ts";`,
    `export { a } from "../kernels/mod.ts";`,
    `await import("../kernels/mod.ts");`,
    `import "@tinyllm/tinyllm/kernels";`,
    `new Worker(new URL("../kernels/mod.ts", import.meta.url));`,
  ];
  for (const way of ways) {
    assertEquals(lint("tensor/deep.ts", way), [
      "tensor/deep.ts imports kernels/mod.ts: imports point down, and kernels/ is above it",
    ], way);
  }
});

Deno.test("floors: nothing on a floor imports bench/, tests/ or scripts/", () => {
  assertEquals(lint("mod.ts", `import "./bench/timing.ts";`), [
    "mod.ts imports bench/timing.ts: nothing on a floor imports bench/",
  ]);
});

Deno.test("floors: a file on no floor is named", () => {
  assertEquals(floorOf("attic/old.ts"), undefined);
  assertEquals(
    floorViolation("attic/old.ts", "mod.ts"),
    "attic/old.ts imports mod.ts: attic/old.ts is on no floor; name it in scripts/floors.ts",
  );
});

Deno.test("floors: other packages and text in comments are no imports", () => {
  assertEquals(lint("tensor/a.ts", `import "@std/assert"; // import "../mod.ts"`), []);
  assertEquals(resolveSpecifier("tensor/a.ts", "npm:zod", {}, "@tinyllm/tinyllm"), undefined);
});

Deno.test("portable: tensor/, kernels/ and model/ leave Deno alone, but for model/deno/ and tests", () => {
  const message = (file: string): string =>
    `${file} uses the Deno global, and is to run in a browser: take a Source, or move it to model/deno/`;
  assertEquals(lint("model/source.ts", `await Deno.readFile("a");`), [message("model/source.ts")]);
  assertEquals(lint("tensor/a.ts", `globalThis.Deno;`), [message("tensor/a.ts")]);
  for (const file of ["model/deno/file.ts", "tensor/a_test.ts", "tensor/a_testing.ts", "serving/http.ts", "cli.ts"]) {
    assertEquals(mustRunInBrowser(file), false, file);
    assertEquals(lint(file, `Deno.exit(0);`), [], file);
  }
});

Deno.test("portable: every use of Deno counts, a property of that name does not", () => {
  const uses = [
    `const { env } = Deno;`,
    `if (typeof Deno === "undefined") throw 0;`,
    `const d = { Deno };`,
    `f(Deno);`,
    `type Info = Deno.FileInfo;`,
    `globalThis["Deno"];`,
    `const { Deno } = globalThis;`,
  ];
  for (const use of uses) assertEquals(lint("model/a.ts", use).length, 1, use);
  for (const name of [`runtime.Deno;`, `const d = { Deno: 1 };`, `"Deno"; // Deno`]) {
    assertEquals(lint("model/a.ts", name), [], name);
  }
});
