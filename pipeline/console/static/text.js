// Words, numbers and times in the language and the time zone that was chosen.
let messages = {};
export const look = {
  lang: document.documentElement.lang,
  zone: localStorage.getItem('kansa.zone') ?? 'local',
};

export async function loadMessages() {
  const answer = await fetch(new URL('messages.json', import.meta.url));
  messages = await answer.json();
}

// t is a message, its {names} filled in.
export function t(key, values) {
  const m = messages[key]?.[look.lang];
  if (m === undefined) {
    console.error(`no message ${key}`);
    return key;
  }
  return values ? m.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all) : m;
}

// word is the message of a value that the API names, or the value itself.
export const word = (prefix, value) => messages[`${prefix}.${value}`]?.[look.lang] ?? value;

export const number = (n) => new Intl.NumberFormat(look.lang, { maximumFractionDigits: 1 }).format(n);

export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${number(n)} ${units[i]}`;
}

const two = (n, width = 2) => String(n).padStart(width, '0');

// parts of a time, in the zone that was chosen.
function parts(at) {
  const utc = look.zone === 'utc';
  const get = (what) => at[`get${utc ? 'UTC' : ''}${what}`]();
  return { day: `${two(get('FullYear'), 4)}-${two(get('Month') + 1)}-${two(get('Date'))}`, clock: `${two(get('Hours'))}:${two(get('Minutes'))}:${two(get('Seconds'))}`, ms: two(get('Milliseconds'), 3) };
}

const dateOf = (at) => (at instanceof Date ? at : new Date(at));

// time is a moment as people compare it: 2026-11-22 04:05:06.
export function time(at, { ms } = {}) {
  const p = parts(dateOf(at));
  return `${p.day} ${p.clock}${ms ? '.' + p.ms : ''}`;
}

export const minute = (at) => time(at).slice(0, 16);

export const zoneName = () => (look.zone === 'utc' ? 'UTC' : Intl.DateTimeFormat().resolvedOptions().timeZone);

// ago is how long ago, or how far ahead, a moment is.
export function ago(at) {
  const seconds = (dateOf(at) - Date.now()) / 1000;
  const steps = [['second', 60], ['minute', 60], ['hour', 24], ['day', 30], ['month', 12], ['year', Infinity]];
  let n = seconds;
  for (const [unit, size] of steps) {
    if (Math.abs(n) < size) return new Intl.RelativeTimeFormat(look.lang, { numeric: 'auto' }).format(Math.round(n), unit);
    n /= size;
  }
}

const f = (n, unit) => new Intl.NumberFormat(look.lang, { style: 'unit', unit, unitDisplay: 'long', maximumFractionDigits: 1 }).format(n);

export const hours = (n) => f(n, 'hour');

// duration is a number of seconds in words.
export function duration(seconds) {
  if (seconds < 1) return `${number(Math.round(seconds * 1000))} ms`;
  if (seconds < 120) return f(seconds, 'second');
  if (seconds < 7200) return f(seconds / 60, 'minute');
  if (seconds < 172800) return f(seconds / 3600, 'hour');
  return f(seconds / 86400, 'day');
}

// toInput and fromInput go between a moment and the value of a datetime-local field.
export function toInput(at) {
  if (!at) return '';
  const p = parts(dateOf(at));
  return `${p.day}T${p.clock}`;
}

export function fromInput(value) {
  if (!value) return undefined;
  const at = new Date(look.zone === 'utc' ? value + 'Z' : value);
  return Number.isNaN(at.getTime()) ? undefined : at;
}

export const iso = (at) => dateOf(at).toISOString().replace('.000Z', 'Z');

// weekday is the name of a day of the week, Sunday being 0.
export const weekday = (n) => new Intl.DateTimeFormat(look.lang, { weekday: 'long', timeZone: 'UTC' }).format(new Date(Date.UTC(2023, 0, 1 + n)));
