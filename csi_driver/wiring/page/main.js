// Asks the daemon for its state, and shows it, as long as the page is seen. An absence is said within two seconds.

import { askNode, Refusal } from "./daemon.js";
import { chooseVolume, mapVolume, noteCachedBytes, pauseMap, resumeMap } from "./map.js";
import { showReaders } from "./readers.js";
import { markVolume, onChoice, showStatus } from "./status.js";
import { byId, duration, setText } from "./text.js";
import { showThroughput } from "./throughput.js";

// The daemon looks at the node once a second, and answers from that look in between.
const POLL_MS = 300;

let last = null;
let awaySinceMs = null;
let lastNumber = null;

function select(volumeId, announce = false) {
  chooseVolume(volumeId, announce);
  markVolume(volumeId);
}

onChoice(select);

function showPresence(found) {
  if (awaySinceMs !== null) {
    awaySinceMs = null;
    document.documentElement.classList.remove("away");
    byId("absence").hidden = true;
    resumeMap();
  }
  const pill = byId("connection");
  pill.className = "pill live";
  setText(pill, "Live");
  document.title = found.all_conditions.length ? `(${found.all_conditions.length}) Hayloft` : "Hayloft";
}

function showAbsence(error) {
  const pill = byId("connection");
  if (awaySinceMs === null) {
    awaySinceMs = performance.now();
    document.documentElement.classList.add("away");
    pauseMap();
  }
  pill.className = "pill away";
  document.title = "(no answer) Hayloft";
  const hangs = error.name === "TimeoutError";
  setText(pill, "No answer");
  setText(byId("absence-title"), last === null ? "The cache daemon does not answer." : `No answer from the cache daemon for ${duration((performance.now() - awaySinceMs) / 1000)}: what is below is old.`);
  const why = error instanceof Refusal ? error.message : hangs
    ? "It accepts connections and does not answer: it is stopped, hangs or is overloaded. On the node, hayloft status says what its process does."
    : "Nothing listens at its port: it has ended or is being started, or the forwarding of the port has ended. Mounts stay, and complete files stay readable. The page goes on by itself.";
  setText(byId("absence-text"), why);
  byId("absence").hidden = false;
}

function show(found) {
  showPresence(found);
  if (found.number === lastNumber && last?.status.daemon.process_id === found.status.daemon.process_id) return;
  lastNumber = found.number;
  last = found;
  showStatus(found);
  if (found.throughput) showThroughput(found.throughput);
  showReaders(found.readers);
  const volumes = found.status.volumes;
  const chosen = volumes.find((one) => one.volume_id === mapVolume());
  if (!chosen) select(volumes.length ? volumes[0].volume_id : null);
  else { noteCachedBytes(chosen.cached_bytes); markVolume(chosen.volume_id); }
}

async function poll() {
  for (;;) {
    if (document.hidden) {
      pauseMap();
      await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
      if (!document.hidden) resumeMap();
      continue;
    }
    try {
      const found = await askNode();
      show(found);
    } catch (error) {
      if (!(error instanceof Refusal || error instanceof TypeError || ["TimeoutError", "AbortError", "SyntaxError"].includes(error.name))) throw error;
      showAbsence(error);
      showThroughput(null);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

poll();
