// What an organization records, and its rules: exports, retention, legal hold.
import { h, note, field, check, badge, toast, showFaults } from './dom.js';
import { t, word, time } from './text.js';
import { get, put, of } from './api.js';
import { go } from './route.js';
import { trails as switches } from './trails.js';

const gib = 1024 ** 3;

export async function render(main, { org, signal, admin }) {
  const [o, recorded] = await Promise.all([get(of(org), signal), switches({ org, signal, admin })]);
  const fields = h('fieldset', { disabled: true });
  const trails = ['activity', 'access'].map((n) => check('exports', word('trail', n), !(o.exports_off ?? []).includes(n), { value: n }));
  const c = {
    exports_per_day: h('input', { type: 'number', min: 0, max: 1000, value: o.exports_per_day }),
    retention_days: h('input', { type: 'number', min: 1, max: 36500, value: o.retention_days }),
    retention_bytes: h('input', { type: 'number', min: 0, step: 'any', value: o.retention_bytes ? o.retention_bytes / gib : '', placeholder: t('org.no.bound') }),
    reason: h('textarea', { value: o.hold?.reason ?? '', maxlength: 1000 }),
  };
  const hold = check('hold', t('org.hold.on'), !!o.hold);
  const holdBox = hold.querySelector('input');
  const reason = field('hold.reason', t('org.hold.reason'), c.reason, t('org.hold.reason.hint'));
  const box = h('div', {});
  const bar = h('div', { class: 'actions sticky' });
  const edit = h('button', { type: 'button', onclick: () => { fields.disabled = false; bar.replaceChildren(submit, cancel); trails[0].querySelector('input').focus(); } }, t('edit'));
  const submit = h('button', { class: 'primary', type: 'submit' }, t('save'));
  const again = () => go(location.pathname + location.search, { replace: true });
  const cancel = h('button', { type: 'button', onclick: again }, t('cancel'));
  if (admin) bar.append(edit);
  const arrange = () => { reason.hidden = !holdBox.checked; };
  holdBox.addEventListener('change', arrange);
  arrange();

  fields.append(
    h('section', { class: 'card' }, h('h2', {}, t('org.exports')), h('div', { class: 'grid' },
      h('div', { class: 'field', 'data-field': 'exports_off', role: 'group', 'aria-label': t('org.exports.trails') }, h('span', { class: 'label' }, t('org.exports.trails')), h('div', { class: 'actions tight' }, trails), h('p', { class: 'hint' }, t('org.exports.hint'))),
      field('exports_per_day', t('org.per.day'), c.exports_per_day, t('org.per.day.hint')))),
    h('section', { class: 'card' }, h('h2', {}, t('org.retention')), h('div', { class: 'grid' },
      field('retention_days', t('org.days'), c.retention_days, t('org.days.hint')), field('retention_bytes', t('org.gib'), c.retention_bytes, t('org.gib.hint')))),
    h('section', { class: 'card' }, h('h2', {}, t('org.hold'), ' ', o.hold && badge('warn', t('org.hold.holds'))),
      h('div', { class: 'stack' }, hold, reason, o.hold && h('p', { class: 'hint shown' }, t('org.hold.since', { who: o.hold.by, at: time(o.hold.since) })))));

  const form = h('form', { novalidate: true, onsubmit: async (ev) => {
    ev.preventDefault();
    const faults = [];
    const whole = (name, low, high) => {
      const n = Number(c[name].value);
      if (c[name].value === '' || !Number.isInteger(n) || n < low || n > high) faults.push({ field: name, text: t('number.wrong', { value: c[name].value, low, high }) });
      return n;
    };
    const size = Number(c.retention_bytes.value || 0);
    if (!(size >= 0)) faults.push({ field: 'retention_bytes', text: t('org.gib.wrong') });
    if (holdBox.checked && !c.reason.value.trim()) faults.push({ field: 'hold.reason', text: t('org.hold.reason.empty') });
    const { meta: _meta, hold: was, exports_off: _off, retention_bytes: _bytes, ...rest } = o;
    const value = { ...rest, exports_per_day: whole('exports_per_day', 0, 1000), retention_days: whole('retention_days', 1, 36500) };
    const off = trails.map((b) => b.querySelector('input')).filter((i) => !i.checked).map((i) => i.value);
    if (off.length) value.exports_off = off;
    if (size) value.retention_bytes = Math.round(size * gib);
    if (holdBox.checked) value.hold = { by: was?.by ?? '', since: was?.since ?? new Date(0).toISOString(), reason: c.reason.value.trim() };
    if (faults.length) return showFaults(form, box, { faults });
    submit.disabled = true;
    try {
      await put(of(org), value, String(o.meta?.revision ?? 0));
      toast(t('saved.ok'));
      await again();
    } catch (err) {
      if (err.status === 409 || err.status === 412) err.faults = [{ text: t('changed.meanwhile') }];
      showFaults(form, box, err);
    } finally {
      submit.disabled = false;
    }
  } }, box, fields, bar);
  main.append(h('div', { class: 'pagehead' }, h('h1', {}, t('nav.organization'), ' ', h('span', { class: 'muted' }, org))), recorded, form,
    o.meta?.revision ? h('p', { class: 'hint' }, t('changed.last', { who: o.meta.by ?? '–', at: time(o.meta.updated) })) : note('info', t('org.defaults')));
}
