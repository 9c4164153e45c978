import { assert, assertEquals } from "@std/assert";
import { seededRandom } from "../kernels/random.ts";
import { hashBlock } from "./block_hash.ts";
import { type BlockContent, PrefixCache } from "./prefix_cache.ts";

function content(tokens: number[], parent = 0, salt?: string): BlockContent {
  return { parent, tokens, start: 0, salt };
}

/**
 * Two contents of one hash, found by trying: among 300,000 of 2^32 hashes about ten pairs are alike. (Contents that differ in
 * one word alone never are: the hash mixes each word in by a permutation.)
 */
function collision(make: (i: number) => BlockContent): [BlockContent, BlockContent] {
  const seen = new Map<number, number>();
  for (let i = 0; i < 1_000_000; i++) {
    const { parent, tokens, salt } = make(i), hash = hashBlock(parent, tokens, 0, tokens.length, salt);
    const other = seen.get(hash);
    if (other !== undefined) return [make(other), make(i)];
    seen.set(hash, i);
  }
  throw new Error("a million hashes are all different");
}

Deno.test("contents of one hash are told apart by tokens, prefix and salt", () => {
  const kinds: ((i: number) => BlockContent)[] = [
    (i) => content([i, i * i % 999_983]),
    (i) => content([3, 7], i + 1 + 2 ** 32 * (i * i % 999_983)),
    (i) => content([3, 7], 0, `tenant ${i}`),
  ];
  for (const make of kinds) {
    const [a, b] = collision(make), cache = new PrefixCache(4, 2);
    cache.insert(2, a);
    assertEquals([cache.find(a), cache.find(b)], [2, -1]);
    cache.insert(0, b);
    assertEquals([cache.find(a), cache.find(b)], [2, 0]);
    assert(cache.identityOf(0) !== cache.identityOf(2));
    cache.remove(2);
    assertEquals([cache.find(a), cache.find(b), cache.identityOf(2)], [-1, 0, 0]);
  }
});

Deno.test("two blocks of one content have one identity, and either is found without the other", () => {
  const cache = new PrefixCache(3, 2), same = content([1, 2]);
  cache.insert(0, same);
  cache.insert(1, same);
  const identity = cache.identityOf(0);
  assertEquals(cache.identityOf(1), identity);
  cache.insert(2, content([3, 4], identity));
  cache.remove(cache.find(same));
  assert(cache.find(same) >= 0);
  assertEquals(cache.identityOf(cache.find(same)), identity);
  cache.remove(cache.find(same));
  assertEquals(cache.find(same), -1);
  cache.insert(0, same);
  assert(cache.identityOf(0) !== identity, "the content of an identity is never another's");
});

Deno.test("no salt, an empty salt, and a salt behind the first block", () => {
  const cache = new PrefixCache(3, 1);
  cache.insert(0, content([5]));
  cache.insert(1, content([5], 0, ""));
  assertEquals([cache.find(content([5])), cache.find(content([5], 0, "")), cache.find(content([5], 0, "x"))], [
    0,
    1,
    -1,
  ]);
  cache.insert(2, content([6], cache.identityOf(1), "")); // the identity in front carries the salt
  assertEquals(cache.find(content([6], cache.identityOf(1))), 2);
  assertEquals(cache.find(content([6], cache.identityOf(0))), -1);
});

Deno.test("hashes spread over buckets as random numbers do", () => {
  const { integer } = seededRandom(8), buckets = 4096, count = 4 * buckets;
  const kinds: ((i: number) => number)[] = [
    (i) => hashBlock(i + 1, [1, 2, 3, 4], 0, 4), // prefixes alone
    (i) => hashBlock(2 ** 40 + i * 2 ** 32, [1, 2, 3, 4], 0, 4), // their upper halves
    (i) => hashBlock(0, [9, 9, 9, i], 0, 4), // one token
    (i) => hashBlock(0, [i, i, i, i], 0, 4), // repeated tokens
    () => hashBlock(0, [0, 1, 2, 3].map(() => integer(0, 150_000)), 0, 4),
  ];
  for (const hash of kinds) {
    const counts = new Float64Array(buckets);
    for (let i = 0; i < count; i++) counts[hash(i) & (buckets - 1)]!++;
    // Pearson's chi-squared over 4,095 degrees of freedom: five standard deviations of sqrt(2 * 4095) around them.
    const chiSquared = counts.reduce((sum, seen) => sum + (seen - 4) ** 2 / 4, 0);
    assert(chiSquared < 4095 + 5 * Math.sqrt(2 * 4095), `chi-squared is ${chiSquared}`);
  }
});
