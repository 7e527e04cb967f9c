// Asks the daemon. Every request has a time-out: a daemon that hangs accepts connections, and does not answer.

// With the time between two questions less than the two seconds within which an absence is said; and more than a
// busy node needs for an answer, which takes some milliseconds of processor time.
const ANSWER_MS = 1000;
const STEP_MS = 10000;

export class Refusal extends Error {}

async function ask(path, query, timeoutMs) {
  const text = new URLSearchParams(query).toString();
  const answer = await fetch(`api/${path}${text && "?"}${text}`, { signal: AbortSignal.timeout(timeoutMs), cache: "no-store" });
  const found = await answer.json();
  if (!answer.ok) throw new Refusal(found.error ?? `the daemon answered ${answer.status}`);
  return found;
}

export const askNode = () => ask("node", {}, ANSWER_MS);
export const askDirectory = (volume, path, cookie) => ask("directory", { volume, path, cookie }, STEP_MS);
export const askCount = (query) => ask("count", query, STEP_MS);
