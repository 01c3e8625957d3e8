// Numbers and times as people of the language read them.

import { language, t } from "./texts.js";

function scaled(n, units) {
  let unit = 0;
  let value = n;
  while (value >= 999.5 && unit + 1 < units.length) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  const text = value.toLocaleString(language(), { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${text} ${units[unit]}`.trim();
}

/** Bytes in decimal units, as disks count them. */
export const bytes = (n) => scaled(n, ["B", "kB", "MB", "GB", "TB", "PB"]);
/** A count of parameters. */
export const count = (n) => scaled(n, language() === "de" ? ["", "Tsd.", "Mio.", "Mrd.", "Bio."] : ["", "K", "M", "B", "T"]);
export const percent = (share) => (share).toLocaleString(language(), { style: "percent", maximumFractionDigits: 0 });

/** A moment: exact to who points at it. */
export function time(text) {
  const moment = new Date(text);
  const element = document.createElement("time");
  element.dateTime = text;
  element.title = moment.toLocaleString(language(), { dateStyle: "full", timeStyle: "medium" });
  element.textContent = when(moment);
  return element;
}

function when(moment) {
  const seconds = (Date.now() - moment.getTime()) / 1000;
  const relative = new Intl.RelativeTimeFormat(language(), { numeric: "auto" });
  if (seconds < 45) return t("time.now");
  if (seconds < 3600) return relative.format(-Math.max(1, Math.round(seconds / 60)), "minute");
  if (seconds < 22 * 3600) return relative.format(-Math.round(seconds / 3600), "hour");
  return moment.toLocaleDateString(language(), { dateStyle: "medium" });
}

/** Hours, minutes, seconds of a moment. */
export const clock = (text) => new Date(text).toLocaleTimeString(language());

/** How long from one moment to another. */
export function span(from, to) {
  const seconds = Math.max(0, (new Date(to) - new Date(from)) / 1000);
  const number = (n, digits) => n.toLocaleString(language(), { maximumFractionDigits: digits });
  if (seconds < 60) return `${number(seconds, seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}
