// What could not be stored: for which reasons, each with its bytes, and once more into the stream.
import { h, fill, note, field, badge, confirm, dialog, toast } from './dom.js';
import { t, number, bytes, time, ago } from './text.js';
import { get, post } from './api.js';

const path = '/api/v1/deadletters';
const atOnce = 20;

// deadLetters is a card that shows those of an organization, or of all.
export function deadLetters(org, signal) {
  const causes = h('div', {}), list = h('div', { 'aria-live': 'polite' }), more = h('div', { class: 'more' });
  const head = h('h2', {}, t('dead'));
  const card = h('section', { class: 'card', 'aria-label': t('dead'), id: 'dead' }, head, causes, list, more);
  let reason = '', known = '';

  const query = (values) => {
    const q = new URLSearchParams(Object.entries(values).filter(([, v]) => v));
    return q.size ? `?${q}` : '';
  };

  // look says how many there are; the list is drawn anew when that has changed.
  async function look() {
    const c = await get(path + '/causes' + query({ organization: org }), signal);
    const now = JSON.stringify([c.causes.map((x) => [x.kind, x.letters, x.last]), reason]);
    if (now === known) return;
    known = now;
    fill(head, t('dead'), ' ', badge(c.looked ? 'warn' : 'ok', (c.more ? '≥ ' : '') + number(c.looked)));
    if (!c.causes.some((x) => x.kind === reason)) reason = '';
    fill(causes, c.causes.length ? h('div', { class: 'scroll' }, h('table', { class: 'stackable' },
      h('thead', {}, h('tr', {}, ['dead.reason', 'dead.letters', 'dead.last', 'actions'].map((k) => h('th', { scope: 'col' }, t(k))))),
      h('tbody', {}, c.causes.map((x) => h('tr', { 'aria-selected': String(x.kind === reason) },
        h('td', {}, h('button', { class: 'open', 'aria-pressed': String(x.kind === reason), onclick: () => choose(x.kind) }, x.kind), x.example !== x.kind && h('p', { class: 'hint' }, x.example)),
        h('td', { 'data-label': t('dead.letters') }, number(x.letters)), h('td', { 'data-label': t('dead.last') }, ago(x.last)),
        h('td', {}, h('div', { class: 'actions tight' }, h('button', { onclick: () => replayAll(x) }, t('dead.replay.all')),
          h('button', { onclick: () => correct(x).catch((err) => toast(err.message, 'error')) }, t('dead.correct')),
          h('button', { onclick: () => discard(path + '/discard', { organization: org || undefined, reason: x.kind }, t('dead.discard.many', { n: number(x.letters), kind: x.kind })).catch((err) => toast(err.message, 'error')) }, t('dead.discard.all'))))))))) : h('p', { class: 'muted' }, t('dead.none')));
    await page(0);
  }

  function choose(kind) {
    reason = reason === kind ? '' : kind;
    look().catch((err) => toast(err.message, 'error'));
  }

  async function page(from) {
    const p = await get(path + query({ organization: org, reason, from, limit: atOnce }), signal);
    if (!from) fill(list);
    list.append(...p.letters.map(entry));
    fill(more, p.next && h('button', { onclick: () => page(p.next).catch((err) => toast(err.message, 'error')) }, t('more')));
  }

  function entry(l) {
    const body = h('div', {});
    return h('details', { class: 'letter', 'data-seq': l.seq, ontoggle: (ev) => { if (ev.target.open && !body.childElementCount) open(l, body); } },
      h('summary', {}, h('span', { class: 'code' }, `#${l.seq}`), ' ', h('span', {}, l.reason)), h('p', { class: 'hint' }, [time(l.time), l.organization, l.subject, t('dead.from', { place: l.stream_seq + (l.batch_index === undefined ? '' : '.' + l.batch_index) }), l.content_type, l.content_encoding, bytes(l.bytes)].filter(Boolean).join(' · ')), body);
  }

  async function open(l, body) {
    fill(body, h('p', { class: 'muted' }, t('loading')));
    try {
      const whole = await get(`${path}/${l.seq}`, signal);
      const raw = Uint8Array.from(atob(whole.data ?? ''), (c) => c.charCodeAt(0));
      const text = whole.text ? new TextDecoder().decode(raw) : undefined;
      const shown = h('pre', { class: 'json', tabindex: '0', 'aria-label': t('dead.bytes') }, text === undefined ? hex(raw) : visible(text));
      fill(body, shown, whole.cut && h('p', { class: 'hint' }, t('dead.cut', { n: bytes(raw.length), of: bytes(whole.bytes) })), h('div', { class: 'actions' },
        h('button', { class: 'primary', onclick: () => replay(l).catch((err) => toast(err.message, 'error')) }, t('dead.replay')),
        text !== undefined && !whole.cut && !l.content_encoding && h('button', { onclick: () => mend(l, text) }, t('dead.mend')),
        text !== undefined && h('button', { 'aria-pressed': 'false', onclick: (ev) => {
          const asHex = ev.target.getAttribute('aria-pressed') !== 'true';
          ev.target.setAttribute('aria-pressed', String(asHex));
          fill(shown, asHex ? hex(raw) : visible(text));
        } }, t('dead.hex')),
        h('button', { onclick: () => discard(`${path}/${l.seq}/discard`, {}, l.reason).catch((err) => toast(err.message, 'error')) }, t('dead.discard')),
        h('a', { class: 'button', href: `${path}/${l.seq}/data`, download: `deadletter-${l.seq}` }, t('dead.download'))));
    } catch (err) {
      fill(body, note('error', err.message));
    }
  }

  async function replay(l, data) {
    report(await post(`${path}/${l.seq}/replay`, data === undefined ? {} : { data: encode(data) }));
    known = '';
    await look();
  }

  // report says how many were replayed, and if some came back, that and why.
  function report(r) {
    const back = r.came_back ? ' ' + t('dead.back', { n: number(r.came_back), reason: r.causes[0]?.example ?? '' }) : '';
    const unfit = r.unfit ? ' ' + t('dead.unfit', { n: number(r.unfit), reason: r.problem }) : '';
    const unsettled = r.unsettled ? ' ' + t('dead.unsettled') : '';
    toast(t('dead.replayed', { n: number(r.replayed) }) + back + unfit + unsettled + (r.more ? ' ' + t('dead.replay.more') : ''), back || unfit ? 'error' : unsettled ? 'warn' : 'ok');
  }

  // discard asks why, and removes one letter, or those of a kind.
  async function discard(to, body, text) {
    const why = h('input', { type: 'text', maxlength: 1000 });
    await dialog(t('dead.discard'), [h('p', { class: 'hint' }, text), field('why', t('dead.why'), why, t('dead.why.hint'))], { action: t('dead.discard'), submit: async () => {
      if (!why.value.trim()) throw Object.assign(new Error(), { faults: [{ field: 'why', text: t('dead.why.empty') }] });
      const r = await post(to, { ...body, why: why.value });
      toast(t('dead.discarded', { n: number(r.discarded) }) + (r.more ? ' ' + t('dead.discard.more') : ''));
      known = '';
      await look();
    } });
  }

  // correct sets one field of all letters of a kind, and replays them.
  async function correct(cause) {
    const name = h('input', { type: 'text', class: 'code', spellcheck: 'false' }), value = h('input', { type: 'text', class: 'code', spellcheck: 'false' });
    await dialog(t('dead.correct'), [h('p', { class: 'hint' }, cause.example), field('set', t('dead.correct.field'), name, t('dead.correct.hint')), field('value', t('dead.correct.value'), value)], { action: t('dead.replay'), submit: async () => {
      if (!name.value.trim()) throw Object.assign(new Error(), { faults: [{ field: 'set', text: t('dead.correct.empty') }] });
      report(await post(path + '/replay', { organization: org || undefined, reason: cause.kind, set: { [name.value.trim()]: value.value } }));
      known = '';
      await look();
    } });
  }

  async function mend(l, text) {
    const area = h('textarea', { value: text, rows: 12, spellcheck: 'false', class: 'code' });
    await dialog(t('dead.mend'), [h('p', { class: 'hint' }, l.reason), field('data', t('dead.bytes'), area, t('dead.mend.hint'))], { action: t('dead.replay'), submit: async () => {
      if (!area.value.trim()) throw Object.assign(new Error(), { faults: [{ field: 'data', text: t('dead.mend.empty') }] });
      await replay(l, area.value);
    } });
  }

  async function replayAll(cause) {
    if (!(await confirm(t('dead.replay.all'), t('dead.replay.sure', { n: number(cause.letters), kind: cause.kind }), t('dead.replay.all')))) return;
    try {
      const r = await post(path + '/replay', { organization: org || undefined, reason: cause.kind });
      report(r);
      known = '';
      await look();
    } catch (err) {
      toast(err.message, 'error');
    }
  }

  return { card, look };
}

function encode(text) {
  let binary = '';
  for (const b of new TextEncoder().encode(text)) binary += String.fromCharCode(b);
  return btoa(binary);
}

// visible has a character for each that a screen would not show, or would obey.
const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) => (c < ' ' ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `\\u{${c.codePointAt(0).toString(16)}}`));

// hex is the usual dump, of the first bytes.
function hex(raw) {
  const lines = [];
  for (let i = 0; i < Math.min(raw.length, 4096); i += 16) {
    const some = [...raw.subarray(i, i + 16)];
    lines.push(`${i.toString(16).padStart(6, '0')}  ${some.map((b) => b.toString(16).padStart(2, '0')).join(' ').padEnd(47)}  ${some.map((b) => (b > 31 && b < 127 ? String.fromCharCode(b) : '.')).join('')}`);
  }
  return lines.join('\n') + (raw.length > 4096 ? '\n…' : '');
}
