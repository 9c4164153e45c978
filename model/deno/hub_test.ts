import { assert, assertEquals, assertRejects } from "@std/assert";
import { createHash } from "node:crypto";
import { fileSource } from "./file_source.ts";
import { readHubEnvironment } from "./hub_cache.ts";
import { downloadModel, type DownloadOptions, type DownloadProgress, HubError, isHubId } from "./hub.ts";

const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7) % 253);

/** What a test's hub does instead of answering a request properly; undefined: nothing out of the ordinary. */
type Mischief = (request: Request, path: string, count: number) => Response | undefined | Promise<Response | undefined>;

/** A hub on the loopback address with one model, and a cache folder of its own. */
class FakeHub {
  /** Requests in order: `GET /path range`. */
  readonly requests: string[] = [];
  readonly tokens: (string | null)[] = [];
  readonly cache = Deno.makeTempDirSync();
  readonly #server: Deno.HttpServer<Deno.NetAddr>;
  readonly files: Record<string, Uint8Array<ArrayBuffer>> = {
    "config.json": new TextEncoder().encode('{"model_type":"qwen2"}'),
    "tokenizer.json": new TextEncoder().encode("{}"),
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": new Uint8Array(9),
    "onnx/model.safetensors": new Uint8Array(9),
    "README.md": new Uint8Array(9),
  };

  constructor(readonly mischief: Mischief = () => undefined, readonly listed: { sizes: boolean } = { sizes: true }) {
    this.#server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
      const path = new URL(request.url).pathname;
      const entry = `${request.method} ${path} ${request.headers.get("range") ?? ""}`.trim();
      this.requests.push(entry);
      this.tokens.push(request.headers.get("authorization"));
      const count = this.requests.filter((other) => other.split(" ")[1] === path).length;
      return await this.mischief(request, path, count) ?? this.answer(request, path);
    });
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.#server.addr.port}`;
  }

  answer(request: Request, path: string): Response {
    if (path.startsWith("/api/models/org/name/revision/")) {
      return Response.json({ sha: COMMIT, siblings: this.siblings() });
    }
    const name = path.match(/^\/org\/name\/resolve\/[^/]+\/(.*)$/)?.[1];
    const bytes = this.files[name ?? ""];
    if (!bytes) return new Response("", { status: 404 });
    if (request.method === "HEAD") {
      return new Response(null, {
        status: 302,
        headers: { location: "/cdn", "x-linked-size": `${bytes.length}`, "x-linked-etag": `"${etagOf(bytes, true)}"` },
      });
    }
    return sendRange(request, bytes);
  }

  siblings(): unknown[] {
    return Object.entries(this.files).map(([rfilename, bytes]) => {
      if (!this.listed.sizes) return { rfilename };
      const lfs = rfilename.endsWith(".safetensors") && { lfs: { sha256: etagOf(bytes, true), size: bytes.length } };
      return { rfilename, size: bytes.length, blobId: etagOf(bytes, false), ...lfs };
    });
  }

  download(options: DownloadOptions & { token?: string; offline?: boolean } = {}): Promise<string> {
    const { token, offline = false, ...rest } = options;
    return downloadModel("org/name", {
      environment: { endpoint: this.endpoint, cache: this.cache, offline, ...(token && { token }) },
      retries: { attempts: 3, baseDelayMs: 1, stallMs: 5000 },
      ...rest,
    });
  }

  /** Stops the server and removes the cache. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
    await Deno.remove(this.cache, { recursive: true });
  }
}

function etagOf(bytes: Uint8Array, large: boolean): string {
  if (large) return createHash("sha256").update(bytes).digest("hex");
  return createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
}

function sendRange(request: Request, bytes: Uint8Array<ArrayBuffer>): Response {
  const from = Number(request.headers.get("range")?.match(/^bytes=(\d+)-$/)?.[1] ?? NaN);
  if (Number.isNaN(from)) return new Response(bytes);
  if (from >= bytes.length) return new Response("", { status: 416 });
  const headers = { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` };
  return new Response(bytes.slice(from), { status: 206, headers });
}

/** The beginning of `bytes` under the headers of all of them, and then the connection breaks. */
function drop(bytes: Uint8Array<ArrayBuffer>, from: number, to: number): Response {
  let sent = false;
  const body = new ReadableStream({
    async pull(controller) {
      if (!sent) return controller.enqueue(bytes.slice(from, (sent = true, to)));
      await new Promise((resolve) => setTimeout(resolve, 20));
      controller.error(new Error("dropped"));
    },
  });
  const headers: Record<string, string> = { "content-length": `${bytes.length - from}` };
  if (from > 0) headers["content-range"] = `bytes ${from}-${bytes.length - 1}/${bytes.length}`;
  return new Response(body, { status: from > 0 ? 206 : 200, headers });
}

