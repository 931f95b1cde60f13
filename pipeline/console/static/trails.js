// The switches of the trails, HIPAA, and when a trail was off.
import { h, field, badge, dialog, toast, note } from './dom.js';
import { t, word, time, ago, duration } from './text.js';
import { get, put, of } from './api.js';

const names = ['activity', 'access'];
const day = 86_400_000;
const shownGaps = 50;

// trails is the card of an organization. It is made anew when something was switched.
export async function trails({ org, signal, admin }) {
  const s = await get(of(org, 'trails'), signal);
  const own = org === 'kansa';
  const card = h('section', { class: 'card', 'aria-label': t('rec') });
  const now = Date.now();

  // turn asks for a reason, switches, and has the card show what is so then.
  const turn = async (key, want, { title, text, action, danger, must }) => {
    const reason = h('textarea', { maxlength: 200 });
    const done = await dialog(title, [h('p', {}, text), field('reason', t('rec.reason'), reason, must ? t('rec.reason.must') : t('rec.reason.may'))], { action, danger, submit: async () => {
      const why = reason.value.trim().replace(/\s+/g, ' ');
      if (must && !why) throw Object.assign(new Error(), { faults: [{ field: 'reason', text: t('rec.reason.empty') }] });
      try {
        await put(of(org, 'trails'), { ...want, ...(why && { reason: why }) }, String(s.revision));
      } catch (err) {
        if (err.status === 412) err.faults = [{ text: t('changed.meanwhile') }];
        throw err;
      }
    } });
    if (!done) return;
    toast(t('saved.ok'));
    const next = await trails({ org, signal, admin });
    card.replaceWith(next);
    next.querySelector(`[data-switch="${key}"]`)?.focus();
  };
  const toggle = (key, label, on, disabled, onclick) =>
    h('button', { type: 'button', class: 'switch', role: 'switch', 'aria-checked': String(on), 'aria-label': label, 'data-switch': key, disabled: !admin || disabled, onclick }, h('span', { class: 'knob' }));

  const row = (name) => {
    const { on, gaps } = s[name];
    const last = gaps.at(-1);
    const soon = on && last && Date.parse(last.to) > now;
    const state = !on ? badge('bad', t('rec.off')) : soon ? badge('busy', t('rec.soon')) : badge('ok', t('rec.on'));
    const switchIt = () => turn(name, { [name]: !on }, on
      ? { title: t('rec.off.title', { trail: word('trail', name) }), text: t('rec.off.text'), action: t('rec.off.do'), danger: true, must: true }
      : { title: t('rec.on.title', { trail: word('trail', name) }), text: t('rec.on.text'), action: t('rec.on.do') });
    return h('div', { class: 'entry' },
      h('div', {}, h('h3', {}, word('trail', name), state), h('p', { class: 'hint' }, t('rec.what.' + name)),
        !on && h('p', {}, t('rec.since', { at: time(last.from), who: last.by, reason: last.reason }))),
      h('div', { class: 'side' }, toggle(name, t('rec.switch', { trail: word('trail', name) }), on, own || (s.hipaa && on), switchIt)));
  };
  const hipaa = h('div', { class: 'entry' },
    h('div', {}, h('h3', {}, 'HIPAA', s.hipaa && badge('warn', t('rec.hipaa.holds'))), h('p', { class: 'hint' }, t('rec.hipaa.hint'))),
    h('div', { class: 'side' }, toggle('hipaa', t('rec.hipaa'), s.hipaa, own, () => turn('hipaa', { hipaa: !s.hipaa }, s.hipaa
      ? { title: t('rec.hipaa.end'), text: t('rec.hipaa.end.text'), action: t('rec.hipaa.end'), danger: true }
      : { title: t('rec.hipaa.begin'), text: t('rec.hipaa.begin.text'), action: t('rec.hipaa.begin') }))));
  card.append(h('h2', {}, t('rec')), ...names.map(row), hipaa, ...history(s, now));
  if (own) card.append(note('info', t('rec.own')));
  return card;
}

// history shows the gaps on a line of time, and as a table.
function history(s, now) {
  const all = names.flatMap((name) => s[name].gaps.map((g) => ({ name, ...g, begin: Date.parse(g.from), end: g.to ? Date.parse(g.to) : now })));
  if (!all.length) return [h('h3', { class: 'apart' }, t('rec.gaps')), h('p', { class: 'hint' }, t('rec.gaps.none'))];
  const start = Math.min(now - 7 * day, ...all.map((g) => g.begin));
  const span = now - start;
  const line = (name) => {
    const gaps = all.filter((g) => g.name === name);
    const track = h('div', { class: 'track', role: 'img', 'aria-label': t('rec.line', { trail: word('trail', name), n: gaps.length }) });
    for (const g of gaps) {
      const bar = h('span', { title: `${time(g.from)} – ${g.to ? time(g.to) : t('rec.still')}: ${g.reason}` });
      bar.style.left = `min(${(100 * Math.max(0, g.begin - start)) / span}%, 100% - 3px)`; // the newest shows, too
      bar.style.width = `${(100 * Math.max(0, Math.min(g.end, now) - g.begin)) / span}%`;
      track.append(bar);
    }
    return h('div', { class: 'timeline' }, h('span', { class: 'label' }, word('trail', name)), track);
  };
  const newest = all.sort((a, b) => b.begin - a.begin).slice(0, shownGaps);
  return [
    h('h3', { class: 'apart' }, t('rec.gaps')),
    names.map(line),
    h('div', { class: 'timeline scale' }, h('span', {}), h('div', {}, h('span', {}, time(start).slice(0, 10)), h('span', {}, t('rec.now')))),
    h('div', { class: 'scroll' }, h('table', { class: 'stackable' },
      h('thead', {}, h('tr', {}, ['trail', 'from', 'to', 'length', 'by', 'reason'].map((c) => h('th', { scope: 'col' }, t('rec.col.' + c))))),
      h('tbody', {}, newest.map((g) => h('tr', {},
        h('td', { 'data-label': t('rec.col.trail') }, word('trail', g.name)),
        h('td', { 'data-label': t('rec.col.from') }, h('span', { title: ago(g.from) }, time(g.from))),
        h('td', { 'data-label': t('rec.col.to') }, g.to ? time(g.to) : badge('bad', t('rec.still'))),
        h('td', { 'data-label': t('rec.col.length') }, duration((g.end - g.begin) / 1000)),
        h('td', { 'data-label': t('rec.col.by') }, g.by),
        h('td', { 'data-label': t('rec.col.reason') }, g.reason)))))),
    all.length > newest.length && h('p', { class: 'hint' }, t('rec.more', { n: all.length - newest.length })),
    h('p', { class: 'hint' }, t('rec.gaps.hint')),
  ].flat().filter(Boolean);
}
