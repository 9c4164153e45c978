import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { httpSource } from "./http_source.ts";
import { checkPath, memorySource, readJson } from "./source.ts";

Deno.test("checkPath: relative paths inside the source only", () => {
  for (const path of ["a", "a/b.json", "..a", "model-00001-of-00002.safetensors"]) checkPath(path);
  for (const path of ["", "/a", "a//b", "../a", "a/..", "./a", "c:\\a", "http://x/a", "a\0"]) {
    assertThrows(() => checkPath(path), Error, "stay inside", path);
  }
});

Deno.test("memorySource: ranges, missing files, its own copies", async () => {
  const source = memorySource({ b: new Uint8Array([1, 2, 3]), a: "hé" });
  assertEquals(await source.list(), ["a", "b"]);
  assertEquals([await source.size("a"), await source.size("c")], [3, undefined]);
  assertEquals([await source.readText("a"), await source.readText("c")], ["hé", undefined]);
  (await source.read("b", 0, 3))[0] = 9;
  assertEquals([...await source.read("b", 0, 2)], [1, 2]);
  await assertRejects(() => source.read("b", 2, 2), Error, "2 bytes from byte 2 on were asked for, the file has 3");
  await assertRejects(() => source.read("b", -1, 2), Error, "no range");
  await assertRejects(() => source.read("c", 0, 0), Error, "no such file");
  await assertRejects(() => readJson(memorySource({ "x.json": "{" }), "x.json"), Error, 'Cannot read "x.json"');
});

/** Serves `files`, with or without support for ranges, and keeps the requests' Range headers. */
function serve(files: Record<string, Uint8Array<ArrayBuffer>>, ranges: boolean) {
  const asked: string[] = [];
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => {
    const bytes = files[decodeURIComponent(new URL(request.url).pathname.slice(1))];
    if (!bytes) return new Response("", { status: 404 });
    const range = request.headers.get("range");
    asked.push(`${request.method} ${range}`);
    if (request.method === "HEAD") return new Response(null, { headers: { "content-length": `${bytes.length}` } });
    if (range === null || !ranges) return new Response(bytes);
    const [from, to] = range.slice("bytes=".length).split("-").map(Number) as [number, number];
    if (from >= bytes.length) {
      return new Response("", { status: 416, headers: { "content-range": `bytes */${bytes.length}` } });
    }
    const headers = { "content-range": `bytes ${from}-${Math.min(to, bytes.length - 1)}/${bytes.length}` };
    return new Response(bytes.slice(from, to + 1), { status: 206, headers });
  });
  return { server, asked, url: `http://127.0.0.1:${server.addr.port}/` };
}

for (const ranges of [true, false]) {
  Deno.test(`httpSource: ${ranges ? "by ranges" : "a server without ranges"}`, async () => {
    const bytes = Uint8Array.from({ length: 100_000 }, (_, i) => i % 251);
    const { server, asked, url } = serve({ "dir/a b.bin": bytes, "dir/config.json": new Uint8Array(2) }, ranges);
    const source = httpSource(`${url}dir`);
    assertEquals(await source.size("a b.bin"), 100_000);
    assertEquals(await source.size("missing"), undefined);
    assertEquals(await source.readText("missing"), undefined);
    assertEquals(await source.read("a b.bin", 70_000, 5), bytes.slice(70_000, 70_005));
    assertEquals(await source.read("a b.bin", 3, 0), new Uint8Array(0));
    if (ranges) assertEquals(asked.at(-1), "GET bytes=70000-70004");
    await assertRejects(() => source.read("a b.bin", 99_999, 2), Error, "the file has 100000");
    await assertRejects(() => source.read("a b.bin", 100_000, 2), Error, "the file has 100000");
    await assertRejects(() => source.read("missing", 0, 2), Error, "the server answered 404");
    assertEquals(await source.list(), ["config.json"]);
    await server.shutdown();
  });
}

Deno.test("httpSource: an unreachable server is named", async () => {
  const { server, url } = serve({}, true);
  await server.shutdown();
  await assertRejects(() => httpSource(url).size("x"), Error, `Cannot load "x" from ${url}`);
});