const isWeights = (path: string) => path.endsWith("/model.safetensors");

async function assertWhole(folder: string): Promise<void> {
  const source = fileSource(folder);
  assertEquals(await source.list(), ["config.json", "model.safetensors", "tokenizer.json"]);
  assertEquals(await source.read("model.safetensors", 0, WEIGHTS.length), WEIGHTS);
}

Deno.test("download: the wanted files, in Hugging Face's layout, with progress", async () => {
  await using hub = new FakeHub();
  const reports: DownloadProgress[] = [];
  const folder = await hub.download({ onProgress: (progress) => reports.push(progress) });
  assertEquals(folder, `${hub.cache}/models--org--name/snapshots/${COMMIT}`);
  await assertWhole(folder);
  assertEquals(await Deno.readTextFile(`${hub.cache}/models--org--name/refs/main`), COMMIT);
  assertEquals(await Deno.readLink(`${folder}/model.safetensors`), `../../blobs/${etagOf(WEIGHTS, true)}`);
  const blobs = [...Deno.readDirSync(`${hub.cache}/models--org--name/blobs`)].map(({ name }) => name);
  assertEquals(blobs.filter((name) => name.includes("incomplete")), []);
  assertEquals(blobs.length, 3);
  const last = reports.filter(({ file }) => file === "model.safetensors").at(-1)!;
  assertEquals([last.received, last.total, last.etaSeconds], [300_000, 300_000, 0]);
  assert(last.bytesPerSecond > 0);
});

Deno.test("download: the second time nothing comes; a commit and offline ask nothing at all", async () => {
  await using hub = new FakeHub();
  await hub.download();
  hub.requests.length = 0;
  await hub.download();
  assertEquals(hub.requests, ["GET /api/models/org/name/revision/main"]);
  hub.requests.length = 0;
  await assertWhole(await hub.download({ offline: true }));
  await assertWhole(await hub.download({ revision: COMMIT }));
  assertEquals(hub.requests, []);
  await assertRejects(() => hub.download({ offline: true, revision: "dev" }), HubError, "HF_HUB_OFFLINE is set");
});

Deno.test("download: a hub that does not answer is no harm to a cached model", async () => {
  let down = false;
  await using hub = new FakeHub(() => down ? new Response("", { status: 503 }) : undefined);
  await hub.download();
  down = true;
  await assertWhole(await hub.download());
});

Deno.test("dropped connections are resumed from where they broke", async () => {
  await using hub = new FakeHub((_, path, count) => {
    if (!isWeights(path) || count > 5) return undefined;
    // Five drops: more than the three tries that may bring nothing.
    return drop(WEIGHTS, (count - 1) * 50_000, count * 50_000);
  });
  await assertWhole(await hub.download());
  const ranges = hub.requests.filter((entry) => entry.includes("/model.safetensors")).map((entry) =>
    entry.split(" ")[2]
  );
  assertEquals(ranges, [undefined, ...[1, 2, 3, 4, 5].map((i) => `bytes=${i * 50_000}-`)]);
});

Deno.test("an interrupted download is resumed by the next one", async () => {
  let broken = true;
  await using hub = new FakeHub((request, path) => {
    if (!isWeights(path) || !broken) return undefined;
    return request.headers.has("range") ? new Response("", { status: 500 }) : drop(WEIGHTS, 0, 100_000);
  });
  await assertRejects(() => hub.download(), HubError, "(tried 3 times)");
  const blob = `${hub.cache}/models--org--name/blobs/${etagOf(WEIGHTS, true)}`;
  assertEquals((await Deno.stat(`${blob}.incomplete`)).size, 100_000);
  broken = false;
  await assertWhole(await hub.download());
  assert(hub.requests.at(-1)!.endsWith("bytes=100000-"), hub.requests.at(-1));
});

Deno.test("a server that cannot resume sends everything again", async () => {
  await using hub = new FakeHub((_, path, count) => {
    if (!isWeights(path)) return undefined;
    return count === 1 ? drop(WEIGHTS, 0, 100_000) : new Response(WEIGHTS);
  });
  await assertWhole(await hub.download());
});

