import { assertEquals, assertRejects } from "@std/assert";
import { fileSource } from "./file_source.ts";

Deno.test("fileSource: ranges, links, missing files", async () => {
  const folder = await Deno.makeTempDir();
  const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);
  await Deno.writeFile(`${folder}/model.safetensors`, bytes);
  await Deno.mkdir(`${folder}/inner`);
  await Deno.writeTextFile(`${folder}/inner/x.json`, "{}");
  await Deno.symlink("model.safetensors", `${folder}/link.safetensors`);
  await Deno.symlink("nowhere", `${folder}/broken`);
  await Deno.symlink(".", `${folder}/loop`);
  await Deno.writeTextFile(`${folder}/.hidden`, "");

  const source = fileSource(folder);
  assertEquals(await source.list(), ["inner/x.json", "link.safetensors", "model.safetensors"]);
  assertEquals(await source.size("link.safetensors"), 1000);
  assertEquals([await source.size("missing"), await source.size("inner"), await source.size("broken")], [
    undefined,
    undefined,
    undefined,
  ]);
  assertEquals(await source.read("model.safetensors", 700, 300), bytes.slice(700));
  assertEquals(await source.readText("inner/x.json"), "{}");
  assertEquals(await source.readText("inner/y.json"), undefined);
  await assertRejects(() => source.read("model.safetensors", 700, 301), Error, "the file has 1000");
  await assertRejects(() => source.read("model.safetensors", 0, 2 ** 50), Error, "the file has 1000");
  await assertRejects(() => source.read("missing", 0, 1), Error, "Cannot read");
  await assertRejects(() => source.read("../x", 0, 1), Error, "stay inside");
  await Deno.remove(folder, { recursive: true });
});
