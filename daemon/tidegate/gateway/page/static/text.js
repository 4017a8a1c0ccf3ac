// Numbers as people write them.

const MIB = 1024 * 1024;
const whole = new Intl.NumberFormat("en");
const clockText = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const secondsText = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayText = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const count = (value) => (value === null || value === undefined ? "unknown" : whole.format(value));

export const mib = (bytes) => `${whole.format(Math.round(bytes / MIB))} MiB`;

export function size(bytes) {
  if (bytes < 1024) return `${whole.format(bytes)} B`;
  if (bytes < MIB) return `${whole.format(Math.round(bytes / 1024))} KiB`;
  return bytes < 100 * MIB ? `${(bytes / MIB).toFixed(1)} MiB` : mib(bytes);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export const clockWithSeconds = (unix) => secondsText.format(new Date(unix * 1000));
export const clock = (unix) => clockText.format(new Date(unix * 1000));

export function when(unix) {
  const today = new Date().toDateString() === new Date(unix * 1000).toDateString();
  return (today ? clockText : dayText).format(new Date(unix * 1000));
}

export const speed = (perSecond, unit = "tokens/s") => (perSecond ? `${perSecond < 10 ? perSecond.toFixed(1) : Math.round(perSecond)} ${unit}` : "");

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