Deno.test("too few bytes, too many bytes: an error with both numbers, and nothing in the snapshot", async () => {
  await using short = new FakeHub((request, path) =>
    isWeights(path) ? sendRange(request, WEIGHTS.slice(0, 1000)) : undefined
  );
  await assertRejects(() => short.download(), HubError, "1000 bytes came, the hub says it has 300000");
  assertEquals(
    await fileSource(`${short.cache}/models--org--name/snapshots/${COMMIT}`).size("model.safetensors"),
    undefined,
  );

  const longer = new Uint8Array(WEIGHTS.length + 1);
  await using long = new FakeHub((_, path) => isWeights(path) ? new Response(longer) : undefined);
  await assertRejects(() => long.download(), HubError, "more bytes came than the 300000");
});

Deno.test("wrong bytes: once is repaired, twice is an error", async () => {
  const wrong = WEIGHTS.map((byte, i) => i === 7 ? byte ^ 1 : byte);
  await using once = new FakeHub((_, path, count) => isWeights(path) && count === 1 ? new Response(wrong) : undefined);
  await assertWhole(await once.download());
  await using always = new FakeHub((_, path) => isWeights(path) ? new Response(wrong) : undefined);
  await assertRejects(() => always.download(), HubError, `its hash is not ${etagOf(WEIGHTS, true)}, twice`);
  await using small = new FakeHub((_, path) => path.endsWith("/tokenizer.json") ? new Response("[]") : undefined);
  await assertRejects(() => small.download(), HubError, 'Cannot download "tokenizer.json": its hash is not');
});

Deno.test("redirects are followed, and another origin never sees the token", async () => {
  await using storage = new FakeHub((request) => sendRange(request, WEIGHTS));
  await using hub = new FakeHub((_, path) =>
    isWeights(path) ? Response.redirect(`${storage.endpoint}/bucket/x?signature=1`, 302) : undefined
  );
  await assertWhole(await hub.download({ token: "hf_secret" }));
  assertEquals(new Set(hub.tokens), new Set(["Bearer hf_secret"]));
  assertEquals(storage.tokens, [null]);
});

for (const status of [401, 403]) {
  Deno.test(`${status}: what to do about it, without a second try`, async () => {
    await using hub = new FakeHub(() => new Response("", { status }));
    const error = await assertRejects(() => hub.download(), HubError, "set HF_TOKEN");
    assertEquals([error.status, hub.requests.length], [status, 1]);
    assert(error.message.includes("org/name"));
    await assertRejects(() => hub.download({ token: "x" }), HubError, "accept its licence");
  });
}

Deno.test("404: names the model, and the revision where that is what is missing", async () => {
  await using hub = new FakeHub(() => new Response("", { status: 404 }));
  await assertRejects(() => hub.download(), HubError, 'Cannot download "org/name": there is no such model');
  const headers = { "x-error-code": "RevisionNotFound" };
  await using other = new FakeHub(() => new Response("", { status: 404, headers }));
  await assertRejects(() => other.download({ revision: "dev" }), HubError, 'it has no revision "dev"');
});

Deno.test("429: waits as long as the server asks, and no longer than allowed", async () => {
  const answers = [{ "retry-after": "1" }, { "retry-after": new Date(Date.now() - 5000).toUTCString() }];
  await using hub = new FakeHub((_, path, count) =>
    isWeights(path) && count <= 2 ? new Response("", { status: 429, headers: answers[count - 1]! }) : undefined
  );
  const begin = performance.now();
  await assertWhole(await hub.download());
  assert(performance.now() - begin >= 1000, "Retry-After of a second");
  await using forever = new FakeHub(() => new Response("", { status: 429, headers: { "retry-after": "3600" } }));
  const retries = { attempts: 3, baseDelayMs: 1, maxDelayMs: 5 };
  await assertRejects(() => forever.download({ retries }), HubError, "the hub answered 429");
});

Deno.test("5xx: tried again, then an error that says how often", async () => {
  await using hub = new FakeHub((_, __, count) => count <= 2 ? new Response("", { status: 502 }) : undefined);
  await assertWhole(await hub.download());
  await using down = new FakeHub(() => new Response("", { status: 503 }));
  await assertRejects(() => down.download(), HubError, "(tried 3 times)");
});

Deno.test("no connection at all: two tries, the cause, and what helps", async () => {
  // A port that was just free: nobody listens there.
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  const retries = { attempts: 6, baseDelayMs: 1 };
  const download = (endpoint: string): Promise<HubError> => {
    const environment = { endpoint, cache: "none", offline: false };
    return assertRejects(() => downloadModel("org/name", { environment, retries }), HubError);
  };
  const refused = (await download(`http://127.0.0.1:${port}`)).message;
  assert(/refused.* \(tried 2 times\)\. HF_HUB_OFFLINE=1 uses what is in the cache$/.test(refused), refused);
  assert((await download("http://no-such-host.invalid")).message.includes("dns error"));
  const blocked = (await download("http://127.0.0.1:1")).message;
  assert(/port 1 are blocked\. HF_HUB_OFFLINE=1/.test(blocked), blocked);
  for (const endpoint of ["hub.example", "ftp://hub.example"]) {
    assert((await download(endpoint)).message.startsWith(`Cannot use HF_ENDPOINT "${endpoint}": give`));
  }
});

