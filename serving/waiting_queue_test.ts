import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { Sequence } from "./sequence.ts";
import { goesBefore, WaitingQueue } from "./waiting_queue.ts";

Deno.test("whatever comes and goes, the front is who goes before all others", () => {
  const priorities = fc.array(fc.tuple(fc.integer({ min: -2, max: 2 }), fc.boolean(), fc.nat()), { maxLength: 60 });
  fc.assert(
    fc.property(priorities, fc.boolean(), (actions, byPriority) => {
      const queue = new WaitingQueue(byPriority), waiting: Sequence[] = [];
      for (const [i, [priority, leaves, which]] of actions.entries()) {
        if (leaves && waiting.length > 0) {
          const [gone] = waiting.splice(which % waiting.length, 1);
          queue.remove(gone!);
          queue.remove(gone!); // who is not there is not missed
        } else {
          const sequence = new Sequence([1], {}, { priority });
          sequence.arrival = Math.floor(i / 3);
          sequence.serial = i;
          waiting.push(sequence);
          queue.push(sequence);
        }
        const first = waiting.toSorted((a, b) => goesBefore(a, b, byPriority) ? -1 : 1)[0];
        assertEquals([queue.peek(), queue.size], [first, waiting.length]);
      }
      assertEquals(new Set(queue), new Set(waiting));
    }),
    { seed: 5, numRuns: 200 },
  );
});
