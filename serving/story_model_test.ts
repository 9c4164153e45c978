import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import type { LoadProgress } from "./model.ts";
import { cacheFolder, storyModelFolder } from "./story_model.ts";

/** Serves `body` as every file, and counts requests. */
function serve(body: string, status = 200): { assets: URL; requests: () => number } & AsyncDisposable {
  let requests = 0;
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, () => {
    requests++;
    return new Response(body, { status, headers: { "content-length": `${body.length}` } });
  });
  return {
    assets: new URL(`http://127.0.0.1:${server.addr.port}/stories/`),
    requests: () => requests,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

Deno.test("in a checkout the story model lies beside the source", async () => {
  const folder = await storyModelFolder();
  assertEquals((await Deno.stat(`${folder}/model.safetensors`)).isFile, true);
});

Deno.test("a script over HTTPS fetches the story model once", async () => {
  await using server = serve("content");
  const cache = await Deno.makeTempDir();
  const progress: LoadProgress[] = [];
  const options = { assets: server.assets, cache, onProgress: (report: LoadProgress) => progress.push(report) };
  const folder = await storyModelFolder(options);
  assertEquals(await Deno.readTextFile(`${folder}/model.safetensors`), "content");
  assertEquals(progress.at(-1)?.file, "model.safetensors");
  assertEquals([progress.at(-1)?.received, progress.at(-1)?.total], [7, 7]);
  assertEquals(await storyModelFolder(options), folder);
  assertEquals(server.requests(), 5);
  await Deno.remove(cache, { recursive: true });
});

Deno.test("a failed download leaves nothing behind", async () => {
  await using server = serve("no", 503);
  const cache = await Deno.makeTempDir();
  await assertRejects(() => storyModelFolder({ assets: server.assets, cache }), Error, "the server answered 503");
  for await (const entry of Deno.readDir(cache)) {
    assertEquals(await Array.fromAsync(Deno.readDir(`${cache}/${entry.name}`)), []);
  }
  await Deno.remove(cache, { recursive: true });
});

Deno.test("the cache is where the environment says", () => {
  const folder = (variables: Record<string, string>): string => cacheFolder((name) => variables[name]);
  assertEquals(folder({ TINYLLM_CACHE: "/c", HOME: "/h" }), "/c");
  assertEquals(folder({ XDG_CACHE_HOME: "/x", HOME: "/h" }), "/x/tinyllm");
  assertEquals(folder({ HOME: "/h" }), "/h/.cache/tinyllm");
  assertThrows(() => folder({}), Error, "TINYLLM_CACHE");
});