Deno.test("a connection that broke once is worth all tries, even where the next ones fail at connecting", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  const once = listener.accept().then((connection) => (listener.close(), connection.close()));
  const environment = { endpoint: `http://127.0.0.1:${port}`, cache: "none", offline: false };
  const retries = { attempts: 4, baseDelayMs: 1 };
  await assertRejects(() => downloadModel("org/name", { environment, retries }), HubError, "(tried 4 times)");
  await once;
});

Deno.test("a connection that brings nothing counts as dropped", async () => {
  await using hub = new FakeHub((_, path, count) => {
    if (!isWeights(path) || count > 1) return undefined;
    let timer: ReturnType<typeof setTimeout>;
    const body = new ReadableStream({
      start(controller) {
        controller.enqueue(WEIGHTS.slice(0, 1000));
        timer = setTimeout(() => controller.close(), 3000);
      },
      cancel: () => clearTimeout(timer),
    });
    return new Response(body);
  });
  await assertWhole(await hub.download({ retries: { attempts: 3, baseDelayMs: 1, stallMs: 100 } }));
  assert(hub.requests.some((entry) => entry.endsWith("bytes=1000-")));
});

Deno.test("two downloads at once do not collide, and share the bytes", async () => {
  await using hub = new FakeHub();
  const folders = await Promise.all([hub.download(), hub.download()]);
  for (const folder of folders) await assertWhole(folder);
  assertEquals(hub.requests.filter((entry) => entry.includes("/model.safetensors")).length, 1);
});

Deno.test("aborting stops at once and leaves the rest for later", async () => {
  const controller = new AbortController();
  await using hub = new FakeHub((_, path, count) => {
    if (isWeights(path) && count === 1) controller.abort(new Error("enough"));
    return undefined;
  });
  await assertRejects(() => hub.download({ signal: controller.signal }), Error, "enough");
  await assertWhole(await hub.download());
});

Deno.test("a mirror whose list has names alone: sizes and hashes from the files' headers", async () => {
  await using hub = new FakeHub(() => undefined, { sizes: false });
  await assertWhole(await hub.download());
});

Deno.test("answers that make no sense, and paths that lead out of the cache", async () => {
  await using hub = new FakeHub(() => new Response("<html>"));
  await assertRejects(() => hub.download(), HubError, "is no JSON");
  await using empty = new FakeHub(() => Response.json({ sha: "../..", siblings: [] }));
  await assertRejects(() => empty.download(), HubError, "names no commit");
  await using pytorch = new FakeHub(() =>
    Response.json({ sha: COMMIT, siblings: [{ rfilename: "pytorch_model.bin" }] })
  );
  await assertRejects(() => pytorch.download(), HubError, "it has no model*.safetensors");
  await assertRejects(() => hub.download({ revision: "../x" }), HubError, "is no branch, tag or commit");
  await assertRejects(() => downloadModel("../x"), HubError, "is named org/name");
  assertEquals(["Qwen/Qwen2-0.5B", "gpt2", "a/b/c", "/a", "a/..", "./a"].map(isHubId), [
    true,
    true,
    false,
    false,
    false,
    false,
  ]);
});

Deno.test("environment: Hugging Face's variables, in its order", async () => {
  const read = (variables: Record<string, string>) => readHubEnvironment((name) => variables[name]);
  const home = await Deno.makeTempDir();
  const plain = { endpoint: "https://huggingface.co", cache: `${home}/.cache/huggingface/hub`, offline: false };
  assertEquals(await read({ HOME: home }), plain);
  assertEquals((await read({ HOME: home, XDG_CACHE_HOME: "/x" })).cache, "/x/huggingface/hub");
  assertEquals((await read({ HOME: home, HF_HOME: "~/hf" })).cache, `${home}/hf/hub`);
  const all = {
    HOME: home,
    HF_HOME: "/hf",
    HF_HUB_CACHE: "/c",
    HF_ENDPOINT: "http://m/",
    HF_TOKEN: "t",
    HF_HUB_OFFLINE: "1",
  };
  assertEquals(await read(all), { endpoint: "http://m", cache: "/c", token: "t", offline: true });
  await Deno.writeTextFile(`${home}/token`, "from-file\n");
  assertEquals((await read({ HF_HOME: home })).token, "from-file");
  await Deno.remove(home, { recursive: true });
});
