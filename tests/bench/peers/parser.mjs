// eventsource-parser on bytes, through a TextDecoder in stream mode as its users must, timed warm.
// The events of each read go into an array, as the decoders beside it return them; where nobody keeps an event, the
// compiler leaves it out.
// Usage: parser.mjs N REPEATS; prints the seconds to decode N tiny events in reads of 64 KiB: the median of REPEATS
// warm runs, or with 0 those of the very first run, which is all that a short-lived process sees.

import { createParser } from "eventsource-parser";

const READ_BYTES = 64 * 1024;
const WARM_UP = 4;
const [count, repeats] = process.argv.slice(2).map(Number);
const blob = new TextEncoder().encode('event: a\ndata: {"a":1}\n\n'.repeat(count));

function countEvents() {
  let found = 0;
  let events = [];
  const parser = createParser({ onEvent: (event) => events.push(event) });
  const decoder = new TextDecoder();
  for (let at = 0; at < blob.length; at += READ_BYTES) {
    parser.feed(decoder.decode(blob.subarray(at, at + READ_BYTES), { stream: true }));
    found += events.length;
    events = [];
  }
  return found;
}

function timed() {
  const begin = performance.now();
  const found = countEvents();
  if (found !== count) throw new Error(`${found} events instead of ${count}`);
  return (performance.now() - begin) / 1000;
}

const seconds = Array.from({ length: repeats ? WARM_UP + repeats : 1 }, timed);
const counted = seconds.slice(repeats ? WARM_UP : 0).sort((a, b) => a - b);
console.log(counted[Math.floor(counted.length / 2)]);
