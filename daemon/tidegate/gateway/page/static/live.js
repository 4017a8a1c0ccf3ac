// One stream of news for a browser, however many tabs show the page: browsers open six connections
// to a server at most. The tab that has the stream tells the others; a hidden tab has none.

import { ask, events, Refused, token } from "./server.js";

const SILENT_MS = 3500; // the server says something each second
const AGAIN_MS = 800;
const REFUSED_AGAIN_MS = 10000; // 64 pages are open already
const BEGIN_MS = 10000; // a new worker may just be starting
const HUNG_MS = 5000; // a stream that says nothing for so long is left
const MARKS = 200;

// Tabs with another token see other things, so they talk on another channel. No secret: a name.
function channelName() {
  let hash = 2166136261;
  for (const char of token()) hash = Math.imul(hash ^ char.codePointAt(0), 16777619) >>> 0;
  return `tidegate-live-${hash.toString(16)}`;
}

export class Live {
  // hear(name, data): what the server says; onState("up" | "down" | "door", message)
  constructor(hear, onState) {
    this.hear = hear;
    this.onState = onState;
    this.samples = null; // for a tab that comes later
    this.heardMs = 0;
    this.abort = null;
    this.notBefore = 0;
    this.isShut = false; // a token is needed, or another one: without it there is nothing to ask for
    document.addEventListener("visibilitychange", () => {
      this.isShut = false;
      this.look();
    });
    window.addEventListener("pagehide", () => this.leave());
    setInterval(() => this.look(), 500);
    this.start();
  }

  start() {
    this.stop();
    this.channel?.close();
    this.channel = new BroadcastChannel(channelName());
    this.channel.onmessage = ({ data }) => this.onMessage(data);
    this.channel.postMessage({ kind: "hello" });
    this.heardMs = performance.now() - SILENT_MS + 250; // another tab may answer by then
    this.notBefore = 0;
    this.isShut = false;
    setTimeout(() => this.look(), 260);
  }

  get leads() {
    return this.abort !== null;
  }

  onMessage(message) {
    if (message.kind === "hello") {
      if (this.leads && this.samples) this.channel.postMessage({ kind: "news", name: "samples", data: this.samples });
    } else if (message.kind === "news") {
      if (this.leads && message.rank > this.rank) this.stop(); // two began at once
      this.take(message.name, message.data);
    } else if (message.kind === "bye") {
      this.heardMs = performance.now() - SILENT_MS + 300 * Math.random();
    }
  }

  take(name, data) {
    this.heardMs = performance.now();
    if (name === "samples") this.samples = data;
    else if (name === "sample" && this.samples) {
      this.samples.rows.push(data);
      if (this.samples.rows.length > 720) this.samples.rows.shift();
    } else if (name === "mark" && this.samples) {
      this.samples.marks.push(data);
      if (this.samples.marks.length > MARKS) this.samples.marks.shift();
    }
    this.hear(name, data);
  }

  look() {
    if (document.hidden) {
      this.leave();
      return;
    }
    const now = performance.now();
    if (!this.leads && !this.isShut && now >= this.notBefore && now - this.heardMs > SILENT_MS) this.lead();
  }

  // Gives the stream up, for another tab to take at once.
  leave() {
    if (!this.leads) return;
    this.stop();
    this.channel.postMessage({ kind: "bye" });
  }

  stop() {
    this.abort?.abort();
    this.abort = null;
  }

  async lead() {
    const abort = new AbortController();
    this.abort = abort;
    this.rank = Math.random();
    let againMs = AGAIN_MS;
    let timer = setTimeout(() => abort.abort(), BEGIN_MS);
    try {
      const response = await ask("/v1/live", { signal: abort.signal, headers: { accept: "text/event-stream" } });
      this.onState("up");
      for await (const { event, data } of events(response)) {
        clearTimeout(timer);
        timer = setTimeout(() => abort.abort(), HUNG_MS);
        const value = JSON.parse(data);
        this.take(event, value);
        this.channel.postMessage({ kind: "news", name: event, data: value, rank: this.rank });
      }
    } catch (error) {
      if (this.abort === abort) {
        if (error instanceof Refused && error.status === 401) {
          this.isShut = true;
          this.onState("door", token() ? error.message : "");
        } else {
          if (error.code === "too_many_pages") againMs = REFUSED_AGAIN_MS;
          this.onState("down", error instanceof Refused ? error.message : "");
        }
      }
    } finally {
      clearTimeout(timer);
      if (this.abort === abort) {
        this.abort = null;
        this.notBefore = performance.now() + againMs;
        this.heardMs = 0;
      }
    }
  }
}
