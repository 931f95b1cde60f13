// Archives: what one would hold, those that are made, and their links.
import { h, fill, note, field, check, badge, confirm, toast, every, debounce, showFaults } from './dom.js';
import { t, word, number, bytes, time, toInput, fromInput, iso, ago, zoneName } from './text.js';
import { get, post, of } from './api.js';

const kinds = { waiting: 'busy', running: 'busy', retrying: 'warn', done: 'ok', failed: 'bad' };
const trails = ['activity', 'access'];
const atOnce = 30;
// What events are chosen by, and what the search calls it.
const filterNames = ['event', 'action', 'outcome', 'actor_id', 'source', 'target_type', 'target_id', 'app_id', 'ip', 'data_type', 'text'];
const filterWords = { actor_id: 'userId', target_type: 'target', target_id: 'targetId', app_id: 'appId', data_type: 'dataType' };

export async function render(main, { org, signal, params }) {
  const destinations = await get(of(org, 'destinations'), signal);
  const chosen = params.get('trail');
  const boxes = trails.map((name) => check('trails', word('trail', name), !chosen || chosen === name, { value: name }));
  const from = h('input', { type: 'datetime-local', step: 1, value: toInput(params.get('start')) });
  const to = h('input', { type: 'datetime-local', step: 1, value: toInput(params.get('end')) });
  const mail = h('input', { type: 'text', inputmode: 'email', autocomplete: 'email', placeholder: 'auditor@example.com', maxlength: 1000 });
  const where = h('select', {}, h('option', { value: '' }, t('exports.by.mail')), destinations.map((d) => h('option', { value: d.name }, d.name)));
  const mailField = field('mail_to', t('exports.mail'), mail, t('exports.mail.hint'));
  const estimate = h('div', { class: 'tiles', 'aria-live': 'polite' });
  const box = h('div', {});
  const list = h('div', {});
  const start = h('button', { class: 'primary', type: 'submit' }, t('exports.start'));

  // What is in the archive, and for whom it can be opened.
  const format = h('select', {}, h('option', { value: '' }, t('format.csv')), ['tsv', 'ndjson', 'json', 'cef'].map((f) => h('option', { value: f }, t('format.' + f))));
  const profile = h('select', {});
  const overflow = h('select', {}, ['file', 'text'].map((v) => h('option', { value: v }, t('overflow.' + v))));
  const safe = h('select', {}, [['', 'safe.usual'], ['true', 'safe.on'], ['false', 'safe.off']].map(([v, key]) => h('option', { value: v }, t(key))));
  const recipients = h('textarea', { rows: 2, spellcheck: 'false', placeholder: 'age1…' });
  const filters = Object.fromEntries(filterNames.map((f) => [f, f === 'outcome' ? h('select', {}, ['', 'success', 'failure', 'denied', 'unknown'].map((v) => h('option', { value: v }, v ? word('outcome', v) : t('filter.any')))) : h('input', { maxlength: 4096, autocomplete: 'off', spellcheck: 'false' })]));
  const profileField = field('profile', t('exports.profile'), profile, t('exports.profile.hint'));
  const overflowField = field('cef_overflow', t('exports.overflow'), overflow, t('exports.overflow.hint'));
  const safeField = field('spreadsheet_safe', t('exports.safe'), safe, t('exports.safe.hint'));
  const content = h('details', { class: 'wide' }, h('summary', {}, t('exports.content')), h('div', { class: 'grid' },
    field('format', t('exports.format'), format, t('exports.format.hint')), profileField, overflowField, safeField,
    h('div', { class: 'wide' }, h('span', { class: 'label' }, t('exports.filter')), h('p', { class: 'hint' }, t('exports.filter.hint'))),
    Object.entries(filters).map(([name, control]) => field('filter.' + name, t('filter.' + (filterWords[name] ?? name)), control)),
    h('div', { class: 'wide' }, field('age_recipients', t('exports.age'), recipients, t('exports.age.hint')))));

  function arrange() {
    mailField.hidden = where.value !== '';
    const f = format.value || 'csv';
    profileField.hidden = f === 'cef';
    overflowField.hidden = f !== 'cef';
    safeField.hidden = f !== 'csv' && f !== 'tsv';
    const usual = f === 'tsv' ? 'qlik' : 'kansa', was = profile.value;
    fill(profile, ['kansa', 'qlik', 'dataprep'].map((p) => h('option', { value: p === usual ? '' : p }, t('profile.' + p))));
    profile.value = [...profile.options].some((o) => o.value === was) ? was : '';
  }

  const body = () => {
    const filter = Object.fromEntries(Object.entries(filters).map(([name, c]) => [name, c.value.trim()]).filter(([, v]) => v));
    const keys = recipients.value.split(/[\s,;]+/).filter(Boolean);
    return {
      trails: boxes.map((b) => b.querySelector('input')).filter((i) => i.checked).map((i) => i.value),
      from: from.value ? iso(fromInput(from.value)) : undefined, to: to.value ? iso(fromInput(to.value)) : undefined,
      format: format.value || undefined, profile: (!profileField.hidden && profile.value) || undefined, cef_overflow: overflowField.hidden || overflow.value === 'file' ? undefined : overflow.value,
      spreadsheet_safe: safeField.hidden || !safe.value ? undefined : safe.value === 'true',
      filter: Object.keys(filter).length ? filter : undefined, age_recipients: keys.length ? keys : undefined,
    };
  };

  const form = h('form', { class: 'card', novalidate: true, onsubmit: async (ev) => {
    ev.preventDefault();
    const ask = body();
    if (where.value) ask.destination = where.value;
    else ask.mail_to = mail.value.split(/[\s,;]+/).filter(Boolean);
    const faults = [];
    if (!ask.trails.length) faults.push({ field: 'trails', text: t('exports.no.trail') });
    if (ask.from && ask.to && ask.from >= ask.to) faults.push({ field: 'to', text: t('range.order') });
    if (!where.value && !ask.mail_to.length) faults.push({ field: 'mail_to', text: t('exports.no.mail') });
    for (const a of ask.mail_to ?? []) if (!/^[^@\s]+@[^@\s]+$/.test(a)) faults.push({ field: 'mail_to', text: t('mail.wrong', { value: a }) });
    if (faults.length) return showFaults(form, box, { faults });
    start.disabled = true;
    try {
      const asked = await post(of(org, 'exports'), ask);
      showFaults(form, box);
      toast(t(asked.again ? 'exports.again' : 'exports.asked'));
      left(asked.left);
      await draw();
    } catch (err) {
      showFaults(form, box, err);
    } finally {
      start.disabled = false;
    }
  } },
  h('h2', {}, t('exports.new')), box,
  h('fieldset', {},
    h('div', { class: 'grid' },
      h('div', { class: 'field', 'data-field': 'trails', role: 'group', 'aria-label': t('exports.trails') }, h('span', { class: 'label' }, t('exports.trails')), h('div', { class: 'actions tight' }, boxes)),
      field('from', `${t('range.start')} (${zoneName()})`, from, t('exports.from.hint')), field('to', `${t('range.end')} (${zoneName()})`, to, t('exports.to.hint')),
      field('destination', t('exports.where'), where), mailField, content)),
  estimate, h('div', { class: 'actions' }, start));

  const tile = (value, label, kind) => h('div', { class: `tile ${kind ?? ''}` }, h('b', {}, value), h('span', {}, label));
  let lastLeft = [];
  const left = (all) => {
    lastLeft = Object.entries(all).map(([name, n]) => tile(number(n), t('exports.left', { trail: word('trail', name) }), n === 0 && 'bad'));
    for (const e of estimate.querySelectorAll('.left')) e.remove();
    estimate.append(...lastLeft.map((e) => { e.classList.add('left'); return e; }));
  };

  let asking;
  async function look() {
    asking?.abort();
    const mine = asking = new AbortController();
    signal.addEventListener('abort', () => mine.abort());
    const ask = body();
    if (!ask.trails.length || ask.from && ask.to && ask.from >= ask.to) return fill(estimate);
    estimate.setAttribute('aria-busy', 'true');
    try {
      const e = await post(of(org, 'exports', 'estimate'), ask, mine.signal);
      showFaults(form, box);
      const about = e.approximate ? '≤ ' : '';
      fill(estimate, tile(about + number(e.rows), t('exports.rows')), tile((e.approximate ? '≈ ' : '') + bytes(e.bytes), t(e.approximate ? 'exports.bytes.about' : 'exports.bytes')), tile(number(e.files), t('exports.files')),
        tile(`${time(e.from).slice(0, 16)} –`, time(e.to).slice(0, 16)));
      estimate.lastElementChild.classList.add('span');
      left(e.left);
    } catch (err) {
      if (err.name === 'AbortError') return;
      if (err.faults?.some((f) => f.field)) {
        fill(estimate);
        const at = document.activeElement;
        showFaults(form, box, err);
        at?.focus?.();
      } else fill(estimate, note('error', err.message));
    } finally {
      estimate.removeAttribute('aria-busy');
    }
  }
  const lookSoon = debounce(350, look);
  form.addEventListener('change', (ev) => {
    arrange();
    if (ev.target !== mail && ev.target !== where) lookSoon();
  });

  let working = false, shown = atOnce;
  async function draw() {
    const all = await get(of(org, 'exports'), signal);
    working = all.some((e) => ['waiting', 'running', 'retrying'].includes(e.state));
    fill(list, all.length ? all.slice(0, shown).map(entry) : h('div', { class: 'empty' }, t('exports.none')), all.length > shown && h('div', { class: 'more' }, h('button', { onclick: () => {
      shown += atOnce;
      draw();
    } }, t('more'))));
  }

  function entry(e) {
    const expired = e.expires && new Date(e.expires) < new Date();
    // First it is rendered, if it is; then it is sent.
    const rendering = e.state === 'running' && e.rows_to_render && !e.bytes;
    const share = rendering ? Math.min(1, (e.rows_rendered ?? 0) / e.rows_to_render) : e.bytes ? Math.min(1, (e.sent ?? 0) / e.bytes) : undefined;
    const content = [e.format && e.format !== 'csv' && e.format.toUpperCase(), e.profile && word('profile', e.profile), e.filter && t('exports.filtered'), e.age_recipients?.length && t('exports.encrypted')].filter(Boolean).join(', ');
    return h('article', { class: 'entry', 'aria-label': e.file ?? e.id },
      h('div', {},
        h('h3', {}, `${time(e.from).slice(0, 16)} – ${time(e.to).slice(0, 16)}`, badge(kinds[e.state] ?? 'quiet', word('state', e.state)), e.scheduled && badge('quiet', t('exports.scheduled'))),
        h('p', {}, [e.trails.map((n) => word('trail', n)).join(', '), e.rows !== undefined && t('exports.n.rows', { n: number(e.rows) }), e.bytes && bytes(e.bytes), content, e.destination ? `→ ${e.destination}` : `→ ${(e.mail_to ?? []).join(', ')}`].filter(Boolean).join(' · ')),
        e.state === 'running' && h('progress', { value: share ?? null, max: 1, 'aria-label': t('exports.progress') }),
        e.state === 'running' && h('p', { class: 'hint' }, share === undefined ? t('exports.progress') : rendering ? t('exports.rendering', { share: number(Math.floor(share * 100)), n: number(e.rows_rendered ?? 0), of: number(e.rows_to_render) }) : `${number(Math.floor(share * 100))} % · ${bytes(e.sent ?? 0)} / ${bytes(e.bytes)}`),
        e.error && note('error', e.error, e.attempts > 1 && ` (${t('exports.attempts', { n: e.attempts })})`),
        e.revoked ? h('p', { class: 'hint' }, t('exports.revoked', { at: time(e.revoked) })) : e.expires && h('p', { class: 'hint' }, t(expired ? 'exports.expired' : 'exports.expires', { at: time(e.expires), ago: ago(e.expires) })),
        h('p', { class: 'hint' }, t('exports.by', { who: e.requested_by || t('exports.scheduled'), at: time(e.created) }), e.file && [' · ', h('span', { class: 'code' }, e.file)])),
      h('div', { class: 'side' }, e.expires && !e.revoked && !expired && h('button', { class: 'danger', onclick: async () => {
        if (!(await confirm(t('exports.revoke'), t('exports.revoke.sure', { file: e.file ?? e.id }), t('exports.revoke')))) return;
        try {
          const now = await post(of(org, 'exports', e.id, 'revoke'));
          toast(t(now.revoked ? 'exports.revoke.done' : 'exports.revoke'));
          await draw();
        } catch (err) {
          toast(err.message, 'error');
        }
      } }, t('exports.revoke'))));
  }

  main.append(h('div', { class: 'pagehead' }, h('h1', {}, t('nav.exports'))), form, h('section', { class: 'card' }, h('h2', {}, t('exports.history')), list));
  arrange();
  look();
  await every(() => (working ? 1.5 : 15), signal, () => draw().catch((err) => { if (!signal.aborted) fill(list, note('error', err.message)); }));
}
